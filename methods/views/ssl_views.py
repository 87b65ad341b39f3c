"""Random views of images, made for a whole batch at once on its own device: crop, flip, 3-Augment, colour jitter.

3-Augment comes from DeiT III (Touvron et al. 2022, arXiv:2204.07118, section 3.2): one of grayscale, solarisation and
blur.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from methods.data_parallel import Share
from methods.identity import component
from methods.views.resample import bicubic_taps, gaussian_taps, weigh_rows

_LUMA = (0.2989, 0.587, 0.114)  # ITU-R 601-2, as PIL and torchvision convert to gray
_ATTEMPTS = 10
_LARGE = 96  # pixels; from this side on, a CPU is faster image by image
_CACHED = 3 * 2**16  # values that a core processes at once, so that they stay in its cache
_GRAY, _SOLARISE, _BLUR = range(3)
_WHOLE = Share()


class Stretched(NamedTuple):
    """What to know of photographs that were stretched to squares: float32 [n] width / height as taken, and the side of
    the views to cut from them, in pixels.
    """

    aspects: Tensor
    side: int


class _Drawn(NamedTuple):
    """The random parameters of each image: tensors [n]; `factors` of brightness, contrast and saturation [3, n]."""

    top: Tensor
    left: Tensor
    high: Tensor
    wide: Tensor
    mirrored: Tensor
    chosen: Tensor
    deviation: Tensor
    factors: Tensor


@component("methods.views.Views")
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

    Of photographs that were stretched to squares, `area` and `ratio` are those of the crop in the photograph as taken.

    Two small matrices resample an image, one for rows and one for columns; they include flip and blur. A GPU processes
    the whole batch at once, a CPU as many images as fit in its cache.
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

    def __call__(
        self,
        images: Tensor,
        generator: torch.Generator,
        share: Share = _WHOLE,
        stretched: Stretched | None = None,
    ) -> Tensor:
        """Return views of a batch on the generator's device, on which the images must be.

        With a `share` of a batch, `images` are those of this process; they get the views that they have in the whole
        batch. `stretched`: how images were stretched, if they were, and the size of their views unless `size` is set.
        """
        count, _, height, width = images.shape
        drawn = self._draw(count, height, width, generator, share, stretched)
        tall, broad = (height, width) if stretched is None else (stretched.side, stretched.side)
        if self.size is not None:
            tall = broad = self.size
        if images.device.type != "cpu":
            return self._together(images, drawn, tall, broad)
        if min(tall, broad) >= _LARGE:
            return self._one_by_one(images, drawn, tall, broad)
        parts = math.ceil(images.numel() / (_CACHED * torch.get_num_threads()))
        size = max(1, math.ceil(count / max(1, parts)))
        own = (_Drawn(*fields) for fields in zip(*(torch.split(field, size, -1) for field in drawn), strict=True))
        made = [self._together(part, of, tall, broad) for part, of in zip(torch.split(images, size), own, strict=True)]
        return torch.cat(made)

    def _together(self, images: Tensor, drawn: _Drawn, tall: int, broad: int) -> Tensor:
        height, width = images.shape[2:]
        rows = resampling(drawn.top, drawn.high, height, tall)
        columns = resampling(drawn.left, drawn.wide, width, broad)
        columns = torch.where(drawn.mirrored[:, None, None], columns.flip(1), columns)
        if self.three_augment:
            # A deviation of a hundredth of a pixel is the identity in float32.
            deviation = torch.where(drawn.chosen == _BLUR, drawn.deviation, 0.01)
            blur = gaussian_blur(deviation, tall)
            rows = blur @ rows
            columns = (blur if broad == tall else gaussian_blur(deviation, broad)) @ columns
        views = resample(images, rows / 255, columns).clamp_(0, 1)
        if self.three_augment:
            views = _three_augment(views, drawn.chosen)
        if self.jitter:
            views = colour_jitter(views, *drawn.factors)
        return views

    def _draw(
        self,
        count: int,
        height: int,
        width: int,
        generator: torch.Generator,
        share: Share,
        stretched: Stretched | None = None,
    ) -> _Drawn:
        draws = torch.rand(6 + 4 * _ATTEMPTS, share.whole(count), generator=generator, device=generator.device)
        draws = share.own(draws, 1)
        flip, choice, sigma, *colours = draws[:6]
        low, high = self.blur
        return _Drawn(
            *crop_boxes(draws[6:], height, width, self.scale, self.ratio, stretched.aspects if stretched else None),
            mirrored=flip < 0.5 if self.flip else torch.zeros_like(flip, dtype=torch.bool),
            chosen=(choice * 3).long(),
            deviation=low + (high - low) * sigma,
            factors=1 + self.jitter * (2 * torch.stack(colours) - 1),
        )

    def _one_by_one(self, images: Tensor, drawn: _Drawn, tall: int, broad: int) -> Tensor:
        """Do the same on a CPU: image by image in its cache and in place, with matrices without their zeros."""
        channels = images.shape[1]
        views = torch.empty(len(images), channels, tall, broad)
        rows, columns = bicubic_taps(drawn.high, tall), bicubic_taps(drawn.wide, broad, drawn.mirrored)
        boxes = torch.stack(drawn[:4], dim=1).int().tolist()
        chosen, deviations = drawn.chosen.tolist(), drawn.deviation.tolist()
        for place, (top, left, high, wide) in enumerate(boxes):
            crop = images[place, :, top : top + high, left : left + wide].permute(2, 0, 1)
            lines = weigh_rows(torch.empty(crop.shape).copy_(crop).flatten(1), columns[place])
            if blurred := self.three_augment and chosen[place] == _BLUR:
                lines = weigh_rows(lines, gaussian_taps(deviations[place], broad))
            lines = weigh_rows(lines.view(broad, channels, high).permute(2, 1, 0).flatten(1), rows[place])
            if blurred:
                lines = weigh_rows(lines, gaussian_taps(deviations[place], tall))
            view = lines.div_(255).clamp_(0, 1).view(tall, channels, broad).transpose(0, 1)
            view = self._coloured(view, chosen[place], *drawn.factors[:, place].tolist())
            torch.clamp(view.expand(channels, -1, -1), 0, 1, out=views[place])
        return views

    def _coloured(self, image: Tensor, chosen: int, brightness: float, contrast: float, saturation: float) -> Tensor:
        """Apply 3-Augment without the blur, and the jitter without its last clamp, to one image [3, h, w], in place.

        A gray image may be returned as its only channel.
        """
        if self.three_augment and chosen == _GRAY:
            image = _gray(image[None])
        elif self.three_augment and chosen == _SOLARISE:
            torch.minimum(image, 1 - image, out=image)
        if self.jitter:
            image.mul_(brightness).clamp_(max=1)
            mean = _gray(image.mean((1, 2)).expand(3)[None])[0]
            torch.add((1 - contrast) * mean, image, alpha=contrast, out=image).clamp_(0, 1)
            torch.lerp(_gray(image.expand(3, -1, -1)[None]), image, saturation, out=image)
        return image


def crop_boxes(
    draws: Tensor,
    height: int,
    width: int,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    aspects: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return top, left, height and width (float [n], whole numbers) of one random crop for each image.

    `draws`: uniform numbers [4 * attempts, n]. The first attempt that fits inside the image is used; if none fits, the
    largest centred crop whose ratio is allowed. `aspects`, float [n]: width / height of photographs that were stretched
    to height x width; the ratio is then that of the crop before stretching.
    """
    area, shape, vertical, horizontal = draws.view(4, -1, draws.shape[1])
    area = height * width * (scale[0] + (scale[1] - scale[0]) * area)
    low, high = math.log(ratio[0]), math.log(ratio[1])
    shape = torch.exp(low + (high - low) * shape)
    if aspects is not None:
        stretch = aspects * (height / width)
        shape = shape / stretch
    wide, tall = torch.sqrt(area * shape).round(), torch.sqrt(area / shape).round()
    fits = (wide > 0) & (wide <= width) & (tall > 0) & (tall <= height)
    first = fits.to(torch.int8).argmax(0, keepdim=True)
    wide, tall, vertical, horizontal = (each.gather(0, first)[0] for each in (wide, tall, vertical, horizontal))
    top, left = (vertical * (height - tall + 1)).floor(), (horizontal * (width - wide + 1)).floor()
    some = fits.any(0)
    fallback_wide: int | Tensor = min(width, round(height * ratio[1]))
    fallback_tall: int | Tensor = min(height, round(width / ratio[0]))
    if aspects is not None:
        fallback_wide = (height * ratio[1] / stretch).round().clamp(max=width)
        fallback_tall = (width / ratio[0] * stretch).round().clamp(max=height)
    return (
        torch.where(some, top, (height - fallback_tall) // 2),
        torch.where(some, left, (width - fallback_wide) // 2),
        torch.where(some, tall, fallback_tall),
        torch.where(some, wide, fallback_wide),
    )


def resampling(
    start: Tensor, length: Tensor, size: int, out: int | None = None, kernel: Literal["cubic", "linear"] = "cubic"
) -> Tensor:
    """Matrices [n, out, size] that stretch the interval [start, start + length) of a line of `size` pixels to `out`.

    Bicubic (Keys 1981, a = -0.5) or bilinear, pixel centres at halves; weights outside the interval are dropped, the
    rest sum to 1. If an interval shrinks, the kernel widens by the same factor, against aliasing. `start` and `length`:
    float [n], whole numbers, length at most `size`; `out` is `size` by default.
    """
    out = size if out is None else out
    pixels = torch.arange(size, device=start.device) + 0.5
    places = pixels if out == size else torch.arange(out, device=start.device) + 0.5
    centres = start[:, None] + places * (length / out)[:, None]
    distance = (pixels - centres[:, :, None]).abs_()
    if out < size:
        distance /= (length / out).clamp(min=1)[:, None, None]
    near = (1 - distance).relu_()
    if kernel == "linear":
        weights = near
    else:
        # The two branches of the kernel as truncated powers: far(x) for x < 2, plus near(x) - far(x) for x < 1.
        far = (2 - distance).relu_()
        weights = far * far * (far - 1) / 2 + near * near * (1 - 2 * near)
    inside = (pixels > start[:, None]) & (pixels < (start + length)[:, None])
    weights = weights * inside[:, None, :]
    return weights / weights.sum(2, keepdim=True)


def gaussian_blur(deviation: Tensor, size: int) -> Tensor:
    """Matrices [n, size, size] of a Gaussian blur along a line, rows summing to 1. `deviation`: float [n], pixels."""
    pixels = torch.arange(size, device=deviation.device)
    squares = (pixels - pixels[:, None]).square()
    return torch.softmax(squares / (-2 * deviation.square())[:, None, None], dim=2)


def resample(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Return rows @ image @ columns^T for each image [3, h, w] of a batch; matrices [n, out, h] and [n, out, w]."""
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
    """Rotate the hue of each image, in [0, 1], by a fraction of the full circle; largest and smallest value stay.

    `turns`: float [n]. Equal to torchvision's `adjust_hue`, which takes one number for all images.
    """
    high, low = images.amax(1, keepdim=True), images.amin(1, keepdim=True)
    span = high - low
    red, green, blue = (channel[:, None] for channel in images.unbind(1))
    safe = span.clamp_min(torch.finfo(images.dtype).tiny)
    otherwise = torch.where(high == green, 2 + (blue - red) / safe, 4 + (red - green) / safe)
    sixth = torch.where(high == red, (green - blue) / safe, otherwise)
    # 5, 3, 1, made on the device: a tensor of given numbers would be copied there, for which the host waits.
    offsets = torch.arange(5, 0, -2, dtype=images.dtype, device=images.device).view(1, 3, 1, 1)
    places = (sixth + 6 * turns.to(images.dtype).view(-1, 1, 1, 1) + offsets) % 6
    return high - span * torch.minimum(places, 4 - places).clamp(0, 1)


def blend_gray(images: Tensor, factor: Tensor) -> Tensor:
    """Return factor * image + (1 - factor) * gray for each image; factor [n], 0 gives gray."""
    return torch.lerp(_gray(images)[:, None], images, factor[:, None, None, None])


def _gray(images: Tensor) -> Tensor:
    red, green, blue = images.unbind(1)
    return (red * _LUMA[0]).add_(green, alpha=_LUMA[1]).add_(blue, alpha=_LUMA[2])


def _three_augment(images: Tensor, chosen: Tensor) -> Tensor:
    images = blend_gray(images, (chosen != _GRAY).to(images.dtype))
    # Solarisation is min(x, 1 - x), which inverts values above one half; min(x, 3 - x) leaves x unchanged.
    whole = torch.where(chosen == _SOLARISE, 1.0, 3.0)[:, None, None, None]
    return torch.minimum(images, whole - images)
