"""Classifiers of `bench train` as models of runs: bundled ones by name, others by file."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from bench.cli.catalogue import _models
from bench.core.errors import MissingDataError, UsageError
from bench.data.classes import CIFAR10
from bench.execution.checkpointing import FileCheckpointer
from bench.models import bundled as listed
from bench.models.bundled import bundled, bundled_file, summary
from bench.models.load_model import load_model
from bench.models.trained import load_trained
from bench.models.weights_io import load_stock, load_weights, preprocessing_of, save_weights, shown_name
from bench.runs.run import run
from bench.settings.run_spec import make_spec
from bench.settings.training_specs import command_of
from bench.training.train_classifier import FIRST, TrainSpec, make_classifier, plan_training, run_training
from methods.nets.feature_head_split import split
from methods.nets.small_resnets import SmallResNet
from methods.nets.weights import Classifier, Weights

DATA = os.environ.get("SOUPBENCH_TEST_DATA")


def quiet(done: int, loss: float | None) -> None:
    """Ignore progress."""


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of bundled classifiers with one stand-in, trained here; only the file was added."""
    folder = tmp_path / "classifiers"
    monkeypatch.setattr(listed, "FOLDER", folder)
    assert bundled() == ()
    path = folder / "digits-resnet8.safetensors"
    folder.mkdir()
    make_classifier(TrainSpec("digits", "resnet8", epochs=2, limit=200), path, quiet)
    return path


class TestBundled:
    def test_names_are_models_of_runs_and_listed(self, shipped: Path, tmp_path: Path) -> None:
        assert bundled() == ("digits-resnet8",)
        (row,) = (row for row in _models() if row["name"] == "digits-resnet8")
        facts = load_weights(shipped)[1]
        share = f"{100 * facts['accuracy']['dev']:.1f}% of 400 dev images"
        assert row["kind"] == "classifier"
        assert share in row["summary"]
        assert "ResNet-8 with BatchNorm" in row["summary"]
        with pytest.raises(UsageError, match=r"digits-resnet8, FILE\.safetensors of `bench train`"):
            load_model("digits-resnet")
        outcome = run(
            make_spec(
                {
                    "method": "source,tent",
                    "shift": "digits-c",
                    "model": "digits-resnet8",
                    "corruption": "fog",
                    "limit": 12,
                    "jobs": 1,
                    "out": tmp_path / "out",
                },
                {},
            )
        )
        records = outcome.records()
        assert {record.model for record in records} == {"digits-resnet8"}
        assert {record.status for record in records} == {"done"}

    def test_a_name_and_its_file_give_the_same_classifier(self, shipped: Path) -> None:
        by_name, by_file = load_trained("digits-resnet8"), load_trained(str(shipped))
        images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        whole = Classifier.of(load_weights(shipped)[0]).eval()
        with torch.no_grad():
            assert torch.equal(by_name(images), whole(images))
            assert torch.equal(by_name(images), by_file(images))
        assert (by_name.name, by_file.name) == ("digits-resnet8", "digits-resnet8.safetensors")
        assert shown_name(str(shipped), by_file) == "digits-resnet8.safetensors"
        assert not by_name.training


class TestShipped:
    """What the classifiers in the package are; nothing to do while there are none."""

    @pytest.mark.parametrize("name", bundled())
    def test_each_is_small_whole_and_says_where_it_comes_from(self, name: str) -> None:
        with bundled_file(name) as path:
            assert path.stat().st_size < 2_000_000
            weights, facts = load_weights(path)
        assert facts["digest"] == weights.digest
        assert facts["command"].startswith("bench train cifar10 ")
        assert tuple(facts["classes"]) == CIFAR10
        assert facts["accuracy"]["dev_images"] == 5000
        assert facts["accuracy"]["dev"] > (0.85 if name.endswith("-gn") else 0.88)
        assert load_model(name).class_names == CIFAR10
        assert summary(name).endswith("bundled")

    @pytest.mark.slow
    @pytest.mark.skipif(not DATA, reason="SOUPBENCH_TEST_DATA names no folder with CIFAR-10")
    @pytest.mark.parametrize("name", bundled())
    def test_the_first_steps_of_each_training_come_out_again(self, name: str) -> None:
        """Bit for bit on the machine that made it; elsewhere the losses agree within what bfloat16 rounds."""
        with bundled_file(name) as path:
            weights, facts = load_weights(path)
        assert isinstance(weights.architecture, SmallResNet)
        spec = TrainSpec("cifar10", weights.architecture.name, precision="bf16", threads=1, data_root=Path(str(DATA)))
        plan = plan_training(spec)
        assert (plan.data.digest, plan.dev.digest) == (facts["data"], facts["accuracy"]["dev_data"])
        assert plan.recipe.architecture == weights.architecture
        assert command_of("train", spec) == facts["command"]
        keep = _Losses()
        run_training(plan, 0, keep, stop=FIRST)
        assert keep.losses == pytest.approx(facts["first_losses"], abs=5e-2)


class _Losses(FileCheckpointer):
    """Keeps the losses and writes no file."""

    def __init__(self) -> None:
        super().__init__(Path("none"), seconds=float("inf"))

    def load(self) -> None:
        return None

    def finished(self, losses: torch.Tensor) -> None:
        self.losses = losses.tolist()


def weights_of(classes: int = 3, **more: Any) -> Weights:
    shape = SmallResNet(8, **more)
    model = Classifier(shape, classes)
    model.encoder.load_state_dict(shape.initial(torch.Generator().manual_seed(0)).state_dict())
    return model.weights()


class TestFiles:
    def test_of_every_network_are_read_with_their_preprocessing(self, tmp_path: Path) -> None:
        path = tmp_path / "m.safetensors"
        for more in ({}, {"norm": "gn"}, {"factor": 2, "image_size": 64, "mean": (0.1, 0.2, 0.3)}):
            weights = weights_of(**more)
            save_weights(path, weights, {"classes": ["a", "b", "c"]})
            model = load_trained(str(path))
            cut = preprocessing_of(model)
            assert cut is not None
            assert (cut.size, cut.resize) == (weights.architecture.image_size, weights.architecture.cut[0])
            assert preprocessing_of(weights) == cut
            assert model.normalise.mean.flatten().tolist() == pytest.approx(weights.architecture.mean)
            assert model.class_names == ("a", "b", "c")
            found = split(model)
            assert found.head.out_features == 3
            assert found.head.in_features == weights.architecture.dim

    def test_of_a_run_leave_other_heads_out(self, tmp_path: Path) -> None:
        weights = weights_of()
        more = {"rotation.weight": torch.zeros(4, 64), "rotation.bias": torch.zeros(4)}
        save_weights(tmp_path / "m.safetensors", replace(weights, tensors={**weights.tensors, **more}), {})
        assert "rotation.bias" not in load_trained(str(tmp_path / "m.safetensors")).state_dict()

    @pytest.mark.parametrize("classes", [None, "abc", ["a", "b"], [1, 2, 3], {"a": 0, "b": 1, "c": 2}])
    def test_with_names_that_do_not_fit_have_none(self, classes: Any, tmp_path: Path) -> None:
        save_weights(tmp_path / "m.safetensors", weights_of(), {"classes": classes})
        assert load_trained(str(tmp_path / "m.safetensors")).class_names is None

    def test_that_hold_no_classifier_say_what_to_do(self, tmp_path: Path) -> None:
        path = tmp_path / "m.safetensors"
        save_weights(path, load_stock("digits"), {})
        with pytest.raises(UsageError, match="a stock is given with --stock"):
            load_model(str(path))
        save_file({"x": torch.zeros(1)}, path)
        with pytest.raises(UsageError, match="does not say its network; name it"):
            load_model(str(path))
        with pytest.raises(MissingDataError, match=r"bench train --data DATA.*a stock is given with --stock"):
            load_model(str(tmp_path / "absent.safetensors"))
        for content in (b"", b"\x80\x04 no tensors"):
            path.write_bytes(content)
            with pytest.raises(UsageError, match=r"m\.safetensors"):
                load_model(str(path))

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            (lambda t: t.pop("encoder.conv.weight"), "lacks encoder.conv.weight"),
            (lambda t: t.update({"encoder.more": torch.zeros(1)}), "has encoder.more"),
            (lambda t: t.update({"head.weight": torch.zeros(3, 65)}), r"head.weight is \[3, 65\]"),
            (lambda t: t["head.bias"].fill_(torch.inf), "not finite"),
            (lambda t: t.update({"head.bias": torch.zeros(())}), "no classifier"),
        ],
    )
    def test_that_do_not_fit_are_named(self, change: Any, said: str, tmp_path: Path) -> None:
        weights = weights_of()
        change(weights.tensors)
        save_weights(tmp_path / "m.safetensors", weights, {})
        with pytest.raises(UsageError, match=said):
            load_trained(str(tmp_path / "m.safetensors"))

    def test_with_classes_in_another_order_than_the_images_are_refused(self, tmp_path: Path) -> None:
        rng = np.random.default_rng(0)
        for name in ("cat", "dog", "elk"):
            (tmp_path / "mine" / name).mkdir(parents=True)
            for number in range(4):
                pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "mine" / name / f"{number}.png")
        path = tmp_path / "m.safetensors"
        settings = {
            "method": "source",
            "shift": f"folder:{tmp_path / 'mine'}",
            "model": str(path),
            "corruption": "natural",
            "jobs": 1,
            "out": tmp_path / "out",
        }
        save_weights(path, weights_of(), {"classes": ["dog", "cat", "elk"]})
        with pytest.raises(UsageError, match="in another order"):
            run(make_spec(settings, {}))
        save_weights(path, weights_of(), {"classes": ["cat", "dog", "elk"]})
        assert run(make_spec(settings, {})).records()
