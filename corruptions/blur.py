"""The blur group: defocus, motion and zoom blur (Hendrycks and Dietterich 2019, arXiv:1903.12261)."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor

from corruptions.catalog import Parameters
from corruptions.kernels import correlate, disc, trail, whole_mirror
from corruptions.noise import Draws, Size
from corruptions.rng import Stream


def defocus_blur(images: Tensor, draws: Draws, parameters: Parameters) -> Tensor:  # noqa: ARG001
    """Correlation with a smoothed disc; borders mirrored at the edge pixel."""
    return correlate(images, disc(*parameters), whole_mirror).clamp_(0, 1)


def draw_motion_blur(stream: Stream, size: Size, parameters: Parameters) -> Draws:  # noqa: ARG001
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


def zoom_blur(images: Tensor, draws: Draws, parameters: Parameters) -> Tensor:  # noqa: ARG001
    """Mean of the image and of its central zooms; the image itself counts twice, being the zoom 1 too."""
    factors = zoom_factors(*parameters)
    total = 2 * images if factors else images.clone()
    for factor in factors[1:]:
        total += zoomed(images, factor)
    return total.div_(len(factors) + 1).clamp_(0, 1)


def zoomed(images: Tensor, factor: float) -> Tensor:
    """The centre of float [n, c, h, w] enlarged to the same size: bilinear between the corner pixels of the window."""
    (height, width) = images.shape[-2:]
    window = [math.ceil(side / factor) for side in (height, width)]
    top, left = (height - window[0]) // 2, (width - window[1]) // 2
    centre = images[..., top : top + window[0], left : left + window[1]]
    size = [round(side * factor) for side in window]
    large = F.interpolate(centre, size=size, mode="bilinear", align_corners=True)
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    return large[..., top : top + height, left : left + width]
