"""ETA and EATA, held against mr-eggplant/EATA, and for other layers than BatchNorm against mr-eggplant/SAR."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from official_streams import OfficialRun, fisher_information, release, with_copies
from torch import Tensor, nn

from methods.adapters.eata import Eata
from methods.adapters.eta import Eta

LR, BETA = 0.01, 1000.0
# What a batch can lead to.
NONE_YET = "no reliable image before there is a mean"
FIRST = "the first reliable images, which start the mean"
SOME = "reliable images, some of them redundant"
REDUNDANT = "reliable images, all of them redundant"
NONE = "no reliable image once there is a mean"
OUTCOMES = (NONE_YET, FIRST, SOME, REDUNDANT, NONE)


def outcome(fresh: bool, reliable: int, used: int) -> str:
    if fresh:
        return FIRST if reliable else NONE_YET
    if not reliable:
        return NONE
    return SOME if 0 < used < reliable else REDUNDANT if not used else "reliable images, none of them redundant"


def official(
    folder: str,
    margin: float,
    epsilon: float,
    anchored: bool,
    model: nn.Module,
    stream: Tensor,
    source: Tensor,
) -> Tensor:
    eata = release(folder, "eata")
    model = eata.configure_model(model)
    optimizer = torch.optim.SGD(eata.collect_params(model)[0], lr=LR, momentum=0.9)
    fishers = fisher_information(model, source) if anchored else None
    adapted = eata.EATA(model, optimizer, fishers, BETA, e_margin=margin * math.log(10), d_margin=epsilon)
    logits, seen = [], []
    for batch in stream:
        fresh = adapted.current_model_probs is None
        before = adapted.num_samples_update_1, adapted.num_samples_update_2
        logits.append(adapted(batch).detach())
        counts = adapted.num_samples_update_1 - before[0], adapted.num_samples_update_2 - before[1]
        seen.append(outcome(fresh, *counts))
    assert set(OUTCOMES) <= set(seen), seen
    return torch.stack(logits)


def run(method: type[Eta], folder: str, margin: float, epsilon: float) -> OfficialRun:
    anchored = method is Eata
    options: dict[str, Any] = {"lr": LR, "margin": margin, "epsilon": epsilon}
    model = "resnet" if folder == "EATA" else "vit"
    return OfficialRun(
        f"{method.__name__.lower()}-filters-{model}",
        method,
        options | ({"beta": BETA, "fisher_images": 128} if anchored else {}),
        f"test_{model}",
        f"mr-eggplant/{folder}/eata.py",
        (*OUTCOMES, *(["Fisher information"] if anchored else [])),
        partial(official, folder, margin, epsilon, anchored),
        with_copies,
        double=True,
    )


RUNS = [
    run(method, folder, margin, epsilon)
    for method in (Eta, Eata)
    for folder, margin, epsilon in (("EATA", 0.1, 0.4), ("SAR", 0.65, 0.8))
]


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.name)
def test_runs_as_the_release(run: OfficialRun, held_to_release: Callable[[OfficialRun], None]) -> None:
    held_to_release(run)
