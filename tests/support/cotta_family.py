"""How the releases of CoTTA and of what is built on it are played: with our views, and our positions to restore."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from zoo import seeded, views

from methods.adapters.common.teachers import learnable
from methods.adapters.cotta import draw_places


@contextmanager
def restoring(places: Callable[[], list[Tensor]]) -> Iterator[None]:
    """Inside, the masks that the release draws hold our positions, anew each time it went through all parameters."""
    drawn: list[Tensor] = []
    real = torch.rand

    def mask(*shape: Any, **named: Any) -> Tensor:
        if "generator" in named:
            return real(*shape, **named)
        if not drawn:
            drawn.extend(places())
        numbers = torch.ones(*shape)
        numbers.view(-1)[drawn.pop(0)] = 0.0
        return numbers

    with mock.patch.object(torch, "rand", mask):
        yield
    assert not drawn


def play(
    adapted: Any, stream: Tensor, threshold: float, restore: float | None, draws: torch.Generator | None = None
) -> Tensor:
    """The release along a stream on which the source model is sure of some batches, and unsure of others.

    `restore`: probability of each weight to return; None where the release draws no masks.
    """
    draws = draws or seeded()
    # The release for CIFAR makes views of every batch; those that it does not use must not take our numbers.
    used, unused = views(draws), views(seeded())
    with torch.no_grad():
        unsure = [bool(adapted.model_anchor(batch).softmax(1).amax(1).mean() < threshold) for batch in stream]
    made = [0] * len(stream)

    def counted(images: Tensor) -> Tensor:
        made[number] += 1
        return (used if unsure[number] else unused)(images)

    adapted.transform = counted
    sizes = [value.numel() for value in learnable(adapted.model)]
    hits: list[int] = []

    def places() -> list[Tensor]:
        drawn = draw_places(sizes, restore or 0.0, draws, draws)
        hits.append(sum(len(each.unique()) for each in drawn))
        return drawn

    logits = []
    with restoring(places):
        for number, batch in enumerate(stream):  # noqa: B007 - read by `counted`
            logits.append(adapted(batch).detach())
    assert len(hits) == (0 if restore is None else len(stream))
    assert not restore or min(hits) > 0
    assert [count > 0 for count in made] == unsure or all(made)
    assert threshold == 0.1 or len(set(unsure)) == 2
    return torch.stack(logits)
