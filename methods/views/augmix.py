"""AugMix for many images and views at once, on the device of the images.

Hendrycks et al. 2020, arXiv:1912.02781, with the nine operations of its release that do not overlap with the ImageNet-C
corruptions. Severity and fill colour are by default those of the code released with MEMO (Zhang et al. 2022,
arXiv:2110.09506). Operations work on 8-bit values as PIL's do. All randomness enters as uniform numbers, a fixed count
for each view, so the views of an image depend neither on its batch nor on the device nor on other views.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import grid_sample

Crop = Literal["resized", "padded", "none"]
Fill = tuple[float, float, float]
Operation = Callable[[Tensor, Tensor, Tensor, Fill], Tensor]

CHAINS = 3
DEPTH = 3
# Fill of a shift, shear or rotation: PIL reads the fill colour 128 of MEMO's release as this red; AugMix's has none.
FILL: Fill = (128.0, 0.0, 0.0)
BLACK: Fill = (0.0, 0.0, 0.0)
PADDING = 4

_TRIES = 10
# Columns of the uniform numbers of one view.
_FLIP, _AREAS, _RATIOS, _PLACE, _MIX, _WEIGHTS, _DEPTHS, _OPERATIONS = (
    slice(start, stop)
    for start, stop in [
        (0, 1),
        (1, 11),
        (11, 21),
        (21, 23),
        (23, 24),
        (24, 27),
        (27, 30),
        (30, 30 + 3 * CHAINS * DEPTH),
    ]
)
UNIFORMS = _OPERATIONS.stop


def draw(images: int, views: int, generator: torch.Generator) -> Tensor:
    """Draw uniform numbers for views of images in order: [images, views, UNIFORMS] in [0, 1), on generator.device.

    From a CPU generator, the numbers of an image depend only on how many images came before it.
    """
    return torch.rand(images, views, UNIFORMS, generator=generator, device=generator.device)


@torch.no_grad()
def augmix(
    images: Tensor,
    uniforms: Tensor,
    *,
    crop: Crop = "resized",
    flip: bool = True,
    severity: float = 1.0,
    fill: Fill = FILL,
) -> Tensor:
    """AugMix views of images.

    Args:
        images: float [n, 3, h, w] in [0, 1], rounded to 8 bits first.
        uniforms: [n, views, UNIFORMS] from `draw`.
        crop: what comes before the chains: "resized" (area 0.08-1 and aspect 3/4-4/3, stretched to h x w: ImageNet),
            "padded" (h x w out of the image padded with 4 black pixels: CIFAR), or "none".
        flip: mirror each view with probability one half.
        severity: levels of operations are uniform in [0.1, severity]; at most 10.
        fill: red, green and blue, 0-255, of what a shift, shear or rotation brings in.

    Returns:
        float [n, views, 3, h, w] in [0, 1]: m x0 + (1 - m) sum_i w_i x_i for the cropped view x0, three chains x_i of
        one to three operations, m from Beta(1, 1) and w from Dirichlet(1, 1, 1).
    """
    n, _, height, width = images.shape
    views = uniforms.shape[1]
    rows = uniforms.reshape(n * views, UNIFORMS).cpu().double()
    pixels = images.clamp(0, 1).mul(255).round().float().repeat_interleave(views, dim=0)
    start = _BOXES[crop](pixels, rows, flip)
    chains = _run_chains(start.to(torch.uint8).repeat_interleave(CHAINS, dim=0), rows, severity, fill)
    mixed = _mix(start, chains.view(n * views, CHAINS, 3, height, width), rows)
    return mixed.view(n, views, 3, height, width)


def resized_crops(images: Tensor, uniforms: Tensor, *, flip: bool = True) -> Tensor:
    """Return the views that AugMix starts from for ImageNet: random crops, stretched to h x w, mirrored by half.

    images: float [n, 3, h, w] in [0, 1], rounded to 8 bits first. uniforms: [n, views, UNIFORMS] from `draw`. Returns
    float [n, views, 3, h, w] in [0, 1].
    """
    views = uniforms.shape[1]
    pixels = images.clamp(0, 1).mul(255).round().repeat_interleave(views, dim=0)
    made = _resized(pixels, uniforms.flatten(0, 1).cpu().double(), flip)
    return made.div(255).view(len(images), views, *images.shape[1:])


def _mix(start: Tensor, chains: Tensor, rows: Tensor) -> Tensor:
    # Dirichlet(1, 1, 1) is three exponentials over their sum; one minus a number of [0, 1) is never zero.
    exponentials = -torch.log1p(-rows[:, _WEIGHTS]) + 1e-12
    weights = exponentials / exponentials.sum(1, keepdim=True)
    share = rows[:, _MIX]
    parts = _sent(torch.cat([share, (1 - share) * weights], dim=1).float().div(255), start.device)
    mixed = start * parts[:, 0, None, None, None]
    for chain in range(CHAINS):
        mixed += chains[:, chain].float().mul_(parts[:, chain + 1, None, None, None])
    return mixed.clamp_(0, 1)


def _run_chains(pixels: Tensor, rows: Tensor, severity: float, fill: Fill) -> Tensor:
    """Apply one to three operations in each chain: pixels uint8 [n * CHAINS, 3, h, w], changed in place."""
    depths = _integers(rows[:, _DEPTHS], DEPTH).flatten() + 1
    drawn = rows[:, _OPERATIONS].reshape(-1, DEPTH, 3)
    kinds = _integers(drawn[..., 0], len(OPERATIONS))
    levels = 0.1 + (severity - 0.1) * drawn[..., 1]
    signs = torch.where(drawn[..., 2] > 0.5, -1.0, 1.0)
    for step in range(DEPTH):
        for kind, operation in enumerate(OPERATIONS.values()):
            # Selected on the CPU, where the numbers are: a query to the device would wait for it.
            chosen = torch.nonzero((kinds[:, step] == kind) & (depths > step)).flatten()
            if len(chosen):
                where = _sent(chosen, pixels.device)
                before = pixels.index_select(0, where)
                pixels.index_copy_(0, where, operation(before, levels[chosen, step], signs[chosen, step], fill))
    return pixels


def _sent(values: Tensor, device: torch.device) -> Tensor:
    """Return values of the host on a device; the host does not wait, since CUDA first stages ordinary memory."""
    return values.to(device, non_blocking=True)


def _integers(uniforms: Tensor, count: int) -> Tensor:
    return (uniforms * count).long().clamp_(max=count - 1)


# Operations: uint8 [n, 3, h, w], level float64 [n] in [0.1, 10] and sign float64 [n] (-1 or 1), both on the CPU.


def autocontrast(pixels: Tensor, level: Tensor, sign: Tensor, fill: Fill = FILL) -> Tensor:
    """Stretch each channel's range to 0..255."""
    low, high = pixels.amin((2, 3)).long(), pixels.amax((2, 3)).long()
    return _look_up(pixels, _stretches(pixels.device)[low, high])


@lru_cache(maxsize=4)
def _stretches(device: torch.device) -> Tensor:
    """Return PIL's table for each lowest and highest value, uint8 [256, 256, 256], with its rounding in float64."""
    low = torch.arange(256, dtype=torch.float64).view(256, 1, 1)
    high = torch.arange(256, dtype=torch.float64).view(1, 256, 1)
    values = torch.arange(256, dtype=torch.float64)
    # A tensor, since a number divided by a tensor becomes a product with the reciprocal, which rounds differently.
    scale = torch.full_like(low, 255.0) / (high - low).clamp(min=1)
    stretched = (values * scale + -low * scale).trunc_().clamp_(0, 255)
    return torch.where(high > low, stretched, values).to(torch.uint8).to(device)


def equalize(pixels: Tensor, level: Tensor, sign: Tensor, fill: Fill = FILL) -> Tensor:
    """Flatten each channel's histogram."""
    counts = _histograms(pixels)
    values = torch.arange(256, device=pixels.device)
    last = torch.where(counts > 0, values, 0).amax(-1, keepdim=True)
    step = (counts.sum(-1, keepdim=True) - counts.gather(-1, last)) // 255
    below = counts.cumsum(-1) - counts
    flat = ((step // 2 + below) // step.clamp(min=1)).clamp_(max=255)
    return _look_up(pixels, torch.where(step > 0, flat, values).to(torch.uint8))


def posterize(pixels: Tensor, level: Tensor, sign: Tensor, fill: Fill = FILL) -> Tensor:
    """Keep the 4 - int(0.4 level) highest bits."""
    lowest = 1 << (4 + (0.4 * level).long())
    return pixels & _sent((256 - lowest).to(torch.uint8), pixels.device).view(-1, 1, 1, 1)


def solarize(pixels: Tensor, level: Tensor, sign: Tensor, fill: Fill = FILL) -> Tensor:
    """Invert values of 256 - int(25.6 level) and above."""
    values = torch.arange(256)
    threshold = 256 - (25.6 * level).long()[:, None, None]
    tables = torch.where(values < threshold, values, 255 - values).to(torch.uint8)
    return _look_up(pixels, _sent(tables.expand(-1, pixels.shape[1], -1), pixels.device))


def rotate(pixels: Tensor, level: Tensor, sign: Tensor, fill: Fill = FILL) -> Tensor:
    """Rotate by int(3 level) degrees about the centre, counter-clockwise for a positive sign."""
    height, width = pixels.shape[-2:]
    angle = -torch.deg2rad(sign * (3 * level).long())
    cos, sin = (_sent(part.float(), pixels.device).view(-1, 1, 1) for part in (angle.cos(), angle.sin()))
    x, y = _centres(width, pixels.device) - width / 2, _centres(height, pixels.device).view(-1, 1) - height / 2
    xs, ys = cos * x + sin * y + width / 2, cos * y - sin * x + height / 2
    inside = (xs >= 0) & (xs < width) & (ys >= 0) & (ys < height)
    return _cut(_bilinear(pixels.float(), xs, ys), inside, fill)


def shear_x(pixels: Tensor, level: Tensor, sign: Tensor, fill: Fill = FILL) -> Tensor:
    """Shift each row by 0.03 level times its height."""
    height, width = pixels.shape[-2:]
    slope = _sent((0.03 * level * sign).view(-1, 1, 1), pixels.device)
    shift = slope * (torch.arange(height, device=pixels.device).view(-1, 1) + 0.5)
    whole = shift.floor()
    # A row that is one pixel longer holds both neighbours of every pixel.
    columns = (torch.arange(width + 1, device=pixels.device) + whole.long()).clamp_(0, width - 1)
    rows = torch.arange(height, device=pixels.device).view(-1, 1)
    read = _read(pixels, rows, columns).float()
    xs = torch.arange(width, device=pixels.device) + 0.5 + shift
    between = torch.lerp(read[..., :-1], read[..., 1:], (shift - whole).float()[:, None])
    return _cut(between, (xs >= 0) & (xs < width), fill)


def shear_y(pixels: Tensor, level: Tensor, sign: Tensor, fill: Fill = FILL) -> Tensor:
    """Shift each column by 0.03 level times its distance from the left."""
    height, width = pixels.shape[-2:]
    slope = _sent((0.03 * level * sign).view(-1, 1, 1), pixels.device)
    shift = slope * (torch.arange(width, device=pixels.device) + 0.5)
    whole = shift.floor()
    rows = (torch.arange(height + 1, device=pixels.device).view(-1, 1) + whole.long()).clamp_(0, height - 1)
    columns = torch.arange(width, device=pixels.device)
    read = _read(pixels, rows, columns).float()
    ys = torch.arange(height, device=pixels.device).view(-1, 1) + 0.5 + shift
    between = torch.lerp(read[..., :-1, :], read[..., 1:, :], (shift - whole).float()[:, None])
    return _cut(between, (ys >= 0) & (ys < height), fill)


def translate_x(pixels: Tensor, level: Tensor, sign: Tensor, fill: Fill = FILL) -> Tensor:
    """Shift by int(level * width / 30) pixels along the rows."""
    shift = (sign * (level * pixels.shape[-1] / 30).long()).long()
    return _shifted(pixels, torch.zeros_like(shift), shift, fill)


def translate_y(pixels: Tensor, level: Tensor, sign: Tensor, fill: Fill = FILL) -> Tensor:
    """Shift by int(level * height / 30) pixels along the columns."""
    shift = (sign * (level * pixels.shape[-2] / 30).long()).long()
    return _shifted(pixels, shift, torch.zeros_like(shift), fill)


OPERATIONS: dict[str, Operation] = {
    operation.__name__: operation
    for operation in (
        autocontrast,
        equalize,
        posterize,
        rotate,
        solarize,
        shear_x,
        shear_y,
        translate_x,
        translate_y,
    )
}


def _histograms(pixels: Tensor) -> Tensor:
    """Count each 8-bit value: [n, 3, h, w] -> int64 [n, 3, 256]."""
    n, channels = pixels.shape[:2]
    places = _places(pixels)
    # Not bincount, which on a GPU makes the host wait for the smallest and the largest place.
    counts = torch.zeros(n * channels * 256, dtype=torch.int64, device=pixels.device)
    counts.index_add_(0, places, torch.ones_like(counts[:1]).expand(len(places)))
    return counts.view(n, channels, 256)


def _look_up(pixels: Tensor, tables: Tensor) -> Tensor:
    """Replace each value by its entry in the table of its image and channel, uint8 [n, 3, 256]."""
    return tables.flatten().index_select(0, _places(pixels)).view_as(pixels)


def _places(pixels: Tensor) -> Tensor:
    """Index of each 8-bit value in the tables of all images and channels: [n, 3, h, w] -> int32 [n * 3 * h * w]."""
    n, channels = pixels.shape[:2]
    starts = torch.arange(n * channels, dtype=torch.int32, device=pixels.device).mul_(256).view(n, channels, 1)
    return pixels.flatten(2).int().add_(starts).flatten()


def _read(pixels: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Read pixels at rows and columns (int64, broadcast to [n, h', w']): [n, 3, h, w] -> [n, 3, h', w']."""
    n, channels, _, width = pixels.shape
    places = (rows * width + columns).expand(n, -1, -1)
    read = pixels.flatten(2).gather(2, places.flatten(1)[:, None].expand(-1, channels, -1))
    return read.view(n, channels, *places.shape[1:])


def _cut(values: Tensor, inside: Tensor, fill: Fill) -> Tensor:
    """Truncate values in 0..255 to 8 bits, as PIL does; `fill` outside. Changes float values [n, 3, h, w] in place.

    inside: bool [n, h, w].
    """
    # The addend keeps whole values whole: coordinates in float32 are off by some 1e-5 pixels, times 255 levels.
    # Products, since torch.where is many times slower on CPUs.
    values.add_(0.004).mul_(inside[:, None])
    for channel, level in enumerate(fill):
        if level:
            values[:, channel] += level * ~inside
    return values.to(torch.uint8)


def _shifted(pixels: Tensor, down: Tensor, right: Tensor, fill: Fill) -> Tensor:
    """Read each pixel from whole pixels further down and right, int64 [n] on the CPU; `fill` outside the image."""
    height, width = pixels.shape[-2:]
    rows = torch.arange(height) + down.view(-1, 1)
    columns = torch.arange(width) + right.view(-1, 1)
    # One extra pixel holds the colour; reads outside the image go there.
    last = height * width
    rows = _sent(torch.where((rows >= 0) & (rows < height), rows * width, last), pixels.device)
    columns = _sent(torch.where((columns >= 0) & (columns < width), columns, last), pixels.device)
    places = (rows[:, :, None] + columns[:, None, :]).clamp_(max=last).flatten(1)
    colour = _sent(torch.tensor(fill, dtype=pixels.dtype), pixels.device).view(1, 3, 1).expand(len(pixels), -1, -1)
    read = torch.cat([pixels.flatten(2), colour], dim=2).gather(2, places[:, None].expand(-1, 3, -1))
    return read.view_as(pixels)


def _centres(size: int, device: torch.device) -> Tensor:
    return torch.arange(size, dtype=torch.float32, device=device) + 0.5


def _bilinear(values: Tensor, xs: Tensor, ys: Tensor) -> Tensor:
    """Interpolate values at pixel coordinates (centres at one half), with the edge continued: xs, ys [n, h, w]."""
    height, width = values.shape[-2:]
    grid = torch.stack([xs * (2 / width) - 1, ys * (2 / height) - 1], dim=-1)
    return grid_sample(values, grid, mode="bilinear", padding_mode="border", align_corners=False)


# Crops: float pixels [n, 3, h, w] with whole values 0..255 to the same, and the uniform numbers [n, UNIFORMS] of each.


def _resized(pixels: Tensor, rows: Tensor, flip: bool) -> Tensor:
    top, left, tall, wide = (
        _sent(edge.float(), pixels.device).view(-1, 1) for edge in _boxes(rows, *pixels.shape[-2:])
    )
    height, width = pixels.shape[-2:]
    x = _mirrored(_centres(width, pixels.device), rows, flip, width)
    y = _centres(height, pixels.device)
    # Continue the edges of the box, not the picture beyond them, because the crop comes before the stretch.
    xs = left + (x * wide / width).clamp(min=0.5).minimum(wide - 0.5)
    ys = top + (y * tall / height).clamp(min=0.5).minimum(tall - 0.5)
    # As PIL does: stretch rows, round, then stretch columns; later operations would magnify a wrong level.
    return _stretched(_stretched(pixels, xs, 3), ys, 2)


def _stretched(pixels: Tensor, places: Tensor, dim: int) -> Tensor:
    """Interpolate pixels linearly along one dimension at centre coordinates [n, size] inside the picture."""
    size = pixels.shape[dim]
    shape = [len(pixels), 1, 1, 1]
    shape[dim] = places.shape[1]
    low = (places - 0.5).clamp(0, size - 1).floor()
    share = (places - 0.5 - low).clamp_(0, 1).view(shape)
    wide = list(pixels.shape)
    wide[dim] = places.shape[1]
    one, other = (index.long().view(shape).expand(wide) for index in (low, (low + 1).clamp(max=size - 1)))
    return _nearest_levels(torch.lerp(pixels.gather(dim, one), pixels.gather(dim, other), share))


def _nearest_levels(values: Tensor) -> Tensor:
    # Halves round up, including those that float32 coordinates put just below.
    return (values + 0.504).floor_().clamp_(0, 255)


def _boxes(rows: Tensor, height: int, width: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Draw crops of random area and aspect: the first of ten that fits, or the centre; top, left, height, width."""
    area = height * width * (0.08 + 0.92 * rows[:, _AREAS])
    low, high = math.log(3 / 4), math.log(4 / 3)
    aspect = torch.exp(low + (high - low) * rows[:, _RATIOS])
    wide, tall = torch.sqrt(area * aspect).round(), torch.sqrt(area / aspect).round()
    fits = (wide > 0) & (wide <= width) & (tall > 0) & (tall <= height)
    first = fits.long().argmax(1, keepdim=True)
    found = fits.any(1)
    wide = torch.where(found, wide.gather(1, first).flatten(), min(width, round(height * 4 / 3)))
    tall = torch.where(found, tall.gather(1, first).flatten(), min(height, round(width / (3 / 4))))
    place = rows[:, _PLACE]
    top = torch.where(found, ((height - tall + 1) * place[:, 0]).floor(), ((height - tall) / 2).floor())
    left = torch.where(found, ((width - wide + 1) * place[:, 1]).floor(), ((width - wide) / 2).floor())
    return top, left, tall, wide


def _padded(pixels: Tensor, rows: Tensor, flip: bool) -> Tensor:
    down, right = (_integers(rows[:, _PLACE], 2 * PADDING + 1) - PADDING).unbind(1)
    return _whole(_shifted(pixels, down, right, (0.0, 0.0, 0.0)), rows, flip)


def _whole(pixels: Tensor, rows: Tensor, flip: bool) -> Tensor:
    if not flip:
        return pixels
    mirror = _sent(rows[:, _FLIP] < 0.5, pixels.device).view(-1, 1, 1, 1)
    return torch.where(mirror, pixels.flip(-1), pixels)


def _mirrored(x: Tensor, rows: Tensor, flip: bool, width: int) -> Tensor:
    """Return the column centres to read from, [n, w], counted from the right where a view is flipped."""
    if not flip:
        return x.expand(len(rows), -1)
    mirror = _sent(rows[:, _FLIP] < 0.5, x.device)
    return torch.where(mirror, width - x, x)


_BOXES: dict[Crop, Callable[[Tensor, Tensor, bool], Tensor]] = {"resized": _resized, "padded": _padded, "none": _whole}
