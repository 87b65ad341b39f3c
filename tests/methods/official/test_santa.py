"""SANTA, held against the port of mariodoebler/test-time-adaptation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import pytest
from official_streams import OfficialRun
from torch import Tensor, nn
from zoo import Loader, along, build_with_source, double_stream, options, play_labelled, split_by_children, wrapped

from methods.adapters.santa import Santa


def official(given: Mapping[str, Any], model: nn.Module, stream: Tensor, source: Tensor) -> Tensor:
    cfg = options(
        optim={"LR": given["lr"], "METHOD": "Adam" if given.get("optimizer") == "adam" else "SGD"},
        contrast={"PROJECTION_DIM": given["projection"]},
        santa={"LAMBDA_CONT": given.get("contrast_weight", 1.0)},
    )
    split: nn.Module = split_by_children(model) if hasattr(model.model, "fc") else model
    return along(build_with_source("santa", "SANTA", cfg, split, Loader(source.to(stream))), stream)


SGD: dict[str, Any] = {"lr": 1e-2, "projection": 16}
ADAM: dict[str, Any] = {"lr": 1e-3, "optimizer": "adam", "projection": 16, "contrast_weight": 0.5}
RUNS = [
    OfficialRun(
        f"santa-{name}",
        Santa,
        given,
        partial(wrapped, model),
        "mariodoebler/test-time-adaptation/classification/methods/santa.py",
        ("prototypes", "contrast", "loss to the source model"),
        partial(official, given),
        double_stream,
        ours=play_labelled,
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
