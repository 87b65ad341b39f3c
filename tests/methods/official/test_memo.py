"""MEMO, held against zhangmarvin/memo, with our views."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from typing import Any
from unittest import mock

import pytest
import torch
from golden_streams import Golden
from official_streams import OfficialRun, release
from torch import Tensor, nn
from torch.nn.functional import interpolate

from methods.adapters.memo import Memo
from methods.views.augmix import augmix, draw

VIEWS = 6


def few_images(golden: Golden) -> Tensor:
    """Images in [0, 1], large enough that each layer of BatchNorm has a variance in a single one."""
    images = golden.stream[:2, :3].flatten(0, 1)
    return interpolate(images.mul(0.25).add(0.5).clamp(0, 1), 64, mode="bilinear").unflatten(0, (2, 3))


def entropy_of_mean(outputs: Tensor) -> tuple[Tensor, None]:
    """Entropy of the mean prediction, which the script of the release defines where it cannot be loaded."""
    p = outputs.softmax(-1).mean(0)
    return -(p * p.log()).sum(), None


def official(options: dict[str, Any], prior: int, model: nn.Module, stream: Tensor, source: Tensor) -> Tensor:
    draws = torch.Generator().manual_seed(7)
    views: Iterator[Tensor]
    third_party = {"aug": lambda image: next(views), "indices_in_1k": [], "imagenet_r_mask": []}
    stand_ins = {"utils.third_party": third_party}
    helpers = release("memo/imagenet-exps", "utils.adapt_helpers", stand_ins)
    blended = release("memo/imagenet-exps", "utils.train_helpers", stand_ins)._modified_bn_forward
    helpers.te_transforms_inc = lambda image: image
    before = copy.deepcopy(model.state_dict())
    logits: list[Tensor] = []
    model.register_forward_hook(lambda module, inputs, output: logits.append(output.detach()))
    rows = []
    with ExitStack() as patches:
        if prior >= 0:
            patches.enter_context(mock.patch.object(nn.BatchNorm2d, "forward", blended))
        patches.enter_context(mock.patch.object(nn.BatchNorm2d, "prior", 1, create=True))
        for image in stream.flatten(0, 1):
            model.load_state_dict(before)
            kind = torch.optim.AdamW if options.get("optimizer") == "adamw" else torch.optim.SGD
            optimizer = kind(model.parameters(), lr=options["lr"], weight_decay=options["weight_decay"])
            views = iter(augmix(image[None], draw(1, VIEWS, draws))[0].to(image.dtype))
            helpers.adapt_single(model, image, optimizer, entropy_of_mean, "fog", 1, VIEWS, prior)
            helpers.test_single(model, image, 0, "fog", prior)
            rows.append(logits[-1][0])
    return torch.stack(rows).view(*stream.shape[:2], -1)


def run(name: str, model: str, enters: tuple[str, ...], prior: int = 16, **options: Any) -> OfficialRun:
    options = {"lr": 0.01, "weight_decay": 0.0, **options}
    return OfficialRun(
        f"memo-{name}-{model}",
        Memo,
        {**options, "prior": prior, "views": VIEWS},
        f"test_{model}",
        "zhangmarvin/memo/imagenet-exps/utils/adapt_helpers.py",
        enters,
        partial(official, options, prior),
        few_images,
        double=prior < 0 or model == "vit",
    )


RUNS = [
    run("prior", "resnet", ("blended statistics", "SGD")),
    run("source", "resnet", ("source statistics", "SGD with weight decay"), prior=-1, weight_decay=0.01),
    run("sgd", "vit", ("SGD",)),
    run("adamw", "vit", ("AdamW, new for each image",), optimizer="adamw", lr=1e-3, weight_decay=10.0),
]


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.name)
def test_runs_as_the_release(run: OfficialRun, held_to_release: Callable[[OfficialRun], None]) -> None:
    held_to_release(run)
