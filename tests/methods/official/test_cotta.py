"""CoTTA, held against qinenergy/cotta and the port of mariodoebler/test-time-adaptation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any
from unittest import mock

import pytest
import torch
from official_streams import OfficialRun, release
from torch import Tensor, nn
from zoo import build, double, double_stream, options, seeded, views

from methods.adapters.common.teachers import learnable
from methods.adapters.cotta import Cotta, draw_places


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


def play(adapted: Any, stream: Tensor, threshold: float, restore: float) -> Tensor:
    """The release along a stream on which the source model is sure of some batches, and unsure of others."""
    draws = seeded()
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
        drawn = draw_places(sizes, restore, draws, draws)
        hits.append(sum(len(each.unique()) for each in drawn))
        return drawn

    logits = []
    with restoring(places):
        for number, batch in enumerate(stream):  # noqa: B007 - read by `counted`
            logits.append(adapted(batch).detach())
    assert len(hits) == len(stream)
    assert restore == 0 or min(hits) > 0
    assert [count > 0 for count in made] == unsure or all(made)
    assert threshold == 0.1 or len(set(unsure)) == 2
    return torch.stack(logits)


def port(given: Mapping[str, Any], model: nn.Module, stream: Tensor, source: Tensor) -> Tensor:
    cfg = options(
        corruption={"DATASET": "imagenet_c" if given.get("symmetric", True) else "cifar10_c"},
        optim={
            "LR": given["lr"],
            "METHOD": {"sgd": "SGD", "adam": "Adam"}[given.get("optimizer", "sgd")],
            "NESTEROV": given.get("nesterov", True),
        },
        cotta={"RST": given["restore"], "AP": given["threshold"]},
        test={"N_AUGMENTATIONS": given["views"]},
        m_teacher={"MOMENTUM": given["teacher_momentum"]},
    )
    return play(build("cotta", "CoTTA", cfg, model), stream, given["threshold"], given["restore"])


def authors(kind: str, given: Mapping[str, Any], model: nn.Module, stream: Tensor, source: Tensor) -> Tensor:
    """32 views, and for ImageNet all options of the method, are fixed in the code."""
    cotta = release(f"cotta/{kind}", "cotta", {"my_transforms": {}})
    cotta.get_tta_transforms = lambda: None
    model = cotta.configure_model(model)
    parameters, _ = cotta.collect_params(model)
    if kind == "imagenet":
        optimizer: torch.optim.Optimizer = torch.optim.SGD(parameters, lr=given["lr"], momentum=0.9, nesterov=True)
        adapted = cotta.CoTTA(model, optimizer)
    else:
        optimizer = torch.optim.Adam(parameters, lr=given["lr"], betas=(0.9, 0.999), weight_decay=0.0)
        adapted = cotta.CoTTA(
            model, optimizer, mt_alpha=given["teacher_momentum"], rst_m=given["restore"], ap=given["threshold"]
        )
    return play(adapted, stream, given["threshold"], given["restore"])


BOTH = ("views averaged", "one view", "restoration under one mask")
IMAGENET: dict[str, Any] = {"lr": 0.01, "restore": 0.02, "threshold": 0.757, "teacher_momentum": 0.9, "views": 3}
VIT: dict[str, Any] = {**IMAGENET, "lr": 5e-3, "nesterov": False, "threshold": 0.4}
CIFAR: dict[str, Any] = {
    **IMAGENET,
    "lr": 1e-3,
    "optimizer": "adam",
    "symmetric": False,
}
FIXED: dict[str, Any] = {"lr": 0.01, "restore": 0.001, "threshold": 0.1, "teacher_momentum": 0.999}
PORT = "mariodoebler/test-time-adaptation/classification/methods/cotta.py"
AUTHORS = "qinenergy/cotta"
FIXED_VIEWS: dict[str, Any] = {**CIFAR, "views": 32}
RUNS = [
    OfficialRun(name, Cotta, given, double(model), file, enters, play, stream)
    for name, given, model, file, enters, play, stream in (
        ("cotta-imagenet-resnet", IMAGENET, "test_resnet", PORT, BOTH, partial(port, IMAGENET), double_stream),
        ("cotta-imagenet-vit", VIT, "test_vit", PORT, BOTH, partial(port, VIT), double_stream),
        ("cotta-cifar-port", CIFAR, "test_resnet", PORT, BOTH, partial(port, CIFAR), double_stream),
        (
            "cotta-cifar",
            FIXED_VIEWS,
            "test_resnet",
            f"{AUTHORS}/cifar/cotta.py",
            BOTH,
            partial(authors, "cifar", FIXED_VIEWS),
            lambda golden: double_stream(golden)[:3],
        ),
        (
            "cotta-imagenet",
            FIXED,
            "test_resnet",
            f"{AUTHORS}/imagenet/cotta.py",
            BOTH[1:],
            partial(authors, "imagenet", FIXED),
            double_stream,
        ),
    )
]


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.name)
def test_runs_as_the_release(run: OfficialRun, held_to_release: Callable[[OfficialRun], None]) -> None:
    held_to_release(run)
