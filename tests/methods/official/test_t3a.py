"""T3A, held against matsuolab/T3A."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from golden_streams import Golden
from official_streams import OfficialRun, play_with_resets, release
from torch import Tensor, nn

from methods.adapters.t3a import T3A
from methods.nets.feature_head_split import split

RESET = 8


class Algorithm(nn.Module):
    """The base class of the release, whose module imports networks that are not installed."""

    def __init__(self, input_shape: Any, num_classes: int, num_domains: int, hparams: dict[str, Any]) -> None:
        super().__init__()
        self.hparams = hparams


def long_stream(golden: Golden) -> Tensor:
    return golden.stream.repeat(2, 1, 1, 1, 1)


@torch.no_grad()
def official(supports: int, model: nn.Module, stream: Tensor, source: Tensor) -> Tensor:
    algorithms = release("T3A", "domainbed.adapt_algorithms", {"domainbed.algorithms": {"Algorithm": Algorithm}})
    parts = split(model.eval())
    classifier = SimpleNamespace(featurizer=lambda images: parts(images)[0], classifier=parts.head)
    adapted = algorithms.T3A(None, 10, None, {"filter_K": supports, "cached_loader": False}, classifier)
    logits, most = [], 0
    for place, batch in enumerate(stream):
        if place == RESET:
            adapted.reset()
        logits.append(adapted(batch, adapt=True))
        counts = adapted.labels.sum(0)
        most = max(most, int(counts.max()))
        assert counts.max() <= supports
    assert most == supports, "no class reached its number of supports"
    return torch.stack(logits)


RUNS = [
    OfficialRun(
        f"t3a-{supports}-{model}",
        T3A,
        {"supports": supports, "official_quirks": True},
        f"test_{model}",
        "matsuolab/T3A/domainbed/adapt_algorithms.py",
        (f"filter of {supports} in each class, reached", "reset"),
        partial(official, supports),
        long_stream,
        ours=partial(play_with_resets, [RESET]),
    )
    for model in ("resnet", "vit")
    for supports in (2, 20)
]


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.name)
def test_runs_as_the_release(run: OfficialRun, held_to_release: Callable[[OfficialRun], None]) -> None:
    held_to_release(run)
