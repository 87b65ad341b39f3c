"""The plain adapter: predicts without changing anything, which makes a recipe's classifier its own baseline."""

from __future__ import annotations

import torch
from torch import Tensor

from methods.base import Adapter


class Plain(Adapter):
    """Logits of the classifier as it is, in eval mode."""

    @torch.no_grad()
    def predict(self, images: Tensor) -> Tensor:
        """Images [n, 3, h, w] in [0, 1] to logits [n, classes]."""
        logits: Tensor = self.model(images)
        return logits
