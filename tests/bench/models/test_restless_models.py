"""Classifiers with a forward pass that changes their state: a record key has one number, whatever ran before."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bench.core.cache_dir import answers_dir
from bench.core.errors import UsageError
from bench.models.classifiers import for_classes
from bench.models.load_model import load_model
from bench.models.weights_io import model_digest
from bench.runs.run import Outcome, run
from bench.settings.run_spec import make_spec
from bench.shifts import load_shift
from leaderboards.record import Record
from methods.nets.weights import Architecture, Classifier

Quick = Callable[..., Outcome]

MODEL = """
import torch

class Restless(torch.nn.Module):
    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.norm = torch.nn.BatchNorm2d(3)
        self.flat = torch.nn.Flatten()
        self.head = torch.nn.Linear(3072, 10)
        with torch.no_grad():
            self.head.weight.copy_(torch.randn(10, 3072, generator=generator) / 20)
            self.head.bias.zero_()
        {start}

    def forward(self, images):
        with torch.no_grad():
            {change}
        return self.head(self.flat(self.norm(images))) * (1 + scale)

def make():
    return Restless()
"""
KINDS = {
    "buffer": (
        'self.register_buffer("seen", torch.zeros(()), persistent=False)',
        "self.seen += images.detach().mean(); scale = self.seen.clone()",
    ),
    "tensor": ("self.seen = [torch.zeros(())]", "self.seen[0] += images.detach().mean(); scale = self.seen[0].clone()"),
    "counter": ("self.seen = 0", "self.seen += 1; scale = self.seen"),
}


@pytest.fixture(params=KINDS)
def model(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    path = tmp_path / "restless.py"
    start, change = KINDS[request.param]
    path.write_text(MODEL.format(start=start, change=change))
    return f"{path}:make"


@pytest.fixture
def measure(settings: dict[str, Any], tmp_path: Path) -> Callable[..., dict[str | None, Record]]:
    del settings["stock"]
    options = {"set": {"memo": {"views": 2}, "tent": {"steps": 1}}}

    def measured(**changes: Any) -> dict[str | None, Record]:
        out = tmp_path / f"out{len(list(tmp_path.glob('out*')))}"
        used = {"set": {name: values for name, values in options["set"].items() if name in changes["method"]}}
        outcome = run(make_spec({**settings, "out": out, **changes}, used))
        assert outcome.exit_code == 0
        return {record.corruption: record for record in outcome.records()}

    return measured


@pytest.mark.filterwarnings("ignore:memo adapts to one image")
@pytest.mark.parametrize("method", ["source", "tent", "memo"])
def test_a_key_has_one_number_in_every_combination_and_order(
    measure: Callable[..., dict[str | None, Record]], model: str, method: str
) -> None:
    alone = measure(method=method, model=model, corruption="fog")
    after = measure(method=method, model=model, corruption="contrast,fog")
    before = measure(method=method, model=model, corruption="fog,contrast")
    assert alone["fog"].key == after["fog"].key == before["fog"].key
    assert alone["fog"].metrics == after["fog"].metrics == before["fog"].metrics
    assert after["contrast"].metrics == before["contrast"].metrics
    assert alone[None].metrics == after[None].metrics


def test_a_change_that_is_carried_on_is_another_number(
    measure: Callable[..., dict[str | None, Record]], model: str
) -> None:
    """The models change; under a protocol without resets the change persists, and the record has another key."""
    anew = measure(method="source", model=model)
    on = measure(method="source", model=model, protocol="continual")
    assert on["contrast"].key != anew["contrast"].key
    assert on["contrast"].metrics != anew["contrast"].metrics


def test_looking_at_the_classes_leaves_no_trace(model: str) -> None:
    made = load_model(model)
    shift = load_shift("digits-c")
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    expected = load_model(model)(images)
    random = torch.get_rng_state()
    digest = model_digest(made)
    with made.register_forward_pre_hook(lambda *_: torch.rand(1) and None):
        for_classes(made, shift, images[:1])
    assert torch.equal(torch.get_rng_state(), random)
    assert model_digest(made) == digest
    assert torch.equal(made(images), expected)


def test_a_model_that_cannot_be_put_back_is_refused(measure: Callable[..., Any], tmp_path: Path) -> None:
    path = tmp_path / "odd.py"
    path.write_text(
        MODEL.format(start="import itertools; self.seen = itertools.count()", change="scale = next(self.seen)")
    )
    with pytest.raises(UsageError, match="keeps a count in seen, which cannot be saved and reset; keep tensors"):
        measure(method="source", model=f"{path}:make")


@pytest.mark.parametrize("when", ["always", "and back", "at last"])
def test_answers_of_a_classifier_that_changes_are_not_kept(
    settings: dict[str, Any], tmp_path: Path, run_quick: Quick, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """Also where the change is undone by the end of the stream, whose third and last batch is a short one, or where
    nothing but that one changes it."""
    true = Classifier.forward

    def forward(self: Any, images: Tensor) -> Tensor:
        scores = true(self, images)
        seen = getattr(self, "seen", 0)
        if when == "and back" and seen == 2:
            del self.seen
        elif when != "at last" or 1 < len(images) < 5:
            self.seen = seen + 1
        return scores * (1 + seen)

    run_quick(settings, out=tmp_path / "quiet", protocol="episodic")
    kept = len(list(answers_dir().glob("*.json")))
    assert kept == 3
    for path in answers_dir().iterdir():
        path.unlink()
    monkeypatch.setattr(Classifier, "forward", forward)
    run_quick(settings, out=tmp_path / "restless")
    assert not list(answers_dir().glob("*.json"))


def test_answers_are_not_taken_by_one_that_has_changed(
    settings: dict[str, Any], tmp_path: Path, run_quick: Quick, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only dark images change this model: its clean predictions are cached, but not used after dark images."""
    true = Classifier.forward

    def forward(self: Any, images: Tensor) -> Tensor:
        scores = true(self, images)
        seen = getattr(self, "seen", 0)
        if float(images.mean()) > 0.385 and len(images) > 1:
            self.seen = seen + 1
        return scores * (1 + seen)

    monkeypatch.setattr(Classifier, "forward", forward)
    first = run_quick(settings, out=tmp_path / "first", corruption="contrast")
    kept = len(list(answers_dir().glob("*.json")))
    assert kept == 2
    again = run_quick(settings, out=tmp_path / "second", protocol="continual")
    contrast = [{r.corruption: r for r in outcome.records()}["contrast"].metrics for outcome in (first, again)]
    assert contrast[0] != contrast[1]


class ZeroShot(nn.Module):
    """The head of a model of images and texts, with its text features beside the weights."""

    def __init__(self, text: Tensor) -> None:
        super().__init__()
        self.image = nn.Linear(4, 3)
        nn.init.ones_(self.image.weight)
        nn.init.zeros_(self.image.bias)
        self.text = text


def test_text_features_are_part_of_a_model(tmp_path: Path) -> None:
    text = torch.eye(3)
    other = text.clone()
    other[2, 0] = 1e-3
    assert model_digest(ZeroShot(text)) == model_digest(ZeroShot(text.clone()))
    assert model_digest(ZeroShot(text)) != model_digest(ZeroShot(other))


def test_records_of_other_text_features_have_other_keys(
    measure: Callable[..., dict[str | None, Record]], tmp_path: Path
) -> None:
    text = MODEL.format(start='self.text = [torch.load(__file__.replace(".py", ".pt"))]', change="scale = self.text[0]")
    found = []
    for value in (0.0, 1.0):
        path = tmp_path / f"folder{value:g}" / "zero.py"
        path.parent.mkdir()
        path.write_text(text)
        torch.save(torch.tensor(value), path.with_suffix(".pt"))
        found.append(measure(method="source", model=f"{path}:make")["fog"])
    assert found[0].weights.digest != found[1].weights.digest
    assert found[0].key != found[1].key
    assert found[0].metrics != found[1].metrics


def test_digests_of_published_models_stay() -> None:
    """The digest of parameters and buffers alone, as in earlier records."""
    import hashlib

    import timm
    import torchvision

    for make in (
        lambda: timm.create_model("test_vit"),
        lambda: timm.create_model("test_efficientnet"),
        lambda: timm.create_model("resnet18"),
        lambda: timm.create_model("swin_tiny_patch4_window7_224", depths=(1, 1), num_heads=(2, 4), embed_dim=16),
        lambda: torchvision.models.squeezenet1_1(),
        lambda: torchvision.models.mobilenet_v3_small(),
    ):
        torch.manual_seed(0)
        model = make()
        sha = hashlib.sha256(repr(Architecture()).encode())
        for name, tensor in sorted({**dict(model.named_parameters()), **dict(model.named_buffers())}.items()):
            sha.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
            sha.update(tensor.detach().contiguous().numpy().tobytes())
        assert model_digest(model) == f"sha256:{sha.hexdigest()}"
