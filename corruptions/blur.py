"""The blur group: defocus, glass, motion and zoom blur (Hendrycks and Dietterich 2019, arXiv:1903.12261)."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from corruptions.kernels import (
    blur,
    blur_in_order,
    correlate,
    disc,
    levels_of,
    to_the_bit,
    trail,
    unit_of,
    whole_mirror,
)
from corruptions.native import compiled
from corruptions.noise import Draws, Size
from corruptions.rng import Stream
from corruptions.tables import Parameters


def defocus_blur(images: Tensor, draws: Draws, parameters: Parameters) -> Tensor:
    """Correlation with a smoothed disc; borders mirrored at the edge pixel."""
    return correlate(images, disc(*parameters), whole_mirror).clamp_(0, 1)


def draw_glass_blur(stream: Stream, size: Size, parameters: Parameters) -> Draws:
    """Uniforms, one per sweep and pixel; each encodes the jump of its pixel (see `glass_jumps`)."""
    _, _, sweeps = parameters
    return {"uniform": stream.uniform(round(sweeps), *size)}


def glass_blur(images: Tensor, draws: Draws, parameters: Parameters) -> Tensor:
    """Blur, truncate to 8 bits, let pixels copy near ones in a few sweeps, blur again."""
    if to_the_bit(images):
        return unit_of(glass_blur_levels(images, draws, parameters))
    sigma, reach, _ = parameters
    levels = (blur(images, sigma) * 255).add_(1e-4).floor_()
    return blur(_moved(levels, draws["uniform"], reach).div_(255), sigma).clamp(0, 1)


def glass_blur_levels(images: Tensor, draws: Draws, parameters: Parameters) -> Tensor:
    """`glass_blur` of uint8 or float images, to the bit: levels, float64."""
    sigma, reach, _ = parameters
    levels = blur_in_order(levels_of(images).div_(255), sigma).mul_(255).floor_()
    return blur_in_order(_moved(levels, draws["uniform"], reach).div_(255), sigma).clamp_(0, 1).mul_(255)


def _moved(levels: Tensor, uniform: Tensor, reach: float) -> Tensor:
    """Levels [n, 3, h, w] after the sweeps."""
    n, _, height, width = levels.shape
    furthest = max(1, round(reach))
    if levels.device.type == "cpu" and levels.dtype == torch.float32 and (loops := compiled()) is not None:
        moved, places = torch.empty_like(levels), np.empty(height * width, np.int64)
        for image, own, made in zip(levels.flatten(2), uniform, moved.flatten(2), strict=True):
            loops.glass_map(own.numpy(), furthest, places)
            loops.gathered(image.numpy(), places, made.numpy())
        return moved
    source = glass_map(*glass_jumps(uniform, furthest), furthest)
    index = source.long().view(n, 1, -1).expand(-1, 3, -1)
    return levels.flatten(2).gather(2, index).view(-1, 3, height, width)


def glass_jumps(uniform: Tensor, reach: int) -> tuple[Tensor, Tensor]:
    """Two offsets (down, right) in -reach .. reach - 1 from one uniform; the upper end is excluded, as published.

    int32, made in float32, whose division is many times faster than that of integers.
    """
    cell = (uniform * (4 * reach * reach)).floor_()
    # The half keeps the quotient off whole numbers, whatever way a device divides.
    down = ((cell + 0.5) / (2 * reach)).floor_()
    right = cell.sub_(down, alpha=2 * reach).sub_(reach)
    return down.sub_(reach).int(), right.int()


def glass_map(down: Tensor, right: Tensor, reach: int) -> Tensor:
    """Where each pixel of the result comes from: flat positions int32 [n, h * w], from jumps [n, sweeps, h, w].

    A sweep visits the pixels h - reach .. reach + 1 and w - reach .. reach + 1 backwards, and each copies the one at
    its jump; the published code means to swap them, but both ends of its swap are views of one array. A pixel
    that copies one visited before it receives what that one had just received. So a sweep is a forest of pointers
    that lead forward, and following each pointer's pointer resolves it in a few rounds, exactly.
    """
    n, sweeps, height, width = down.shape
    # All images in one list of places, in 32 bits: following pointers is bound by memory.
    place = torch.arange(n * height * width, device=down.device, dtype=torch.int32)
    row = torch.arange(height, device=down.device)[:, None]
    column = torch.arange(width, device=down.device)
    inside = (row > reach) & (row <= height - reach) & (column > reach) & (column <= width - reach)
    total = place
    for sweep in range(sweeps):
        jump = (down[:, sweep] * width).add_(right[:, sweep]).mul_(inside)
        source = jump.flatten().add_(place)
        if reach > 1:
            # A pixel further on was visited earlier in this sweep; pixels outside of it copy themselves.
            pointer = torch.maximum(source, place)
            while not torch.equal(further := pointer.index_select(0, pointer), pointer):
                pointer = further
            source = source.index_select(0, pointer)
        total = total.index_select(0, source)
    first = torch.arange(n, device=down.device, dtype=torch.int32)[:, None] * (height * width)
    return total.view(n, -1) - first


def draw_motion_blur(stream: Stream, size: Size, parameters: Parameters) -> Draws:
    """The direction of the trail: uniform in [-45, 45) degrees, in radians."""
    return {"angle": (stream.uniform() - 0.5) * (math.pi / 2)}


def motion_blur(images: Tensor, draws: Draws, parameters: Parameters) -> Tensor:
    """A one-sided trail in the direction of each image (see `kernels.trail`); it also shifts the picture."""
    radius, sigma = parameters
    blurred = trail(images, draws["angle"], radius, sigma)
    if to_the_bit(images):
        # ImageMagick rounds to 16 bits before it truncates to 8: half a step of 16 bits more has the same effect.
        blurred += 0.5 / 257 / 255
    return blurred.clamp_(0, 1)


def zoom_factors(stop: float, step: float) -> list[float]:
    """The zooms 1, 1 + step, ... below stop, in the floating-point arithmetic of numpy.arange, which defines them.

    At 224 pixels severity 1 therefore has 12 factors and includes 1.11, its excluded end.
    """
    difference = (1 + step) - 1
    return [1 + i * difference for i in range(math.ceil((stop - 1) / step))]


def zoom_blur(images: Tensor, draws: Draws, parameters: Parameters) -> Tensor:
    """Mean of the image and of its central zooms; the image itself counts twice, being the zoom 1 too."""
    factors = zoom_factors(*parameters)
    total = 2 * images
    turned = images.mT.contiguous()
    for factor in factors[1:]:
        total += zoomed(turned, factor)
    return total.div_(len(factors) + 1).clamp_(0, 1)


def zoomed(turned: Tensor, factor: float) -> Tensor:
    """The centre of planes, enlarged to the same size: transposed [..., w, h] in, upright [..., h, w] out.

    Whole rows are copied, which is quicker than a general resampling, and every pixel is computed alike wherever it
    lies, so the result does not depend on the number of threads.
    """
    width, height = turned.shape[-2:]
    for dim, side in ((-2, width), (-1, height)):
        window = math.ceil(side / factor)
        turned = turned.narrow(dim, (side - window) // 2, window)
    stretched = _stretched(turned, stretch(width, factor, turned.device))
    return _stretched(stretched.mT.contiguous(), stretch(height, factor, turned.device))


def _stretched(planes: Tensor, places: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    first, second, share = places
    return planes.index_select(-2, first).lerp_(planes.index_select(-2, second), share)


@lru_cache(maxsize=256)
def stretch(side: int, factor: float, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """The central window of an axis enlarged to it: linear between the centres of the window's outer rows.

    For each of `side` rows two rows of the window, int64 [side], and the share of the second, float32 [side, 1].
    """
    window = math.ceil(side / factor)
    large = round(window * factor)
    rows = torch.arange(side, dtype=torch.float64) + (large - side) // 2
    rows *= (window - 1) / max(large - 1, 1)
    low = rows.floor()
    first = low.long()
    second = (first + 1).clamp_(max=window - 1)
    return first.to(device), second.to(device), (rows - low).float()[:, None].to(device)
