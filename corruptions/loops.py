"""Corruptions of bytes on a CPU by compiled loops, bit for bit what the functions of the catalogue give.

Each function takes the module `compiled`, images uint8 [n, 3, h, w], their draws, the parameters, and whether levels
are rounded to bytes or truncated. It returns uint8 [n, 3, h, w].
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.ndimage import gaussian_filter1d
from torch import Tensor

from corruptions.blur import stretch, zoom_factors
from corruptions.digital import box_ends
from corruptions.extra import MUD, WATER, shading_of_bytes
from corruptions.kernels import blur, kept_from, plasma, to_the_bit
from corruptions.native import compiled
from corruptions.noise import MOST_PHOTONS, Draws, poisson_table
from corruptions.tables import Parameters
from corruptions.weather import frost_crops, snow_layer

_UNIT = np.arange(256) / 255
_UNIT32 = np.arange(256, dtype=np.float32) / np.float32(255)


class Loop(NamedTuple):
    """A function of this module; `small` says that it gives the same bits for images of at most 48 pixels too."""

    function: Callable[[Any, Tensor, Draws, Parameters, bool], Tensor]
    small: bool


def loop_for(name: str, images: Tensor) -> Loop | None:
    """Return the loop for images, None if there is none or they are no bytes on a CPU."""
    found = LOOPS.get(name)
    if found is None or images.dtype != torch.uint8 or images.device.type != "cpu" or compiled() is None:
        return None
    return found if found.small or to_the_bit(images) else None


def _flat(images: Tensor) -> Any:
    """Images as an array [n, 3, h * w]."""
    return images.numpy().reshape(len(images), 3, -1)


def _bytes(levels: Tensor, rounded: bool) -> Any:
    """Float levels as bytes, an array."""
    return (levels.round() if rounded else levels).to(torch.int16).to(torch.uint8).numpy()


def _gaussian_noise(loops: Any, images: Tensor, draws: Draws, parameters: Parameters, rounded: bool) -> Tensor:
    return _noisy(loops, images, draws, parameters, rounded, by_level=False)


def _speckle_noise(loops: Any, images: Tensor, draws: Draws, parameters: Parameters, rounded: bool) -> Tensor:
    return _noisy(loops, images, draws, parameters, rounded, by_level=True)


def _noisy(
    loops: Any, images: Tensor, draws: Draws, parameters: Parameters, rounded: bool, *, by_level: bool
) -> Tensor:
    out = torch.empty_like(images)
    levels, normal = images.numpy().ravel(), draws["normal"].numpy().ravel()
    loops.noisy(levels, normal, np.float32(parameters[0]), by_level, rounded, out.numpy().ravel())
    return out


def _impulse_noise(loops: Any, images: Tensor, draws: Draws, parameters: Parameters, rounded: bool) -> Tensor:
    (amount,) = parameters
    out = torch.empty_like(images)
    limits = np.float32(amount), np.float32(amount / 2)
    loops.impulse(images.numpy().ravel(), draws["uniform"].numpy().ravel(), *limits, out.numpy().ravel())
    return out


def _shot_noise(loops: Any, images: Tensor, draws: Draws, parameters: Parameters, rounded: bool) -> Tensor:
    out = torch.empty_like(images)
    cells, threshold, made = _counts(parameters[0], rounded)
    loops.counted(images.numpy().ravel(), draws["uniform"].numpy().ravel(), cells, threshold, made, out.numpy().ravel())
    return out


@lru_cache(maxsize=16)
def _counts(wanted: float, rounded: bool) -> tuple[int, Any, Any]:
    """The cells of a level, and for all cells the threshold, and the bytes of the alias and of the cell itself."""
    photons = min(wanted, MOST_PHOTONS)
    cells, first, threshold, alias = poisson_table(photons)
    both = torch.stack([alias.view(256, cells), torch.arange(cells).float().expand(256, -1)], 2)
    share = both.add_(first[:, None, None]).div_(photons).clamp_(0, 1)
    return cells, threshold.numpy(), _bytes(share.mul_(255), rounded).ravel()


def _contrast(loops: Any, images: Tensor, draws: Draws, parameters: Parameters, rounded: bool) -> Tensor:
    (factor,) = parameters
    planes = images.numpy().reshape(-1, images.shape[2] * images.shape[3])
    counts = np.zeros((len(planes), 256), np.int64)
    loops.histogram(planes, counts)
    # Sums of float32 levels are exact in float64, in any order.
    unit = torch.from_numpy(_UNIT32)
    mean = torch.from_numpy(counts @ _UNIT32.astype(np.float64) / planes.shape[1]).float()[:, None]
    tables = torch.add(mean * (1 - factor), unit, alpha=factor).clamp_(0, 1).mul_(255)
    out = torch.empty_like(images)
    loops.looked_up(planes, _bytes(tables, rounded), out.numpy().reshape(planes.shape))
    return out


def _brightness(loops: Any, images: Tensor, draws: Draws, parameters: Parameters, rounded: bool) -> Tensor:
    return _recoloured(loops, images, (1.0, 0.0, parameters[0]), rounded)


def _saturate(loops: Any, images: Tensor, draws: Draws, parameters: Parameters, rounded: bool) -> Tensor:
    return _recoloured(loops, images, (*parameters, 0.0), rounded)


def _recoloured(loops: Any, images: Tensor, change: tuple[float, ...], rounded: bool) -> Tensor:
    factor, offset, amount = map(float, change)
    out = torch.empty_like(images)
    for image, made in zip(_flat(images), _flat(out), strict=True):
        loops.recoloured(image, factor, offset, amount, rounded, made)
    return out


def _fog(loops: Any, images: Tensor, draws: Draws, parameters: Parameters, rounded: bool) -> Tensor:
    strength, decay, _ = parameters
    height, width = images.shape[-2:]
    layers = plasma(draws["uniform"], decay)[:, :height, :width].flatten(1).numpy()
    out = torch.empty_like(images)
    for image, layer, made in zip(_flat(images), layers, _flat(out), strict=True):
        loops.foggy(image, layer, np.float32(strength), rounded, made)
    return out


def _frost(loops: Any, images: Tensor, draws: Draws, parameters: Parameters, rounded: bool) -> Tensor:
    weight, share, _ = map(float, parameters)
    out = torch.empty_like(images)
    for image, crop, made in zip(images, frost_crops(images, draws, parameters), out, strict=True):
        for plane, ice, target in zip(image, crop, made, strict=True):
            loops.frosted(plane.numpy(), ice.numpy(), weight, share, rounded, target.numpy())
    return out


def _snow(loops: Any, images: Tensor, draws: Draws, parameters: Parameters, rounded: bool) -> Tensor:
    share = parameters[6]
    layers = snow_layer(draws, parameters, 0.5 / 257).flatten(1).numpy()
    out = torch.empty_like(images)
    for image, layer, made in zip(_flat(images), layers, _flat(out), strict=True):
        loops.snowed(image, layer, np.float32(share), np.float32(1 - share), rounded, made)
    return out


def _glass_blur(loops: Any, images: Tensor, draws: Draws, parameters: Parameters, rounded: bool) -> Tensor:
    sigma, reach, _ = parameters
    height, width = images.shape[-2:]
    taps = _taps(sigma)
    blurred, moved, out = (torch.empty_like(images) for _ in range(3))
    source = np.empty(height * width, np.int64)
    rows, padded = np.empty((height, width)), np.empty(width + 2 * len(taps) - 2)
    for i, uniform in enumerate(draws["uniform"].numpy()):
        for plane, made in zip(images[i].numpy(), blurred[i].numpy(), strict=True):
            loops.blurred(plane, _UNIT, taps, False, rows, padded, made)
        loops.glass_map(uniform, max(1, round(reach)), source)
        loops.gathered(blurred[i].numpy().reshape(3, -1), source, moved[i].numpy().reshape(3, -1))
        for plane, made in zip(moved[i].numpy(), out[i].numpy(), strict=True):
            loops.blurred(plane, _UNIT, taps, rounded, rows, padded, made)
    return out


@lru_cache(maxsize=64)
def _taps(sigma: float) -> Any:
    """scipy's weights from the middle outwards, to the last bit: what becomes of a single one."""
    radius = int(4.0 * sigma + 0.5)
    one = np.zeros(2 * radius + 1)
    one[radius] = 1
    return np.ascontiguousarray(gaussian_filter1d(one, sigma, mode="constant", truncate=4.0)[radius:])


def _zoom_blur(loops: Any, images: Tensor, draws: Draws, parameters: Parameters, rounded: bool) -> Tensor:
    height, width = images.shape[-2:]
    factors = zoom_factors(*parameters)
    zooms = [_zoom(height, width, factor) for factor in factors[1:]]
    out = torch.empty_like(images)
    value, total, work = (np.empty((height, width), np.float32) for _ in range(3))
    for plane, made in zip(images.flatten(0, 1).numpy(), out.flatten(0, 1).numpy(), strict=True):
        loops.valued(plane, value, total)
        for window, columns, rows in zooms:
            loops.zoomed(value, window, columns, rows, work, total)
        loops.averaged(total, np.float32(len(factors) + 1), rounded, made)
    return out


@lru_cache(maxsize=256)
def _zoom(height: int, width: int, factor: float) -> tuple[Any, Any, Any]:
    """The central window (first row, first column, rows), and for its columns and rows what `stretch` says."""
    inside = [math.ceil(side / factor) for side in (height, width)]
    window = (height - inside[0]) // 2, (width - inside[1]) // 2, inside[0]
    device = torch.device("cpu")
    columns, rows = (tuple(p.numpy().ravel() for p in stretch(side, factor, device)) for side in (width, height))
    return window, columns, rows


def _spatter(loops: Any, images: Tensor, draws: Draws, parameters: Parameters, rounded: bool) -> Tensor:
    mean, deviation, sigma, threshold, strength, mud = parameters
    liquid = blur((mean + deviation * draws["normal"])[:, None], sigma)
    out = torch.empty_like(images)
    if mud > 0:
        masks = kept_from(blur((liquid > threshold).float(), strength), 0.8).flatten(1).numpy()
        for image, mask, made in zip(_flat(images), masks, _flat(out), strict=True):
            loops.muddied(image, mask, np.array(MUD, np.float32), rounded, made)
        return out
    wetness = np.empty((len(images), *images.shape[-2:]), np.uint8)
    loops.wet(liquid.numpy().ravel(), np.float32(threshold), wetness.ravel())
    shades = shading_of_bytes(wetness).reshape(len(images), -1)
    water = np.array(WATER, np.float32)
    for image, wet, shade, made in zip(_flat(images), wetness, shades, _flat(out), strict=True):
        loops.watered(image, wet.ravel(), shade, np.float32(strength), water, rounded, made)
    return out


def _pixelate(loops: Any, images: Tensor, draws: Draws, parameters: Parameters, rounded: bool) -> Tensor:
    (share,) = parameters
    height, width = images.shape[-2:]
    size = max(int(height * share), 1), max(int(width * share), 1)
    columns, right = box_ends(width, size[1]), box_ends(size[1], width)[0]
    rows, down = box_ends(height, size[0]), box_ends(size[0], height)[0]
    out = torch.empty_like(images)
    planes, made = (each.numpy().reshape(-1, height, width) for each in (images, out))
    loops.pixelated(planes, columns, rows, right, down, made)
    return out


LOOPS: Mapping[str, Loop] = MappingProxyType(
    {
        "gaussian_noise": Loop(_gaussian_noise, True),
        "speckle_noise": Loop(_speckle_noise, True),
        "spatter": Loop(_spatter, True),
        "zoom_blur": Loop(_zoom_blur, True),
        "impulse_noise": Loop(_impulse_noise, True),
        "shot_noise": Loop(_shot_noise, True),
        "contrast": Loop(_contrast, True),
        "brightness": Loop(_brightness, False),
        "saturate": Loop(_saturate, False),
        "fog": Loop(_fog, True),
        "frost": Loop(_frost, False),
        "snow": Loop(_snow, False),
        "glass_blur": Loop(_glass_blur, False),
        "pixelate": Loop(_pixelate, True),
    }
)
"""The corruptions that have a loop."""
