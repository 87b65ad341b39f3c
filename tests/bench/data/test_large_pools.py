"""Pools too large for memory: cached by content, limited by the disk, equal to pools in memory."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import corruptions
from bench.core.conditions import CLEAN, NATURAL, Condition
from bench.data import pixel_cache as kept
from bench.data.pixel_cache import CachedRows, pools_dir
from bench.planning.cost_estimate import estimate
from bench.planning.plan import make_plan
from bench.runs.run import run
from bench.settings.run_spec import make_spec
from bench.shifts import digits, load_shift
from bench.shifts import lazy_images as lazy
from bench.shifts.lazy_images import LazyImages
from leaderboards.store import Store

from .conftest import picture, save

FOG = Condition("fog", 3)
BLUR = Condition("defocus_blur", 3)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOUPBENCH_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def corrupted(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """(corruption, ids) of each call that made corrupted images."""
    calls: list[Any] = []
    true = corruptions.corrupt

    def counted(images: torch.Tensor, name: str, *arguments: Any, **named: Any) -> torch.Tensor:
        calls.append((name, named["ids"]))
        return true(images, name, *arguments, **named)

    monkeypatch.setattr(corruptions, "corrupt", counted)
    return calls


def test_a_pool_is_made_once_for_all_pools_with_these_conditions(corrupted: list[Any]) -> None:
    shift = load_shift("digits-c")
    ids = shift.ids("test")[::2][:30]
    conditions = (CLEAN, FOG, BLUR)
    wanted = torch.cat([shift.images(ids, condition) for condition in conditions])
    corrupted.clear()
    pool = LazyImages(shift, ids, conditions)
    some = torch.tensor([89, 0, 31, 60, 5, 31])
    assert torch.equal(pool[some], wanted[some])
    assert {name for name, _ in corrupted} == {"fog", "defocus_blur"}
    assert torch.equal(pool[:], wanted)
    others = (pool, LazyImages(shift, ids, conditions), LazyImages(shift, ids, (BLUR,)))
    corrupted.clear()
    for other in others:
        assert torch.equal(other[len(other) - 30 :], wanted[60:])
    again = pickle.loads(pickle.dumps(pool))
    assert torch.equal(again[torch.arange(90) % 2 == 0], wanted[::2])
    assert corrupted == []
    assert len(list(pools_dir().glob("*.u8"))) == 2  # clean images are kept where they were decoded


@pytest.mark.parametrize("what", ["ids", "severity", "code", "instructions", "version", "seed"])
def test_other_pixels_have_another_file(corrupted: list[Any], monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    shift: Any = load_shift("digits-c")
    ids = shift.ids("test")[:30]
    LazyImages(shift, ids, (FOG,))[:]
    corrupted.clear()
    severity = 3.0
    match what:
        case "ids":
            ids = shift.ids("test")[1:31]
        case "severity":
            severity = 4.0
        case "code":
            monkeypatch.setattr(digits, "corruption_marks", lambda name: ["fog 2"])
        case "instructions":
            monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "other")
        case "version":
            monkeypatch.setattr(torch, "__version__", "9.9")
        case "seed":
            monkeypatch.setattr(type(shift), "data_seed", 1)
    pool = LazyImages(shift, ids, (Condition("fog", severity),))
    corrupted.clear()
    found = pool[:]
    assert [len(made) for _, made in corrupted] == [30]
    assert torch.equal(found, shift.images(ids, Condition("fog", severity)))


def test_what_is_not_made_here_is_not_kept_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    shift: Any = load_shift("digits-c")
    monkeypatch.setattr(type(shift), "made_here", False)
    pool = LazyImages(shift, shift.ids("test")[:5], (FOG,))
    pool[:]
    assert pool.kept == ()
    monkeypatch.setattr(type(shift), "made_here", True)
    assert LazyImages(shift, shift.ids("test")[:5], (CLEAN, Condition(NATURAL, 1), FOG)).kept[0].rows == 5
    assert len(LazyImages(shift, shift.ids("test")[:5], (CLEAN, Condition(NATURAL, 1), FOG)).kept) == 1
    assert not pools_dir().exists()


def test_a_pool_that_would_take_half_of_the_free_disk_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    shift = load_shift("digits-c")
    ids = shift.ids("test")[:10]
    need = 2 * 10 * 3 * 32 * 32

    def pool(free: int) -> LazyImages:
        monkeypatch.setattr(kept.shutil, "disk_usage", lambda path: type("Usage", (), {"free": free}))
        return LazyImages(shift, ids, (FOG, BLUR))

    assert pool(2 * need - 2).kept == ()
    assert torch.equal(pool(2 * need - 2)[:10], shift.images(ids, FOG))
    assert not pools_dir().exists()
    assert len(pool(2 * need).kept) == 2
    pool(2 * need)[:10]
    # What is there already needs no room.
    assert len(pool(need).kept) == 2
    assert pool(need - 2).kept == ()


def _spec(out: Path) -> Any:
    settings = {
        "method": "selfsoup",
        "shift": "digits-c",
        "corruption": "fog,contrast",
        "severity": 3,
        "limit": 20,
        "jobs": 1,
        "out": out,
    }
    options = {"selfsoup": {"steps": 12, "batch": 16, "epochs": 1, "ingredients": ["mae", "mocov3"]}}
    return make_spec(settings, {"set": options})


def test_trainings_on_a_large_pool_make_it_once_and_end_as_from_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []
    true: Any = CachedRows._write

    def counted(self: CachedRows, file: int, rows: np.ndarray, pixels: np.ndarray) -> None:
        made.extend(rows.tolist())
        true(self, file, rows, pixels)

    monkeypatch.setattr(CachedRows, "_write", counted)

    def predictions(folder: str) -> list[Any]:
        monkeypatch.setenv("SOUPBENCH_CACHE", str(tmp_path / folder / "cache"))
        outcome = run(_spec(tmp_path / folder / "out"))
        assert outcome.exit_code == 0
        found = [Store(outcome.out).predictions(record) for record in outcome.records()]
        return [part.p_label.tolist() for part in found if part is not None]

    memory = predictions("memory")
    assert made == []
    monkeypatch.setattr(lazy.pooled, "__defaults__", (0,))
    assert predictions("kept") == memory
    assert sorted(made) == sorted([*range(20)] * 2)  # two corruptions, two trainings of 12 steps


_BRIEF = {"steps": 4, "batch": 8, "epochs": 1, "ingredients": ["mae", "mae:mask_ratio=0.5"]}
_CHOOSING = {"shift_pool": "per_corruption", "mixes": ["uniform", "greedy", "fisher", "learned"], "holdout": 0.25}
LARGE: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "selfsoup": ({"method": "selfsoup"}, {"selfsoup": _BRIEF}),
    "lockstep": ({"method": "selfsoup"}, {"selfsoup": {**_BRIEF, "lockstep": True}}),
    "choosing": ({"method": "selfsoup"}, {"selfsoup": {**_BRIEF, **_CHOOSING}}),
    "val": ({"method": "selfsoup"}, {"selfsoup": {**_BRIEF, "select_on": "val", "mixes": ["greedy"]}}),
    "adapters": ({"method": "eata,rmt,santa"}, {"source": {"epochs": 1}}),
    "baselines": (
        {"method": "selfsoup", "with_baselines": True},
        {
            "selfsoup": _BRIEF,
            "source": {"epochs": 1},
            "supervised_soup": {"epochs": 1, "scales": [1.0, 2.0]},
            "tent_pool": {"epochs": 1, "passes": 1},
            "shot_im_pool": {"epochs": 1, "passes": 1},
        },
    ),
}


@pytest.mark.parametrize("case", ["selfsoup", *(pytest.param(c, marks=pytest.mark.slow) for c in list(LARGE)[1:])])
def test_images_too_many_for_memory_give_the_same_numbers_in_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    """Photographs in folders, whose shift is loaded anew where it is sent, against all in memory and one process."""
    for number in range(120):
        part, label = ("train" if number % 2 else "test"), f"c{number % 4 // 2}"
        save(tmp_path / "set" / part / label / f"{number}.png", picture(number, (32, 32)))
    flags, options = LARGE[case]

    def predictions(budget: int, jobs: int) -> dict[Any, list[float]]:
        monkeypatch.setattr(lazy.pooled, "__defaults__", (budget,))
        monkeypatch.setenv("SOUPBENCH_CACHE", str(tmp_path / f"cache{jobs}"))
        settings = {
            **flags,
            "shift": f"folder:{tmp_path / 'set'}",
            "stock": "digits",
            "corruption": "fog,contrast",
            "severity": 3,
            "jobs": jobs,
            "labels": 8,
            "out": tmp_path / f"out{jobs}",
        }
        outcome = run(make_spec(settings, {"set": options}))
        assert outcome.errors == ()
        return {r.key: Store(outcome.out).predictions(r).p_label.tolist() for r in outcome.records() if r.predictions}

    memory = predictions(1 << 30, 1)
    assert not pools_dir().exists()
    assert memory == predictions(0, 2)
    assert len(list(pools_dir().glob("*.u8"))) == (0 if case == "adapters" else 2)


def test_the_disk_of_each_made_image_counts_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Images that are kept count for the first training that makes them, and for none once they are there."""
    monkeypatch.setattr(lazy.pooled, "__defaults__", (0,))

    def ingredients(out: str) -> list[int]:
        costs = estimate(make_plan(_spec(tmp_path / out))).costs
        return [cost.disk for cost in costs if cost.label.startswith("ingredient")]

    first, second = ingredients("out")
    assert not pools_dir().exists()
    assert first - second == 40 * 3 * 32 * 32  # both draw 192 images of the 40 that there are
    run(_spec(tmp_path / "out"))
    for path in (tmp_path / "cache" / "weights").glob("*"):
        path.unlink()
    assert ingredients("again") == [second] * 2
