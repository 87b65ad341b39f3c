"""What runs cost beside the work itself: start-up, planning, looking what is done, and handing work to processes."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from bench.core.devices import cores
from bench.planning.plan import make_plan
from bench.runs.run import run
from bench.settings.run_spec import make_spec
from leaderboards.store import Store

DATA = Path(os.environ.get("SOUPBENCH_TEST_DATA", ""))

pytestmark = pytest.mark.slow


def paired(first: Callable[[], object], second: Callable[[], object], rounds: int) -> float:
    """The median of first's time over second's, measured in turn."""
    ratios = []
    for _ in range(rounds):
        times = []
        for act in (first, second):
            start = time.perf_counter()
            act()
            times.append(time.perf_counter() - start)
        ratios.append(times[0] / times[1])
    return median(ratios)


def cpu_seconds(*arguments: str) -> float:
    """The processor time, user and system, of a Python process."""
    child = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = status  # it is gone: nothing is left for Popen to wait for
    assert status == 0, arguments
    return usage.ru_utime + usage.ru_stime


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        *(["list", what] for what in ("methods", "shifts", "corruptions", "models", "protocols", "boards")),
        ["show", "method", "tent"],
        ["show", "shift", "digits-c"],
        ["show", "corruption", "fog"],
    ],
    ids=" ".join,
)
def test_starting_costs_no_more_than_twice_what_the_libraries_cost(
    benchmark: BenchmarkFixture, arguments: list[str]
) -> None:
    """Processor time in turn, so that a busy machine slows both; the median, so that one slow start does not count."""

    def ratio() -> float:
        pairs = [(cpu_seconds("-m", "bench", *arguments), cpu_seconds("-c", "import typer, rich")) for _ in range(15)]
        return median(bench / libraries for bench, libraries in pairs)

    cpu_seconds("-m", "bench", *arguments)
    benchmark.extra_info["ratio"] = benchmark.pedantic(ratio, rounds=1)
    assert benchmark.extra_info["ratio"] <= 2


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SOUPBENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


SMALL: dict[str, Any] = {"shift": "digits-c", "corruption": "fog", "severity": 3, "limit": 8, "jobs": 1, "labels": 2}


def test_looking_what_is_done_is_linear_in_the_records(
    benchmark: BenchmarkFixture, cache: Path, tmp_path: Path
) -> None:
    made = run(make_spec({**SMALL, "method": "source", "out": tmp_path / "one"}, {"set": {"source": {"epochs": 1}}}))
    record = next(iter(made.records()))
    text = json.loads(record.to_json())
    predictions = (made.out / str(record.predictions)).read_bytes()
    stores = {}
    for count in (1000, 10_000):
        folder = tmp_path / str(count)
        for name in ("records", "predictions"):
            (folder / name).mkdir(parents=True)
        for number in range(count):
            key = f"{number:032x}"
            changed = {**text, "key": key, "predictions": f"predictions/{key}.npz"}
            (folder / "records" / f"{key}.json").write_text(json.dumps(changed))
            (folder / "predictions" / f"{key}.npz").write_bytes(predictions)
        stores[count] = Store(folder)
    assert len(stores[10_000].done()) == 10_000
    ratio = benchmark.pedantic(paired, args=(stores[10_000].done, stores[1000].done, 5), rounds=1)
    start = time.perf_counter()
    stores[10_000].done()
    benchmark.extra_info |= {"ratio of 10,000 to 1,000": ratio, "seconds": time.perf_counter() - start}
    assert ratio < 15


def test_planning_is_linear_in_the_trials(benchmark: BenchmarkFixture, cache: Path, tmp_path: Path) -> None:
    def plan(seeds: int) -> Callable[[], object]:
        return lambda: make_plan(make_spec({**SMALL, "method": "source,tent", "seeds": seeds, "out": tmp_path / "no"}))

    plan(1)()
    ratio = benchmark.pedantic(paired, args=(plan(500), plan(50), 5), rounds=1)
    start = time.perf_counter()
    plan(500)()
    benchmark.extra_info |= {"ratio of 1,000 to 100": ratio, "seconds": time.perf_counter() - start}
    assert ratio < 15


@pytest.mark.skipif(cores() < 2, reason="needs two cores")
def test_two_workers_keep_up_with_two_processes_of_one_trial_each(
    benchmark: BenchmarkFixture, cache: Path, tmp_path: Path
) -> None:
    """Wall time of `bench run` with two seeds in two workers, over that of two runs side by side with one seed each.

    Trials of about 20 seconds, measured in turn; their classifiers are trained before. Nothing is shared between the
    seeds, so two processes that know nothing of each other are the best that two workers could do.
    """
    names = "gaussian_noise,defocus_blur,zoom_blur,fog,brightness,contrast,pixelate,jpeg_compression"
    what = ["--shift", "digits-c", "--severity", "3", "--corruption", names, "--limit", "250"]
    folders = (tmp_path / str(number) for number in itertools.count())

    def wall_seconds(*runs: list[str]) -> float:
        start = time.perf_counter()
        started = [
            subprocess.Popen(
                [sys.executable, "-m", "bench", "run", *what, *arguments, "--out", str(next(folders))],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            for arguments in runs
        ]
        assert [process.wait() for process in started] == [0] * len(runs)
        return time.perf_counter() - start

    def ratio() -> float:
        rounds = []
        for _ in range(3):
            bare = wall_seconds(*(["--method", "memo", "--seed", seed, "--jobs", "1"] for seed in ("0", "1")))
            rounds.append(bare / wall_seconds(["--method", "memo", "--seeds", "2", "--jobs", "2"]))
        benchmark.extra_info["ratios"] = rounds
        return median(rounds)

    wall_seconds(["--method", "source", "--seeds", "2", "--limit", "8"])
    assert benchmark.pedantic(ratio, rounds=1) >= 0.95


MODEL = """
import torch
from torch import nn

def build():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 7, 4), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 3, 4), nn.BatchNorm2d(16), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 1000),
    )
"""
CHEAP = ("source", "bn", "tent", "t3a", "lame", "eta")


@pytest.mark.skipif(not (DATA / "imagenet-mini" / "val").is_dir(), reason="set SOUPBENCH_TEST_DATA to a data folder")
def test_six_cheap_methods_share_the_making_of_corrupted_photographs(
    benchmark: BenchmarkFixture, cache: Path, tmp_path: Path
) -> None:
    """A model as small as this shows what making the images costs; the bigger it is, the less there is to save."""
    (tmp_path / "imagenet").mkdir()
    (tmp_path / "imagenet" / "val").symlink_to(DATA / "imagenet-mini" / "val")
    (tmp_path / "model.py").write_text(MODEL)
    settings = {
        **{"shift": "imagenet-c-gen", "model": f"{tmp_path / 'model.py'}:build", "data_root": tmp_path},
        **{"corruption": "gaussian_noise,glass_blur,snow,elastic_transform", "severity": 3, "split": "transductive"},
        **{"limit": 64, "batch_size": 32, "jobs": 1, "rerun": True},
    }

    def shared() -> None:
        outcome = run(make_spec({**settings, "method": ",".join(CHEAP), "out": tmp_path / "shared"}))
        assert (outcome.done, outcome.failed) == (len(CHEAP) * 5, 0)

    def alone() -> None:
        for name in CHEAP:
            run(make_spec({**settings, "method": name, "out": tmp_path / "alone"}))

    alone()  # decodes the photographs, which later runs find in the cache
    ratio = benchmark.pedantic(paired, args=(alone, shared, 3), rounds=1)
    benchmark.extra_info["ratio of alone to shared"] = ratio
    assert ratio > 2
