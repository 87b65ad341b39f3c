"""SAR: sharpness-aware and reliable entropy minimisation, with recovery from collapse (Niu et al. 2023)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from methods.adapters.common.sharpness import climb, put_back
from methods.base import Source
from methods.limits import Finite, FiniteNotNegative, FractionAboveZero
from methods.losses import gradients, recordable
from methods.online import (
    NormAdapter,
    NormOptions,
    below_the_official_top,
    below_the_top,
    margin,
    rows_where,
)

MEMORY = 0.9


class Sar(NormAdapter):
    """Minimises the entropy of reliable images at the worst nearby point, and resets itself when it nears collapse.

    Niu et al. 2023, arXiv:2302.12400, section 4. Images are reliable if their entropy is below E0 = `margin` * ln C.
    The parameters climb the gradient of the mean over these by the distance `rho` (sharpness-aware minimisation); there
    the mean is taken again over those that are still reliable, and its gradient updates the parameters. When the
    moving average (0.9 old, 0.1 new) of this second mean falls below `reset_below`, everything returns to the source.
    Layers of the top quarter stay unchanged (see `below_the_top`).

    The release differs in three ways, which `official_quirks` restores: its moving average survives the return to the
    source and so triggers it again; the optimiser's momentum survives too, and moves the parameters even if no image is
    reliable; and the release finds the top by timm's names alone. Costs two forward and two backward passes.
    """

    tested_against = "golden"
    search = {
        "lr": (3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2),
        "reset_below": (0.05, 0.1, 0.2, 0.5),
        "rho": (0.02, 0.05, 0.1),
    }
    checked_with = {"lr": 0.02, "margin": 0.7}
    presets = {
        "imagenet-bn": {"lr": 2.5e-4},
        "imagenet-gn": {"lr": 2.5e-4},
        "imagenet-ln": {"lr": 1e-3},
        "cifar-bn": {"lr": 1e-3},
    }
    rate_rules = {
        "imagenet-bn": "batch/32, at most 1, twice that for 1",
        "imagenet-gn": "batch/32, at most 1, twice that for 1",
        "imagenet-ln": "batch/64, twice that for 1",
    }

    @dataclass(frozen=True)
    class Config(NormOptions):
        """Defaults of the paper for ImageNet.

        lr: step size; 2.5e-4 with SGD for ResNet-50, 1e-3 for ViT-B/16 (batch 64); other sizes:
            `rate_rules`.
        margin: E0 as a fraction of ln C, the largest entropy; in (0, 1].
        rho: how far to climb, as the Euclidean distance in all adapted parameters together.
        reset_below: the average entropy in nats that counts as near collapse; 0.2 for 1000 classes, less for few.
        official_quirks: follow the release where it departs from the paper; to compare with its numbers.
        """

        margin: FractionAboveZero = 0.4
        rho: FiniteNotNegative = 0.05
        reset_below: Finite = 0.2
        official_quirks: bool = False

    def configure(self, source: Source | None) -> None:
        super().configure(source)
        # NaN until there is a first loss.
        self.average = self.parameters[0].new_full((), math.nan, dtype=torch.float32)
        self.source_values = [parameter.detach().clone() for parameter in self.parameters]

    def chosen(self) -> dict[str, nn.Parameter]:
        return below_the_official_top(self.model) if self.config.official_quirks else below_the_top(self.model)

    def predict(self, images: Tensor) -> Tensor:
        """Images [n, 3, h, w] in [0, 1] to the logits [n, classes] from before the update."""
        images = recordable(images)
        with gradients():
            logits: Tensor = self.model(images)
            limit = margin(logits, self.config.margin)
            uncertainty = self.uncertainty(logits)
            reliable = rows_where(uncertainty.detach() < limit)
            if len(reliable) or self.config.official_quirks:
                uncertainty[reliable].mean().backward()  # type: ignore[no-untyped-call]
                self._descend_from_above(images, reliable, limit)
        if self.average < self.config.reset_below:
            self._start_anew()
        return logits.detach()

    def _descend_from_above(self, images: Tensor, reliable: Tensor, limit: float) -> None:
        """Climb the current gradient, take the gradient there, and step with it from the original parameters."""
        below = climb(self.parameters, self.config.rho)
        uncertainty = self.uncertainty(self.model(images))[reliable]
        still = rows_where(uncertainty.detach() < limit)
        if len(still) or self.config.official_quirks:
            loss = uncertainty[still].mean()
            self._remember(loss.detach())
            loss.backward()  # type: ignore[no-untyped-call]
        put_back(self.parameters, below)
        # The optimiser skips parameters without a gradient, including their momentum.
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def _remember(self, loss: Tensor) -> None:
        """Include a loss in the moving average, unless it is NaN (as the loss of no image is)."""
        known = torch.where(self.average.isnan(), loss, MEMORY * self.average + (1 - MEMORY) * loss)
        self.average = torch.where(loss.isnan(), self.average, known)

    def _start_anew(self) -> None:
        if self.config.official_quirks:
            put_back(self.parameters, self.source_values)
        else:
            self.reset()
