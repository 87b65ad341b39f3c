"""DeYO, held against Jhyun17/DeYO."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from functools import partial
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
from golden_streams import Golden
from official_streams import OfficialRun, release, with_copies
from torch import Tensor, nn

from methods.adapters.deyo import Deyo

LR = 0.01
# What a batch can lead to: how many images pass the first and the second test.
FIRST_NONE, SECOND_NONE, SOME = "no image passes the first test", "no image passes the second test", "some pass both"


def rearrange(values: Tensor, pattern: str, ps1: int, ps2: int) -> Tensor:
    """The two rearrangements that the release takes from einops."""
    if pattern.endswith("b (ps1 ps2) c h w"):
        tiles = values.unflatten(3, (ps2, -1)).unflatten(2, (ps1, -1))
        return tiles.permute(0, 2, 4, 1, 3, 5).flatten(1, 2)
    assert pattern == "b (ps1 ps2) c h w -> b c (ps1 h) (ps2 w)"
    return values.unflatten(1, (ps1, ps2)).permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)


def official(
    margin: float,
    plpd: float,
    patches: int,
    outcomes: Collection[str],
    model: nn.Module,
    stream: Tensor,
    source: Tensor,
) -> Tensor:
    stand_ins = {"einops": {"rearrange": rearrange}, "matplotlib": {"pyplot": None}, "matplotlib.pyplot": {}}
    deyo = release("DeYO/methods", "deyo", stand_ins)
    options = SimpleNamespace(
        wandb_log=False,
        filter_ent=True,
        filter_plpd=True,
        reweight_ent=1,
        reweight_plpd=1,
        aug_type="patch",
        patch_len=patches,
        plpd_threshold=plpd,
    )
    model = deyo.configure_model(model)
    optimizer = torch.optim.SGD(deyo.collect_params(model)[0], lr=LR, momentum=0.9)
    largest = math.log(10)
    adapted = deyo.DeYO(model, options, optimizer, deyo_margin=margin * largest, margin_e0=0.4 * largest)
    draws = torch.Generator().manual_seed(7)
    rand = torch.rand

    def drawn(*shape: int) -> Tensor:
        return rand(*shape, generator=draws)

    logits, seen = [], set()
    with mock.patch.object(torch, "rand", drawn):
        for place, batch in enumerate(stream):
            outputs, first, second = adapted(batch, place)
            logits.append(outputs.detach())
            seen.add(SOME if second else SECOND_NONE if first else FIRST_NONE)
    assert seen == set(outcomes), seen
    return torch.stack(logits)


def run(
    name: str,
    model: str,
    outcomes: Collection[str],
    margin: float = 0.5,
    plpd: float = 0.2,
    patches: int = 4,
    stream: Callable[[Golden], Tensor] = lambda golden: golden.stream,
    enters: Collection[str] = (),
) -> OfficialRun:
    options: dict[str, Any] = {"lr": LR, "margin": margin, "plpd": plpd, "patches": patches, "official_names": True}
    return OfficialRun(
        f"deyo-{name}-{model}",
        Deyo,
        options,
        f"test_{model}",
        "Jhyun17/DeYO/methods/deyo.py",
        (*outcomes, *enters),
        partial(official, margin, plpd, patches, outcomes),
        stream,
        double=True,
    )


RESIZED = ["side that patches do not divide"]
OUTCOMES = [FIRST_NONE, SECOND_NONE, SOME]
RUNS = [
    run("sides", "resnet", [SOME], stream=lambda golden: golden.stream[..., :30, 1:31], enters=RESIZED),
    run("sides", "vit", [FIRST_NONE, SOME], patches=5, enters=RESIZED),
    run("filters", "resnet", OUTCOMES, margin=0.1, plpd=0.9, stream=with_copies),
    run("filters", "vit", OUTCOMES, margin=0.6, stream=with_copies),
]


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.name)
def test_runs_as_the_release(run: OfficialRun, held_to_release: Callable[[OfficialRun], None]) -> None:
    held_to_release(run)
