"""LAION-C and ImageNet-C-bar against slow restatements of the published scripts: one thread, one run, taking turns.

The restatements (tests/corruptions/restated.py) work image by image and pixel by pixel, as the scripts do; shapes and
lines are drawn by Pillow, chunks rolled by numpy. Published code for shapes takes 25 times as long as its drawing.
"""

from __future__ import annotations

import importlib.util
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

import corruptions
from corruptions.catalog import describe, parameters
from corruptions.tiles import procedural_pool

pytestmark = pytest.mark.slow
LAION, BAR = corruptions.names("laion_c"), corruptions.names("imagenet_c_bar")
SIDE, SEVERITY, BATCH = 224, 3, 16
GATES = {"vertical_lines": 35.0, "stickers": 50.0} | dict.fromkeys(BAR, 20.0)
# Nearly all is a Fourier transform in float64, which the restatement leaves to numpy.
GATES |= {"blue_noise_sample": 10.0, "brownish_noise": 8.0}
# What Pillow and numpy do in C leaves little to win.
LEAST = 0.75


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def restated() -> ModuleType:
    path = Path(__file__).parents[1] / "corruptions" / "restated.py"
    spec = importlib.util.spec_from_file_location("restated", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def pictures() -> Tensor:
    """Sixteen crops of photographs, uint8 [16, 3, 224, 224]."""
    data = pytest.importorskip("skimage.data", reason="needs scikit-image's pictures")
    sources = [torch.from_numpy(getattr(data, name)()).permute(2, 0, 1) for name in ("astronaut", "chelsea", "coffee")]
    return torch.stack([sources[i % 3][:, 4 * i : 4 * i + SIDE, 9 * i : 9 * i + SIDE] for i in range(BATCH)])


def seconds(work: Callable[[], object]) -> float:
    """Of the one thread, so that what else the machine does counts less."""
    start = time.process_time()
    work()
    return time.process_time() - start


def test_against_restatements(
    restated: ModuleType, benchmark: BenchmarkFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    images = pictures()
    array = images[0].permute(1, 2, 0).double().numpy()
    lines, ratios = [], {}

    def ours(name: str) -> Tensor:
        return corruptions.corrupt(images, name, SEVERITY, ids=range(BATCH))

    for name in (*LAION, *BAR):
        settings = parameters(name, SEVERITY, "imagenet224")
        draws = corruptions.sample(name, SEVERITY, (SIDE, SIDE), ids=[0])
        given = [array, {key: value[0].double().numpy() for key, value in draws.items()}, settings]
        if describe(name).pool:
            side = 16 if name == "stickers" else round(settings[0])
            tiles = procedural_pool().tiles(side, torch.device("cpu"))
            given.append(tiles.permute(0, 2, 3, 1).contiguous().numpy())

        def theirs(name: str = name, given: list[object] = given) -> np.ndarray:
            found: np.ndarray = getattr(restated, name)(*given)
            return found

        result = ours(name)[0].permute(1, 2, 0).double().numpy()
        # Truncation may turn a rounding error into a level.
        assert (abs(result - np.floor(theirs())) <= 1).mean() > 0.99
        pairs = [
            (min(seconds(lambda name=name: ours(name)) / BATCH for _ in range(3)), seconds(theirs)) for _ in range(3)
        ]
        mine, other = (1e3 * min(times) for times in zip(*pairs, strict=True))
        ratios[name] = other / mine
        lines.append(f"{name:28} {mine:9.3f} {other:9.1f} {other / mine:8.1f}")
    head = f"{'corruption':28} {'ours ms':>9} {'slow ms':>9} {'ratio':>8}"
    with capsys.disabled():
        sys.stdout.write("\n" + "\n".join([f"{SIDE} px, severity {SEVERITY}, ms an image", head, *lines]) + "\n")
    benchmark.extra_info |= {name: round(ratio, 1) for name, ratio in ratios.items()}
    benchmark.pedantic(lambda: [ours(name) for name in ratios], rounds=1)
    missed = {name: round(ratio, 1) for name, ratio in ratios.items() if ratio < GATES.get(name, LEAST)}
    assert not missed
