"""BN-alpha: statistics between those of the source and those of the test batch (Schneider et al. 2020)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from methods.base import Adapter, Options, Source
from methods.limits import Fraction
from methods.norms import blend_statistics, need_batch_norm


class BatchNormAlpha(Adapter):
    """Every BatchNorm layer normalises with (1 - alpha) of the source statistics and alpha of the batch's.

    Schneider et al. 2020, arXiv:2006.16971, equation 2: alpha = n / (N + n) for a batch of n and a source with the
    weight of N images. The variance of the batch is the unbiased one. No state is carried from one batch to the next; a
    layer that sees one value per channel uses the source's statistics (see `blend_statistics`).
    """

    tested_against = "golden"
    search = {"alpha": (0.05, 0.1, 0.2, 0.5, 0.8)}

    @dataclass(frozen=True)
    class Config(Options):
        """The default is the usual one for single images.

        alpha: share of the batch's statistics, in [0, 1]; 1 equals `bn` except for the unbiased variance.
        """

        alpha: Fraction = 0.1

    def configure(self, source: Source | None) -> None:
        """Raises Unsupported for a model without BatchNorm, or with one that has no source statistics."""
        need_batch_norm(self.model, "bn_alpha blends the statistics of BatchNorm layers")
        blend_statistics(self.model, 1 - self.config.alpha)

    @torch.no_grad()
    def predict(self, images: Tensor) -> Tensor:
        """Images [n, 3, h, w] in [0, 1] to logits [n, classes]."""
        logits: Tensor = self.model(images)
        return logits
