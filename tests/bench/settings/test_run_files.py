"""The run files in runs/: all their options exist, and their plans match their description."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bench.core.errors import MissingDataError
from bench.planning.plan import Plan, make_plan
from bench.settings.run_spec import make_spec, read_run_file
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


def test_the_paper_s_recipe_is_planned_as_published(tmp_path: Path) -> None:
    """Four MAE runs of 100,000 steps at 1e-5 .. 4e-5, each fine-tuned at 6e-5 .. 1.5e-4: sixteen classifiers."""
    for name in ("paper-imagenet-c", "paper-laion-c"):
        plan = on_digits(name, tmp_path)
        jobs = trainings(plan, "selfsoup", "soup")
        inter = [job.config for job in jobs if job.function.__name__ == "inter_train"]
        tuned = [job.config for job in jobs if job.function.__name__ == "fine_tune"]
        assert sorted(config.lr for config in inter) == [1e-5, 2e-5, 3e-5, 4e-5]
        assert {(c.steps, c.batch_size, c.weight_decay, c.warmup, c.head_warmup) for c in inter} == {
            (100_000, 128, 0.01, 0.1, 0.01)
        }
        assert {(c.objective.mask_ratio, c.objective.norm_pix) for c in inter} == {(0.75, False)}
        assert {(c.views.scale, c.views.three_augment, c.views.jitter) for c in inter} == {((0.08, 1.0), True, 0.3)}
        assert len(tuned) == 16
        assert sorted({round(config.lr, 9) for config in tuned}) == [6e-5, 8e-5, 1e-4, 1.5e-4]
        assert {(c.epochs, c.batch_size, c.weight_decay, c.label_smoothing) for c in tuned} == {(10, 128, 0.01, 0.0)}
        assert {(c.views.scale, c.views.three_augment, c.views.jitter) for c in tuned} == {((0.08, 1.0), True, 0.3)}


def test_the_other_recipes_are_what_their_names_say(tmp_path: Path) -> None:
    diverse = trainings(on_digits("diverse", tmp_path), "selfsoup", "soup")
    objectives = [job.config.objective for job in diverse if job.function.__name__ == "inter_train"]
    kinds = sorted(type(objective).__module__.rpartition(".")[2] for objective in objectives)
    assert kinds == ["lejepa", "mae", "mmcr", "mocov3"]
    assert sorted(job.function.__name__ for job in diverse) == ["fine_tune"] * 4 + ["inter_train"] * 4
    cheap = trainings(on_digits("cheap", tmp_path), "selfsoup", "soup")
    assert sorted(job.function.__name__ for job in cheap) == ["fine_tune"] + ["inter_train"] * 4
