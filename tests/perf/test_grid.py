"""What a grid of runs saves against the same runs one by one."""

from __future__ import annotations

import itertools
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pytest_benchmark.fixture import BenchmarkFixture

from leaderboards.store import Store

pytestmark = pytest.mark.slow

METHODS, PROTOCOLS = ("source", "tent", "t3a"), ("continual", "reset_each_shift")
LIMIT = 0.6
OPTIONS = ("--stock", "digits", "--labels", "10", "--corruption", "fog,contrast", "--severity", "3", "--limit", "60")


def write_pictures(folder: Path, first: int) -> Path:
    """Ten classes of twenty train and ten test images of 32 px."""
    random = np.random.default_rng(first)
    for part, count in (("train", 20), ("test", 10)):
        for label, image in itertools.product(range(10), range(count)):
            path = folder / part / f"class{label}" / f"{image}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(random.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(path)
    return folder


def test_a_grid_takes_a_part_of_the_time_of_single_runs(
    benchmark: BenchmarkFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shifts = ["digits-c", *(f"folder:{write_pictures(tmp_path / name, first)}" for first, name in enumerate("ab"))]

    def run(out: str, *words: str) -> None:
        command = [sys.executable, "-m", "bench", "run", *OPTIONS, "--jobs", "1", "--out", str(tmp_path / out), *words]
        subprocess.run(command, check=True, capture_output=True)

    def singly() -> float:
        monkeypatch.setenv("SOUPBENCH_CACHE", str(tmp_path / "cache-of-single-runs"))
        start = time.perf_counter()
        for shift, protocol, method in itertools.product(shifts, PROTOCOLS, METHODS):
            run("single", "--shift", shift, "--protocol", protocol, "--method", method)
        return time.perf_counter() - start

    def together() -> float:
        monkeypatch.setenv("SOUPBENCH_CACHE", str(tmp_path / "cache-of-the-grid"))
        start = time.perf_counter()
        run("grid", *("--shift", ",".join(shifts), "--protocol", ",".join(PROTOCOLS), "--method", ",".join(METHODS)))
        return time.perf_counter() - start

    benchmark.extra_info["ratio"] = benchmark.pedantic(lambda: together() / singly(), rounds=1)
    found: list[dict[str, Any]] = [
        {record.key: record.metrics for record in Store(tmp_path / out).records()} for out in ("grid", "single")
    ]
    assert len(found[0]) == 3 * 3 * 3 * 2
    assert found[0] == found[1]
    assert benchmark.extra_info["ratio"] <= LIMIT
