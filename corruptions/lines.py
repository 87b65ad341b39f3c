"""The vertical lines of LAION-C (Li et al. 2025, arXiv:2506.16950): bent lines that depict a picture, drawn at once."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from corruptions.laion import DEFINED_AT, whole_levels, whole_pixels
from corruptions.noise import Draws, Size
from corruptions.tables import Parameters

# Dark places pull lines this far to the left.
_PULL = 40


class Layout(NamedTuple):
    """Values that the lines of all images of a size share.

    Line i starts at `start`[i] = (i / lines) w; its cells span the columns `low`[i] .. `high`[i] - 1 and have `area`
    pixels [cell, line]. Segment k of a line leads to its cell k and passes the rows `row` [cell, step + 1, 1]; `number`
    [cell, step + 1, line] gives the drawing order in a row. `colour` [number] + `above` [h, 1] is the index of a
    segment's colour in rows of cells that each begin with black.
    """

    start: Tensor
    low: Tensor
    high: Tensor
    area: Tensor
    row: Tensor
    number: Tensor
    colour: Tensor
    above: Tensor


def vertical_lines(images: Tensor, draws: Draws, parameters: Parameters) -> Tensor:
    """The image as lines on black: one for each column of cells, in their mean colours, pulled left in dark places.

    A line joins the points of its cells by one-pixel segments as Pillow draws them (Bresenham's), later ones over
    earlier ones.
    """
    return vertical_lines_bytes(whole_levels(images), parameters).div_(255)


def vertical_lines_bytes(images: Tensor, parameters: Parameters) -> Tensor:
    """`vertical_lines` of levels of any type, as whole levels in float32."""
    n, _, height, width = images.shape
    lines = max(min(round(parameters[0] * width / min(height, width)), width), 1)
    step = whole_pixels(parameters[1], (height, width))
    layout = _layout(lines, step, height, width, images.device)
    colours, luma = _cells(images.float(), layout, step)
    # Pillow cuts positions to whole pixels, towards zero.
    tips = (layout.start - _PULL * min(height, width) / DEFINED_AT * (1 - luma / 255)).trunc_().float()
    start = torch.cat([layout.start.trunc().float().expand(n, 1, -1), tips[:, :-1]], 1)[:, :, None]
    way = tips[:, :, None] - start

    # Segments [n, cell, step + 1, line] in the rows they pass: where their runs begin and end in pixels of their way.
    length = way.abs()
    slope = length / (2 * step)
    passed = torch.arange(step + 2, dtype=torch.float32, device=images.device)[:, None]
    bounds = ((2 * passed - 1) * slope).ceil_().clamp_(min=0)
    steep = (2 * passed[:-1] * slope + 0.5).floor_()
    flat = length > step
    first = torch.where(flat, bounds[:, :, :-1], steep)
    last = torch.where(flat, torch.minimum(bounds[:, :, 1:] - 1, length), steep)
    # The first segment of a line lies in one row.
    first[:, 0], last[:, 0] = 0, length[:, 0]
    direction = way.sign_()
    one, other = torch.addcmul(start, direction, first), torch.addcmul(start, direction, last)
    latest = _runs(torch.minimum(one, other), torch.maximum(one, other), layout.row, layout.number, (height, width))

    source = layout.colour.gather(0, latest.flatten().long()).view(latest.shape) + layout.above
    table = F.pad(colours, (1, 0)).flatten(2)
    return table.gather(2, source.view(n, 1, -1).expand(-1, 3, -1)).view(images.shape)


@lru_cache(maxsize=32)
def _layout(lines: int, step: int, height: int, width: int, device: torch.device) -> Layout:
    # In this order, which decides on which side of a pixel's edge a line begins.
    starts = [line / lines * width for line in range(lines)]
    low = torch.tensor([int(start) for start in starts])
    high = torch.tensor([min(int(start + width / lines), width) for start in starts])
    cells = -(-height // step)
    heights = torch.tensor([min(step, height - cell * step) for cell in range(cells)])
    passed = torch.arange(step + 1, dtype=torch.int32)[:, None]
    row = torch.arange(-step, (cells - 1) * step, step, dtype=torch.int32)[:, None, None] + passed
    row[0] = 0
    # In a row a line has at most two segments: one that ends there, drawn first, and one that goes on.
    goes_on = (passed < step).expand(cells, -1, -1).clone()
    goes_on[0] = False
    number = (1 + 2 * torch.arange(lines) + goes_on).to(torch.int16)
    # Where one goes on, it leads to the next cell; number 0 is black.
    colour = F.pad((torch.arange(1, lines + 1)[:, None] + torch.tensor([0, lines + 1])).flatten(), (1, 0))
    above = (torch.arange(height) // step * (lines + 1))[:, None]
    start = torch.tensor(starts, dtype=torch.float64)
    # A cell narrower than a pixel may have none, and is black.
    area = (heights[:, None] * (high - low)).clamp(min=1)
    parts = (start, low, high, area, row, number, colour, above)
    return Layout(*(part.to(device) for part in parts))


def _cells(levels: Tensor, layout: Layout, step: int) -> tuple[Tensor, Tensor]:
    """Mean colour [n, 3, cell, line] and mean luma [n, cell, line], float64, whole numbers as whole division gives."""
    n, _, height, width = levels.shape
    cells = len(layout.area)
    red, green, blue = levels.unbind(1)
    # Pillow's weights; the sums stay below 2^24, so they are exact.
    luma = torch.add(19595 * red, green, alpha=38470).add_(blue, alpha=7471).add_(32768).mul_(2.0**-16).floor_()
    sums = []
    for planes in (levels, luma[:, None]):
        whole = F.pad(planes, (0, 0, 0, cells * step - height)) if height % step else planes
        sums.append(whole.view(n, -1, cells, step, width).sum(3).double())
    totals = F.pad(torch.cat(sums, 1).cumsum(-1), (1, 0))
    means = (totals.index_select(-1, layout.high) - totals.index_select(-1, layout.low)).div_(layout.area).floor_()
    return means[:, :3].float(), means[:, 3]


def _runs(left: Tensor, right: Tensor, row: Tensor, number: Tensor, size: Size) -> Tensor:
    """The largest number of the runs over each pixel, 0 where there is none: int16 [n, h, w].

    Runs of whole columns left .. right [n, cell, step, line] in the rows [cell, step, 1]; what is outside is cut off. A
    run is two overlapping ones whose length is a power of two: marks for these are pushed down level by level.
    """
    height, width = size
    n, device = len(left), left.device
    seen = (right >= 0) & (left < width) & (row < height)
    left, right = left.clamp_(0, width - 1), right.clamp_(0, width - 1)
    # The exponent of a float tells the largest power of two within.
    level = ((right - left + 1).view(torch.int32) >> 23) - 127
    count = min(width, math.ceil(_PULL * min(size) / DEFINED_AT) + 2).bit_length()
    marks = torch.zeros(n, count, height, width, dtype=torch.int16, device=device)
    base = level * (height * width) + row.clamp(max=height - 1) * width
    drawn = (number * seen).flatten(1)
    for place in (base + left.int(), base + right.int() + 1 - (1 << level)):
        marks.view(n, -1).scatter_reduce_(1, place.flatten(1).long(), drawn, "amax")
    for upper in range(count - 1, 0, -1):
        half = 1 << (upper - 1)
        below, above = marks[:, upper - 1], marks[:, upper]
        torch.maximum(below, above, out=below)
        torch.maximum(below[..., half:], above[..., :-half], out=below[..., half:])
    return marks[:, 0]
