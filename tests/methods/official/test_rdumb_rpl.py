"""RDumb and RPL, held against oripress/CCC."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from golden_streams import Golden
from official_streams import OfficialRun, checkouts, release
from torch import Tensor, nn

from methods.adapters.rdumb import Rdumb
from methods.adapters.rpl import Rpl

LR, INTERVAL = 0.01, 4


def models(name: str) -> Any:
    """A module of the package, whose own list of imports is circular."""
    registry = release("CCC/models", "registery")
    package = {
        "__path__": [str(checkouts() / "CCC" / "models")],
        "AdaptiveModel": registry.AdaptiveModel,
        "register": registry.register,
    }
    return release("CCC", f"models.{name}", {"models": package})


def twice(golden: Golden) -> Tensor:
    return golden.stream.repeat(2, 1, 1, 1, 1)


def official_rdumb(model: nn.Module, stream: Tensor, source: Tensor) -> Tensor:
    adapted = models("rdumb").RDumb(model)
    adapted.e_margin, adapted.d_margin = 0.4 * math.log(10), 0.4
    adapted.optimizer.param_groups[0]["lr"] = adapted.optimizer_state["param_groups"][0]["lr"] = LR
    logits, fresh = [], []
    for batch in stream:
        logits.append(adapted(batch).detach())
        fresh.append(adapted.total_steps % 1000 == 1)
        # The interval of the release is a number in its code; steps are left out of each one.
        if adapted.total_steps % 1000 == INTERVAL:
            adapted.total_steps += 1000 - INTERVAL
    assert [place for place, new in enumerate(fresh) if new] == list(range(0, len(stream), INTERVAL))
    return torch.stack(logits)


def official_rpl(model: nn.Module, stream: Tensor, source: Tensor) -> Tensor:
    adapted = models("rpl").RPL(model, lr=LR)
    return torch.stack([adapted(batch).detach() for batch in stream])


RUNS = [
    OfficialRun(
        "rdumb-reset-resnet",
        Rdumb,
        {"lr": LR, "epsilon": 0.4, "interval": INTERVAL},
        "test_resnet",
        "oripress/CCC/models/rdumb.py",
        ("return to the source before the first batch", "return after an interval, twice"),
        official_rdumb,
        twice,
        double=True,
    ),
    OfficialRun(
        "rpl-resnet",
        Rpl,
        {"lr": LR},
        "test_resnet",
        "oripress/CCC/models/rpl.py",
        ("all of its single branch",),
        official_rpl,
        twice,
        double=True,
    ),
]


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.name)
def test_runs_as_the_release(run: OfficialRun, held_to_release: Callable[[OfficialRun], None]) -> None:
    held_to_release(run)
