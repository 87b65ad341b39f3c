"""Strong augmentation during fine-tuning, and the loss that asks for one prediction on all views of an image.

AugMix (Hendrycks et al. 2020, arXiv:1912.02781) and PRIME (Modas et al. 2022, arXiv:2112.13547) train with the same
loss; they differ in the augmentation.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from methods.data_parallel import Share

LARGE = 96
"""From this side in pixels on, an augmentation takes the options that were published for ImageNet, else for CIFAR."""

_WEIGHT = 12.0
_SMALLEST = 1e-7


@dataclass(frozen=True)
class Augmentation(ABC):
    """What becomes of the random view of each image before the network sees it; a subclass has a component name.

    jsd: train on the view itself and two augmentations of it, with the loss `consistent`, which costs three forward and
    backward passes for each image. Otherwise train on one augmentation alone, by cross-entropy.
    """

    title: ClassVar[str]
    """Its name in the label of a training."""

    jsd: bool = True

    @property
    def passes(self) -> int:
        """Images that pass through the network for each image of a batch."""
        return 3 if self.jsd else 1

    def __call__(self, images: Tensor, generator: torch.Generator, share: Share) -> Tensor:
        """Return the views to train on, float [n, passes, 3, h, w]: with `jsd` the images, then their augmentations.

        Args:
            images: float [n, 3, h, w] in [0, 1], on the generator's device: the rows of this process.
            generator: the only source of random numbers.
            share: which rows of the batch they are.
        """
        if not self.jsd:
            return self.augment(images, 1, generator, share)
        return torch.cat([images[:, None], self.augment(images, 2, generator, share)], dim=1)

    @abstractmethod
    def augment(self, images: Tensor, count: int, generator: torch.Generator, share: Share) -> Tensor:
        """Return `count` augmentations of each image, float [n, count, 3, h, w] in [0, 1]."""


def consistent(logits: Tensor, labels: Tensor, passes: int, label_smoothing: float = 0.0) -> Tensor:
    """Return the mean cross-entropy of the first views plus 12 times the Jensen-Shannon divergence of all views.

    logits: float [passes * n, classes], view after view; labels: int64 [n]. The divergence is the mean over views of
    KL(p_view || mean of p over views), where the mean is at least 1e-7 (arXiv:1912.02781, eq. 2-3 and its release).
    With one view it is left out.
    """
    first, *others = logits.chunk(passes)
    loss = F.cross_entropy(first, labels, label_smoothing=label_smoothing)
    if not others:
        return loss
    # From logarithms, since the gradient of p log p is not finite where p is rounded to zero.
    views = logits.log_softmax(1).view(passes, *first.shape)
    middle = views.exp().mean(0).clamp(_SMALLEST, 1).log()
    return loss + _WEIGHT * (views.exp() * (views - middle)).sum(2).mean()
