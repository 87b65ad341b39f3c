"""The four extra corruptions, kept for tuning hyper-parameters, never for scores: speckle noise, Gaussian blur, spatter
and saturate (Hendrycks and Dietterich 2019, arXiv:1903.12261)."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from corruptions.colours import recoloured
from corruptions.kernels import blur, edge, kept_from, pad, to_the_bit, unit_of, whole_mirror
from corruptions.native import Bytes, opencv, water_relief
from corruptions.noise import Draws, Size
from corruptions.rng import Stream
from corruptions.tables import Parameters

WATER = (175 / 255, 238 / 255, 238 / 255)
MUD = (63 / 255, 42 / 255, 20 / 255)
# Water is shaded by the distance to its edges, up to this many pixels.
_FURTHEST = 20
# Costs of a step aside, a diagonal and a knight's move in OpenCV's 5 x 5 distance transform (Borgefors 1986).
_ASIDE, _DIAGONAL, _KNIGHT = 1.0, 1.4, 2.1969
_WEAK, _STRONG = 50, 150
_RELIEF = ((-2.0, -1.0, 0.0), (-1.0, 1.0, 1.0), (0.0, 1.0, 2.0))


def draw_speckle_noise(stream: Stream, size: Size, parameters: Parameters) -> Draws:
    """Standard normals, one per pixel and channel."""
    return {"normal": stream.normal(3, *size)}


def speckle_noise(images: Tensor, draws: Draws, parameters: Parameters) -> Tensor:
    """x + sigma x z, independent per pixel and channel."""
    (sigma,) = parameters
    return images.addcmul(images, draws["normal"], value=sigma).clamp_(0, 1)


def gaussian_blur(images: Tensor, draws: Draws, parameters: Parameters) -> Tensor:
    """Gaussian blur of each channel; borders repeat the edge pixel."""
    (sigma,) = parameters
    return blur(images, sigma).clamp(0, 1)


def draw_spatter(stream: Stream, size: Size, parameters: Parameters) -> Draws:
    """Standard normals [h, w] of the liquid."""
    return {"normal": stream.normal(*size)}


def spatter(images: Tensor, draws: Draws, parameters: Parameters) -> Tensor:
    """Blurred noise above a threshold is liquid: water is added, shaded by its distance to edges; mud covers."""
    mean, deviation, sigma, threshold, strength, mud = parameters
    liquid = blur((mean + deviation * draws["normal"])[:, None], sigma)
    if mud > 0:
        mask = blur((liquid > threshold).float(), strength)
        mask = kept_from(mask, 0.8)
        return (images * (1 - mask) + _colour(MUD, images) * mask).clamp_(0, 1)
    # Levels above 255 wrap round, as when numpy casts to 8 bits.
    levels = kept_from(liquid, threshold).clamp_min_(0).mul_(255).floor_().remainder_(256)
    mask = levels * _shading(levels)
    # Without any liquid the published code divides by zero; here nothing is added.
    mask = mask / mask.amax((2, 3), keepdim=True).clamp_min(1)
    return (images + mask * strength * _colour(WATER, images)).clamp_(0, 1)


def _colour(rgb: tuple[float, float, float], images: Tensor) -> Tensor:
    return torch.tensor(rgb, device=images.device).view(1, 3, 1, 1)


def _shading(levels: Tensor) -> Tensor:
    """The published relief of water from its levels [n, 1, h, w]: distance to edges, equalised, embossed, smoothed."""
    cv2 = opencv()
    if cv2 is not None and levels.device.type == "cpu":
        planes = levels.to(torch.int16).to(torch.uint8)[:, 0].numpy()
        return torch.from_numpy(_shading_by_opencv(cv2, planes))[:, None].float()
    distance = _distance_to(_edges(levels)).clamp_(max=_FURTHEST)
    shade = _equalised(_box(distance).add_(1e-4).floor_())
    height, width = shade.shape[-2:]
    padded = pad(shade, 1, 1, whole_mirror)
    embossed = torch.zeros_like(shade)
    for row in range(3):
        for column in range(3):
            embossed += _RELIEF[row][column] * padded[..., row : row + height, column : column + width]
    return _box(embossed.clamp_(0, 255)).add_(0.5).floor_()


def shading_of_bytes(planes: Bytes) -> Bytes:
    """The relief of water from its levels [n, h, w]."""
    cv2 = opencv()
    if cv2 is not None:
        return _shading_by_opencv(cv2, planes)
    found: Bytes = _shading(torch.from_numpy(planes)[:, None].float())[:, 0].to(torch.int16).to(torch.uint8).numpy()
    return found


def _shading_by_opencv(cv2: Any, planes: Bytes) -> Bytes:
    relief = np.array(_RELIEF)
    return np.stack([water_relief(cv2, plane, _FURTHEST, (_WEAK, _STRONG), relief) for plane in planes])


def _box(planes: Tensor) -> Tensor:
    """Mean of 3 x 3 pixels, borders mirrored at the edge pixel (OpenCV's blur)."""
    padded = pad(planes, 1, 1, whole_mirror)
    rows = padded[..., :-2, :] + padded[..., 1:-1, :] + padded[..., 2:, :]
    return (rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]).div_(9)


def _edges(levels: Tensor) -> Tensor:
    """Canny's edges (1986) of levels [n, 1, h, w] as OpenCV finds them: Sobel 3 x 3, |dx| + |dy|, two thresholds."""
    height, width = levels.shape[-2:]
    around = pad(levels, 1, 1, edge)

    def at(row: int, column: int) -> Tensor:
        return around[..., 1 + row : 1 + row + height, 1 + column : 1 + column + width]

    dx = at(-1, 1) + 2 * at(0, 1) + at(1, 1) - at(-1, -1) - 2 * at(0, -1) - at(1, -1)
    dy = at(1, -1) + 2 * at(1, 0) + at(1, 1) - at(-1, -1) - 2 * at(-1, 0) - at(-1, 1)
    size = dx.abs() + dy.abs()
    framed = F.pad(size, (1, 1, 1, 1))

    def neighbour(row: int, column: int) -> Tensor:
        return framed[..., 1 + row : 1 + row + height, 1 + column : 1 + column + width]

    # Only crests across the gradient stay; of two equal neighbours the first wins, but on diagonals neither.
    tangent = 13573 / 32768
    flat, steep = dy.abs() < dx.abs() * tangent, dy.abs() > dx.abs() * (tangent + 2)
    across = (size > neighbour(0, -1)) & (size >= neighbour(0, 1))
    along = (size > neighbour(-1, 0)) & (size >= neighbour(1, 0))
    falling = (size > neighbour(-1, -1)) & (size > neighbour(1, 1))
    rising = (size > neighbour(-1, 1)) & (size > neighbour(1, -1))
    rises = (dx < 0) != (dy < 0)
    diagonal = (rises & rising) | (~rises & falling)
    crest = ((flat & across) | (~flat & ((steep & along) | (~steep & diagonal)))) & (size > _WEAK)

    strong = crest & (size > _STRONG)
    while not torch.equal(grown := _spread(strong) & crest, strong):
        strong = grown
    return strong


def _spread(mask: Tensor) -> Tensor:
    """The pixels of bool [n, 1, h, w] and their eight neighbours."""
    for dim in (-2, -1):
        rest = mask.shape[dim] - 1
        wider = mask.clone()
        wider.narrow(dim, 1, rest).logical_or_(mask.narrow(dim, 0, rest))
        wider.narrow(dim, 0, rest).logical_or_(mask.narrow(dim, 1, rest))
        mask = wider
    return mask


def _distance_to(marked: Tensor) -> Tensor:
    """Chamfer distance of each pixel to the nearest marked one, float32 [n, 1, h, w], right up to `_FURTHEST`.

    The distance grows with the vertical gap, so the nearest mark of every column is enough: vertical gaps first,
    then the least over columns to both sides.
    """
    width = marked.shape[-1]
    gap = (~marked).float().mul_(2 * _FURTHEST)
    # Each gap up to 31 is a sum of some of these.
    for reach in (1, 2, 4, 8, 16):
        nearer = gap.clone()
        for here, there in ((slice(None, -reach), slice(reach, None)), (slice(reach, None), slice(None, -reach))):
            part = nearer[..., here, :]
            torch.minimum(part, gap[..., there, :] + reach, out=part)
        gap = nearer
    beside = F.pad(gap, (_FURTHEST, _FURTHEST), value=2.0 * _FURTHEST)
    nearest = gap
    for step in range(1, min(_FURTHEST, width - 1) + 1):
        left = beside[..., _FURTHEST - step : _FURTHEST - step + width]
        sides = torch.minimum(left, beside[..., _FURTHEST + step : _FURTHEST + step + width])
        costs = (torch.add(across, sides, alpha=down) for across, down in _costs_beside(step))
        nearest = torch.minimum(nearest, functools.reduce(torch.maximum, costs))
    return nearest


@functools.cache
def _costs_beside(step: int) -> list[tuple[Tensor, float]]:
    """The chamfer cost of going `step` across and some way down: the largest of up to four lines in that way.

    For each line its value at 0 (a scalar on the CPU, which every device reads) and its slope. Lines that matter only
    beyond `_FURTHEST` are left out.
    """
    gentle, half = _KNIGHT - 2 * _ASIDE, _KNIGHT - _DIAGONAL
    # Slopes across and down, and where, in steps down for a step across, the line takes over.
    lines = ((_ASIDE, gentle, 0.0), (half, _DIAGONAL - half, 0.5), (_DIAGONAL - half, half, 1.0), (gentle, _ASIDE, 2.0))
    near = [(across, down) for across, down, since in lines if step * (across + down * since) < _FURTHEST]
    return [(torch.tensor(step * across), down) for across, down in near or [lines[0][:2]]]


def _equalised(levels: Tensor) -> Tensor:
    """Histogram equalisation of each plane of whole levels 0 .. `_FURTHEST`, float32 [n, 1, h, w], to 0 .. 255."""
    flat = levels.flatten(1).long()
    counts = torch.zeros(len(flat), _FURTHEST + 1, device=levels.device).scatter_add_(
        1, flat, torch.ones_like(levels.flatten(1))
    )
    total = counts.cumsum(1)
    lowest = counts.gather(1, (counts > 0).float().argmax(1, keepdim=True))
    # A true division: a number over a tensor is the number times a rounded reciprocal.
    scale = torch.full_like(lowest, 255) / (flat.shape[1] - lowest).clamp_min(1)
    table = ((total - lowest).clamp_min(0) * scale).round_()
    # A plane of a single level keeps it.
    table = torch.where(lowest == flat.shape[1], torch.arange(_FURTHEST + 1, device=levels.device), table)
    return table.gather(1, flat).view_as(levels)


def saturate(images: Tensor, draws: Draws, parameters: Parameters) -> Tensor:
    """HSV saturation times a factor plus an offset, clipped; in small images V - (V - x) S' / S, the same but for the
    last bits.

    A grey pixel has the hue 0, which is red, so it turns red where the offset is positive, as published. A severity
    between 2 and 3 passes from paler to gaudier, close to the unchanged image.
    """
    factor, offset = parameters
    if to_the_bit(images):
        return unit_of(saturate_levels(images, draws, parameters))
    value, least = images.amax(1, keepdim=True), images.amin(1, keepdim=True)
    spread = value - least
    wanted = (spread / value.clamp_min(1e-12)).mul_(factor).add_(offset).clamp_(0, 1)
    # From saturation S to S', both times V: the distance to V grows by S' / S.
    change = wanted.mul_(value) / spread.clamp_min(1e-12)
    out = (images - value).mul_(change).add_(value)
    if offset:
        out[:, 1:].sub_(wanted.mul_(spread == 0))
    return out.clamp_(0, 1)


def saturate_levels(images: Tensor, draws: Draws, parameters: Parameters) -> Tensor:
    """`saturate` of uint8 or float images, to the bit: levels, float64."""
    factor, offset = parameters
    return recoloured(images, lambda saturation, value: (saturation.mul_(factor).add_(offset).clamp_(0, 1), value))
