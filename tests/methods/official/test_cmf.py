"""CMF, held against its authors' code as released in mariodoebler/test-time-adaptation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import pytest
import torch
from official_streams import OfficialRun
from torch import Tensor, nn
from zoo import CLASSES, along, build, double, double_stream, options, seeded, views

from methods.adapters.cmf import Cmf

# The noise is in units of 38400 learnt parameters, of which the golden models have few.
GAINS = {"certain": 1e-4, "between": 0.5, "least": 20.0}


def official(gain: str, given: Mapping[str, Any], model: nn.Module, stream: Tensor, source: Tensor) -> Tensor:
    cfg = options(
        optim={"LR": given["lr"], "METHOD": "Adam" if given.get("optimizer") == "adam" else "SGD"},
        cmf={"ALPHA": given["alpha"], "GAMMA": given["gamma"], "Q": given["q"]},
    )
    adapted = build("cmf", "CMF", cfg, model)
    adapted.tta_transform = views(seeded(), smooth=False, padding="reflect")
    adapted.class_probs_ema = torch.full((CLASSES,), 1 / CLASSES, dtype=torch.float64)
    gains: list[float] = []
    filtering = adapted.bayesian_filtering

    def noted() -> None:
        filtering()
        gains.append(adapted.beta)

    adapted.bayesian_filtering = noted
    logits = along(adapted, stream)
    found = {"certain" if value == 1 else "least" if value == 0.89 else "between" for value in gains}
    assert gain in found
    return logits


OPTIONS = {"lr": 1e-2, "alpha": 0.9, "gamma": 0.8}
RUNS = [
    OfficialRun(
        f"cmf-{gain}-{model}",
        Cmf,
        {**OPTIONS, "q": q},
        double(f"test_{model}"),
        "mariodoebler/test-time-adaptation/classification/methods/cmf.py",
        (f"gain of the filter: {gain}",),
        partial(official, gain, {**OPTIONS, "q": q}),
        double_stream,
    )
    for model, gain, q in (*(("resnet", gain, q) for gain, q in GAINS.items()), ("vit", "between", GAINS["between"]))
]


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.name)
def test_runs_as_the_release(run: OfficialRun, held_to_release: Callable[[OfficialRun], None]) -> None:
    held_to_release(run)
