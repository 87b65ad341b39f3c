"""Conversion between RGB and hue, saturation and value, in the floating-point operations of scikit-image.

Brightness and saturate are defined by scikit-image's float64 conversions and then truncated. Rounding puts
mathematically whole levels just above or below, so only the same operations in the same order give the same level.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from corruptions.kernels import levels_of

Change = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]

# Pixels whose dozen float64 planes stay in a CPU's cache.
_CACHED_PIXELS = 1 << 14


def recoloured(images: Tensor, change: Change) -> Tensor:
    """Images (uint8 or float in [0, 1], [n, 3, h, w]) whose saturation and value are changed: levels, float64.

    `change` is given saturation and value, float64 of any shape, and may overwrite them.
    """
    levels = levels_of(images).flatten(2).transpose(0, 1)
    planes = levels.reshape(3, -1)
    if images.device.type != "cpu":
        made = _recoloured(planes, change)
    else:
        made = torch.cat([_recoloured(part, change) for part in torch.split(planes, _CACHED_PIXELS, 1)], 1)
    return made.view(3, len(images), -1).transpose(0, 1).reshape(images.shape)


def _recoloured(levels: Tensor, change: Change) -> Tensor:
    """`recoloured` of planes [3, pixels].

    What is chosen is summed with weights of 0 and 1, which is exact and many times faster than masks on CPUs.
    """
    red, green, blue = (levels / 255).unbind(0)
    value = torch.maximum(torch.maximum(red, green), blue)
    spread = value - torch.minimum(torch.minimum(red, green), blue)
    grey, black = (spread == 0).double(), (value == 0).double()
    # Zeros become ones, so that grey divides to zero.
    divisor = spread + grey
    # Where two channels are the largest, the later one decides.
    by_blue = (blue == value).double()
    by_green = (green == value).double().mul_(1 - by_blue)
    hue = (green - blue).div_(divisor).mul_(1 - by_blue - by_green)
    hue.add_((blue - red).div_(divisor).add_(2).mul_(by_green))
    hue.add_((red - green).div_(divisor).add_(4).mul_(by_blue))
    hue.div_(6)
    # The remainder of a division by one, whose general form is slow.
    hue.add_(hue < 0).mul_(1 - grey)
    saturation, value = change(spread.div_(black.add_(value)), value)

    sixth = hue.mul_(6)
    sector = sixth.floor()
    part = sixth.sub_(sector)
    low = (1 - saturation).mul_(value)
    first, second, third, fourth, fifth, sixth = ((sector == number).double() for number in range(6))
    first += sector == 6  # a hue that was rounded to a whole turn
    # In an odd sector the colour falls to the next corner of the hexagon, in an even one it rises.
    falls = second + fourth + sixth
    share = part.mul(falls).add_((1 - part).mul_(1 - falls))
    middle = (1 - share.mul_(saturation)).mul_(value)
    out = torch.empty_like(levels)
    tops = (first + sixth, second + third, fourth + fifth)
    bottoms = (third + fourth, fifth + sixth, first + second)
    for channel, top, bottom in zip(out, tops, bottoms, strict=True):
        torch.mul(1 - top - bottom, middle, out=channel).add_(top.mul_(value)).add_(bottom.mul_(low))
    return out.mul_(255).clamp_(0, 255)
