"""RPL: self-learning on the model's own labels with a loss that is robust to wrong labels (Rusak et al. 2022)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from methods.limits import FractionAboveZero
from methods.losses import at_least_float32, gradients, recordable
from methods.online import NormAdapter, NormOptions


def generalised_cross_entropy(logits: Tensor, labels: Tensor, q: float) -> Tensor:
    """(1 - p^q) / q of the probability p of each label: [n, classes], int64 [n] -> [n].

    Cross-entropy in the limit q -> 0, the probability of the other classes at q = 1 (Zhang & Sabuncu 2018,
    arXiv:1805.07836, equation 6).
    """
    p = at_least_float32(logits).softmax(-1).gather(-1, labels[:, None])[:, 0]
    loss: Tensor = (1 - p**q) / q
    return loss


class Rpl(NormAdapter):
    """Minimises the generalised cross-entropy to the model's own most probable class, averaged over each batch.

    Rusak et al. 2022, arXiv:2104.12928, section 4: robust pseudo-labelling, with the labels of the current forward
    pass. Costs one forward and one backward pass.
    """

    tested_against = "golden"
    search = {"lr": (3e-5, 1e-4, 3e-4, 1e-3, 3e-3), "q": (0.5, 0.8, 1.0), "optimizer": ("sgd", "adam")}
    checked_with = {"lr": 0.02}
    presets = {"imagenet-bn": {"lr": 5e-4}, "cifar-bn": {"lr": 1e-3, "optimizer": "adam"}}

    @dataclass(frozen=True)
    class Config(NormOptions):
        """Defaults of the release for ImageNet.

        lr: step size; 5e-4 with SGD (batch 64).
        q: robustness to wrong labels, from cross-entropy (towards 0) to the probability of the others (1); in (0, 1].
        """

        lr: float = 5e-4
        q: FractionAboveZero = 0.8

    def predict(self, images: Tensor) -> Tensor:
        """Images [n, 3, h, w] in [0, 1] to the logits [n, classes] from before the update."""
        images = recordable(images)
        with gradients():
            logits: Tensor = self.model(images)
            self.descend(generalised_cross_entropy(logits, logits.argmax(1), self.config.q).mean())
        return logits.detach()
