"""ETA: entropy minimisation on reliable and non-redundant images (Niu et al. 2022)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from methods.base import Source
from methods.limits import FinitePositive, FractionAboveZero
from methods.losses import at_least_float32, gradients, recordable
from methods.online import NormAdapter, NormOptions, margin, rows_where

MEMORY = 0.9


@dataclass(frozen=True)
class EtaOptions(NormOptions):
    """Options of a method that selects images as ETA does.

    lr: step size; 2.5e-4 with SGD (batch 64); `rate_rules` scales it for other sizes.
    margin: E0 as a fraction of ln C, the largest entropy; in (0, 1].
    epsilon: the largest absolute cosine to the mean; 0.05 for 1000 classes, 0.4 for 10, where 0.05 keeps no image.
    """

    margin: FractionAboveZero = 0.4
    epsilon: FinitePositive = 0.05


class Eta(NormAdapter):
    """Minimises the weighted entropy of images that are reliable and unlike the images learnt from before.

    Niu et al. 2022, arXiv:2204.02610, section 3.1 (EATA without its regulariser). An image is reliable if its entropy H
    is below E0 = `margin` * ln C, and unlike the others if the cosine between its probabilities and the running mean of
    those learnt from is within `epsilon` of 0 (equations 3 to 6); its weight is exp(E0 - H). If no image remains,
    nothing changes, including the optimiser's momentum. The mean (0.9 old, 0.1 new) starts with the first batch that
    has a reliable image, and all reliable images of that batch count. Costs one forward and at most one backward pass.
    """

    tested_against: ClassVar[Literal["golden", "restatement", "none"]] = "golden"
    search = {"lr": (3e-5, 1e-4, 3e-4, 1e-3, 3e-3), "epsilon": (0.05, 0.1, 0.2, 0.4), "optimizer": ("sgd", "adam")}
    checked_with = {"lr": 0.02, "margin": 0.7, "epsilon": 0.95}
    presets = {
        "imagenet-bn": {"lr": 2.5e-4, "epsilon": 0.05},
        "imagenet-gn": {"lr": 2.5e-4, "epsilon": 0.05},
        "imagenet-ln": {"lr": 1e-3, "epsilon": 0.05},
        "cifar-bn": {"lr": 1e-3, "optimizer": "adam", "epsilon": 0.4},
        "cifar100-bn": {"lr": 1e-3, "optimizer": "adam", "epsilon": 0.1},
    }
    rate_rules = {"imagenet-gn": "batch/32, at most 1", "imagenet-ln": "batch/64"}

    @dataclass(frozen=True)
    class Config(EtaOptions):
        """Defaults of the paper for ImageNet."""

    def configure(self, source: Source | None) -> None:
        super().configure(source)
        # Empty until there is a first reliable image.
        self.mean = self.parameters[0].new_empty(0)

    def predict(self, images: Tensor) -> Tensor:
        """Images [n, 3, h, w] in [0, 1] to the logits [n, classes] from before the update."""
        images = recordable(images)
        with gradients():
            logits: Tensor = self.model(images)
            uncertainty = self.uncertainty(logits)
            limit = margin(logits, self.config.margin)
            rows = self.select(logits.detach(), uncertainty.detach(), limit)
            if len(rows):
                kept = uncertainty[rows]
                # Divided rather than exponentiated with the other sign: rounds as the release does.
                weights = 1 / (kept.detach() - limit).exp()
                self.descend(kept.mul(weights).mean())
        return logits.detach()

    @torch.no_grad()
    def select(self, logits: Tensor, uncertainty: Tensor, limit: float) -> Tensor:
        """Return the images to learn from, int64 [k]; their probabilities enter the running mean."""
        probabilities = at_least_float32(logits).softmax(-1)
        first = not len(self.mean)
        chosen = uncertainty < limit
        if not first:
            chosen = chosen & (cosine_similarity(self.mean[None], probabilities, dim=1).abs() < self.config.epsilon)
        rows = rows_where(chosen)
        if len(rows):
            now = probabilities[rows].mean(0)
            self.mean = now if first else MEMORY * self.mean + (1 - MEMORY) * now
        return rows
