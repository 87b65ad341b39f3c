"""Random crops of padded images with random mirroring, the augmentation with which CIFAR classifiers are trained."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class PaddedCrops(NamedTuple):
    """One crop for each image: its place in the padded image (int64 [n] each) and whether it is mirrored (bool [n])."""

    top: Tensor
    left: Tensor
    mirrored: Tensor


def draw_crops(count: int, padding: int, generator: torch.Generator, *, flip: bool) -> PaddedCrops:
    """Draw crops of images padded by `padding` pixels, all places equally likely; mirrored with probability one half.

    Draws from a CPU generator give the same crops on every device. The count of numbers drawn depends on `count` alone.
    """
    vertical, horizontal, coin = torch.rand(3, count, generator=generator, dtype=torch.float64, device=generator.device)
    places = 2 * padding + 1
    return PaddedCrops(
        (vertical * places).long(),
        (horizontal * places).long(),
        coin < 0.5 if flip else torch.zeros_like(coin, dtype=torch.bool),
    )


@torch.no_grad()
def crop_padded(images: Tensor, crops: PaddedCrops, padding: int) -> Tensor:
    """Pad images [n, c, h, w] with `padding` black pixels and take one crop [c, h, w] of each: [n, c, h, w]."""
    height, width = images.shape[2:]
    device = images.device
    top, left, mirrored = (each.to(device, non_blocking=True)[:, None] for each in crops)
    rows = top + torch.arange(height, device=device)
    columns = torch.arange(width, device=device)
    columns = left + torch.where(mirrored, width - 1 - columns, columns)
    padded = F.pad(images, [padding] * 4)
    image = torch.arange(len(images), device=device)[:, None, None]
    # Indices around a slice put the channels last.
    return padded[image, :, rows[:, :, None], columns[:, None, :]].movedim(-1, 1).contiguous()
