"""AdaBN: the statistics of BatchNorm measured on the pool of shifted images (Li et al. 2016, arXiv:1603.04779)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from methods.base import Job, Labelled, Recipe, Unlabelled, Unsupported, Work
from methods.identity import component
from methods.nets import flops
from methods.nets.weights import Classifier, Weights
from methods.norms import batch_norm_layers
from methods.recipes.pool_adaptation import need_pool
from methods.recipes.source import SourceOptions, source_classifier
from methods.training.loading import InOrder, loaded
from methods.training.loop import check_size

_BATCH = 64


class PoolAdaBN(Recipe):
    """The source classifier whose BatchNorm normalises with the means and variances of the pool; nothing else changes.

    Li et al. 2016, arXiv:1603.04779, algorithm 1. Every layer gets the exact mean and (biased) variance of what enters
    it when all layers before it normalise in the same way, so the classifier acts on the pool as it would in training
    mode on one batch that is the whole pool. Costs forward passes alone: (L + 1) / 2 of the pool for L layers, since a
    layer can be measured only after those before it.
    """

    pool = "shifted"

    @dataclass(frozen=True)
    class Config(SourceOptions):
        """Options of the source classifier, see methods.recipes.source.SourceOptions; AdaBN itself has none."""

    def plan(self, stock: Weights, source: Labelled, pool: Unlabelled | None) -> dict[str, Job]:
        """Raises Unsupported for a stock without BatchNorm, and without a pool."""
        pool = need_pool(pool)
        layers = sum(name.endswith(".running_mean") for name in stock.tensors)
        if not layers:
            raise Unsupported(
                f"this method measures the statistics of BatchNorm and the stock ({stock.architecture.description}) "
                "has none; give a stock with BatchNorm, as in --stock timm:resnet18, or run tent_pool"
            )
        work = Work((layers + 1) / 2 * len(pool) * flops.forward(stock.architecture))
        tuned = source_classifier(stock, source, self.config)
        return {"": Job(with_pool_statistics, None, (tuned,), pool, "BatchNorm statistics of the pool", work=work)}


@component("methods.adabn_pool.with_pool_statistics")
@torch.no_grad()
def with_pool_statistics(
    inputs: Sequence[Weights], data: Unlabelled, config: None, generator: torch.Generator
) -> Weights:
    """Return the classifier `inputs[0]` with BatchNorm statistics of the whole pool; a job function.

    Draws no random numbers; `generator` only names the device. Raises TypeError for labelled images, ValueError for
    images of another size or a single one, Unsupported for a layer that runs twice in one pass.
    """
    if isinstance(data, Labelled):
        raise TypeError("adaptation never sees labels; pass data.without_labels()")
    check_size(data, inputs[0].architecture)
    if len(data) < 2:
        raise ValueError("BatchNorm has no statistics of a single image; give more shifted images")
    model = Classifier.of(inputs[0]).to(generator.device).eval()

    def images() -> Iterator[Tensor]:
        for _, pixels in loaded(data.images, InOrder(len(data), _BATCH, data.images.device), generator.device):
            yield pixels.float() / 255

    for layer in _in_order(model, next(images())):
        mean, variance = _moments(model, layer, images())
        assert layer.running_mean is not None
        assert layer.running_var is not None
        layer.running_mean.copy_(mean)
        layer.running_var.copy_(variance)
    return model.weights()


def _in_order(model: nn.Module, images: Tensor) -> list[Any]:
    """Return the BatchNorm layers with statistics, in the order in which they run."""
    ran: list[nn.Module] = []
    layers = [layer for layer in batch_norm_layers(model) if layer.running_mean is not None]
    with ExitStack() as hooks:
        for layer in layers:
            hooks.enter_context(layer.register_forward_pre_hook(lambda layer, _: ran.append(layer)))
        model(images)
    if len(set(map(id, ran))) < len(ran):
        raise Unsupported(
            "a BatchNorm layer of this network runs twice in one pass, so that no one mean and variance are those of "
            "its inputs; use a network whose layers run once, or run tent_pool"
        )
    return ran


class _Reached(Exception):
    """Ends a forward pass at the layer that is measured."""


def _moments(model: nn.Module, layer: nn.Module, batches: Iterator[Tensor]) -> tuple[Tensor, Tensor]:
    """Return mean and biased variance per channel of all that enters a layer, float64 [channels], on the CPU.

    The moments of batches are joined exactly (Chan et al. 1979), in float64.
    """
    count, mean, squares = 0, torch.zeros(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)

    def note(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        nonlocal count, mean, squares
        values = inputs[0]
        dims = [dim for dim in range(values.ndim) if dim != 1]
        variance, here = (part.cpu().double() for part in torch.var_mean(values, dim=dims, correction=0))
        more = values.numel() // values.shape[1]
        away = here - mean
        squares = squares + variance * more + away.square() * (count * more / (count + more))
        mean = mean + away * (more / (count + more))
        count += more
        raise _Reached

    with layer.register_forward_pre_hook(note):
        for images in batches:
            with suppress(_Reached):
                model(images)
    return mean, squares / count
