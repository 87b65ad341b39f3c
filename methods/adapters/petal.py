"""PETAL: CoTTA near the posterior of the source weights, whose least informed weights return (Brahma & Rai 2023)."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from methods.adapters.common.teachers import learnable
from methods.adapters.cotta import Cotta
from methods.base import Source
from methods.limits import FiniteNotNegative, at_least
from methods.losses import at_least_float32, gradients, recordable

# Addend of the variances, as in the release.
DAMPING = 1e-6
# The rate of the training on source images: its share at the start, and in how many epochs it rises after the second.
START, RISE = 0.08, 3
WEIGHT_DECAY = 5e-4


class Petal(Cotta):
    """CoTTA with a penalty for leaving the posterior of the source weights, and restoration by Fisher information.

    Brahma and Rai 2023, arXiv:2212.09713, algorithms 1 and 2. Before the stream a copy of the model goes on training on
    labelled source images for `posterior_epochs` (SGD, BatchNorm with its source statistics); mean and variance of its
    weights after each epoch but the first are a diagonal Gaussian posterior (SWAG). The loss of CoTTA gets half the sum
    of (weight - mean)^2 / (variance + 1e-6), times `strength`. After each step the weights whose squared gradient is
    below the `restore` quantile over all weights return to the source; or, `by` "random", each with that probability.

    The variance is computed by Welford's formula; the release subtracts squares, which can fall below 0. Its script for
    ImageNet never steps, since it does not count its batches, and stores weights minus their squares as variances; here
    the script for CIFAR holds for all data. Costs those epochs, and per batch what CoTTA does and three more values for
    each weight.
    """

    tested_against = "golden"
    search = {
        "lr": (1e-4, 1e-3, 1e-2),
        "optimizer": ("sgd", "adam"),
        "restore": (0.003, 0.03),
        "strength": (1e-11, 1e-9, 1e-7),
    }
    checked_with = {"views": 2, "threshold": 2.0, "restore": 0.3, "posterior_epochs": 3, "posterior_lr": 1e-5}
    presets = {
        "imagenet-bn": {"lr": 0.01, "restore": 0.003, "threshold": 0.1, "strength": 1e-11},
        "cifar-bn": {
            "lr": 1e-3,
            "optimizer": "adam",
            "restore": 0.03,
            "threshold": 0.92,
            "symmetric": False,
            "strength": 1e-9,
        },
        "cifar100-bn": {
            "lr": 1e-3,
            "optimizer": "adam",
            "restore": 0.03,
            "threshold": 0.72,
            "symmetric": False,
            "strength": 1e-9,
        },
    }

    @dataclass(frozen=True)
    class Config(Cotta.Config):
        """Defaults of the release for ImageNet.

        by: which weights return: "fisher", the share of the smallest squared gradient, or "random", as in CoTTA.
        strength: weight of the penalty, at least 0; 1e-11 for ImageNet, 1e-9 for CIFAR.
        posterior_epochs: passes over the source images, at least 3, so that two weights have a variance.
        posterior_lr: rate of the last of these passes, at least 0.
        """

        restore: float = 0.003
        by: Literal["fisher", "random"] = "fisher"
        strength: FiniteNotNegative = 1e-11
        posterior_epochs: Annotated[int, at_least(3)] = 5
        posterior_lr: FiniteNotNegative = 0.01

    def configure(self, source: Source | None) -> None:
        """Raises ValueError without labelled source images or if training on them diverges.

        Raises Unsupported for a model without weights or biases.
        """
        trained = copy.deepcopy(self.model)
        super().configure(source)
        if source is None or len(source) == 0:
            raise ValueError("petal trains on labelled source images; give prepare() a source, or use cotta")
        self.means, self.variances = self.posterior(trained, source)
        if not all(values.isfinite().all() for values in (*self.means, *self.variances)):
            raise ValueError("petal's training on source images diverged; lower petal.posterior_lr")

    def posterior(self, model: nn.Module, source: Source) -> tuple[list[Tensor], list[Tensor]]:
        """Train a model and return mean and variance over its weights after each epoch but the first, float32."""
        model.requires_grad_(True)
        last: float = self.config.posterior_lr
        optimizer = torch.optim.SGD(model.parameters(), START * last, momentum=0.9, weight_decay=WEIGHT_DECAY)
        weights = learnable(model)
        means = [torch.zeros_like(weight, dtype=torch.float32) for weight in weights]
        spreads = [torch.zeros_like(mean) for mean in means]
        for epoch in range(self.config.posterior_epochs):
            rise = min(max(epoch - 1, 0) / RISE, 1)
            optimizer.param_groups[0]["lr"] = last * (START + (1 - START) * rise)
            self._train(model, source, optimizer)
            for weight, mean, spread in zip(weights, means, spreads, strict=True) if epoch else ():
                before = weight.detach().float() - mean
                mean += before / epoch
                spread += before * (weight.detach().float() - mean)
        return means, [spread / (self.config.posterior_epochs - 1) for spread in spreads]

    def _train(self, model: nn.Module, source: Source, optimizer: torch.optim.Optimizer) -> None:
        for number in torch.randperm(len(source), generator=self.host_draws).tolist():
            batch = source[number]
            if batch.labels is None:
                raise ValueError("petal trains on labelled source images and these have no labels")
            with gradients():
                loss = cross_entropy(at_least_float32(model(recordable(batch.images))), batch.labels)
                loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def learn(self, loss: Tensor) -> None:
        """Take one step of the student, and note which weights the batch said least about."""
        loss.backward()  # type: ignore[no-untyped-call]
        with torch.no_grad():
            self.regularise()
            if self.config.by == "fisher":
                self.least = self.least_informed()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def regularise(self) -> None:
        """Add the gradient of the penalty."""
        for parameter, mean, variance in zip(self.parameters, self.means, self.variances, strict=True):
            if parameter.grad is not None:
                parameter.grad += self.config.strength * (parameter - mean) / (variance + DAMPING)

    def least_informed(self) -> list[Tensor]:
        """Return which weights have a squared gradient below the `restore` quantile: bool, of the weights' shapes."""
        slopes = [torch.zeros_like(each) if each.grad is None else each.grad for each in self.parameters]
        squares = [slope.float().square() for slope in slopes]
        flat = torch.cat([square.flatten() for square in squares])
        place = self.config.restore * (len(flat) - 1)
        low, high = (flat.kthvalue(min(int(place) + k, len(flat))).values for k in (1, 2))
        return [square < torch.lerp(low, high, place - int(place)) for square in squares]

    @torch.no_grad()
    def restore(self) -> None:
        """Return the least informed weights to the source, or weights at random."""
        if self.config.by == "random":
            super().restore()
            return
        for parameter, original, least in zip(self.parameters, self.originals, self.least, strict=True):
            parameter.copy_(torch.where(least, original, parameter))
        del self.least
