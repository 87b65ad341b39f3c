"""Rotations of square images by quarter turns, the pretext task of Gidaris et al. 2018 (arXiv:1803.07728)."""

from __future__ import annotations

import torch
from torch import Tensor

TURNS = 4


def rotate(images: Tensor, turns: Tensor) -> Tensor:
    """Rotate images [n, c, s, s] anticlockwise, each by its number of quarter turns (int64 [n], 0 to 3)."""
    turns = turns.to(images.device, non_blocking=True).view(-1, 1, 1, 1)
    rotated = images
    for number in range(1, TURNS):
        rotated = torch.where(turns == number, torch.rot90(images, number, (2, 3)), rotated)
    return rotated


def all_rotations(images: Tensor) -> tuple[Tensor, Tensor]:
    """Return every rotation of images [n, c, s, s], turn after turn: [4 n, c, s, s], and the turns (int64 [4 n])."""
    turns = torch.arange(TURNS, device=images.device).repeat_interleave(len(images))
    return torch.cat([torch.rot90(images, number, (2, 3)) for number in range(TURNS)]), turns
