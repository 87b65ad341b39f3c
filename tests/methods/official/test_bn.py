"""Methods that choose the statistics of BatchNorm, held against their releases."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial

import pytest
import torch
from official_streams import OfficialRun, play_with_resets, release
from torch import Tensor, nn

from methods.adapters.bn import BatchNormStatistics
from methods.adapters.bn_alpha import BatchNormAlpha
from methods.adapters.bn_ema import BatchNormAverage

SHARE = 0.3
RESET = 3


@torch.no_grad()
def official_norm(model: nn.Module, stream: Tensor, source: Tensor) -> Tensor:
    norm = release("tent", "norm")
    made = []
    for options in ({}, {"reset_stats": True}, {"no_stats": True}):
        adapted = norm.Norm(copy.deepcopy(model), **options)
        made.append(torch.stack([adapted(batch) for batch in stream]))
    assert torch.equal(made[0], made[1])
    assert torch.equal(made[0], made[2])
    return made[0]


@torch.no_grad()
def official_blend(model: nn.Module, stream: Tensor, source: Tensor) -> Tensor:
    bn = release("robustness/robusta/batchnorm", "bn")
    adapted = bn.adapt_bayesian(model.eval(), 1 - SHARE)
    return torch.stack([adapted(batch) for batch in stream])


@torch.no_grad()
def official_average(model: nn.Module, stream: Tensor, source: Tensor) -> Tensor:
    bn = release("test-time-adaptation/classification/methods", "bn")
    logits = []
    for place, batch in enumerate(stream):
        if place in (0, RESET):
            adapted = bn.EMABatchNorm.adapt_model(copy.deepcopy(model))
        logits.append(adapted(batch))
    return torch.stack(logits)


RUNS = [
    OfficialRun(
        "bn-resnet",
        BatchNormStatistics,
        {},
        "test_resnet",
        "DequanWang/tent/norm.py",
        ("source statistics kept", "reset_stats", "no_stats"),
        official_norm,
    ),
    OfficialRun(
        "bn-alpha-resnet",
        BatchNormAlpha,
        {"alpha": SHARE},
        "test_resnet",
        "bethgelab/robustness/robusta/batchnorm/bn.py",
        ("BayesianBatchNorm",),
        official_blend,
    ),
    OfficialRun(
        "bn-ema-resnet",
        BatchNormAverage,
        {},
        "test_resnet",
        "mariodoebler/test-time-adaptation/classification/methods/bn.py",
        ("EMABatchNorm", "reset"),
        official_average,
        ours=partial(play_with_resets, [RESET]),
    ),
]


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.name)
def test_runs_as_the_release(run: OfficialRun, held_to_release: Callable[[OfficialRun], None]) -> None:
    held_to_release(run)
