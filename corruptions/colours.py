"""Hue, saturation and value of images and back, in the floating-point operations of scikit-image.

Brightness and saturate are defined by scikit-image's float64 conversions and then truncated. What is mathematically a
whole level comes out of them just above or below it, so only the same operations in the same order give the same level.
"""

from __future__ import annotations

import torch
from torch import Tensor

from corruptions.kernels import levels_of, unit_of


def hsv_of(images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Hue in [0, 1) (0 for grey), saturation and value of float [n, 3, h, w] in [0, 1]: float64 [n, h, w] each."""
    red, green, blue = levels_of(images).div_(255).unbind(1)
    value = torch.maximum(torch.maximum(red, green), blue)
    spread = value - torch.minimum(torch.minimum(red, green), blue)
    grey = spread == 0
    # Anything that is not zero, so that grey divides to zero.
    divisor = spread.masked_fill(grey, 1)
    saturation = spread / value.masked_fill(value == 0, 1)
    # Where two channels are the largest, the later one decides.
    hue = (green - blue) / divisor
    hue = torch.where(green == value, 2 + (blue - red) / divisor, hue)
    hue = torch.where(blue == value, 4 + (red - green) / divisor, hue)
    return (hue / 6).remainder_(1).masked_fill_(grey, 0), saturation, value


def rgb_of(hue: Tensor, saturation: Tensor, value: Tensor) -> Tensor:
    """The colours of hue, saturation and value [n, h, w]: float32 [n, 3, h, w] in [0, 1], truncated as in float64."""
    sixth = hue * 6
    sector = sixth.floor()
    part = sixth - sector
    low = value * (1 - saturation)
    falling = value * (1 - part * saturation)
    rising = value * (1 - (1 - part) * saturation)
    # In an even sector the colour rises to the next corner of the hexagon, in an odd one it falls.
    middle = torch.where(sector.remainder(2) == 0, rising, falling)
    sector = sector.remainder_(6)
    channels = []
    for top, bottom in (((0, 5), (2, 3)), ((1, 2), (4, 5)), ((3, 4), (0, 1))):
        channel = torch.where((sector == top[0]) | (sector == top[1]), value, middle)
        channels.append(torch.where((sector == bottom[0]) | (sector == bottom[1]), low, channel))
    return unit_of(torch.stack(channels, 1).mul_(255))
