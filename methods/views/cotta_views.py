"""Random views of a test batch as in CoTTA, on its device: colours, a small rotation, blur and noise."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import grid_sample
from torchvision.transforms.v2 import functional as image

Padding = Literal["edge", "reflect"]

BLUR_SIZE = 5
NOISE = 0.005

# Ranges of Wang et al. 2022 (arXiv:2203.13591), as released.
_COLOURS = ((0.6, 1.4), (0.7, 1.3), (0.5, 1.5), (-0.06, 0.06), (0.7, 1.3))
_DEGREES, _TRANSLATION, _SCALE, _SIGMA = (-15.0, 15.0), (-1 / 16, 1 / 16), (0.9, 1.1), (0.001, 0.5)
_RANGES = (*_COLOURS, _DEGREES, _TRANSLATION, _TRANSLATION, _SCALE, _SIGMA)
_DARKEST = 1e-8  # the release raises only values from here up to the power gamma


@dataclass(frozen=True)
class View:
    """The transform of all images of one batch in one pass.

    `colours` are the factors of brightness, contrast and saturation, the turn of the hue (fractions of a full circle)
    and the exponent gamma; `order` is the order in which the five are applied. `degrees` rotates, `translation` (right
    and down, fractions of twice the side, since the release moves the image after padding it by half on each side)
    moves, and `scale` enlarges. `sigma` is the deviation of the blur in pixels, None for no blur and no noise.
    """

    order: tuple[int, ...]
    colours: tuple[float, ...]
    degrees: float
    translation: tuple[float, float]
    scale: float
    sigma: float | None
    mirrored: bool


def draw_view(generator: torch.Generator, *, smooth: bool = True, flip: bool = True) -> View:
    """Draw a random view from a CPU generator, so that drawing never waits for a device.

    `smooth` adds blur and noise (CoTTA, RMT, RoTTA and SANTA use it, ROID and CMF do not); `flip` mirrors with
    probability one half. The count of numbers drawn is always the same.
    """
    order = tuple(torch.randperm(len(_COLOURS), generator=generator).tolist())
    *uniforms, coin = torch.rand(len(_RANGES) + 1, generator=generator, dtype=torch.float64).tolist()
    values = [low + (high - low) * u for (low, high), u in zip(_RANGES, uniforms, strict=True)]
    degrees, right, down, scale, sigma = values[len(_COLOURS) :]
    return View(
        order,
        tuple(values[: len(_COLOURS)]),
        degrees,
        (right, down),
        scale,
        sigma if smooth else None,
        flip and coin < 0.5,
    )


@torch.no_grad()
def make_view(images: Tensor, view: View, noise: torch.Generator, *, padding: Padding = "edge") -> Tensor:
    """Return the view of images: float [n, 3, h, w] to the same shape, dtype and device, in [0, 1].

    Colour jitter, rotation, translation and scaling with bilinear interpolation about the centre, blur, mirror,
    Gaussian noise; clipped before and after. Pixels from outside continue the edge or reflect the image. `noise` is a
    generator on the images' device. Equals padding by half a side, transforming and cropping as the release does,
    without computing the pixels that are cropped; for sides of at least 16 pixels the two agree.
    """
    pixels = images.float().clamp(0, 1)
    for which in view.order:
        pixels = _OPERATIONS[which](pixels, view.colours[which])
    margin = 0 if view.sigma is None else BLUR_SIZE // 2
    pixels = _affine(pixels, view, margin, padding)
    if view.sigma is not None:
        pixels = image.gaussian_blur(pixels, BLUR_SIZE, view.sigma)[..., margin:-margin, margin:-margin]
    if view.mirrored:
        pixels = pixels.flip(-1)
    if view.sigma is not None:
        pixels = pixels + NOISE * torch.randn(pixels.shape, generator=noise, device=pixels.device, dtype=pixels.dtype)
    return pixels.clamp(0, 1).to(images.dtype)


def _gamma(pixels: Tensor, exponent: float) -> Tensor:
    gamma: Tensor = image.adjust_gamma(pixels.clamp(_DARKEST, 1), exponent)
    return gamma


_OPERATIONS: Sequence[Callable[[Tensor, float], Tensor]] = (
    image.adjust_brightness,
    image.adjust_contrast,
    image.adjust_saturation,
    image.adjust_hue,
    _gamma,
)


def _affine(pixels: Tensor, view: View, margin: int, padding: Padding) -> Tensor:
    """Images [n, 3, h, w] to [n, 3, h + 2 margin, w + 2 margin]: transformed, with a margin around the frame."""
    n, _, height, width = pixels.shape
    angle = math.radians(view.degrees)
    # Whole pixels, from fractions of the side after the release's padding by half of it on each side.
    right, down = (
        round(fraction * (side + side // 2 * 2))
        for fraction, side in zip(view.translation, (width, height), strict=True)
    )
    across = torch.arange(-margin, width + margin, device=pixels.device) - (width - 1) / 2 - right
    along = torch.arange(-margin, height + margin, device=pixels.device) - (height - 1) / 2 - down
    cos, sin = math.cos(angle) / view.scale, math.sin(angle) / view.scale
    x = cos * across[None, :] + sin * along[:, None]
    y = cos * along[:, None] - sin * across[None, :]
    # With corners aligned the frame [-1, 1] ends at the centres of the outer pixels, about which "reflect" mirrors.
    grid = torch.stack([x * (2 / max(width - 1, 1)), y * (2 / max(height - 1, 1))], dim=-1)
    mode = "border" if padding == "edge" else "reflection"
    return grid_sample(pixels, grid.expand(n, -1, -1, -1), mode="bilinear", padding_mode=mode, align_corners=True)
