"""Prediction-time batch normalisation: statistics of the test batch replace those of the source (Nado et al. 2020)."""

from __future__ import annotations

import torch
from torch import Tensor

from methods.base import Adapter, Source
from methods.norms import need_batch_norm, use_batch_statistics


class BatchNormStatistics(Adapter):
    """Every BatchNorm layer normalises with the mean and (biased) variance of the current test batch alone.

    Nado et al. 2020, arXiv:2006.10963; "Norm" in the TENT release. No state is carried from one batch to the next, but
    the prediction for an image depends on its batch. In a batch of one image the layers use the statistics of that
    image, and a layer that then sees a single value per channel uses those of the source (see `use_batch_statistics`).
    """

    tested_against = "golden"

    def configure(self, source: Source | None) -> None:
        need_batch_norm(self.model, "bn replaces the statistics of BatchNorm layers")
        use_batch_statistics(self.model)

    @torch.no_grad()
    def predict(self, images: Tensor) -> Tensor:
        """Images [n, 3, h, w] in [0, 1] to logits [n, classes]."""
        logits: Tensor = self.model(images)
        return logits
