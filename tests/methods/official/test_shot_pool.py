"""SHOT over a pool, held against tim-learn/SHOT: the whole training of its target model."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
from golden_streams import Golden
from official_streams import OfficialRun, release
from torch import Tensor, nn

from methods.adapters.plain import Plain
from methods.base import Unlabelled
from methods.nets.timm_encoders import TimmArchitecture
from methods.nets.weights import Architecture, Classifier
from methods.norms import training_statistics
from methods.recipes.shot_pool import Shot, shot
from methods.training.loop import Batches

CLASSES, PASSES, BATCH = 10, 3, 32
SHAPES = {
    "resnet": TimmArchitecture("test_resnet", 32, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2), 32),
    "vit": Architecture(image_size=32, patch_size=8, dim=32, depth=2, heads=4),
}


def config(threshold: int) -> Shot:
    return Shot(passes=PASSES, batch_size=BATCH, threshold=threshold, rate=1e-3)


def classifier(name: str, golden: Golden) -> nn.Module:
    """Random weights that tell the images apart: logits of deviation 2 about 0.

    (The golden network with BatchNorm turns rounding errors into 3e-5 in one step.)
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        model = Classifier(SHAPES[name], CLASSES).eval()
    images = pool_of(golden).flatten(0, 1)
    with torch.no_grad(), training_statistics(model):
        features = model.features(images)
        for _ in range(40):
            model.features(images)
        model.head.weight.mul_(2 / ((features - features.mean(0)) @ model.head.weight.T).std(0)[:, None])
        model.head.bias.copy_(-(features @ model.head.weight.T).mean(0))
    return model


def pool_of(golden: Golden) -> Tensor:
    """The stream as 8-bit images in [0, 1]."""
    return (golden.stream * 0.2 + 0.5).clamp(0, 1).mul(255).round() / 255


class Loader:
    """Batches of images, labels and row numbers, taken by `next()` as in the torch of the release."""

    def __init__(self, images: Tensor, batches: Callable[[], Iterator[Tensor]], length: int) -> None:
        self.images, self.batches, self.length = images, batches, length

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Loader:
        self.rows = self.batches()
        return self

    def __next__(self) -> tuple[Tensor, Tensor, Tensor]:
        rows = next(self.rows)
        return self.images[rows], torch.zeros(len(rows), dtype=torch.int64), rows

    next = __next__


class Encoder(nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.normalise, self.encoder, self.in_features = model.normalise, model.encoder, model.head.in_features

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = self.encoder(self.normalise(images))
        return out


def official(threshold: int, model: nn.Module, stream: Tensor, source: Tensor) -> Tensor:
    theirs = release("SHOT/object", "image_target")
    images = stream.flatten(0, 1)
    count = len(images)
    order = Batches(count, BATCH, torch.Generator().manual_seed(7), images.device, drop_last=True)
    steps = count // BATCH
    loaders = {
        "target": Loader(images, lambda: (next(order) for _ in range(steps)), steps),
        "test": Loader(images, lambda: iter(torch.arange(count).split(40)), -(-count // 40)),
    }
    body: Any = Encoder(model)
    head: Any = model.get_submodule("head")
    networks = SimpleNamespace(
        ResBase=lambda res_name: body,
        feat_bottleneck=lambda **_: nn.Identity(),
        feat_classifier=lambda **_: head,
    )
    args = SimpleNamespace(
        net="resnet50",
        classifier="bn",
        layer="wn",
        bottleneck=256,
        class_num=CLASSES,
        output_dir_src="",
        lr=10 * config(threshold).rate,
        lr_decay1=0.1,
        lr_decay2=1.0,
        max_epoch=PASSES,
        interval=PASSES,
        cls_par=0.3,
        ent_par=1.0,
        ent=True,
        gent=True,
        epsilon=1e-5,
        threshold=threshold,
        distance="cosine",
        dset="office",
        name="pool",
        issave=False,
        out_file=io.StringIO(),
    )
    centroids: list[int] = []
    distances = theirs.cdist

    def noted(features: Any, found: Any, how: str) -> Any:
        centroids.append(len(found))
        return distances(features, found, how)

    states = (body.state_dict(), {}, head.state_dict())
    with (
        mock.patch.object(theirs, "network", networks),
        mock.patch.object(theirs, "data_load", return_value=loaders),
        mock.patch.object(theirs, "cdist", noted),
        mock.patch.object(torch, "load", side_effect=states),
        mock.patch("builtins.print"),
    ):
        theirs.train_target(args)
    assert len(centroids) == 2 * PASSES
    assert not threshold or min(centroids) < CLASSES, centroids
    with torch.no_grad():
        return torch.stack([head(body.eval()(batch)) for batch in stream])


def ours(threshold: int, run: OfficialRun, model: nn.Module, stream: Tensor, source: Tensor) -> Tensor:
    assert isinstance(model, Classifier)
    pool = Unlabelled((stream.flatten(0, 1) * 255).round().to(torch.uint8), "pool")
    adapted = shot([model.weights()], pool, config(threshold), torch.Generator().manual_seed(7))
    with torch.no_grad():
        return torch.stack([Classifier.of(adapted).eval()(batch) for batch in stream])


RUNS = [
    OfficialRun(
        f"shot_pool-{name}-threshold{threshold}",
        Plain,
        {},
        partial(classifier, name),
        "tim-learn/SHOT/object/image_target.py, train_target",
        ("three trainings with new pseudo-labels", *(["classes too rare to be labels"] if threshold else [])),
        partial(official, threshold),
        pool_of,
        5e-5,  # BatchNorm over 32 values amplifies rounding
        ours=partial(ours, threshold),
    )
    for name in SHAPES
    for threshold in (0, 8)
]


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.name)
def test_trains_as_the_release(run: OfficialRun, held_to_release: Callable[[OfficialRun], None]) -> None:
    held_to_release(run)
