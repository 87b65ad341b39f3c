"""Recalibration of BatchNorm after mixing: measure its statistics on clean images, as their average fits no model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor, nn

from methods.base import Options, Unlabelled
from methods.identity import component
from methods.limits import at_least
from methods.nets.weights import Normalise, Weights
from methods.norms import batch_norm_layers
from methods.training.loading import KnownBatches, loaded
from methods.training.loop import check_size


@component("methods.remeasure.Remeasure")
@dataclass(frozen=True)
class Remeasure(Options):
    """How to measure. images: at most this many, drawn at random; batch_size: approximate size of a batch."""

    images: Annotated[int, at_least(2)] = 4096
    batch_size: Annotated[int, at_least(2)] = 256


@component("methods.remeasure.remeasured")
def remeasured(inputs: Sequence[Weights], data: Unlabelled, config: Remeasure, generator: torch.Generator) -> Weights:
    """Return the encoder or classifier `inputs[0]` with BatchNorm statistics of clean images; a job function.

    Every layer gets the mean over equal random batches of their mean and unbiased variance, without augmentation;
    nothing else changes. Weights without BatchNorm are returned unchanged. Raises ValueError for images of another size
    or a single one.
    """
    weights = inputs[0]
    if not weights.batch_norm:
        return weights
    shape = weights.architecture
    check_size(data, shape)
    if len(data) < 2:
        raise ValueError("BatchNorm has no statistics of a single image; give more clean images")
    encoder = shape.build()
    encoder.load_state_dict(weights.part("encoder"))
    model = nn.Sequential(Normalise(shape.mean, shape.std), encoder).to(generator.device)
    reestimate_batch_norm(model, clean_batches(data, config, generator))
    found = {f"encoder.{name}": tensor.detach().cpu() for name, tensor in encoder.state_dict().items()}
    return Weights(shape, {name: found.get(name, tensor) for name, tensor in weights.tensors.items()})


@torch.no_grad()
def reestimate_batch_norm(model: nn.Module, batches: Iterable[Tensor]) -> int:
    """Give every BatchNorm layer the cumulative statistics of clean train batches; return the number of such layers.

    Batches are float [n, 3, h, w] in [0, 1]. Mixing leaves statistics that fit no model. Weights, mode and momentum of
    the model are unchanged. Raises ValueError if there are layers but no batches.
    """
    layers = batch_norm_layers(model)
    if not layers:
        return 0
    momenta = [layer.momentum for layer in layers]
    modes = {module: module.training for module in model.modules()}
    model.eval()
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # a cumulative average
        layer.train()
    seen = 0
    for images in batches:
        model(images)
        seen += 1
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
    for module, mode in modes.items():
        module.training = mode
    if not seen:
        raise ValueError("BatchNorm statistics need clean train images; give at least one batch")
    return len(layers)


def clean_batches(data: Unlabelled, config: Remeasure, generator: torch.Generator) -> Iterator[Tensor]:
    """Yield batches of equal size, float [n, 3, h, w] in [0, 1], so that each has the same weight in the average.

    The order is random, since images may be sorted by class.
    """
    order = torch.randperm(len(data), generator=generator, device=generator.device)[: config.images]
    batches = torch.tensor_split(order.to(data.images.device), max(1, len(order) // config.batch_size))
    for _, images in loaded(data.images, KnownBatches(batches), generator.device):
        yield images.float() / 255
