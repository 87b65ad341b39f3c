"""The noise group: Gaussian, shot and impulse noise (Hendrycks and Dietterich 2019, arXiv:1903.12261).

Every corruption of this package is one function of float32 images [n, 3, h, w] in [0, 1], the random draws of these
images and the parameters of a severity (see `catalog`), which gives images of the same shape, clipped to [0, 1].
A random one has a second function that makes the draws for images of a size (h, w).
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from corruptions.catalog import Parameters
from corruptions.rng import Stream

Draws = dict[str, Tensor]
Size = tuple[int, int]


def draw_gaussian_noise(stream: Stream, size: Size, parameters: Parameters) -> Draws:  # noqa: ARG001
    """Standard normals, one per pixel and channel."""
    return {"normal": stream.normal(3, *size)}


def gaussian_noise(images: Tensor, draws: Draws, parameters: Parameters) -> Tensor:
    """x + sigma z, independent per pixel and channel."""
    (sigma,) = parameters
    return torch.add(images, draws["normal"], alpha=sigma).clamp_(0, 1)


def draw_shot_noise(stream: Stream, size: Size, parameters: Parameters) -> Draws:  # noqa: ARG001
    """Uniforms, one per pixel and channel."""
    return {"uniform": stream.uniform(3, *size)}


def shot_noise(images: Tensor, draws: Draws, parameters: Parameters) -> Tensor:
    """Poisson(c x) / c per pixel and channel; x is read at its nearest 8-bit level, as in the definition.

    With 256 possible means, an alias table (Walker 1977) turns one uniform into an exact Poisson count.
    """
    (photons,) = parameters
    cells, threshold, alias = _poisson_table(photons)
    threshold, alias = threshold.to(images.device), alias.to(images.device)
    place = draws["uniform"] * cells
    cell = place.floor().clamp_(max=cells - 1)
    index = torch.add(cell, (images * 255).round_(), alpha=cells).long()
    count = torch.where(place - cell < threshold.take(index), cell, alias.take(index))
    return count.div_(photons).clamp_(0, 1)


@lru_cache(maxsize=16)
def _poisson_table(photons: float) -> tuple[int, Tensor, Tensor]:
    """Alias table of Poisson(photons * level / 255) for the 256 levels: cells per level, thresholds and aliases.

    Counts of `photons` and more are all white, so one last cell holds the whole tail.
    """
    cells = math.ceil(photons) + 1
    means = torch.arange(256, dtype=torch.float64)[:, None] * (photons / 255)
    counts = torch.arange(cells - 1, dtype=torch.float64)
    chances = torch.exp(torch.special.xlogy(counts, means) - means - torch.lgamma(counts + 1))
    weight = torch.cat([chances, (1 - chances.sum(1, keepdim=True)).clamp_min(0)], dim=1) * cells
    threshold = torch.ones_like(weight)
    alias = torch.arange(cells, dtype=torch.float64).repeat(256, 1)
    open_cells = torch.ones_like(weight, dtype=torch.bool)
    for _ in range(cells - 1):
        # The emptiest open cell is filled up from the fullest one, in all 256 rows at once.
        small = weight.masked_fill(~open_cells, math.inf).argmin(1, keepdim=True)
        open_cells.scatter_(1, small, False)
        large = weight.masked_fill(~open_cells, -math.inf).argmax(1, keepdim=True)
        share = weight.gather(1, small)
        threshold.scatter_(1, small, share)
        alias.scatter_(1, small, large.double())
        weight.scatter_add_(1, large, share - 1)
    return cells, threshold.float().flatten(), alias.float().flatten()


def draw_impulse_noise(stream: Stream, size: Size, parameters: Parameters) -> Draws:  # noqa: ARG001
    """Uniforms, one per pixel and channel."""
    return {"uniform": stream.uniform(3, *size)}


def impulse_noise(images: Tensor, draws: Draws, parameters: Parameters) -> Tensor:
    """Each value, not each pixel, turns black or white with probability amount / 2 each: coloured specks."""
    (amount,) = parameters
    uniform = draws["uniform"]
    return images.masked_fill(uniform < amount, 1.0).masked_fill_(uniform < amount / 2, 0.0)
