"""CoTTA, held against qinenergy/cotta and the port of mariodoebler/test-time-adaptation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import pytest
import torch
from cotta_family import play
from official_streams import OfficialRun, release
from torch import Tensor, nn
from zoo import build, double, double_stream, options

from methods.adapters.cotta import Cotta


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
