"""SAR, held against mr-eggplant/SAR."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from golden_streams import Golden
from official_streams import OfficialRun, release
from torch import Tensor, nn

from methods.adapters.sar import Sar

LR = 0.05
# Confident classifiers, so that the average of the second losses falls below 0.2 along the stream, not at its start.
SHARPER = {"test_resnet": 3.5, "test_vit": 5.0}


def sharp_model(architecture: str, golden: Golden) -> nn.Module:
    model = golden.model(architecture)
    head: Any = getattr(model, "fc", None) or model.get_submodule("head")
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.mul_(SHARPER[architecture])
    return model


def long_stream(golden: Golden) -> Tensor:
    return golden.stream.repeat(3, 1, 1, 1, 1)


def official(second_filter: bool, model: nn.Module, stream: Tensor, source: Tensor) -> Tensor:
    sar, sam = release("SAR", "sar"), release("SAR", "sam")
    model = sar.configure_model(model)
    parameters, _ = sar.collect_params(model)
    optimizer = sam.SAM(parameters, torch.optim.SGD, lr=LR, momentum=0.9)
    adapted = sar.SAR(model, optimizer, margin_e0=0.4 * torch.log(torch.tensor(10.0)).item())
    resets: list[int] = []
    restore = adapted.reset

    def counted() -> None:
        resets.append(len(entropies) // 2)
        restore()

    adapted.reset = counted
    entropies: list[Tensor] = []
    entropy = sar.softmax_entropy

    def noted(outputs: Tensor) -> Tensor:
        entropies.append(entropy(outputs))
        return entropies[-1]

    sar.softmax_entropy = noted
    logits = [adapted(batch).detach() for batch in stream]
    assert resets, "no reset on this stream"
    assert resets[0] > 1
    if second_filter:
        limit = adapted.margin_e0
        pairs = zip(entropies[::2], entropies[1::2], strict=True)
        assert any(((first < limit) & (second >= limit)).any() for first, second in pairs)
    return torch.stack(logits)


RUNS = [
    OfficialRun(
        f"sar-reset-{model}",
        Sar,
        {"lr": LR, "official_quirks": True},
        partial(sharp_model, f"test_{model}"),
        "mr-eggplant/SAR/sar.py",
        ("reset below 0.2", *(["images no longer reliable at the second pass"] if model == "vit" else [])),
        partial(official, model == "vit"),
        long_stream,
    )
    for model in ("resnet", "vit")
]


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.name)
def test_runs_as_the_release(run: OfficialRun, held_to_release: Callable[[OfficialRun], None]) -> None:
    held_to_release(run)
