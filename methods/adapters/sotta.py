"""SoTTA: adaptation to streams with noise, by a confident, balanced memory and flat minima (Gong et al. 2023)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from methods.adapters.common.memory import MemoryAdapter, MemoryOptions, smoothed_entropies
from methods.adapters.common.sharpness import climb, put_back
from methods.limits import FiniteNotNegative, Fraction
from methods.norms import training_statistics
from methods.online import below_the_top


class Sotta(MemoryAdapter):
    """Minimises, sharpness-aware, the entropy of a memory of confident images that is balanced over predicted classes.

    Gong et al. 2023, arXiv:2310.10074. An image enters the memory (high-confidence uniform-class sampling, algorithm 1)
    if its largest probability is at least `confidence`. If the memory is full, it replaces an image of a class that
    holds the most, of its own if that is one. After every `update_every` images the affine parameters of normalisation
    layers climb the gradient of the memory's mean entropy by the distance `rho`, take the gradient there, and step with
    it from where they were (entropy-sharpness minimisation, section 3.2). In both passes BatchNorm uses the memory's
    statistics and moves the running ones to them by `statistics_share`. Predictions use the running statistics. Layers
    of the top quarter keep their affine parameters, as in SAR (see `below_the_top`). Without a confident image nothing
    changes. Dropout and stochastic depth stay off.

    The release adapts BatchNorm and LayerNorm, and finds the top by timm's names; here GroupNorm is adapted too. It
    leaves out the images after the last whole window of `update_every`. Costs one forward pass an image, and two
    forward and two backward passes of the memory an update.
    """

    tested_against = "golden"
    search = {"lr": (1e-4, 1e-3, 1e-2), "confidence": (0.33, 0.66, 0.99), "statistics_share": (0.05, 0.2)}
    checked_with = {"lr": 0.05, "capacity": 4, "update_every": 4, "confidence": 0.4}
    presets = {
        "cifar-bn": {"lr": 1e-3, "confidence": 0.99, "statistics_share": 0.2},
        "cifar100-bn": {"lr": 1e-3, "confidence": 0.66, "statistics_share": 0.2},
        "imagenet-bn": {"lr": 1e-3, "confidence": 0.33, "statistics_share": 0.2},
    }

    @dataclass(frozen=True)
    class Config(MemoryOptions):
        """Defaults of the release for CIFAR-10.

        confidence: least largest probability of an image in the memory, in [0, 1]; less for more classes.
        rho: how far to climb, as the Euclidean distance in all adapted parameters together.
        """

        statistics_share: float = 0.2
        confidence: Fraction = 0.99
        rho: FiniteNotNegative = 0.05

    def chosen(self) -> dict[str, nn.Parameter]:
        """Return the affine parameters of normalisation layers below the top quarter."""
        return below_the_top(self.model)

    def update(self, images: Tensor) -> None:
        self.loss(images).backward()  # type: ignore[no-untyped-call]
        below = climb(self.parameters, self.config.rho)
        self.loss(images).backward()  # type: ignore[no-untyped-call]
        put_back(self.parameters, below)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def loss(self, images: Tensor) -> Tensor:
        """Return the mean entropy in nats of images, with their statistics, to which the running ones move."""
        with training_statistics(self.model):
            logits: Tensor = self.model(images)
        return smoothed_entropies(logits, self.config.temperature).sum(1).mean()

    def may_enter(self, confidence: float) -> bool:
        least: float = self.config.confidence
        return confidence >= least
