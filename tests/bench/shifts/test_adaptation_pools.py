"""Pools by corruption and by family, splits, and clean images for model selection."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch

from bench.core.conditions import CLEAN, Condition
from bench.core.errors import UsageError
from bench.planning.board_entry import BoardEntry
from bench.planning.plan import make_plan
from bench.runs.run import Outcome, run
from bench.settings.run_spec import make_spec
from bench.shifts import load_shift
from bench.shifts.adaptation_pools import family_of, groups
from bench.training.job_cache import all_jobs
from methods.base import Job

Quick = Callable[..., Outcome]
CONDITIONS = (CLEAN, *(Condition(name, 3) for name in ("shot_noise", "gaussian_noise", "fog", "pixelate")))
SMALL = {"steps": 2, "epochs": 1, "batch": 8, "ingredients": ["mae"]}


def job_of(entry: BoardEntry) -> Any:
    assert entry.job is not None
    return entry.job


def pool_of(entry: BoardEntry) -> Any:
    return next(job.data for job in all_jobs([job_of(entry)]) if job.function.__name__ == "inter_train")


def planned(settings: dict[str, Any], options: dict[str, Any], **changes: Any) -> dict[str, BoardEntry]:
    """The first board entry of the Self-Soup that scores each condition."""
    spec = make_spec({**settings, "method": "selfsoup", **changes}, {"set": {"selfsoup": {**SMALL, **options}}})
    entries = [entry for entry in make_plan(spec).entries if entry.part == "soup"]
    return {
        str(condition): entry for entry in entries for segment in entry.segments for condition in segment.conditions
    }


def test_families_are_the_published_ones_and_strangers_stand_alone() -> None:
    families = [family_of(name) for name in ("zoom_blur", "contrast", "spatter", "of_my_own")]
    assert families == ["blur", "digital", "weather", "of_my_own"]


def test_groups_partition_what_is_scored() -> None:
    for how in ("mixed", "per_corruption", "leave_one_family_out"):
        found = groups(CONDITIONS, how)
        assert sorted(str(c) for group in found for c in group.scored) == sorted(map(str, CONDITIONS))
    left_out = {str(group.scored[0]): {str(c) for c in group.pooled} for group in groups(CONDITIONS, how)}
    assert left_out == {
        "clean": {"shot_noise@3", "gaussian_noise@3", "fog@3", "pixelate@3"},
        "shot_noise@3": {"fog@3", "pixelate@3"},
        "fog@3": {"shot_noise@3", "gaussian_noise@3", "pixelate@3"},
        "pixelate@3": {"shot_noise@3", "gaussian_noise@3", "fog@3"},
    }
    with pytest.raises(ValueError, match="at least two"):
        groups(CONDITIONS[:3], "leave_one_family_out")


def test_each_classifier_has_seen_the_corruptions_of_its_group_alone(settings: dict[str, Any]) -> None:
    """The pool's pixels are those of the adapt half under the named conditions, in any of the three ways."""
    shift = load_shift("digits-c")
    adapt = shift.ids("test")[0::2]

    def pixels(names: tuple[str, ...]) -> torch.Tensor:
        limited = adapt[torch.linspace(0, len(adapt) - 1, 12, dtype=torch.float64).round().long().numpy()]
        return torch.cat([shift.images(limited, Condition(name, 3) if name else CLEAN) for name in names])

    both = ("fog", "contrast")
    for how, seen in {
        "mixed": {"fog@3": both, "contrast@3": both, "clean": both},
        "per_corruption": {"fog@3": ("fog",), "contrast@3": ("contrast",), "clean": ("",)},
        "leave_one_family_out": {"fog@3": ("contrast",), "contrast@3": ("fog",), "clean": both},
    }.items():
        entries = planned(settings, {"shift_pool": how})
        assert set(entries) == set(seen)
        for condition, names in seen.items():
            assert torch.equal(pool_of(entries[condition]).images, pixels(names))


@pytest.mark.parametrize("split", ["disjoint", "joint", "transductive"])
def test_splits_say_which_images_are_seen(settings: dict[str, Any], split: str) -> None:
    """Identities: the clean pictures behind the pool and behind the stream."""
    shift = load_shift("digits-c")
    ids = shift.ids("test").tolist()
    entry = planned(settings, {"shift_pool": "per_corruption"}, limit=None, split=split)["clean"]
    adapt, scored = {
        "disjoint": (ids[0::2], ids[1::2]),
        "joint": (ids[0::2], ids[0::2]),
        "transductive": (ids, ids),
    }[split]
    assert torch.equal(pool_of(entry).images, shift.images(torch.tensor(adapt).numpy(), CLEAN))
    assert sorted(entry.segments[0].ids.tolist()) == scored


@pytest.mark.parametrize("how", ["per_corruption", "leave_one_family_out"])
def test_pools_run_and_make_one_row(settings: dict[str, Any], how: str) -> None:
    outcome = run(make_spec({**settings, "method": "selfsoup"}, {"set": {"selfsoup": {**SMALL, "shift_pool": how}}}))
    assert outcome.exit_code == 0
    row = next(row for row in outcome.board().rows if row.main)
    assert row.accuracy is not None
    assert row.clean_accuracy is not None
    assert {r.options["selfsoup"]["shift_pool"] for r in outcome.records()} == {how}


def test_a_stream_that_goes_on_cannot_change_its_classifier(settings: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="reset_each_shift"):
        planned(settings, {"shift_pool": "per_corruption"}, protocol="continual")


def test_choosing_on_clean_test_images_never_meets_a_scored_one(settings: dict[str, Any]) -> None:
    options = {"mixes": ["greedy"], "select_on": "val", "ingredients": ["mae", "mae:mask_ratio=0.5"]}
    data = job_of(planned(settings, options, limit=None)["fog@3"]).data
    shift = load_shift("digits-c")
    ids = shift.ids("test")[0::2]
    assert torch.equal(data.images, shift.images(ids, CLEAN))
    assert data.labels.tolist() == shift.labels(ids).tolist()
    for split in ("joint", "transductive"):
        with pytest.raises(UsageError, match="not scored"):
            planned(settings, options, split=split)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"mixes": ["grredy"]}, "no way of mixing"),
        ({"ingredients": ["mocov3:temperature=0"]}, "must be above 0"),
        ({"shift_pool": "leave_one_family_out"}, "at least two"),
        ({"order": "soup_then_tune", "mixes": ["greedy"], "holdout": 0.1}, "tune_then_soup"),
    ],
)
def test_what_a_recipe_refuses_is_one_sentence(
    settings: dict[str, Any], options: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(UsageError, match=sentence):
        planned(settings, options, corruption="fog")


def test_baselines_that_adapt_start_from_the_source_classifier(settings: dict[str, Any]) -> None:
    spec = make_spec(
        {**settings, "method": "source,tent_pool,shot_im_pool"}, {"set": {"source": {"epochs": 1, "lr": 3e-3}}}
    )
    source, *others = make_plan(spec).entries
    for entry in others:
        start = job_of(entry).inputs[0]
        assert isinstance(start, Job)
        assert dataclasses.asdict(start.config) == dataclasses.asdict(job_of(source).config)
        assert start.config.lr == 3e-3


def test_connectivity_has_images_of_its_own(settings: dict[str, Any]) -> None:
    """Dev images, on which no job of the row trains or chooses, and none of which is scored; also with a holdout."""
    two = {"ingredients": ["mae", "mae:mask_ratio=0.5"]}
    shift = load_shift("digits-c")
    for options in (two, two | {"holdout": 0.2, "mixes": ["uniform", "greedy"]}):
        entry = planned(settings, options)["fog@3"]
        assert entry.report is not None
        report: Any = entry.report.data
        others = [job.data for job in all_jobs([job_of(entry)]) if job.data is not None]
        assert report.digest not in {data.digest for data in others}
        dev = {image.numpy().tobytes() for image in shift.images(shift.ids("dev"), CLEAN)}
        assert len(report) == settings["limit"]
        assert {image.numpy().tobytes() for image in report.images[:]} <= dev
        assert not set(shift.ids("dev")) & ({*shift.ids("train")} | {*entry.scored})
        whole = planned(settings, options, limit=None)["fog@3"].report
        assert whole is not None
        assert len(whole.data) == len(shift.ids("dev"))  # type: ignore[arg-type]


def test_connectivity_of_a_run_on_dev_images_is_that_on_the_held_out_ones(settings: dict[str, Any]) -> None:
    two = {"ingredients": ["mae", "mae:mask_ratio=0.5"]}
    dev = {"split": "dev", "corruption": None}
    assert next(iter(planned(settings, two, **dev).values())).report is None
    held_out = next(iter(planned(settings, two | {"holdout": 0.2}, **dev).values())).report
    assert held_out is not None
    assert held_out.data is not None
    assert held_out.data.digest not in {"", "val"}
