"""Random views of images, made for a whole batch at once on its own device: crop, flip, 3-Augment, colour jitter.

3-Augment is of DeiT III (Touvron et al. 2022, arXiv:2204.07118, section 3.2): one of grayscale, solarisation and blur.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from methods.team import Share

_LUMA = (0.2989, 0.587, 0.114)  # ITU-R 601-2, as PIL and torchvision convert to gray
_ATTEMPTS = 10
_BLOCK = 32  # pixels of a line that are resampled together
_DEVIATIONS = 5  # where a blur ends: beyond, its weight is less than 1e-5
_SMALLEST_SUM = 1e-3
_GRAY, _SOLARISE, _BLUR = range(3)
_WHOLE = Share()


@dataclass(frozen=True)
class Views:
    """A random view of each image of a batch: uint8 [n, 3, h, w] to float32 [n, 3, h, w] in [0, 1], not normalised.

    In this order, each image with its own draws:
    - crop: area a fraction `scale` of the image, width / height log-uniform in `ratio`, whole pixels, resized back to
      h x w, or to `size` x `size`, by bicubic interpolation (a = -0.5, the kernel cut at the border of the crop and
      renormalised, and stretched where the crop shrinks, as PIL does). Ten attempts, then the largest centred crop
      with an allowed ratio. `scale` and `ratio` of (1, 1) keep a square image.
    - flip: left to right, with probability one half;
    - three_augment: exactly one of grayscale, solarisation (values of 128 and more are inverted) and Gaussian blur
      with a deviation uniform in `blur`, in pixels (the kernel renormalised at the border);
    - jitter: brightness, contrast and saturation, in this order, by factors uniform in [1 - jitter, 1 + jitter].

    The resampling of an image is two small matrices, one for rows and one for columns, which also hold flip and blur.
    """

    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: bool = True
    three_augment: bool = True
    jitter: float = 0.3
    blur: tuple[float, float] = (0.1, 2.0)
    size: int | None = None

    def __post_init__(self) -> None:
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(f"scale must be an interval inside (0, 1], not {self.scale}")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise ValueError(f"ratio must be an interval of positive numbers, not {self.ratio}")
        if not 0 <= self.jitter <= 1:
            raise ValueError(f"jitter must lie in [0, 1], not {self.jitter}")
        if self.size is not None and self.size < 1:
            raise ValueError(f"size must be a number of pixels, not {self.size}")
        if not 0 < self.blur[0] <= self.blur[1]:
            raise ValueError(f"blur must be an interval of positive deviations, not {self.blur}")

    def __call__(self, images: Tensor, generator: torch.Generator, share: Share = _WHOLE) -> Tensor:
        """Views of a batch on the generator's device, which is also where the images must be.

        Of a share of a batch, the images are those that are here; they get the views that they have in the whole batch.
        """
        count, _, height, width = images.shape
        draws = torch.rand(6 + 4 * _ATTEMPTS, share.whole(count), generator=generator, device=generator.device)
        draws = share.own(draws, 1)
        flip, choice, sigma, brightness, contrast, saturation = draws[:6]
        top, left, high, wide = crop_boxes(draws[6:], height, width, self.scale, self.ratio)
        tall, broad = (height, width) if self.size is None else (self.size, self.size)
        mirrored = flip < 0.5 if self.flip else torch.zeros_like(flip, dtype=torch.bool)
        chosen = (choice * 3).long()
        deviation = None
        if self.three_augment:
            low, top_sigma = self.blur
            # A deviation of a hundredth of a pixel is the identity in float32.
            deviation = torch.where(chosen == _BLUR, low + (top_sigma - low) * sigma, 0.01)
        reach = math.ceil(_DEVIATIONS * self.blur[1]) if self.three_augment else 0
        if self.size is None and min(bands_of(height, reach), bands_of(width, reach)) > 1:
            lines = resample_in_bands(images, top, high, torch.zeros_like(mirrored), deviation, reach)
            views = resample_in_bands(lines, left, wide, mirrored, deviation, reach).div_(255).clamp_(0, 1)
        else:
            rows = resampling(top, high, height, tall)
            columns = resampling(left, wide, width, broad)
            columns = torch.where(mirrored[:, None, None], columns.flip(1), columns)
            if deviation is not None:
                blur = gaussian_blur(deviation, tall)
                rows = blur @ rows
                columns = (blur if broad == tall else gaussian_blur(deviation, broad)) @ columns
            views = resample(images, rows / 255, columns).clamp_(0, 1)
        if self.three_augment:
            views = _three_augment(views, chosen)
        if self.jitter:
            factors = 1 + self.jitter * (2 * torch.stack([brightness, contrast, saturation]) - 1)
            views = colour_jitter(views, *factors)
        return views


def crop_boxes(
    draws: Tensor, height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Top, left, height and width (float [n], whole numbers) of one random crop an image.

    `draws`: uniform numbers [4 * attempts, n]. The first attempt that fits inside the image is used; if none fits, the
    largest centred crop whose ratio is allowed.
    """
    area, shape, vertical, horizontal = draws.view(4, -1, draws.shape[1])
    area = height * width * (scale[0] + (scale[1] - scale[0]) * area)
    low, high = math.log(ratio[0]), math.log(ratio[1])
    shape = torch.exp(low + (high - low) * shape)
    wide, tall = torch.sqrt(area * shape).round(), torch.sqrt(area / shape).round()
    fits = (wide > 0) & (wide <= width) & (tall > 0) & (tall <= height)
    first = fits.to(torch.int8).argmax(0, keepdim=True)
    wide, tall, vertical, horizontal = (each.gather(0, first)[0] for each in (wide, tall, vertical, horizontal))
    top, left = (vertical * (height - tall + 1)).floor(), (horizontal * (width - wide + 1)).floor()
    some = fits.any(0)
    fallback_wide = min(width, round(height * ratio[1]))
    fallback_tall = min(height, round(width / ratio[0]))
    return (
        torch.where(some, top, (height - fallback_tall) // 2),
        torch.where(some, left, (width - fallback_wide) // 2),
        torch.where(some, tall, fallback_tall),
        torch.where(some, wide, fallback_wide),
    )


def resampling(start: Tensor, length: Tensor, size: int, out: int | None = None) -> Tensor:
    """Matrices [n, out, size] that stretch the interval [start, start + length) of a line of `size` pixels to `out`.

    Bicubic (Keys 1981, a = -0.5), pixel centres at halves; weights outside the interval are dropped, the rest sum to 1.
    Where an interval shrinks, the kernel is as many times wider, against aliasing. `start` and `length`: float [n],
    whole numbers, length at most `size`; `out` is `size` by default.
    """
    out = size if out is None else out
    pixels = torch.arange(size, device=start.device) + 0.5
    places = pixels if out == size else torch.arange(out, device=start.device) + 0.5
    centres = start[:, None] + places * (length / out)[:, None]
    distance = (pixels - centres[:, :, None]).abs_()
    if out < size:
        distance /= (length / out).clamp(min=1)[:, None, None]
    # The two branches of the kernel as truncated powers: far(x) for x < 2, plus near(x) - far(x) for x < 1.
    far, near = (2 - distance).relu_(), (1 - distance).relu_()
    weights = far * far * (far - 1) / 2 + near * near * (1 - 2 * near)
    inside = (pixels > start[:, None]) & (pixels < (start + length)[:, None])
    weights = weights * inside[:, None, :]
    return weights / weights.sum(2, keepdim=True)


def bands_of(size: int, reach: int) -> int:
    """In how many bands a line of pixels is resampled; 1 where the whole matrix is as fast."""
    block = max(block for block in range(1, _BLOCK + 1) if size % block == 0)
    return size // block if 2 * (block + 2 * reach + 4) <= size and 2 * block >= _BLOCK else 1


def resample_in_bands(
    images: Tensor, start: Tensor, length: Tensor, mirrored: Tensor, deviation: Tensor | None, reach: int
) -> Tensor:
    """Stretch [start, start + length) of each column of pixels to all of it, blur it, and transpose each image.

    The same as the matrices of `resampling` and `gaussian_blur`, of which only the parts near the diagonal are taken:
    each block of pixels comes from a window of the line, `reach` pixels wider on both sides for the blur, whose kernel
    ends there. images: [n, c, size, m], anything; start, length and deviation (None: no blur): float [n]; mirrored:
    bool [n]. Gives float32 [n, c, m, size].
    """
    count, channels, size, _ = images.shape
    device = images.device
    blocks = bands_of(size, reach)
    block = size // blocks
    extended, wide = block + 2 * reach, block + 2 * reach + 4
    firsts = torch.arange(blocks, device=device)[:, None] * block
    outputs = firsts - reach + torch.arange(extended, device=device)  # [blocks, extended]
    places = outputs + 0.5
    places = torch.where(mirrored[:, None, None], size - places, places)
    centres = start[:, None, None] + places * (length / size)[:, None, None]
    window = ((centres.amin(2) - 0.5).floor() - 1).clamp_(0, size - wide).long()  # [n, blocks]
    sources = window[:, :, None] + torch.arange(wide, device=device)
    pixels = (sources + 0.5)[:, :, None, :]
    distance = (pixels - centres[..., None]).abs_()
    far, near = (2 - distance).relu_(), (1 - distance).relu_()
    weights = far * far * (far - 1) / 2 + near * near * (1 - 2 * near)
    ends = (start[:, None, None, None], (start + length)[:, None, None, None])
    weights *= (pixels > ends[0]) & (pixels < ends[1])
    # Outputs beyond the line have no pixels and are blurred into nothing.
    weights /= weights.sum(3, keepdim=True).clamp_(min=_SMALLEST_SUM)
    if deviation is not None:
        apart = (torch.arange(extended, device=device) - reach - torch.arange(block, device=device)[:, None]).square()
        logits = apart / (-2 * deviation.square())[:, None, None]
        outside = (outputs < 0) | (outputs >= size)
        logits = logits[:, None].masked_fill(outside[None, :, None, :], -math.inf)
        weights = logits.softmax(3) @ weights
    rows = images.float().transpose(1, 2).reshape(count * size, -1)
    places = (sources + size * torch.arange(count, device=device)[:, None, None]).flatten()
    nearby = rows.index_select(0, places).view(count * blocks, wide, -1)
    lines = weights.view(count * blocks, block, wide) @ nearby
    return lines.view(count, size, channels, -1).permute(0, 2, 3, 1).contiguous()


def gaussian_blur(deviation: Tensor, size: int) -> Tensor:
    """Matrices [n, size, size] of a Gaussian blur along a line, rows summing to 1. `deviation`: float [n], pixels."""
    pixels = torch.arange(size, device=deviation.device)
    squares = (pixels - pixels[:, None]).square()
    return torch.softmax(squares / (-2 * deviation.square())[:, None, None], dim=2)


def resample(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """rows @ image @ columns^T for each image [3, h, w] of a batch; matrices [n, out, h] and [n, out, w]."""
    count, channels, height, width = images.shape
    lines = images.to(rows.dtype).reshape(count, channels * height, width) @ columns.mT
    return rows[:, None] @ lines.view(count, channels, height, columns.shape[1])


def colour_jitter(images: Tensor, brightness: Tensor, contrast: Tensor, saturation: Tensor) -> Tensor:
    """Scale brightness, then contrast around the mean gray, then saturation around gray, each clamped; factors [n]."""
    each = (slice(None), None, None, None)
    images = (images * brightness[each]).clamp_(max=1)
    mean = _gray(images.mean((2, 3)))
    images = torch.lerp(mean[each], images, contrast[each]).clamp_(0, 1)
    return blend_gray(images, saturation).clamp_(0, 1)


def turn_hue(images: Tensor, turns: Tensor) -> Tensor:
    """Turn the hue of each image, in [0, 1], by a fraction of the full circle; largest and smallest value stay.

    `turns`: float [n]. Equal to torchvision's `adjust_hue`, which takes one number for all images.
    """
    high, low = images.amax(1, keepdim=True), images.amin(1, keepdim=True)
    span = high - low
    red, green, blue = (channel[:, None] for channel in images.unbind(1))
    safe = span.clamp_min(torch.finfo(images.dtype).tiny)
    otherwise = torch.where(high == green, 2 + (blue - red) / safe, 4 + (red - green) / safe)
    sixth = torch.where(high == red, (green - blue) / safe, otherwise)
    offsets = torch.tensor([5.0, 3.0, 1.0], dtype=images.dtype, device=images.device).view(1, 3, 1, 1)
    places = (sixth + 6 * turns.to(images.dtype).view(-1, 1, 1, 1) + offsets) % 6
    return high - span * torch.minimum(places, 4 - places).clamp(0, 1)


def blend_gray(images: Tensor, factor: Tensor) -> Tensor:
    """factor * image + (1 - factor) * gray for each image; factor [n], 0 gives gray."""
    return torch.lerp(_gray(images)[:, None], images, factor[:, None, None, None])


def _gray(images: Tensor) -> Tensor:
    red, green, blue = images.unbind(1)
    return (red * _LUMA[0]).add_(green, alpha=_LUMA[1]).add_(blue, alpha=_LUMA[2])


def _three_augment(images: Tensor, chosen: Tensor) -> Tensor:
    images = blend_gray(images, (chosen != _GRAY).to(images.dtype))
    # From half on the lower of a value and what is left of 1 is the inverted one; what is left of 3 is never lower.
    whole = torch.where(chosen == _SOLARISE, 1.0, 3.0)[:, None, None, None]
    return torch.minimum(images, whole - images)
