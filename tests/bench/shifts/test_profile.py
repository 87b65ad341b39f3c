"""The severities of digits-c follow their rule on dev images."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bench.core.conditions import CLEAN, Condition
from bench.core.import_object import load_object
from bench.execution.task_pool import set_threads
from bench.models.weights_io import classifier, load_stock
from bench.settings.methods import build_config
from bench.settings.shift_options import tuned_options
from bench.shifts import load_shift
from bench.shifts.shift import labelled_source
from methods import METHODS
from methods.base import Job
from methods.nets.weights import Weights

DEMO_SEVERITY = 3
SEEDS = (0, 1)


def run_job(job: Job | Weights, seed: int) -> Weights:
    if isinstance(job, Weights):
        return job
    inputs = [run_job(part, seed) for part in job.inputs]
    return job.function(inputs, job.data, job.config, torch.Generator().manual_seed(seed))


@pytest.mark.slow
def test_each_severity_is_harder_than_the_one_before_and_the_demo_hurts() -> None:
    """Accuracy falls from each severity to the next, and below clean by 10 points at the demo's in 8 of 12."""
    set_threads(1)
    shift = load_shift("digits-c")
    row = METHODS["source"]
    recipe = load_object(row.path)(build_config(row, tuned_options(shift.name, row.name)))
    plans = [recipe.plan(load_stock("digits"), labelled_source(shift, shift.default_labels, s), None) for s in SEEDS]
    models = [classifier(run_job(plan[""], seed)) for plan, seed in zip(plans, SEEDS, strict=True)]
    ids = shift.ids("dev")
    labels = shift.labels(ids)

    @torch.no_grad()
    def accuracy(condition: Condition) -> float:
        images = shift.images(ids, condition).float() / 255
        return float(np.mean([(model(images).argmax(1).numpy() == labels).mean() for model in models]))

    clean = accuracy(CLEAN)
    curves = {name: [accuracy(Condition(name, level)) for level in range(1, 6)] for name in shift.corruptions}
    falling = {name: all(np.diff(curve) < 0) for name, curve in curves.items()}
    assert all(falling.values()), {name: curves[name] for name, falls in falling.items() if not falls}
    hurt = [name for name, curve in curves.items() if clean - curve[DEMO_SEVERITY - 1] >= 0.10]
    assert len(hurt) >= 8, curves
