"""RMT, held against its authors' mariodoebler/test-time-adaptation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import pytest
from official_streams import OfficialRun
from torch import Tensor, nn
from zoo import Loader, along, build_with_source, double_stream, options, play_labelled, split_by_children, wrapped

from methods.adapters.rmt import Rmt


def official(given: Mapping[str, Any], model: nn.Module, stream: Tensor, source: Tensor) -> Tensor:
    cfg = options(
        optim={"LR": given["lr"], "METHOD": "Adam" if given.get("optimizer") == "adam" else "SGD"},
        m_teacher={"MOMENTUM": given["teacher_momentum"]},
        contrast={"PROJECTION_DIM": given["projection"]},
        rmt={"NUM_SAMPLES_WARM_UP": given["warm_up_images"], "LAMBDA_CE_SRC": given.get("source_weight", 1.0)},
    )
    loader = Loader(source.to(stream))
    adapted = build_with_source("rmt", "RMT", cfg, split_by_children(model), loader)
    assert adapted.warmup_steps == given["warm_up_images"] // 16
    moved = any(not one.equal(other) for one, other in zip(adapted.model.parameters(), model.parameters(), strict=True))
    assert moved == (given["warm_up_images"] > 0)
    logits = along(adapted, stream)
    # Once for the prototypes, then for warm-up and replay, which go round.
    assert loader.started == (1 if given.get("source_weight") == 0 else 3)
    return logits


REPLAY: dict[str, Any] = {"lr": 1e-3, "warm_up_images": 80, "teacher_momentum": 0.9, "projection": 16}
SOURCE_FREE: dict[str, Any] = {**REPLAY, "optimizer": "adam", "warm_up_images": 0, "source_weight": 0.0}
COMMON = ("prototypes", "contrast", "self-training")
RUNS = [
    OfficialRun(
        f"rmt-{name}",
        Rmt,
        given,
        partial(wrapped, "test_resnet"),
        "mariodoebler/test-time-adaptation/classification/methods/rmt.py",
        (*COMMON, *enters),
        partial(official, given),
        double_stream,
        ours=play_labelled,
    )
    for name, given, enters in (
        ("replay", REPLAY, ("warm-up", "source replay, which goes round")),
        ("source-free", SOURCE_FREE, ("no warm-up", "no replay")),
    )
]


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.name)
def test_runs_as_the_release(run: OfficialRun, held_to_release: Callable[[OfficialRun], None]) -> None:
    held_to_release(run)
