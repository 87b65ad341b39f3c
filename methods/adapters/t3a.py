"""T3A: replaces the head by prototypes of the most certain test features of each class (Iwasawa & Matsuo 2021)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from methods.base import Adapter, Options, Source
from methods.limits import Count
from methods.losses import entropy
from methods.nets.feature_head_split import split

# Rows of the head that become supports at once, which bounds the memory.
ROWS_TOGETHER = 256


class T3A(Adapter):
    """Test-time template adjuster: scores are features times class prototypes that follow the stream.

    Iwasawa and Matsuo, NeurIPS 2021, algorithm 1. The row of the head is the first support of each class. Each image
    becomes a support of the class that the head predicts, before the image itself is predicted; the supports of lowest
    entropy are kept, and the prototype is the direction of their sum. Scores have no bias and a scale of their own, so
    they rank classes well but are poor probabilities. They are NaN for an image whose logits are not probabilities,
    since finite prototypes would hide a broken model.
    """

    tested_against = "golden"
    search = {"supports": (1, 5, 20, 50, 100)}
    checked_with = {"supports": 2}

    @dataclass(frozen=True)
    class Config(Options):
        """The authors choose the number of supports on the source; comparisons use 20.

        supports: number of supports kept for each class, at least 1.
        official_quirks: label each row of the head with the head's prediction for it, as the release does, instead of
            with its own class as the paper does; a class that labels no row scores zero until an image is predicted as
            that class.
        """

        supports: Count = 20
        official_quirks: bool = False

    def configure(self, source: Source | None) -> None:
        """Raises Unsupported for a classifier that does not end in one linear layer with a row for each class."""
        self.parts = split(self.model)
        rows, bias = self.parts.weights()
        rows, bias = rows.float(), bias.float()
        logits = rows @ rows.T + bias
        own = torch.arange(len(rows), device=rows.device)
        labels = logits.argmax(dim=1) if self.config.official_quirks else own
        # An empty slot has no direction and infinite entropy.
        self.memory = rows.new_zeros(len(rows), self.config.supports, rows.shape[1])
        self.entropies = rows.new_full((len(rows), self.config.supports), torch.inf)
        self.prototypes = torch.zeros_like(rows)
        for part in own.split(ROWS_TOGETHER):  # type: ignore[no-untyped-call]
            self._keep(rows[part], labels[part], entropy(logits[part]))

    @torch.no_grad()
    def predict(self, images: Tensor) -> Tensor:
        """Images [n, 3, h, w] in [0, 1] to features times prototypes, [n, classes]."""
        features, logits = self.parts(images)
        features, logits = features.float(), logits.float()
        with torch.autocast(images.device.type, enabled=False):
            self._keep(features, logits.argmax(dim=1), entropy(logits))
            broken = ~logits.logsumexp(dim=1, keepdim=True).isfinite()
            return (features @ self.prototypes.T).masked_fill(broken, torch.nan)

    def _keep(self, features: Tensor, classes: Tensor, entropies: Tensor) -> None:
        """Add features [n, dim] as supports, then keep those of lowest entropy in each class, older ones first.

        Each image sorts its whole class, together with all images of that class in the batch; so images of one class
        write the same values, and classes without an image cost nothing.
        """
        slots: int = self.config.supports
        directions = normalize(features, dim=1)
        newcomers = entropies.expand(len(classes), -1).masked_fill(classes[:, None] != classes, torch.inf)
        levels, order = torch.cat([self.entropies[classes], newcomers], dim=1).sort(dim=1, stable=True)
        kept = order[:, :slots]
        old = self.memory[classes[:, None], kept.clamp(max=slots - 1)]
        supports = torch.where((kept < slots)[:, :, None], old, directions[(kept - slots).clamp(min=0)])
        self.memory[classes], self.entropies[classes] = supports, levels[:, :slots]
        self.prototypes[classes] = normalize(supports.sum(dim=1), dim=1)
