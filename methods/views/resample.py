"""Sparse resampling: each new line of an image is a weighted sum of a few old lines.

Equal to the matrices `resampling` and `gaussian_blur` of methods.views.ssl_views without their zeros, for large images
on a CPU.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

# The old lines that make each new one, int64 [new, k], and their weights, float32 [new, k].
Taps = tuple[Tensor, Tensor]

DEVIATIONS = 5  # cut-off of a blur: beyond it, the weight is less than 1e-5
_SUPPORT = 2  # of the bicubic kernel, in old lines


def bicubic_taps(length: Tensor, size: int, mirrored: Tensor | None = None) -> list[Taps]:
    """Return taps that stretch each of n images from `length` lines to `size`, in reverse order where it is mirrored.

    length: float [n], whole numbers; mirrored: bool [n].
    """
    places = torch.arange(size) + 0.5
    if mirrored is not None:
        places = torch.where(mirrored[:, None], size - places, places)
    stretch = (length / size)[:, None]
    centres, scale = places * stretch, stretch.clamp(min=1)
    first = (centres - _SUPPORT * scale + 0.5).floor()
    taps = first[..., None] + torch.arange(math.ceil(2 * _SUPPORT * float(scale.max())))
    distance = (taps + 0.5 - centres[..., None]).abs_() / scale[..., None]
    # The two branches of the kernel as truncated powers: far(x) for x < 2, plus near(x) - far(x) for x < 1.
    far, near = (2 - distance).relu_(), (1 - distance).relu_()
    weights = far * far * (far - 1) / 2 + near * near * (1 - 2 * near)
    last = length[:, None, None] - 1
    weights *= (taps >= 0) & (taps <= last)
    weights /= weights.sum(2, keepdim=True)
    return list(zip(taps.clamp_(min=0).minimum(last).long(), weights, strict=True))


def gaussian_taps(deviation: float, size: int) -> Taps:
    """Return taps that blur `size` lines by a Gaussian of this deviation in lines, renormalised at the border."""
    reach = math.ceil(DEVIATIONS * deviation)
    apart = torch.arange(-reach, reach + 1)
    taps = torch.arange(size)[:, None] + apart
    weights = torch.exp(apart.square() / (-2 * deviation**2)) * ((taps >= 0) & (taps < size))
    return taps.clamp_(0, size - 1), weights / weights.sum(1, keepdim=True)


def weigh_rows(lines: Tensor, taps: Taps) -> Tensor:
    """Return the weighted sums of lines [old, m], float32: [new, m]."""
    which, weights = taps
    made: Tensor = embedding_bag(which, lines, mode="sum", per_sample_weights=weights)
    return made
