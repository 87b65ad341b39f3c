"""The linear algebra that several corruptions share: borders, blurs, discs, trails, plasma and Pillow's box windows."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache, reduce
from operator import add
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter
from torch import Tensor

from corruptions.native import compiled

Border = Callable[[Tensor, int], Tensor]

_MOST_IN_FLOAT32 = 48
# Blurs of a larger radius are matrix products, this many rows at a time: narrow enough to leave most zeros out.
_SHIFTED_RADIUS = 5
_ROWS_AT_ONCE = 32


def to_the_bit(images: Tensor) -> bool:
    """Whether images are computed in float64 and in the published order, so that truncation gives the published level.

    Images of at most 48 pixels keep float32, in which the records that this project publishes were made; there up to a
    seventh of the values of a corruption are a level off.
    """
    return min(images.shape[-2:]) > _MOST_IN_FLOAT32


def edge(positions: Tensor, size: int) -> Tensor:
    """Border that repeats the edge: a a a | a b c d | d d d (scipy "nearest", OpenCV "replicate")."""
    return positions.clamp(0, size - 1)


def half_mirror(positions: Tensor, size: int) -> Tensor:
    """Border mirrored between pixels: c b a | a b c d | d c b (scipy "reflect")."""
    folded = positions.remainder(2 * size)
    return torch.minimum(folded, 2 * size - 1 - folded)


def whole_mirror(positions: Tensor, size: int) -> Tensor:
    """Border mirrored at the edge pixel: d c b | a b c d | c b a (OpenCV "reflect-101", scipy "mirror")."""
    if size == 1:
        return torch.zeros_like(positions)
    folded = positions.remainder(2 * size - 2)
    return torch.minimum(folded, 2 * size - 2 - folded)


def pad(images: Tensor, rows: int, columns: int, border: Border) -> Tensor:
    """Continue images [..., h, w] past each side by so many rows and columns, any amount."""
    height, width = images.shape[-2:]
    if border is edge or (border is whole_mirror and rows < height and columns < width):
        mode = "replicate" if border is edge else "reflect"
        padded = F.pad(images.reshape(1, -1, height, width), (columns, columns, rows, rows), mode=mode)
        return padded.view(*images.shape[:-2], *padded.shape[-2:])
    for dim, amount in ((-2, rows), (-1, columns)):
        if amount:
            size = images.shape[dim]
            positions = torch.arange(-amount, size + amount, device=images.device)
            images = images.index_select(dim, border(positions, size))
    return images


def kept_from(planes: Tensor, least: float) -> Tensor:
    """Float32 values that reach `least`, the others 0; many times faster than a mask on CPUs."""
    below = float(np.nextafter(np.float32(least), np.float32(-np.inf)))
    return F.threshold(planes, below, 0.0)


def added(values: Sequence[float]) -> float:
    """The sum from left to right, rounded at each step: that of `sum` corrects itself from Python 3.12 on."""
    return reduce(add, values, 0.0)


def gaussian_taps(sigma: float, truncate: float) -> list[float]:
    """Normalised Gaussian weights at -radius .. radius, radius = int(truncate * sigma + 0.5), as scipy cuts them."""
    radius = int(truncate * sigma + 0.5)
    weights = [math.exp(-0.5 * (i / sigma) ** 2) for i in range(1, radius + 1)]
    total = 1.0 + 2.0 * added(weights)
    return [w / total for w in [*reversed(weights), 1.0, *weights]]


def blur(images: Tensor, sigma: float, *, truncate: float = 4.0, border: Border = edge) -> Tensor:
    """Separable Gaussian blur of float [..., h, w], sigma in pixels; the identity where the radius rounds to 0."""
    taps = gaussian_taps(sigma, truncate)
    if len(taps) == 1:
        return images
    radius = len(taps) // 2
    if radius > _SHIFTED_RADIUS:
        # One product per plane: folding the batch into the rows would make a pixel depend on the batch's size.
        planes = images.flatten(0, -3)
        for dim in (-1, -2):
            blurred = torch.empty_like(planes)
            for start, first, matrix in _blur_matrices(
                planes.shape[dim], sigma, truncate, border, planes.device, planes.dtype
            ):
                rows, used = matrix.shape
                source, target = planes.narrow(dim, first, used), blurred.narrow(dim, start, rows)
                if dim == -1:
                    target.copy_(torch.bmm(source, matrix.T.expand(len(planes), -1, -1)))
                else:
                    target.copy_(torch.bmm(matrix.expand(len(planes), -1, -1), source))
            planes = blurred
        return planes.view(images.shape)
    on_cpu = images.device.type == "cpu" and images.dtype == torch.float32 and border is edge
    if on_cpu and (loops := compiled()) is not None:
        blurred = torch.empty_like(images, memory_format=torch.contiguous_format)
        flat, made = (each.numpy().reshape(-1, *images.shape[-2:]) for each in (images, blurred))
        loops.blurred_nearly(flat, np.array(taps[radius:], np.float32), made)
        return blurred
    for dim in (-2, -1):
        size = images.shape[dim]
        padded = pad(images, *((radius, 0) if dim == -2 else (0, radius)), border)
        images = padded.narrow(dim, radius, size) * taps[radius]
        for i in range(1, radius + 1):
            both = padded.narrow(dim, radius - i, size) + padded.narrow(dim, radius + i, size)
            images.add_(both, alpha=taps[radius + i])
    return images


def levels_of(images: Tensor) -> Tensor:
    """Images uint8, or in [0, 1], as levels 0 .. 255, float64; what was 8 bit becomes whole ones."""
    if images.dtype == torch.uint8:
        return images.double()
    levels = images.double() * 255
    whole = levels.round()
    return torch.where((levels - whole).abs() < 1e-4, whole, levels)


def unit_of(levels: Tensor) -> Tensor:
    """Levels float64, clipped, as float32 in [0, 1] that have the same whole part when they are multiplied by 255."""
    levels = levels.clamp_(0, 255)
    unit = (levels / 255).float()
    amiss = (unit * 255).floor_() - levels.floor().float()
    # A step away from where float32 lands on the other side of a level.
    return torch.where(amiss == 0, unit, torch.nextafter(unit, unit - amiss))


def blur_in_order(planes: Tensor, sigma: float) -> Tensor:
    """`blur` of float64 [..., h, w] with edges repeated, summed in scipy's order: rows first, the middle tap, then from
    the outermost pair inwards. Flat parts then come out just above or below their level as there."""
    if planes.device.type == "cpu":
        sides = (0.0,) * (planes.ndim - 2)
        array: np.ndarray = gaussian_filter(planes.numpy(), (*sides, sigma, sigma), mode="nearest", truncate=4.0)
        return torch.from_numpy(array)
    taps = gaussian_taps(sigma, 4.0)
    radius = len(taps) // 2
    for dim in (-2, -1):
        size = planes.shape[dim]
        padded = pad(planes, *((radius, 0) if dim == -2 else (0, radius)), edge)
        planes = padded.narrow(dim, radius, size) * taps[radius]
        for i in range(radius, 0, -1):
            # Product and sum apart, so that no processor fuses them.
            planes += (padded.narrow(dim, radius - i, size) + padded.narrow(dim, radius + i, size)) * taps[radius + i]
    return planes


@lru_cache(maxsize=64)
def _blur_matrices(
    size: int, sigma: float, truncate: float, border: Border, device: torch.device, dtype: torch.dtype
) -> list[tuple[int, int, Tensor]]:
    """The blur of one axis as a matrix with the border folded in, so a radius may exceed the image.

    Cut into bands of rows, each without the zeros on its sides: (first row, first column, band).
    """
    taps = torch.tensor(gaussian_taps(sigma, truncate), dtype=torch.float64)
    radius = len(taps) // 2
    rows = torch.arange(size)[:, None].expand(-1, len(taps))
    columns = border(rows + torch.arange(-radius, radius + 1), size)
    matrix = torch.zeros(size, size, dtype=torch.float64)
    matrix.index_put_((rows, columns), taps.expand(size, -1), accumulate=True)
    bands = []
    for start in range(0, size, _ROWS_AT_ONCE):
        first, last = max(0, start - radius), min(size, start + _ROWS_AT_ONCE + radius)
        band = matrix[start : start + _ROWS_AT_ONCE, first:last].contiguous()
        bands.append((start, first, band.to(device, dtype)))
    return bands


@lru_cache(maxsize=64)
def disc(radius: float, sigma: float) -> Tensor:
    """The defocus kernel: a disc smoothed by a small Gaussian, float64 [side, side].

    The smoothing mirrors at the kernel's own border, where larger discs touch it: their sum exceeds 1
    (1.012975 for radius 8, 1.010786 for radius 10), which brightens the image as in the published set.
    """
    half = 1 if radius <= 8 else 2
    # A radius beyond 8 that is not whole gives a grid beside the pixels, of an even side where it ends in one half.
    first, side = (-8.0, 17) if radius <= 8 else (-radius, math.ceil(2 * radius + 1))
    axis = torch.arange(side, dtype=torch.float64) + first
    kernel = (axis[:, None] ** 2 + axis**2 <= radius**2).double()
    kernel /= kernel.sum()
    weights = torch.exp(-0.5 * (torch.arange(-half, half + 1, dtype=torch.float64) / sigma) ** 2)
    weights /= weights.sum()
    padded = pad(kernel, half, half, whole_mirror)
    rows = torch.matmul(padded.unfold(0, 2 * half + 1, 1), weights)
    smooth: Tensor = torch.matmul(rows.unfold(1, 2 * half + 1, 1), weights)
    return smooth


def correlate(images: Tensor, kernel: Tensor, border: Border) -> Tensor:
    """Correlate every plane of float [..., h, w] with one square kernel (on the CPU), output of the same size.

    The middle of an even side is its upper half, as in OpenCV.
    """
    height, width = images.shape[-2:]
    half = kernel.shape[0] // 2
    used = _used(kernel)
    if len(used) <= 32:
        reach = max(max(abs(row - half), abs(column - half)) for row, column in used)
        padded = pad(images, reach, reach, border)
        out = torch.zeros_like(images)
        for row, column in used:
            top, left = row - half + reach, column - half + reach
            out.add_(padded[..., top : top + height, left : left + width], alpha=float(kernel[row, column]))
        return out
    size = (_fast_length(height + 2 * half), _fast_length(width + 2 * half))
    spectrum = torch.fft.rfft2(kernel.to(images.device, images.dtype), s=size).conj()
    padded = pad(images, half, half, border)
    filtered: Tensor = torch.fft.irfft2(torch.fft.rfft2(padded, s=size) * spectrum, s=size)
    return filtered[..., :height, :width]


@lru_cache(maxsize=64)
def _used(kernel: Tensor) -> list[list[int]]:
    """The (row, column) of a kernel's weights that are not 0; kernels are made once for each strength."""
    found: list[list[int]] = (kernel.abs() > 1e-9).nonzero().tolist()
    return found


def _fast_length(size: int) -> int:
    """The next length whose only prime factors are 2, 3 and 5, where Fourier transforms are quick."""
    while True:
        rest = size
        for prime in (2, 3, 5):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return size
        size += 1


def trail(images: Tensor, angle: Tensor, radius: float, sigma: float) -> Tensor:
    """Motion blur of float [n, c, h, w]: a one-sided trail at an angle per image (radians, float [n]).

    Taps 0 .. 2 radius weigh exp(-i^2 / (2 sigma^2)), normalised; tap i reads the pixel (ceil(i cos - 1/2),
    ceil(i sin - 1/2)) to the right and down, the edge pixel where that is outside (ImageMagick's MotionBlur).
    """
    taps = torch.arange(2 * math.ceil(radius) + 1, dtype=torch.float64, device=angle.device)
    weights = torch.exp(-0.5 * (torch.arange(len(taps), dtype=torch.float64) / max(sigma, 1e-6)) ** 2)
    shares: list[float] = (weights / weights.sum()).tolist()
    across = torch.ceil(angle.double()[:, None].cos() * taps - 0.5).long()
    down = torch.ceil(angle.double()[:, None].sin() * taps - 0.5).long()
    if images.device.type == "cpu":
        return _trail_by_slices(images, across, down, shares)
    return _trail_by_gathers(images, across, down, shares)


def _trail_by_slices(images: Tensor, across: Tensor, down: Tensor, weights: list[float]) -> Tensor:
    """Image by image, so that the accumulator stays in cache: several times faster on CPUs."""
    loops = compiled()
    out = torch.zeros_like(images)
    for image, total, columns, rows in zip(images, out, across.tolist(), down.tolist(), strict=True):
        # On a slope neighbouring taps may read the same pixel.
        shares: dict[tuple[int, int], float] = {}
        for row, column, weight in zip(rows, columns, weights, strict=True):
            shares[row, column] = shares.get((row, column), 0.0) + weight
        if loops is not None and images.dtype == torch.float32:
            places = np.array(list(shares)).T
            given = np.array(list(shares.values()), np.float32)
            loops.trailed(image.numpy(), places[0], places[1], given, total.numpy())
            continue
        reach_down, reach_across = max(map(abs, rows)), max(map(abs, columns))
        padded = pad(image, reach_down, reach_across, edge)
        start = reach_down * padded.shape[-1] + reach_across
        for (row, column), weight in shares.items():
            # Two slices in one step: as quick as the sum itself for one channel.
            moved = padded.as_strided(image.shape, padded.stride(), start + row * padded.shape[-1] + column)
            total.add_(moved, alpha=weight)
    return out


def _trail_by_gathers(images: Tensor, across: Tensor, down: Tensor, weights: list[float]) -> Tensor:
    """One gather per tap for the whole batch, without asking the device for the offsets."""
    n, channels, height, width = images.shape
    flat, out = images.flatten(2), torch.zeros_like(images)
    row = torch.arange(height, device=images.device)
    column = torch.arange(width, device=images.device)
    for i, weight in enumerate(weights):
        rows = edge(row + down[:, i, None], height)
        columns = edge(column + across[:, i, None], width)
        index = (rows[:, :, None] * width + columns[:, None, :]).view(n, 1, -1).expand(-1, channels, -1)
        out.add_(flat.gather(2, index).view_as(images), alpha=weight)
    return out


def plasma(uniforms: Tensor, decay: float) -> Tensor:
    """Diamond-square maps [n, side, side] in [0, 1] on a torus from side^2 - 1 uniforms each ([n, side^2 - 1]).

    The uniforms are used level by level: centres of squares, then the diamonds on their horizontal and on their
    vertical edges, row by row. The noise of a level is w U(-w, w) with w = 100 / decay^level: its size falls by
    decay^2, as in the published generator.
    """
    n = len(uniforms)
    side = math.isqrt(uniforms.shape[1] + 1)
    if uniforms.device.type == "cpu" and uniforms.dtype == torch.float32 and (loops := compiled()) is not None:
        both = np.empty((n, 2, side * side), np.float32)
        for own, maps in zip(uniforms.numpy(), both, strict=True):
            loops.plasma(own, side, float(decay), *maps)
        # The map changes its place with every level.
        return _scaled(torch.from_numpy(both[:, (side.bit_length() - 1) % 2]).view(n, side, side))
    # Only the points made so far, as a small map of their own: whole rows are quicker than points far apart.
    field = uniforms.new_zeros(n, 1, 1)
    used, wibble = 0, 100.0
    noise = 2 * uniforms - 1

    def noisy_mean(total: Tensor) -> Tensor:
        nonlocal used
        count = total.shape[1] * total.shape[2]
        # Product and sum apart, so that no processor fuses them: pictures made of plasma are pinned.
        added = (noise[:, used : used + count] * (wibble * wibble)).view_as(total)
        used += count
        return total.div_(4).add_(added)

    for _ in range(side.bit_length() - 1):
        pairs = field + field.roll(-1, 1)
        centres = noisy_mean(pairs + pairs.roll(-1, 2))
        right = noisy_mean((centres + centres.roll(1, 1)).add_(field).add_(field.roll(-1, 2)))
        below = noisy_mean((centres + centres.roll(1, 2)).add_(field).add_(field.roll(-1, 1)))
        finer = field.new_empty(n, 2 * field.shape[1], 2 * field.shape[1])
        finer[:, ::2, ::2], finer[:, 1::2, 1::2] = field, centres
        finer[:, ::2, 1::2], finer[:, 1::2, ::2] = right, below
        field, wibble = finer, wibble / decay
    return _scaled(field)


def _scaled(field: Tensor) -> Tensor:
    """Maps [n, h, w] moved and stretched to 0 .. 1, in place."""
    field -= field.amin((1, 2), keepdim=True)
    return field.div_(field.amax((1, 2), keepdim=True).clamp_min(torch.finfo(field.dtype).tiny))


def box_windows(size: int, target: int) -> list[list[int]]:
    """The pixels of each output of Pillow's BOX resampling of one axis; they count alike: not an area average.

    Every input pixel whose centre lies within half an output pixel of the output's centre is in.
    """
    scale = size / target
    spread = max(scale, 1.0)
    windows = []
    for out in range(target):
        # The same operations in the same order as Pillow's: centres often lie exactly on the limit.
        centre = (out + 0.5) * scale
        around = range(int(max(centre - 0.5 * spread + 0.5, 0)), min(int(centre + 0.5 * spread + 0.5), size))
        windows.append([i for i in around if -0.5 < (i - centre + 0.5) * (1.0 / spread) <= 0.5])
    return windows


class Filter(NamedTuple):
    """A resampling filter of Pillow: the weight of a distance in output pixels, and the distance from which it is 0."""

    weight: Callable[[float], float]
    reach: float


def _triangle(x: float) -> float:
    return max(1 - abs(x), 0.0)


def _cubic(x: float) -> float:
    x = abs(x)
    if x < 1:
        return (1.5 * x - 2.5) * x * x + 1
    return ((-0.5 * x + 2.5) * x - 4) * x + 2 if x < 2 else 0.0


BILINEAR, BICUBIC = Filter(_triangle, 1.0), Filter(_cubic, 2.0)


def resized(levels: Tensor, rows: int, columns: int, kind: Filter) -> Tensor:
    """Whole levels float [..., h, w] as Pillow resizes 8-bit images, bit for bit: float64 [..., rows, columns].

    Pillow's weights are whole multiples of 2^-22, and their sums with levels are exact here, in any order.
    """
    levels = levels.double()
    for target in (columns, rows):
        sums = levels @ _resampling(levels.shape[-1], target, kind, levels.device)
        levels = sums.add_(1 << 21).div_(1 << 22).floor_().clamp_(0, 255).mT
    return levels


@lru_cache(maxsize=64)
def _resampling(size: int, target: int, kind: Filter, device: torch.device) -> Tensor:
    """Weights [size, target] of a filter times 2^22, float64, whole numbers."""
    scale = size / target
    spread = max(scale, 1.0)
    reach = kind.reach * spread
    matrix = torch.zeros(size, target, dtype=torch.float64)
    for out in range(target):
        centre = (out + 0.5) * scale
        window = range(max(int(centre - reach + 0.5), 0), min(int(centre + reach + 0.5), size))
        weights = [kind.weight((i - centre + 0.5) / spread) for i in window]
        total = added(weights)
        for i, weight in zip(window, weights, strict=True):
            matrix[i, out] = math.trunc(weight / total * (1 << 22) + math.copysign(0.5, weight))
    return matrix.to(device)
