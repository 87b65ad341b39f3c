"""SHOT-IM, held against its online version in matsuolab/T3A."""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import pytest
from official_streams import OfficialRun, release
from torch import Tensor, nn
from zoo import along, double_stream, wrapped

from methods.adapters.shot_im import ShotIM


class Algorithm(nn.Module):
    """What the release derives its methods from, without the training that it is made for."""

    def __init__(self, input_shape: Any, num_classes: int, num_domains: int, hparams: Mapping[str, Any]) -> None:
        super().__init__()
        self.hparams = hparams


class Trained(nn.Module):
    """A classifier in the release's two parts."""

    def __init__(self, model: Any, lr: float) -> None:
        super().__init__()
        self.classifier = model.get_classifier()
        model.reset_classifier(0)
        self.featurizer = model
        self.hparams = {"lr": lr, "weight_decay": 0.0}

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.featurizer(images))
        return logits


def official(given: Mapping[str, Any], model: nn.Module, stream: Tensor, source: Tensor) -> Tensor:
    module = release("T3A", "domainbed.adapt_algorithms", {"domainbed.algorithms": {"Algorithm": Algorithm}})
    # Of the grid of the release: the rate of the source times alpha, gamma steps on each batch.
    hparams = {"alpha": 10.0, "gamma": given["steps"], "beta": 0.9, "theta": 0.1, "cached_loader": False}
    trained = Trained(model.model, given["lr"] / 10)
    adapted: types.SimpleNamespace | Any = module.SHOTIM((3, 32, 32), 10, 1, hparams, trained)
    return along(lambda images: adapted(images, adapt=True), stream)


RUNS = [
    OfficialRun(
        f"shot_im-{model}-{steps}",
        ShotIM,
        {"lr": 1e-3, "steps": steps},
        partial(wrapped, f"test_{model}"),
        "matsuolab/T3A/domainbed/adapt_algorithms.py",
        (f"{steps} step{'s' if steps > 1 else ''} on each batch", "entropy and diversity"),
        partial(official, {"lr": 1e-3, "steps": steps}),
        double_stream,
    )
    for model in ("resnet", "vit")
    for steps in (1, 3)
]


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.name)
def test_runs_as_the_release(run: OfficialRun, held_to_release: Callable[[OfficialRun], None]) -> None:
    held_to_release(run)
