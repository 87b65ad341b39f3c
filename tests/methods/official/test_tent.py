"""TENT, held against DequanWang/tent, and for other layers than BatchNorm against mr-eggplant/SAR."""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial
from typing import Any

import pytest
import torch
from official_streams import OfficialRun, play_with_resets, release
from torch import Tensor, nn

from methods.adapters.tent import Tent

LR = 0.01
STEPS = "two steps on each batch"


def official(
    folder: str, adam: bool, resets: Collection[int], episodic: bool, model: nn.Module, stream: Tensor, source: Tensor
) -> Tensor:
    tent = release(folder, "tent")
    model = tent.configure_model(model)
    parameters, _ = tent.collect_params(model)
    optimizer = torch.optim.Adam(parameters, lr=LR) if adam else torch.optim.SGD(parameters, lr=LR, momentum=0.9)
    adapted = tent.Tent(model, optimizer, steps=2, episodic=episodic)
    logits = []
    for place, batch in enumerate(stream):
        if place in resets:
            adapted.reset()
        logits.append(adapted(batch).detach())
    return torch.stack(logits)


def run(
    name: str,
    enters: str,
    folder: str = "tent",
    adam: bool = False,
    resets: Collection[int] = (),
    episodic: bool = False,
) -> OfficialRun:
    options: dict[str, Any] = {"lr": LR, "steps": 2, "optimizer": "adam" if adam else "sgd"}
    return OfficialRun(
        name,
        Tent,
        options,
        "test_resnet" if folder == "tent" else "test_vit",
        "DequanWang/tent/tent.py" if folder == "tent" else "mr-eggplant/SAR/tent.py",
        (STEPS, enters),
        partial(official, folder, adam, resets, episodic),
        ours=partial(play_with_resets, range(6) if episodic else resets),
        double=True,
    )


RUNS = [
    run("tent-reset-resnet", "reset", resets=[3]),
    run("tent-episodic-resnet", "reset before each batch", episodic=True),
    run("tent-adam-resnet", "Adam, reset", adam=True, resets=[3]),
    run("tent-reset-vit", "reset", folder="SAR", resets=[3]),
]


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.name)
def test_runs_as_the_release(run: OfficialRun, held_to_release: Callable[[OfficialRun], None]) -> None:
    held_to_release(run)
