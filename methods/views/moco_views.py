"""The strong random views of MoCo v2, made for a whole batch at once on its own device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from methods.views.ssl_views import blend_gray, colour_jitter, crop_boxes, gaussian_blur, resample, resampling, turn_hue

# Chen et al. 2020, arXiv:2003.04297, as released: strengths and probabilities.
SCALE, RATIO = (0.2, 1.0), (3 / 4, 4 / 3)
JITTER, HUE, BLUR = 0.4, 0.1, (0.1, 2.0)
JITTERED, GRAYED, BLURRED = 0.8, 0.2, 0.5

_ATTEMPTS = 10
# Random numbers of a view beside its crop: coins for jitter, gray, blur and mirror; four of colour, one of blur.
_NUMBERS = 9


@torch.no_grad()
def strong_view(images: Tensor, generator: torch.Generator, *, flip: bool = True) -> Tensor:
    """Make one view of each image, with its own draws: float [n, 3, h, w] in [0, 1] to equal shape, dtype and device.

    A crop of a fifth of the area or more is resized back (bicubic). With probability 0.8 brightness, contrast,
    saturation (by up to 0.4) and hue (by up to 0.1 of the circle) change, in this order (the release draws the order).
    The view turns gray with probability 0.2, is blurred by a Gaussian of deviation 0.1 to 2 pixels with 0.5, and is
    mirrored with 0.5. The generator is on the images' device.
    """
    n, _, height, width = images.shape
    draws = torch.rand(_NUMBERS + 4 * _ATTEMPTS, n, generator=generator, device=generator.device)
    jittered, grayed, blurred, mirrored, *colours, sigma = draws[:_NUMBERS]
    top, left, tall, wide = crop_boxes(draws[_NUMBERS:], height, width, SCALE, RATIO)
    pixels = resample(images.float(), resampling(top, tall, height), resampling(left, wide, width)).clamp_(0, 1)
    pixels = recolour(pixels, jittered, grayed, colours)
    low, high = BLUR
    # A deviation of a hundredth of a pixel is the identity in float32.
    deviation = torch.where(blurred < BLURRED, low + (high - low) * sigma, 0.01)
    columns = gaussian_blur(deviation, width)
    if flip:
        columns = torch.where((mirrored < 0.5)[:, None, None], columns.flip(1), columns)
    return resample(pixels, gaussian_blur(deviation, height), columns).clamp_(0, 1).to(images.dtype)


def recolour(
    pixels: Tensor, jittered: Tensor, grayed: Tensor, colours: Sequence[Tensor], jitter: float = JITTER
) -> Tensor:
    """Change the colours of float images [n, 3, h, w] in [0, 1] as MoCo v2 and SimCLR do.

    The draws are uniform numbers [n] in [0, 1]: whether colours change, whether the image turns gray, and four of how
    brightness, contrast, saturation (by up to `jitter`) and hue (by up to a quarter of it) change.
    """
    strength = (jittered < JITTERED).to(pixels.dtype)
    brightness, contrast, saturation, hue = (strength * (2 * colour - 1) for colour in colours)
    pixels = colour_jitter(pixels, 1 + jitter * brightness, 1 + jitter * contrast, 1 + jitter * saturation)
    pixels = turn_hue(pixels, HUE / JITTER * jitter * hue)
    return blend_gray(pixels, (grayed >= GRAYED).to(pixels.dtype))
