"""`bench train`: a classifier with its origin, the same bits after a kill, and data of every kind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import accuracy_score

from bench.core.conditions import CLEAN
from bench.core.errors import BenchError, UsageError
from bench.models.load_model import load_model
from bench.models.weights_io import load_weights
from bench.shifts import load_shift
from bench.training.pretrain_stock import StockSpec, make_stock
from bench.training.train_classifier import FIRST, TrainSpec, make_classifier, plan_training, run_training, where_to
from methods.nets.small_resnets import SmallResNet
from methods.training.supervised import Supervised

SMALL = TrainSpec("digits", "resnet8", epochs=2, batch_size=32, limit=100)
HOME = Path(__file__).resolve().parents[3]


def quiet(done: int, loss: float | None) -> None:
    """Ignore progress."""


def test_a_classifier_is_made_and_says_where_it_comes_from(tmp_path: Path) -> None:
    reported: list[int] = []
    spec = replace(SMALL, seed=3)
    made = make_classifier(spec, tmp_path / "a.safetensors", lambda done, loss: reported.append(done))
    weights, facts = load_weights(tmp_path / "a.safetensors")
    assert weights.digest == made.weights.digest == facts["digest"]
    assert facts["command"] == "bench train digits --arch resnet8 --epochs 2 --batch-size 32 --seed 3 --limit 100"
    assert reported[-1] == len(facts["losses"]) == 6
    assert facts["first_losses"] == pytest.approx(facts["losses"][:FIRST], abs=1e-6)
    assert len(facts["epochs"]["augmented"]) == len(facts["epochs"]["dev"]) == 2
    assert facts["recipe"]["architecture"]["depth"] == 8
    assert facts["environment"]["torch"] == torch.__version__.partition("+")[0]
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert not list((tmp_path / "cache" / "training").glob("*.pt"))


def test_its_accuracy_is_that_of_the_loaded_model_on_dev_images(tmp_path: Path) -> None:
    make_classifier(replace(SMALL, limit=None), tmp_path / "a.safetensors", quiet)
    shift = load_shift("digits-c")
    ids = shift.ids("dev")
    with torch.no_grad():
        answers = load_model(str(tmp_path / "a.safetensors"))(shift.images(ids, CLEAN).float() / 255).argmax(1)
    found = load_weights(tmp_path / "a.safetensors")[1]["accuracy"]
    assert found["dev"] == pytest.approx(accuracy_score(shift.labels(ids), answers))
    assert found["dev_images"] == len(ids)
    assert found["dev_data"] == shift.digest(ids, CLEAN)


def test_only_train_images_are_learnt_from_and_test_images_are_never_read(monkeypatch: pytest.MonkeyPatch) -> None:
    shift = load_shift("digits-c")
    read: set[int] = set()
    images = type(shift).images

    def noted(self: Any, ids: np.ndarray, *more: Any) -> Any:
        read.update(ids.tolist())
        return images(self, ids, *more)

    monkeypatch.setattr(type(shift), "images", noted)
    plan = plan_training(TrainSpec("digits", "resnet8"))
    _ = plan.data.images[:1]
    assert plan.data.digest == shift.digest(shift.ids("train"), CLEAN)
    assert not set(shift.ids("train")) & set(shift.ids("dev"))
    assert read
    assert not read & set(shift.ids("test").tolist())


class Killed(Exception):
    """An error that ends a training in the middle."""


@pytest.mark.parametrize("kills", [(3,), (1, 2, 5)])
def test_a_killed_training_goes_on_and_ends_with_the_same_bits(kills: tuple[int, ...], tmp_path: Path) -> None:
    whole = make_classifier(SMALL, tmp_path / "whole.safetensors", quiet)
    for kill in kills:

        def tell(done: int, loss: float | None, kill: int = kill) -> None:
            if done > kill:
                raise Killed

        with pytest.raises(Killed):
            make_classifier(SMALL, tmp_path / "killed.safetensors", tell, seconds=0.0)
        assert not (tmp_path / "killed.safetensors").exists()
    reported: list[int] = []
    after = make_classifier(SMALL, tmp_path / "killed.safetensors", lambda done, loss: reported.append(done))
    assert reported[0] == kills[-1]
    assert after.weights.digest == whole.weights.digest
    facts = [load_weights(tmp_path / f"{name}.safetensors")[1] for name in ("whole", "killed")]
    for key in ("losses", "first_losses", "epochs", "accuracy"):
        assert facts[0][key] == facts[1][key]


@pytest.mark.slow
def test_a_training_killed_by_the_system_ends_with_the_same_bits(tmp_path: Path) -> None:
    script = (
        "import os, signal, sys; from pathlib import Path\n"
        "from bench.training.train_classifier import TrainSpec, make_classifier\n"
        "def tell(done, loss):\n"
        "    if done == int(sys.argv[2]): os.kill(os.getpid(), signal.SIGKILL)\n"
        "spec = TrainSpec('digits', 'resnet8', epochs=2, batch_size=32, limit=100, threads=1)\n"
        "print(make_classifier(spec, Path(sys.argv[1]), tell, seconds=0.0).weights.digest)\n"
    )

    def run(out: str, kill: int = -1) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", script, str(tmp_path / out), str(kill)],
            capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": str(HOME)},
        )  # fmt: skip

    assert run("killed.safetensors", 4).returncode == -signal.SIGKILL
    assert list((tmp_path / "cache" / "training").glob("train-*.pt"))
    digests = [run(f"{name}.safetensors").stdout.strip() for name in ("killed", "whole")]
    assert digests[0] == digests[1] != ""


def test_what_changes_the_bits_changes_the_checkpoint() -> None:
    variants: list[dict[str, Any]] = [
        {},
        {"epochs": 3},
        {"seed": 1},
        {"limit": 99},
        {"lr": 0.05},
        {"batch_size": 16},
        {"weight_decay": 0.0},
        {"label_smoothing": 0.1},
        {"threads": 2},
        {"arch": "resnet8-gn"},
    ]
    keys = {
        plan_training(replace(SMALL, threads=1, **change) if "threads" not in change else replace(SMALL, **change)).key
        for change in variants
    }
    assert len(keys) == len(variants)


def test_the_defaults_are_the_documented_recipe() -> None:
    plan = plan_training(TrainSpec("digits"))
    usual = Supervised()
    assert plan.recipe == replace(usual, architecture=plan.recipe.architecture, flip=False)
    assert isinstance(plan.recipe.architecture, SmallResNet)
    assert plan.recipe.architecture.depth == 20


def pictures(root: Path, names: tuple[str, ...] = ("cat", "dog", "elk"), count: int = 20, side: int = 32) -> Path:
    """Folders of noise whose brightness says the class; enough of them that some are dev images."""
    rng = np.random.default_rng(0)
    for label, name in enumerate(names):
        for number in range(count):
            path = root / name / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            noise = rng.integers(0, 60, (side, side, 3)) + 80 * label
            Image.fromarray(noise.astype(np.uint8)).save(path)
    return root


def test_a_folder_of_ones_own_gives_a_classifier_that_knows_its_classes(tmp_path: Path) -> None:
    for part in ("train", "test"):
        pictures(tmp_path / "mine" / part)
    spec = TrainSpec(f"folder:{tmp_path / 'mine'}", "resnet8", epochs=6, batch_size=18)
    assert plan_training(spec).recipe.flip
    make_classifier(spec, tmp_path / "own.safetensors", quiet)
    model = load_model(str(tmp_path / "own.safetensors"))
    assert model.class_names == ("cat", "dog", "elk")
    shift = load_shift(f"folder:{tmp_path / 'mine'}")
    with torch.no_grad():
        answers = model(shift.images(shift.ids("test"), CLEAN).float() / 255).argmax(1)
    assert accuracy_score(shift.labels(shift.ids("test")), answers) > 0.9


def test_larger_pictures_and_tables_of_the_hub_are_taken(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "mine", side=40)
    spec = TrainSpec(f"folder:{folder}", "resnet8:24", epochs=1, batch_size=8)
    assert plan_training(spec).data.images.shape[2:] == (24, 24)
    rows = [(str(path), ("cat", "dog", "elk").index(path.parent.name)) for path in sorted(folder.glob("*/*.png"))]
    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog", "elk"])})
    table = datasets.Dataset.from_dict(
        {"img": [path for path, _ in rows], "label": [label for _, label in rows]}, features=features
    )
    (tmp_path / "table").mkdir()
    table.to_parquet(tmp_path / "table" / "train.parquet")
    plan = plan_training(TrainSpec(f"hf:{tmp_path / 'table'}", "timm:resnet10t:32", epochs=1, batch_size=8))
    assert plan.classes == ("cat", "dog", "elk")
    assert run_training(plan, 0, stop=1).weights.tensors["head.bias"].shape == (3,)


def test_images_without_labels_are_refused(tmp_path: Path) -> None:
    for path in pictures(tmp_path / "made", ("only",)).glob("only/*"):
        (tmp_path / "flat").mkdir(exist_ok=True)
        path.rename(tmp_path / "flat" / path.name)
    with pytest.raises(UsageError, match="one folder per class"):
        plan_training(TrainSpec(f"folder:{tmp_path / 'flat'}", "resnet8"))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"data": "cifar"}, "did you mean 'cifar10'"),
        ({"arch": "resnet18"}, "6 n"),
        ({"arch": "resnet"}, "resnet20 or resnet20-gn"),
        ({"arch": "resnet20x99"}, "factor"),
        ({"arch": "vit_mini_patch4_32"}, "is a transformer"),
        ({"arch": "timm:vit_tiny_patch16_224:32"}, "is a transformer"),
        ({"arch": "timm:resnet19"}, "timm has no model"),
        ({"arch": "resnet8:48"}, "ends in :32"),
        ({"lr": float("nan")}, "lr"),
        ({"label_smoothing": 1.0}, "label_smoothing"),
        ({"device": "tpu"}, "device"),
    ],
)
def test_a_classifier_that_cannot_be_made_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(BenchError, match=said) as caught:
        plan_training(replace(SMALL, **changes))
    assert caught.value.exit_code == 2


def test_a_training_that_diverges_says_so(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match=r"lower the learning rate.*--lr"):
        make_classifier(replace(SMALL, lr=1e30), tmp_path / "x.safetensors", quiet)
    assert not (tmp_path / "x.safetensors").exists()


def test_files_have_a_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert where_to(TrainSpec("cifar10"), None) == Path("cifar10-resnet20.safetensors")
    for spec in (TrainSpec("folder:photos"), TrainSpec("digits", "timm:resnet18:32")):
        with pytest.raises(UsageError, match="-o FILE"):
            where_to(spec, None)
    with pytest.raises(UsageError, match="safetensors"):
        where_to(SMALL, tmp_path / "x.pth")
    with pytest.raises(UsageError, match="cannot write"):
        where_to(SMALL, Path("/proc/none/x.safetensors"))
    with pytest.raises(UsageError, match="did you mean 'digits'"):
        where_to(TrainSpec("digit"), None)


def test_the_networks_are_stocks_too(tmp_path: Path) -> None:
    spec = StockSpec("digits", arch="resnet8-gn", steps=1, batch_size=8, limit=16)
    weights = make_stock(spec, tmp_path / "s.safetensors", quiet)
    again = load_weights(tmp_path / "s.safetensors")[0]
    assert again.digest == weights.digest
    assert again.architecture == weights.architecture
    assert json.loads(json.dumps(weights.architecture.norm)) == "gn"


def test_the_command_trains_and_says_how_to_use_it(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from bench.cli.main import app

    out = tmp_path / "d.safetensors"
    words = ["train", "digits", "--arch", "resnet8", "--epochs", "1", "--limit", "40", "-o", str(out)]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert "of 400 dev images right" in done.output
    assert "--shift digits" in done.output
    for extra, said in ((["--precision", "fp8"], "fp8 is unknown"), (["--data", "digits"], "no data given")):
        failed = CliRunner().invoke(app, [*words, *extra])
        assert isinstance(failed.exception, UsageError)
        assert said in str(failed.exception)
