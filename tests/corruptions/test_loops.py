"""Compiled loops give the bits that torch gives, and everything works without numba."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

import corruptions
from corruptions import native
from corruptions.loops import LOOPS
from corruptions.rng import Stream, image_keys
from corruptions.weather import frost_folder

pytest.importorskip("numba", reason="needs numba")
USERS = ("blur", "digital", "kernels", "loops", "pipeline", "rng")
NAMES = [
    name
    for name in (*corruptions.names("imagenet_c"), *corruptions.names("imagenet_c_extra"), "frost_procedural")
    if name != "frost" or frost_folder()
]


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Takes the loops away."""

    def remove() -> None:
        for user in USERS:
            monkeypatch.setattr(importlib.import_module(f"corruptions.{user}"), "compiled", lambda: None)

    return remove


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [(32, 32), (21, 38), (49, 63)], ids=str)
def test_the_bits_are_the_same(
    name: str, size: tuple[int, int], plain: Callable[[], None], pictures: Callable[[int, int, int], Tensor]
) -> None:
    images = pictures(3, *size)
    images[0, :, :7, :7], images[0, :, -5:, :5], images[0, :, :5, -5:] = 0, 255, 128
    cases = [(level, storage, grey) for level in (0.5, 1, 3, 5) for storage in ("uint8", "none") for grey in (0, 1)]
    cases.append((3, "jpeg85", 0))

    def made() -> list[Tensor]:
        return [
            corruptions.corrupt(images[:, :1] if grey else images, name, level, ids=range(3), storage=storage)
            for level, storage, grey in cases
        ]

    found = made()
    plain()
    for case, ours, expected in zip(cases, found, made(), strict=True):
        assert torch.equal(ours, expected), case


@pytest.mark.parametrize("name", sorted(LOOPS))
def test_large_images_layouts_and_batches(
    name: str, plain: Callable[[], None], pictures: Callable[[int, int, int], Tensor]
) -> None:
    if name == "frost" and frost_folder() is None:
        pytest.skip("needs the photographs of corrupt-tta")
    images = pictures(3, 224, 224).contiguous(memory_format=torch.channels_last)
    found = corruptions.corrupt(images, name, 3, ids=range(3))
    assert found.stride() == images.stride()
    one = corruptions.corrupt(images[1].contiguous(), name, 3, ids=[1])
    assert torch.equal(found[1], one)
    floats = corruptions.corrupt(images.float() / 255, name, 3, ids=range(3))
    assert ((floats * 255).round() - found.float()).abs().max() <= 1
    plain()
    assert torch.equal(found, corruptions.corrupt(images, name, 3, ids=range(3)))


def test_draws_are_the_same(plain: Callable[[], None]) -> None:
    keys = image_keys("fog", [3, "a"], 1)
    counts = (1, 4, 7, 33, 5000)

    def made() -> list[Tensor]:
        stream = Stream(keys)
        return [draw(count) for count in counts for draw in (stream.uniform, stream.normal, stream.words)]

    found = made()
    plain()
    assert all(map(torch.equal, found, made()))


def test_it_works_without_numba(tmp_path: Path) -> None:
    (tmp_path / "numba.py").write_text("raise ImportError\n")
    script = (
        "import torch, corruptions\nfrom corruptions.native import compiled\nassert compiled() is None\n"
        "print(corruptions.corrupt(torch.full((1, 3, 32, 32), 9, dtype=torch.uint8), 'fog', 3, ids=[0]).sum().item())"
    )
    root = str(Path(corruptions.__file__).parents[1])
    code = f"import sys\nsys.path[:0] = [{str(tmp_path)!r}, {root!r}]\n{script}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert native.compiled() is not None
    images = torch.full((1, 3, 32, 32), 9, dtype=torch.uint8)
    assert int(done.stdout) == int(corruptions.corrupt(images, "fog", 3, ids=[0]).sum())
