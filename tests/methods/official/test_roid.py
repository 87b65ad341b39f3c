"""ROID, held against the release in mariodoebler/test-time-adaptation, whose authors are ROID's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import pytest
import torch
from official_streams import OfficialRun
from torch import Tensor, nn
from zoo import CLASSES, build, double, double_stream, options, seeded, views, with_a_short_batch

from methods.adapters.roid import Roid


def official(given: Mapping[str, Any], model: nn.Module, stream: Tensor, source: Tensor) -> Tensor:
    cfg = options(
        optim={"LR": given["lr"], "METHOD": "Adam" if given.get("optimizer") == "adam" else "SGD"},
        roid={"MOMENTUM_SRC": 1 - given["source_share"]},
    )
    adapted = build("roid", "ROID", cfg, model)
    view = views(seeded(), smooth=False, padding="reflect")
    kept: list[int] = []

    def transform(images: Tensor) -> Tensor:
        kept.append(len(images))
        return view(images)

    adapted.tta_transform = transform
    adapted.class_probs_ema = torch.full((CLASSES,), 1 / CLASSES, dtype=torch.float64)
    logits = with_a_short_batch(adapted, stream)
    assert all(0 < count < 16 for count in kept)
    return logits


def play_ours(run: OfficialRun, model: nn.Module, stream: Tensor, source: Tensor) -> Tensor:
    adapter = run.adapter(model, run.adapter.Config(**run.options), seeded())
    adapter.prepare()
    return with_a_short_batch(adapter.predict, stream)


SGD: dict[str, Any] = {"lr": 1e-2, "source_share": 0.1}
ADAM: dict[str, Any] = {"lr": 1e-3, "optimizer": "adam", "source_share": 0.01}
RUNS = [
    OfficialRun(
        f"roid-{name}",
        Roid,
        given,
        double(model),
        "mariodoebler/test-time-adaptation/classification/methods/roid.py",
        ("images weighted and left out", "consistency", "prior correction", "source ensembling", "a short batch"),
        partial(official, given),
        double_stream,
        ours=play_ours,
    )
    for name, given, model in (
        ("imagenet-resnet", SGD, "test_resnet"),
        ("imagenet-vit", SGD, "test_vit"),
        ("cifar", ADAM, "test_resnet"),
    )
]


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.name)
def test_runs_as_the_release(run: OfficialRun, held_to_release: Callable[[OfficialRun], None]) -> None:
    held_to_release(run)
