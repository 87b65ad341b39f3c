"""The run files in runs/: all their options exist, and their plans match their description."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bench.core.errors import MissingDataError
from bench.planning.plan import Plan, make_plan
from bench.planning.training_cost import expected_jobs, published_setting
from bench.settings.methods import parse_method
from bench.settings.run_spec import make_spec, read_run_file
from bench.shifts import find_row
from bench.training.job_cache import all_jobs
from methods.base import Job

RUNS = sorted((Path(__file__).parents[3] / "runs").glob("*.toml"))


def on_digits(name: str, tmp_path: Path, **changes: Any) -> Plan:
    """Return the plan of a run file on bundled data."""
    settings = read_run_file(next(path for path in RUNS if path.stem == name))
    local = {"shift": "digits-c", "stock": "digits", "labels": 60, "severity": 5, "out": tmp_path, "device": "cpu"}
    return make_plan(make_spec(settings, local, changes))


def trainings(plan: Plan, method: str, part: str | None) -> list[Job]:
    entry = next(entry for entry in plan.entries if (entry.trial.method, entry.part) == (method, part))
    assert entry.job is not None
    return [job for job in all_jobs([entry.job]) if job.function.__name__ in ("inter_train", "fine_tune")]


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.stem)
def test_a_run_file_can_be_planned_or_says_which_data_is_missing(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOUPBENCH_CACHE", str(tmp_path))
    settings = read_run_file(path)
    spec = make_spec(settings, {"out": tmp_path / "out", "device": "cpu", "offline": True})
    if str(settings["shift"]).startswith("digits"):
        assert make_plan(spec).entries
        return
    with pytest.raises(MissingDataError, match=r"missing for|no CIFAR|no stock|is not"):
        make_plan(spec)


def before_data(name: str) -> list[Job]:
    """Return the trainings of a run file on the published stock and number of images."""
    spec = make_spec(read_run_file(next(path for path in RUNS if path.stem == name)))
    setting = published_setting(find_row(spec.shift))
    assert setting is not None
    jobs = expected_jobs(spec, [parse_method(text) for text in spec.method], setting)
    return [job for job in jobs if job.function.__name__ in ("inter_train", "fine_tune")]


@pytest.mark.parametrize("name", ["paper-imagenet-c", "paper-laion-c"])
def test_the_paper_s_recipe_is_planned_as_published(name: str) -> None:
    """Four MAE runs of 100,000 steps at 1e-5 .. 4e-5, each fine-tuned at 6e-5 .. 1.5e-4, as are four of the stock."""
    jobs = before_data(name)
    inter = [job.config for job in jobs if job.function.__name__ == "inter_train"]
    tuned = [job.config for job in jobs if job.function.__name__ == "fine_tune"]
    assert sorted(config.lr for config in inter) == [1e-5, 2e-5, 3e-5, 4e-5]
    assert {(c.steps, c.batch_size, c.weight_decay, c.warmup, c.head_warmup) for c in inter} == {
        (100_000, 128, 0.01, 0.1, 0.01)
    }
    assert {(c.objective.mask_ratio, c.objective.norm_pix) for c in inter} == {(0.75, False)}
    assert {(c.views.scale, c.views.three_augment, c.views.jitter) for c in inter} == {((0.08, 1.0), True, 0.3)}
    assert len(tuned) == 20
    assert sorted({round(config.lr, 9) for config in tuned}) == [6e-5, 8e-5, 1e-4, 1.5e-4]
    assert {(c.epochs, c.batch_size, c.weight_decay, c.label_smoothing) for c in tuned} == {(10, 128, 0.01, 0.0)}
    assert {(c.views.scale, c.views.three_augment, c.views.jitter) for c in tuned} == {((0.08, 1.0), True, 0.3)}


def test_the_contrast_has_three_algorithms_on_clean_images() -> None:
    inter = [job for job in before_data("paper-contrast") if job.function.__name__ == "inter_train"]
    clean = [job.config for job in inter if job.data is not None and "source" in job.data.digest]
    kinds = sorted(type(config.objective).__module__.rpartition(".")[2] for config in clean)
    assert kinds == ["mae", "mmcr", "mocov3"]
    assert {(config.steps, config.batch_size, config.lr) for config in clean} == {(25_020, 256, 1e-5)}
    assert len(inter) == 7


def test_the_cheap_file_fine_tunes_a_soup_once() -> None:
    """The soup, each ingredient alone (its row) and the source, once each."""
    names = sorted(job.function.__name__ for job in before_data("cheap"))
    assert names == ["fine_tune"] * 6 + ["inter_train"] * 4


def test_the_other_recipes_are_what_their_names_say(tmp_path: Path) -> None:
    diverse = trainings(on_digits("diverse", tmp_path), "selfsoup", "soup")
    objectives = [job.config.objective for job in diverse if job.function.__name__ == "inter_train"]
    kinds = sorted(type(objective).__module__.rpartition(".")[2] for objective in objectives)
    assert kinds == ["lejepa", "mae", "mmcr", "mocov3"]
    assert sorted(job.function.__name__ for job in diverse) == ["fine_tune"] * 4 + ["inter_train"] * 4
