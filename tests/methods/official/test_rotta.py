"""RoTTA, held against BIT-DA/RoTTA and, with LayerNorm, the port of mariodoebler/test-time-adaptation."""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import pytest
import torch
from golden_streams import Golden
from official_streams import OfficialRun, release
from torch import Tensor, nn
from zoo import CLASSES, along, build, double, double_stream, options, seeded, views

from methods.adapters.rotta import Rotta


def bright_and_dark(golden: Golden) -> Tensor:
    """The stream and, of less and less contrast, the stream again."""
    return torch.cat([factor * double_stream(golden) for factor in (1.0, 0.5, 0.25)])


LARGEST = "memory full: the largest of unequal classes"


def play(adapted: Any, enters: Sequence[str], update_every: int, updated: list[int], stream: Tensor) -> Tensor:
    """The release along a stream; asserts that its memory entered the branches named."""
    adapted.transform = views(seeded())
    found: set[str] = set()
    memory = adapted.mem
    remove = memory.remove_from_classes

    def noted(classes: list[int], score: float) -> bool:
        full = "memory full" if memory.get_occupancy() == memory.capacity else "class full"
        if full == "memory full" and len(memory.data[offered[-1]]) >= memory.per_class:
            full = "class full"
        if full == "memory full" and len(classes) < sum(map(bool, memory.data)):
            found.add(LARGEST)
        entered: bool = remove(classes, score)
        found.add(f"{full}: {'replaces' if entered else 'is refused'}")
        return entered

    offered: list[int] = []
    choose = memory.remove_instance

    def offer(label: int, score: float) -> bool:
        offered.append(label)
        return bool(choose(label, score))

    memory.remove_from_classes, memory.remove_instance = noted, offer
    logits = along(adapted, stream)
    assert set(enters) <= found, found
    images = stream.shape[0] * stream.shape[1]
    assert len(offered) == images
    assert len(updated) == images // update_every
    return logits


def authors(
    given: Mapping[str, Any], enters: Sequence[str], model: nn.Module, stream: Tensor, source: Tensor
) -> Tensor:
    module = release("RoTTA", "core.adapter.rotta")
    module.get_tta_transforms = lambda cfg: None
    tree = types.SimpleNamespace
    chosen = tree(
        MEMORY_SIZE=given["capacity"],
        UPDATE_FREQUENCY=given["update_every"],
        NU=given["teacher_share"],
        ALPHA=given["statistics_share"],
        LAMBDA_T=given.get("age_weight", 1.0),
        LAMBDA_U=given.get("entropy_weight", 1.0),
    )
    cfg = tree(ADAPTER=tree(RoTTA=chosen), CORRUPTION=tree(NUM_CLASS=CLASSES), OPTIM=tree(STEPS=1))
    adapted = module.RoTTA(cfg, model, partial(torch.optim.Adam, lr=given["lr"], betas=(0.9, 0.999)))
    updated: list[int] = []
    update = adapted.update_model

    def counted(*arguments: Any) -> None:
        updated.append(adapted.current_instance)
        update(*arguments)

    adapted.update_model = counted
    return play(adapted, enters, given["update_every"], updated, stream)


def port(given: Mapping[str, Any], enters: Sequence[str], model: nn.Module, stream: Tensor, source: Tensor) -> Tensor:
    cfg = options(
        optim={"LR": given["lr"], "METHOD": "Adam"},
        rotta={
            "MEMORY_SIZE": given["capacity"],
            "UPDATE_FREQUENCY": given["update_every"],
            "NU": given["teacher_share"],
            "ALPHA": given["statistics_share"],
        },
    )
    adapted = build("rotta", "RoTTA", cfg, model)
    updated: list[int] = []
    loss = adapted.loss_calculation

    def counted(*_: Any) -> Tensor:
        # In single precision the port calls it with the batch, which it does not take.
        updated.append(adapted.current_instance)
        result: Tensor = loss()
        return result

    adapted.loss_calculation = counted
    return play(adapted, enters, given["update_every"], updated, stream)


CLASS = ("class full: replaces", "class full: is refused")
MEMORY = ("memory full: replaces", "memory full: is refused")
SHARES: dict[str, Any] = {"lr": 1e-3, "teacher_share": 0.3, "statistics_share": 0.2}
LARGE: dict[str, Any] = {**SHARES, "capacity": 20, "update_every": 20}
SMALL: dict[str, Any] = {**SHARES, "capacity": 11, "update_every": 7, "age_weight": 0.2, "entropy_weight": 3.0}
VIT: dict[str, Any] = {**SHARES, "capacity": 11, "update_every": 10}
AUTHORS = "BIT-DA/RoTTA/core/adapter/rotta.py"
PORT = "mariodoebler/test-time-adaptation/classification/methods/rotta.py"
RUNS = [
    OfficialRun(
        f"rotta-{name}",
        Rotta,
        given,
        double(model),
        file,
        (*enters, "an update inside a batch", "robust BatchNorm" if model == "test_resnet" else "LayerNorm"),
        partial(play, given, enters),
        bright_and_dark,
    )
    for name, given, model, file, play, enters in (
        ("large", LARGE, "test_resnet", AUTHORS, authors, CLASS),
        ("small", SMALL, "test_resnet", AUTHORS, authors, (*CLASS, *MEMORY, LARGEST)),
        ("vit", VIT, "test_vit", PORT, port, (*CLASS, MEMORY[0], LARGEST)),
    )
]


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.name)
def test_runs_as_the_release(run: OfficialRun, held_to_release: Callable[[OfficialRun], None]) -> None:
    held_to_release(run)
