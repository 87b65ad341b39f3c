"""Shifted and mirrored copies of small images, the usual augmentation of CIFAR-10 (arXiv:1512.03385, section 4.2)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from methods.data_parallel import Share
from methods.identity import component

_WHOLE = Share()


@component("methods.views.PaddedCrops")
@dataclass(frozen=True)
class PaddedCrops:
    """A random crop of each padded image: uint8 [n, 3, h, w] to float32 [n, 3, h, w] in [0, 1], not normalised.

    `padding` black pixels are added at each border, and a crop of the image's size is cut at one of the
    (2 padding + 1)^2 places, all equally likely. `flip`: mirror it left to right with probability one half. The whole
    batch is cut by one indexing operation on bytes. Raises ValueError for a negative padding.
    """

    padding: int = 4
    flip: bool = True

    def __post_init__(self) -> None:
        if self.padding < 0:
            raise ValueError(f"padding must be at least 0 pixels, not {self.padding}")

    def __call__(self, images: Tensor, generator: torch.Generator, share: Share = _WHOLE) -> Tensor:
        """Return the crops on the device of the images, which is also the generator's; see Views for `share`."""
        count, _, height, width = images.shape
        draws = share.own(torch.rand(3, share.whole(count), generator=generator, device=generator.device), 1)
        top, left = ((2 * self.padding + 1) * draws[:2]).long()
        rows = top[:, None] + torch.arange(height, device=images.device)
        columns = torch.arange(width, device=images.device).expand(count, -1)
        if self.flip:
            columns = torch.where(draws[2, :, None] < 0.5, columns.flip(1), columns)
        columns = left[:, None] + columns
        padded = F.pad(images, (self.padding,) * 4)
        each = torch.arange(count, device=images.device)[:, None, None]
        # The indices enclose the channels, so that these come last in memory, where convolutions are fastest.
        crops = padded[each, :, rows[:, :, None], columns[:, None, :]]
        return crops.permute(0, 3, 1, 2).float().div_(255)
