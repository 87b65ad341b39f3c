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

from corruptions.rng import Stream
from corruptions.tables import Parameters

Draws = dict[str, Tensor]
Size = tuple[int, int]

# More photons than this leave noise below a quarter of an 8-bit level and need ever larger tables.
MOST_PHOTONS = 1e6


def draw_gaussian_noise(stream: Stream, size: Size, parameters: Parameters) -> Draws:
    """Standard normals, one per pixel and channel."""
    return {"normal": stream.normal(3, *size)}


def gaussian_noise(images: Tensor, draws: Draws, parameters: Parameters) -> Tensor:
    """x + sigma z, independent per pixel and channel."""
    (sigma,) = parameters
    return torch.add(images, draws["normal"], alpha=sigma).clamp_(0, 1)


def draw_shot_noise(stream: Stream, size: Size, parameters: Parameters) -> Draws:
    """Uniforms, one per pixel and channel."""
    return {"uniform": stream.uniform(3, *size)}


def shot_noise(images: Tensor, draws: Draws, parameters: Parameters) -> Tensor:
    """Poisson(c x) / c per pixel and channel; x is read at its nearest 8-bit level, as in the definition.

    With 256 possible means, an alias table (Walker 1977) turns one uniform into an exact Poisson count.
    """
    photons = min(parameters[0], MOST_PHOTONS)
    cells, *table = poisson_table(photons)
    first, threshold, alias = (part.to(images.device) for part in table)
    place = draws["uniform"] * cells
    cell = place.floor().clamp_(max=cells - 1)
    level = (images * 255).round_()
    index = torch.add(cell, level, alpha=cells).long()
    count = torch.where(place - cell < threshold.take(index), cell, alias.take(index))
    return count.add_(first.take(level.long())).div_(photons).clamp_(0, 1)


@lru_cache(maxsize=16)
def poisson_table(photons: float) -> tuple[int, Tensor, Tensor, Tensor]:
    """Alias table of Poisson(photons * level / 255) for the 256 levels, float32.

    Gives the number of cells of a level, the count of its first cell [256], and the threshold and the alias of every
    cell [256 * cells]. Cells cover eight standard deviations on both sides of the mean; counts above `photons` are
    white, so they need no cells of their own.
    """
    cells = min(math.ceil(photons) + 1, int(16 * math.sqrt(photons)) + 20)
    means = torch.arange(256, dtype=torch.float64)[:, None] * (photons / 255)
    first = (means - 8 * means.sqrt() - 10).floor_().clamp_(min=0)
    counts = first + torch.arange(cells - 1, dtype=torch.float64)
    chances = torch.exp(torch.special.xlogy(counts, means) - means - torch.lgamma(counts + 1))
    weight = torch.cat([chances, (1 - chances.sum(1, keepdim=True)).clamp_min(0)], dim=1) * cells

    # Walker's pairing by a sweep, in all rows at once: cells that are too light are filled up from the heavy cell at
    # hand; once that is light itself, the next heavy cell fills it up and takes its place.
    order = (weight > 1).to(torch.uint8).argsort(dim=1, stable=True)
    light = torch.zeros(256, 1, dtype=torch.int64)
    heavy = (weight <= 1).sum(1, keepdim=True).clamp_max(cells - 1)
    lights = heavy.clone()
    rest = weight.gather(1, order.gather(1, heavy))
    threshold = torch.ones_like(weight)
    alias = torch.arange(cells).repeat(256, 1)
    for _ in range(cells - 1):
        fill = (rest > 1) & (light < lights)
        following = (heavy + 1).clamp_max(cells - 1)
        done = order.gather(1, torch.where(fill, light, heavy))
        donor = order.gather(1, torch.where(fill, heavy, following))
        share = torch.where(fill, weight.gather(1, done), rest).clamp_max(1)
        threshold.scatter_(1, done, share.where(donor != done, 1))
        alias.scatter_(1, done, donor)
        rest = torch.where(fill, rest, weight.gather(1, donor)) + share - 1
        light, heavy = torch.where(fill, light + 1, light), torch.where(fill, heavy, following)
    return cells, first.float().flatten(), threshold.float().flatten(), alias.float().flatten()


def draw_impulse_noise(stream: Stream, size: Size, parameters: Parameters) -> Draws:
    """Uniforms, one per pixel and channel."""
    return {"uniform": stream.uniform(3, *size)}


def impulse_noise(images: Tensor, draws: Draws, parameters: Parameters) -> Tensor:
    """Each value, not each pixel, turns black or white with probability amount / 2 each: coloured specks."""
    (amount,) = parameters
    hit, black = (_below(draws["uniform"], limit) for limit in (amount, amount / 2))
    # All affected values become white, then the black half is subtracted.
    return torch.maximum(images, hit).sub_(black)


def _below(uniform: Tensor, limit: float) -> Tensor:
    """1 where a uniform is below the limit, else 0, as floats: arithmetic is several times faster than masks."""
    return (limit - uniform).mul_(1e30).clamp_(0, 1)
