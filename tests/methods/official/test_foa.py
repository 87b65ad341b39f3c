"""FOA, held against mr-eggplant/FOA."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any
from unittest import mock

import pytest
import timm
import torch
from golden_streams import Golden
from official_streams import OfficialRun, play_with_resets, release
from torch import Tensor, nn

from methods.adapters.foa import FOA

# The release reads the last 768 features, the width of ViT-B.
WIDTH = 768
PROMPTS = 1
# The place of the batch before which the method is reset.
RESET = 4


def wide_transformer(golden: Golden) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model: Any = timm.models.VisionTransformer(
            32, 16, embed_dim=WIDTH, depth=2, num_heads=4, mlp_ratio=0.25, num_classes=10
        )
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.02 * torch.randn(parameter.shape))
            model.head.weight.mul_(4)
    return model.eval()


def backwards(golden: Golden) -> Tensor:
    return golden.stream.flip(0)


def loader(source: Tensor) -> list[tuple[Tensor]]:
    return [(images,) for images in source]


@torch.no_grad()
def official(model: nn.Module, stream: Tensor, source: Tensor) -> Tensor:
    foa = release("FOA", "tta_library.foa")
    draws = torch.Generator()

    def uniform(values: Tensor, low: float, high: float) -> Tensor:
        drawn = torch.rand(values.shape, generator=draws, dtype=torch.float64)
        return values.copy_(drawn * (high - low) + low)

    def normals(*shape: int) -> Any:
        return torch.randn(shape, generator=draws, dtype=torch.float64).numpy()

    strategy = foa.cma.CMAEvolutionStrategy

    def search(start: Any, deviation: Any, inopts: dict[str, Any]) -> Any:
        return strategy(start, deviation, {**inopts, "seed": math.nan, "randn": normals})

    won: list[bool] = []
    shifted: list[bool] = []
    forward = foa.forward_and_get_loss

    def noted(*given: Any) -> Any:
        shifted.append(given[4] is not None)
        return forward(*given)

    logits = []
    with (
        mock.patch.object(nn.init, "uniform_", uniform),
        mock.patch.object(foa.cma, "CMAEvolutionStrategy", search),
        mock.patch.object(foa, "forward_and_get_loss", noted),
        mock.patch.object(foa, "print", create=True),
    ):
        draws.manual_seed(7)
        adapted = foa.FOA(foa.PromptViT(model, PROMPTS))
        adapted.imagenet_mask = None
        adapted.obtain_origin_stat(loader(source))
        for place, batch in enumerate(stream):
            if place == RESET:
                draws.manual_seed(7)
                adapted.reset()
            best = adapted.best_prompts
            logits.append(adapted(batch))
            won.append(torch.equal(best, adapted.best_prompts))
    assert set(won) == {True, False}, won
    assert shifted.count(False) == 2 * (adapted.popsize + 1)
    assert True in shifted
    return torch.stack(logits)


@torch.no_grad()
def official_shift(model: nn.Module, stream: Tensor, source: Tensor) -> Tensor:
    foa = release("FOA", "tta_library.foa_shift")
    adapted = foa.Shift(foa.PromptViT(model, 0))
    adapted.obtain_origin_stat(loader(source))
    logits = []
    for place, batch in enumerate(stream):
        if place == RESET:
            adapted.reset()
        logits.append(adapted(batch))
    return torch.stack(logits)


FIRST_AND_LATER = ("first batch, without a shift", "later batches, with a shift")

RUNS = [
    OfficialRun(
        "foa",
        FOA,
        {"prompts": PROMPTS},
        wide_transformer,
        "mr-eggplant/FOA/tta_library/foa.py",
        (*FIRST_AND_LATER, "the best prompts so far win", "they lose", "reset"),
        official,
        backwards,
        ours=partial(play_with_resets, [RESET]),
    ),
    OfficialRun(
        "foa-shift",
        FOA,
        {"prompts": 0},
        wide_transformer,
        "mr-eggplant/FOA/tta_library/foa_shift.py",
        (*FIRST_AND_LATER, "reset"),
        official_shift,
        ours=partial(play_with_resets, [RESET]),
    ),
]


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.name)
def test_runs_as_the_release(run: OfficialRun, held_to_release: Callable[[OfficialRun], None]) -> None:
    held_to_release(run)
