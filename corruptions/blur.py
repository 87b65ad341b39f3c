"""The blur group: defocus, motion and zoom blur (Hendrycks and Dietterich 2019, arXiv:1903.12261)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from corruptions.catalog import Parameters
from corruptions.kernels import correlate, disc, trail, whole_mirror
from corruptions.noise import Draws, Size
from corruptions.rng import Stream


def defocus_blur(images: Tensor, draws: Draws, parameters: Parameters) -> Tensor:
    """Correlation with a smoothed disc; borders mirrored at the edge pixel."""
    return correlate(images, disc(*parameters), whole_mirror).clamp_(0, 1)


def draw_motion_blur(stream: Stream, size: Size, parameters: Parameters) -> Draws:
    """The direction of the trail: uniform in [-45, 45) degrees, in radians."""
    return {"angle": (stream.uniform() - 0.5) * (math.pi / 2)}


def motion_blur(images: Tensor, draws: Draws, parameters: Parameters) -> Tensor:
    """A one-sided trail in the direction of each image (see `kernels.trail`); it also shifts the picture."""
    radius, sigma = parameters
    return trail(images, draws["angle"], radius, sigma).clamp_(0, 1)


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
        total += stretch(stretch(turned, factor).mT.contiguous(), factor)
    return total.div_(len(factors) + 1).clamp_(0, 1)


def stretch(planes: Tensor, factor: float) -> Tensor:
    """The central rows of [..., h, w] enlarged to h rows: linear between the centres of the window's outer rows.

    Whole rows are copied, which is quicker than a general resampling, and every pixel is computed alike wherever it
    lies, so the result does not depend on the number of threads.
    """
    side = planes.shape[-2]
    window = math.ceil(side / factor)
    large = round(window * factor)
    rows = torch.arange(side, dtype=torch.float64, device=planes.device) + (large - side) // 2
    rows *= (window - 1) / max(large - 1, 1)
    low = rows.floor()
    first = low.long() + (side - window) // 2
    second = (first + 1).clamp_(max=side - 1)
    share = (rows - low).to(planes.dtype)[:, None]
    return planes.index_select(-2, first).lerp_(planes.index_select(-2, second), share)
