"""BN-EMA: the statistics of BatchNorm follow the stream by a moving average (Li et al. 2016, online)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from methods.base import Adapter, Options, Source
from methods.limits import FractionAboveZero
from methods.norms import need_batch_norm, require_source_statistics, training_statistics


class BatchNormAverage(Adapter):
    """Each batch first updates the running statistics of every BatchNorm layer, then is predicted with them.

    Adaptive batch normalisation (Li et al. 2016, arXiv:1603.04779) along a stream, as online benchmarks run it: a
    forward pass normalises with the batch and updates the averages as in training; a second pass predicts with the
    averages. Dropout and stochastic depth stay off in both. A layer that sees one value per channel, which has no
    variance, keeps its averages and uses them.
    """

    tested_against = "golden"
    search = {"momentum": (0.01, 0.05, 0.1, 0.2)}

    @dataclass(frozen=True)
    class Config(Options):
        """The default is the usual momentum of BatchNorm in training.

        momentum: share of each new batch in the averages, in (0, 1].
        """

        momentum: FractionAboveZero = 0.1

    def configure(self, source: Source | None) -> None:
        """Raises Unsupported for a model without BatchNorm, or with one that has no source statistics."""
        layers = need_batch_norm(self.model, "bn_ema averages the statistics of BatchNorm layers")
        require_source_statistics(self.model)
        for layer in layers:
            layer.momentum = self.config.momentum

    @torch.no_grad()
    def predict(self, images: Tensor) -> Tensor:
        """Images [n, 3, h, w] in [0, 1] to the logits [n, classes] of the second pass."""
        with training_statistics(self.model):
            self.model(images)
        logits: Tensor = self.model(images)
        return logits
