"""`bench soup mix` and `inspect` on files: what they write and refuse, and that they never run what a file holds."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from bench.checkpoints import Checkpoint, write_tensors
from bench.errors import BenchError, MissingDataError, UsageError
from bench.models import load_stock, load_weights, save_weights
from bench.soups import inspect, mix
from methods.soup import uniform_soup
from methods.stock import Weights


def tensors(seed: int, **more: Tensor) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {"a.weight": torch.randn(5, 4, generator=generator), "b": torch.randn((), generator=generator), **more}


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"{seed}.safetensors" for seed in range(3)]
    for seed, path in enumerate(paths):
        save_file(tensors(seed, count=torch.tensor(7)), path)
    return paths


def mixed(files: list[Path], how: str = "uniform", **more: Any) -> dict[str, Tensor]:
    out = files[0].parent / "soup.safetensors"
    options: dict[str, Any] = {"stock": None, "weights": (), "average_statistics": False} | more
    mix(files, out, how, **options)
    found: dict[str, Tensor] = load_file(out)
    return found


def test_soup_of_files_is_the_mean(files: list[Path]) -> None:
    found = mixed(files)
    every = [load_file(path) for path in files]
    for name in ("a.weight", "b"):
        mean = torch.stack([own[name].double() for own in every]).mean(0).float()
        assert torch.equal(found[name], mean)
    assert found["count"] == 7
    facts = json.loads(Checkpoint(files[0].parent / "soup.safetensors").metadata["facts"])
    assert [item["file"] for item in facts["ingredients"]] == ["0.safetensors", "1.safetensors", "2.safetensors"]
    assert all(item["digest"].startswith("sha256:") for item in facts["ingredients"])


def test_files_and_memory_give_the_same_bits(tmp_path: Path) -> None:
    stock = load_stock("digits")
    generator = torch.Generator().manual_seed(0)
    models = [
        Weights(
            stock.architecture,
            {n: t + 0.01 * torch.randn(t.shape, generator=generator) for n, t in stock.tensors.items()},
        )
        for _ in range(3)
    ]
    paths = [tmp_path / f"{i}.safetensors" for i in range(3)]
    for path, model in zip(paths, models, strict=True):
        save_weights(path, model, {})
    mix(paths, tmp_path / "soup.safetensors", "uniform", None, (), False)
    assert load_weights(tmp_path / "soup.safetensors")[0].digest == uniform_soup(models).digest


def test_a_weighted_and_a_measured_soup(files: list[Path]) -> None:
    first, second, third = (load_file(path)["a.weight"] for path in files)
    found = mixed(files, "weighted", weights=(0.5, 0.75, -0.25))
    torch.testing.assert_close(found["a.weight"], 0.5 * first + 0.75 * second - 0.25 * third)
    found = mixed(files[1:], "wise:alpha=0.25", stock=files[0])
    torch.testing.assert_close(found["a.weight"], 0.75 * first + 0.125 * (second + third))


def test_pickled_state_dicts_are_read_as_weights_only(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
            return os.mkdir, (str(tmp_path / "ran"),)

    torch.save({"model": {f"module.{n}": t for n, t in tensors(0).items()}, "epoch": 3}, tmp_path / "wrapped.pth")
    torch.save(tensors(1), tmp_path / "plain.pt")
    torch.save({"x": Evil()}, tmp_path / "evil.pth")
    torch.save({"x": [1, 2]}, tmp_path / "list.pth")
    (tmp_path / "broken.pth").write_bytes((tmp_path / "plain.pt").read_bytes()[:300])
    found = mixed([tmp_path / "wrapped.pth", tmp_path / "plain.pt"])
    torch.testing.assert_close(found["b"], (tensors(0)["b"] + tensors(1)["b"]) / 2)
    for name in ("evil.pth", "list.pth", "broken.pth"):
        with pytest.raises(UsageError, match=name):
            Checkpoint(tmp_path / name)
    assert not (tmp_path / "ran").exists()


def test_what_cannot_be_mixed_is_one_sentence_and_writes_nothing(files: list[Path], tmp_path: Path) -> None:
    def refused(message: str, given: list[Path], how: str = "uniform", **more: Any) -> None:
        with pytest.raises(UsageError, match=message):
            mixed(given, how, **more)
        assert not (tmp_path / "soup.safetensors").exists()

    def file(name: str, content: dict[str, Tensor]) -> Path:
        path = tmp_path / name
        save_file(content, path)
        return path

    count = torch.tensor(7)
    refused("other stock|different stocks", [_of_stock(tmp_path, "x"), _of_stock(tmp_path, "y")])
    refused("lacks", [files[0], file("more.safetensors", tensors(0))])
    refused(
        "is not finite", [files[0], file("nan.safetensors", tensors(0, count=count) | {"b": torch.tensor(torch.nan)})]
    )
    refused("differ between", [files[0], file("count.safetensors", tensors(0, count=torch.tensor(8)))])
    refused("shape|float32", [files[0], file("shape.safetensors", tensors(0, count=count) | {"b": torch.ones(2)})])
    norm = file("norm.safetensors", tensors(0, count=count) | {"n.running_mean": torch.zeros(2)})
    refused("BatchNorm", [norm, norm])
    refused("--stock", files, "model_stock")
    refused("sum to 1", files, "weighted", weights=(1.0, 1.0, 1.0))
    refused("2 weights for 3", files, "weighted", weights=(0.5, 0.5))
    refused("needs --weights", files, "weighted")
    refused("belongs to", files, "uniform", weights=(1.0,))
    refused("did you mean", files, "unifrom")
    assert mixed([norm, norm], average_statistics=True)["n.running_mean"].tolist() == [0, 0]
    with pytest.raises(MissingDataError, match="no file"):
        Checkpoint(tmp_path / "missing.safetensors")
    assert not list(tmp_path.glob(".*"))


def test_where_a_soup_may_be_written(files: list[Path], tmp_path: Path) -> None:
    for out, error, sentence in (
        (files[1], UsageError, "would be lost"),
        (tmp_path / "x.pth", UsageError, r"name the file .*x\.safetensors"),
        (files[0] / "below.safetensors", BenchError, "cannot write"),
    ):
        before = [path.read_bytes() for path in files]
        with pytest.raises(error, match=sentence):
            mix(files, out, "uniform", None, (), False)
        assert [path.read_bytes() for path in files] == before


def test_odd_files_are_one_sentence(files: list[Path], tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    whole = files[0].read_bytes()
    for name, content, sentence in (
        ("half.safetensors", whole[: len(whole) // 2], "not a whole safetensors file"),
        ("none.safetensors", b"", "not a whole safetensors file"),
        ("pickle.pt", pickle.dumps({"a": print}), "holds more than tensors"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UsageError, match=sentence):
            mixed([files[0], tmp_path / name])
    torch.save(tensors(0), tmp_path / "short.pth")
    (tmp_path / "short.pth").write_bytes((tmp_path / "short.pth").read_bytes()[:200])
    (tmp_path / "folder.safetensors").mkdir()
    save_file({"steps": torch.tensor([3])}, tmp_path / "ints.safetensors")
    save_file({}, tmp_path / "empty.safetensors")
    for name, sentence in (
        ("short.pth", "cannot be read"),
        ("folder.safetensors", "is a folder"),
        ("ints.safetensors", "nothing to mix"),
        ("empty.safetensors", "nothing to mix"),
    ):
        with pytest.raises(UsageError, match=sentence) as caught:
            mixed([tmp_path / name, tmp_path / name])
        assert "\n" not in str(caught.value)
    assert not recwarn.list


def test_the_same_weights_twice_are_said(files: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    mixed([files[0], files[1], files[0]])
    assert "hold the same weights, which were counted twice" in capsys.readouterr().out
    mixed(files)
    assert "counted twice" not in capsys.readouterr().out


def test_facts_that_cannot_be_read_say_nothing(tmp_path: Path) -> None:
    paths = []
    for number, facts in enumerate(("not json", "[1]", '{"stocks": 3}', '{"stocks": ["x"]}')):
        paths.append(tmp_path / f"{number}.safetensors")
        save_file(tensors(number), paths[-1], {"facts": facts})
    assert mixed(paths)["b"].shape == ()


def test_tied_tensors_stay_tied(tmp_path: Path) -> None:
    """Two names of one storage, which safetensors would refuse: mixed alike and written apart."""
    for seed in range(2):
        shared = tensors(seed)["a.weight"]
        torch.save({"embed.weight": shared, "head.weight": shared}, tmp_path / f"{seed}.pth")
    found = mixed([tmp_path / "0.pth", tmp_path / "1.pth"])
    assert torch.equal(found["embed.weight"], found["head.weight"])


def test_inspection_leaves_out_what_cannot_be_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = [tensors(0), tensors(1), tensors(2) | {"b": torch.ones(3)}, tensors(3) | {"b": torch.tensor(torch.nan)}]
    paths = [tmp_path / f"{number}.safetensors" for number in range(4)]
    for path, each in zip(paths, content, strict=True):
        save_file(each, path)
    inspect(paths, paths[0], as_json=True)
    found = json.loads(capsys.readouterr().out)
    own = float((content[2]["a.weight"].double() - content[0]["a.weight"].double()).norm())
    assert found["files"][2]["distance"] == pytest.approx(own)
    assert (found["files"][3]["finite"], found["files"][3]["norm"], found["files"][3]["distance"]) == (
        False,
        None,
        None,
    )
    assert found["cosines"][1][2] == pytest.approx(
        float(torch.nn.functional.cosine_similarity(
            *((content[i]["a.weight"].double() - content[0]["a.weight"].double()).flatten() for i in (1, 2)), dim=0
        ))
    )  # fmt: skip
    inspect(paths, paths[0], as_json=False)
    assert "NO" in capsys.readouterr().out


def _of_stock(folder: Path, stock: str) -> Path:
    path = folder / f"of-{stock}.safetensors"
    save_file(tensors(0), path, {"facts": json.dumps({"stocks": [stock]})})
    return path


def test_a_full_disk_leaves_no_file(tmp_path: Path) -> None:
    def fail(name: str) -> Tensor:
        raise OSError(28, "No space left on device")

    with pytest.raises(BenchError, match="No space left"):
        write_tensors(tmp_path / "x.safetensors", {"a": (torch.float32, (2,))}, fail, {})
    assert not list(tmp_path.iterdir())


def test_inspection_measures_from_the_stock(files: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    inspect(files, files[0], as_json=True)
    found = json.loads(capsys.readouterr().out)
    one, two = (load_file(path) for path in files[:2])
    squares = sum(float((two[n].double() - one[n].double()).square().sum()) for n in ("a.weight", "b"))
    assert found["files"][1]["distance"] == pytest.approx(squares**0.5)
    assert found["cosines"][1][1] == pytest.approx(1)
    inspect(files, None, as_json=False)
    assert "numbers" in capsys.readouterr().out
