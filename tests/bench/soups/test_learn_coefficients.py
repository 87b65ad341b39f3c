"""`bench soup season` and `lmc`: coefficients and lines for classifiers of this project and of others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from bench.core.conditions import CLEAN
from bench.core.errors import UsageError
from bench.models.tensor_files import Checkpoint
from bench.models.weights_io import load_stock, load_weights, open_weights, save_weights
from bench.shifts import load_shift
from bench.shifts.shift import labelled_source
from bench.soups.learn_coefficients import Season, connect, season
from methods.nets.weights import Classifier, Weights
from methods.soups.season import Schedule, SupervisedSeasoning, learned_soup
from methods.soups.soup import uniform_soup
from methods.training.finetune import Probe, join, probe

FACTORY = """
import torch
from torch import nn

def make():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 4, 4), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(128, 10)
    )
"""


@pytest.fixture(scope="module")
def classifiers(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Classifiers from the digits stock with its probe, and with slightly moved weights."""
    folder = tmp_path_factory.mktemp("classifiers")
    stock = load_stock("digits")
    generator = torch.Generator().manual_seed(0)
    head = probe([stock], labelled_source(load_shift("digits-c"), 10, 0), Probe(), generator)
    paths = []
    for number in range(2):
        moved = {n: t + 0.02 * number * torch.randn(t.shape, generator=generator) for n, t in head.tensors.items()}
        paths.append(folder / f"{number}.safetensors")
        save_weights(paths[-1], join([Weights(head.architecture, moved), head]), {})
    return paths


@pytest.fixture(scope="module")
def strangers(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[Path]]:
    """A small network with BatchNorm in a file of the user's own, and three trainings of it as plain state dicts."""
    folder = tmp_path_factory.mktemp("strangers")
    (folder / "net.py").write_text(FACTORY)
    scope: dict[str, Any] = {}
    exec(FACTORY, scope)
    data = labelled_source(load_shift("digits-c"), 30, 0)
    pixels = data.images[:].float() / 255
    paths = []
    for number in range(3):
        net = scope["make"]().train()
        optimiser = torch.optim.Adam(net.parameters(), lr=0.01)
        order = torch.Generator().manual_seed(number)
        for _ in range(12 if number < 2 else 1):
            rows = torch.randint(0, len(data), (64,), generator=order)
            optimiser.zero_grad()
            torch.nn.functional.cross_entropy(net(pixels[rows]), data.labels[rows]).backward()  # type: ignore[no-untyped-call]
            optimiser.step()
        paths.append(folder / f"{number}.pth")
        torch.save(net.state_dict(), paths[-1])
    return f"{folder / 'net.py'}:make", paths


def accuracy(name: str, tensors: dict[str, Tensor], count: int | None = None) -> float:
    scope: dict[str, Any] = {}
    exec(Path(name.rpartition(":")[0]).read_text(), scope)
    net = scope["make"]().eval()
    net.load_state_dict(tensors)
    shift = load_shift("digits-c")
    ids = shift.ids("dev")[:count]
    with torch.no_grad():
        right = net(shift.images(ids, CLEAN).float() / 255).argmax(1) == torch.from_numpy(shift.labels(ids))
    return float(right.float().mean())


def test_the_line_between_two_classifiers(classifiers: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    pair = (classifiers[0], classifiers[1])
    connect(pair, "digits-c", None, 3, 100, None, as_json=True)
    found = json.loads(capsys.readouterr().out)
    assert found["positions"] == [0, 0.5, 1]
    assert found["accuracy"][0] > 0.8
    ends = (found["accuracy"][0] + found["accuracy"][2]) / 2
    assert found["barrier"] == pytest.approx(max(0, ends - found["accuracy"][1]))
    middle = Classifier.of(uniform_soup([load_weights(path)[0] for path in pair])).eval()
    shift = load_shift("digits-c")
    ids = shift.ids("dev")
    ids = ids[torch.linspace(0, len(ids) - 1, 100, dtype=torch.float64).round().long().numpy()]
    with torch.no_grad():
        right = middle(shift.images(ids, CLEAN).float() / 255).argmax(1) == torch.from_numpy(shift.labels(ids))
    assert found["accuracy"][1] == pytest.approx(float(right.float().mean()))


@pytest.mark.parametrize("how", ["self", "labels", "greedy"])
def test_seasoning_files(classifiers: list[Path], tmp_path: Path, how: str, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "soup.safetensors"
    season(classifiers, out, Season(how, labels=10, epochs=1, batch_size=50))
    printed = capsys.readouterr().out
    weights, facts = load_weights(out)
    assert ("head.bias" in weights.tensors) == (how != "self")
    (row,) = facts["shares"].values()
    assert sum(row) == pytest.approx(1)
    assert all(f"{share:.3f}" in printed for share in row)
    assert [item["file"] for item in facts["ingredients"]] == ["0.safetensors", "1.safetensors"]
    for name, tensor in weights.tensors.items():
        every = [load_file(path)[name].double() for path in classifiers]
        mixed = sum(share * own for share, own in zip(row, every, strict=True))
        torch.testing.assert_close(tensor.double(), mixed, rtol=1e-6, atol=1e-7)


def test_ingredients_are_read_as_they_are_needed(classifiers: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Files give the same bits as memory, and only a few tensors of an ingredient are in memory at a time."""
    data = labelled_source(load_shift("digits-c"), 10, 0)
    schedule = Schedule(epochs=1, batch_size=50)
    lazy, whole = (
        learned_soup([read(path) for path in classifiers], data, schedule, torch.Generator().manual_seed(0))
        for read in (open_weights, lambda path: load_weights(path)[0])
    )
    assert lazy.digest == whole.digest
    assert all(isinstance(open_weights(path).tensors, Checkpoint) for path in classifiers)


@pytest.mark.parametrize("how", ["self", "labels", "search", "greedy"])
def test_weights_from_elsewhere_are_seasoned(
    strangers: tuple[str, list[Path]], tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, files = strangers
    monkeypatch.setattr(
        "bench.soups.learn_coefficients.SupervisedSeasoning",
        lambda: SupervisedSeasoning(draws=6),
    )
    out = tmp_path / "soup.safetensors"
    season(files, out, Season(how, labels=30, epochs=6, batch_size=100, model=name))
    soup, single = load_file(out), [torch.load(path, weights_only=True) for path in files]
    assert soup.keys() == single[0].keys()
    facts = json.loads(Checkpoint(out).metadata["facts"])
    row = facts["shares"]["all"]
    for key in ("0.weight", "5.bias", "1.weight"):
        mixed = sum(share * own[key].double() for share, own in zip(row, single, strict=True))
        torch.testing.assert_close(soup[key].double(), mixed, rtol=1e-6, atol=1e-7)
    # Statistics are those of the mixed network on clean train images, not an average.
    pixels = labelled_source(load_shift("digits-c"), 30, 0).images[:].float() / 255
    features = torch.nn.functional.conv2d(pixels, soup["0.weight"], soup["0.bias"], stride=4)
    means = features.mean((0, 2, 3))
    torch.testing.assert_close(soup["1.running_mean"], means, rtol=1e-4, atol=1e-5)
    if how == "greedy":
        assert accuracy(name, soup) >= max(accuracy(name, own) for own in single)
    if how == "labels":
        assert row[2] < min(row[:2])  # the one that was hardly trained


def test_the_line_between_strangers_measures_their_statistics(
    strangers: tuple[str, list[Path]], capsys: pytest.CaptureFixture[str]
) -> None:
    name, files = strangers
    connect((files[0], files[1]), "digits-c", None, 5, None, name, as_json=True)
    found = json.loads(capsys.readouterr().out)
    for place, path in ((0, files[0]), (-1, files[1])):
        assert found["accuracy"][place] == pytest.approx(accuracy(name, torch.load(path, weights_only=True)))
    assert found["n"] == len(load_shift("digits-c").ids("dev"))


def test_a_named_architecture_takes_the_classes_of_the_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = []
    for seed in range(2):
        torch.manual_seed(seed)
        files.append(tmp_path / f"{seed}.safetensors")
        save_file(timm.create_model("test_resnet", num_classes=10).state_dict(), files[-1])
    connect((files[0], files[1]), "digits-c", None, 3, 20, "timm:test_resnet", as_json=True)
    assert len(json.loads(capsys.readouterr().out)["accuracy"]) == 3


def test_what_cannot_be_seasoned_is_one_sentence(
    classifiers: list[Path], strangers: tuple[str, list[Path]], tmp_path: Path
) -> None:
    name, files = strangers
    stock = tmp_path / "stock.safetensors"
    save_weights(stock, load_stock("digits"), {})
    out = tmp_path / "soup.safetensors"

    def refused(sentence: str, given: list[Path], **settings: Any) -> None:
        with pytest.raises(UsageError, match=sentence) as caught:
            season(given, out, Season(**({"labels": 10, "epochs": 1, "batch_size": 50} | settings)))
        assert "\n" not in str(caught.value)
        assert not out.exists()

    refused("did you mean 'self'", classifiers, how="selfs")
    refused("no head for 10 classes", [classifiers[0], stock], how="labels")
    refused("has no classification head", [classifiers[0], stock], how="greedy")
    refused("leave --layerwise out", classifiers, how="greedy", layerwise=True)
    refused("lacks 0.bias|lacks 0.weight|which the model does not", [classifiers[0]], model=name)
    plain = tmp_path / "plain.safetensors"
    save_file(load_file(classifiers[0]), plain)
    refused("with --model NAME", [plain, plain])
    half = tmp_path / "half.pth"
    torch.save(
        {n: t.half() if t.is_floating_point() else t for n, t in torch.load(files[0], weights_only=True).items()}, half
    )
    refused("float16", [half], model=name)
    with pytest.raises(UsageError, match="would be lost"):
        season(classifiers, classifiers[0], Season(labels=10))
    with pytest.raises(UsageError, match="has no classification head"):
        connect((classifiers[0], stock), "digits-c", None, 3, 50, None, as_json=True)
