"""NOTE: adaptation to correlated streams by instance-aware BatchNorm and a balanced memory (Gong et al. 2022)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from methods.adapters.common.memory import MemoryAdapter, MemoryOptions, smoothed_entropies
from methods.base import Source
from methods.limits import FiniteNotNegative
from methods.losses import at_least_float32
from methods.norms import batch_norm_layers, input_normalised_by, need_batch_norm, training_statistics
from methods.private_apis import _BatchNorm


class Note(MemoryAdapter):
    """Minimises the entropy of a memory that is balanced over predicted classes, with instance-aware BatchNorm.

    Gong et al. 2022, arXiv:2208.05117. Instance-aware BatchNorm (section 3.1) normalises each image with the running
    statistics, moved towards the image's own as far as these lie more than `standard_errors` of their standard errors
    away. The memory (prediction-balanced reservoir sampling, section 3.2, algorithm 1) takes every image while it has
    room; then an image of a class that holds the most enters with probability (images held) / (images seen) of its
    class, in place of one of them, and any other image replaces one of a largest class. After every `update_every`
    images one optimiser step on the affine parameters of BatchNorm lowers the mean over images and classes of
    -p log p on the memory, in whose pass BatchNorm uses the memory's statistics and moves the running ones to them by
    `statistics_share`. Predictions use the running statistics. Dropout and stochastic depth stay off.

    The release trains its source models with instance-aware BatchNorm; this adapter changes the layers of any model.
    One trained with plain BatchNorm has not learnt to do without what an image's own statistics take out of its
    features, and few `standard_errors` can cost it accuracy even on clean images; `instance_aware` = false keeps its
    layers as they are, as the release does without its switch `--iabn`. The release's variant for independent streams,
    which keeps the last images and uses batch statistics, is left out.
    Costs one forward pass an image, and a forward and a backward pass of the memory an update.
    """

    tested_against = "golden"
    search = {"lr": (1e-4, 1e-3, 1e-2), "statistics_share": (0.01, 0.05, 0.1), "instance_aware": (True, False)}
    checked_with = {"lr": 0.05, "capacity": 4, "update_every": 4, "statistics_share": 0.3}
    presets = {
        "cifar-bn": {"lr": 1e-4, "statistics_share": 0.01, "standard_errors": 4.0},
        "cifar100-bn": {"lr": 1e-4, "statistics_share": 0.01, "standard_errors": 4.0},
        "imagenet-bn": {"lr": 1e-4, "statistics_share": 0.01, "standard_errors": 4.0},
    }

    @dataclass(frozen=True)
    class Config(MemoryOptions):
        """Defaults of the release.

        instance_aware: whether BatchNorm layers are made instance-aware.
        standard_errors: how far an image's own statistics may differ before they count, in standard errors; at least 0.
        """

        lr: float = 1e-4
        statistics_share: float = 0.01
        instance_aware: bool = True
        standard_errors: FiniteNotNegative = 4.0

    def configure(self, source: Source | None) -> None:
        """Raises Unsupported for a model without BatchNorm, or with one without source statistics or parameters."""
        need_batch_norm(self.model, "note makes BatchNorm layers instance-aware", "sotta")
        super().configure(source)

    def chosen(self) -> dict[str, nn.Parameter]:
        """Return the affine parameters of BatchNorm layers alone."""
        theirs = {id(value) for layer in batch_norm_layers(self.model) for value in (layer.weight, layer.bias)}
        return {name: value for name, value in super().chosen().items() if id(value) in theirs}

    def classify(self, images: Tensor) -> Tensor:
        if not self.config.instance_aware:
            return super().classify(images)
        with instance_aware(self.model, self.config.standard_errors):
            return super().classify(images)

    def update(self, images: Tensor) -> None:
        if self.config.instance_aware:
            statistics = instance_aware(self.model, self.config.standard_errors, self.config.statistics_share)
        else:
            statistics = training_statistics(self.model)
        with statistics:
            logits: Tensor = self.model(images)
        self.descend(smoothed_entropies(logits, self.config.temperature).mean())

    def may_replace(self, label: int, held: int, coin: float) -> bool:
        return coin <= held / int(self.offered[label])


@contextmanager
def instance_aware(model: nn.Module, standard_errors: float, share: float | None = None) -> Iterator[None]:
    """Inside, each BatchNorm normalises every image with statistics between shared ones and the image's own.

    Shared are the running statistics; or, if `share` is given, the statistics of the current batch (with gradients),
    to which the running ones move by `share`. The difference of an image's mean and variance over its map to the
    shared ones is shrunk by so many standard errors (Gong et al. 2022, equations 2 to 5), as for independent values;
    all variances are unbiased. A map of one value uses the shared statistics; a batch of one value per channel keeps
    the running ones. The model stays in eval mode.
    """
    change = partial(_normalise, standard_errors=standard_errors, share=share)
    with ExitStack() as hooks:
        for layer in batch_norm_layers(model):
            hooks.enter_context(layer.register_forward_pre_hook(change))
        yield


def _normalise(
    layer: nn.Module, inputs: tuple[Any, ...], *, standard_errors: float, share: float | None
) -> tuple[Tensor]:
    norm = cast(_BatchNorm, layer)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    values: Tensor = at_least_float32(inputs[0])
    column = [1, -1, *[1] * (values.ndim - 2)]
    dims = [dim for dim in range(values.ndim) if dim != 1]
    mean, variance = norm.running_mean.view(column), norm.running_var.view(column)
    if share is not None and values.numel() > values.shape[1]:
        variance, mean = torch.var_mean(values, dim=dims, keepdim=True, correction=1)
        # New tensors: autograd may still hold those of an earlier pass through the same layer.
        moved = [
            ((1 - share) * old + share * new.detach().flatten()).to(old.dtype)
            for old, new in ((norm.running_mean, mean), (norm.running_var, variance))
        ]
        norm.running_mean, norm.running_var = moved
    pixels = values[0, 0].numel()
    if pixels > 1:
        own_variance, own_mean = torch.var_mean(values, dim=dims[1:], keepdim=True, correction=1)
        spread = variance + norm.eps
        mean = mean + _shrunk(own_mean - mean, standard_errors * (spread / pixels).sqrt())
        variance = variance + _shrunk(own_variance - variance, standard_errors * spread * math.sqrt(2 / (pixels - 1)))
        variance = variance.relu()
    return (input_normalised_by(norm, values, mean, variance).to(inputs[0].dtype),)


def _shrunk(difference: Tensor, limit: Tensor) -> Tensor:
    """Move every value towards 0 by a limit of at least 0, and to 0 where it is within."""
    return (difference - limit).relu() - (-difference - limit).relu()
