"""The ten corruptions of ImageNet-C-bar (Mintun et al. 2021, arXiv:2102.11273).

The paper is "On interaction between augmentations and corruptions in natural corruption robustness". A severity is a
level of at most 10; `_share` of it scales a corruption's largest strength. Lengths are relative to the shorter side S
of the image, so an image looks alike at every size. x is a pixel in [0, 1], 255 the unit of published numbers.
Everything is computed in float64, as in the published code: in float32 a value may truncate to another level.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from corruptions.kernels import blur, half_mirror, levels_of, unit_of
from corruptions.noise import Draws, Size
from corruptions.rng import Stream
from corruptions.tables import Parameters

_TURN = 2 * math.pi
_BURSTS, _FEWEST_RAYS, _MOST_RAYS = 5, 50, 199
_OCTAVES, _GRADIENTS = (1, 2, 4, 8, 16), 256


def _share(parameters: Parameters) -> float:
    return parameters[0] / 10


def _grid(size: Size, device: torch.device) -> tuple[Tensor, Tensor]:
    """Row and column of the pixels, float64 [h, 1] and [w]."""
    height, width = size
    row = torch.arange(height, dtype=torch.float64, device=device)[:, None]
    return row, torch.arange(width, dtype=torch.float64, device=device)


def _each(draws: Tensor) -> list[Tensor]:
    """The columns of [n, k] as float64 [n, 1, 1] each."""
    return [column[:, None, None] for column in draws.double().unbind(1)]


def _draw_phases(stream: Stream, planes: tuple[int, ...], size: Size) -> Draws:
    height, width = size
    phases = stream.uniform(*planes, height, width // 2)
    # The middle column of an odd width is its own mirror image.
    return {"phase": phases, "middle": stream.uniform(*planes, height // 2 if width % 2 else 0)}


def _noise_of_random_phase(draws: Draws, size: Size, power: int) -> Tensor:
    """Real part of the inverse Fourier transform of random phases, unit deviation: float64 [..., h, w].

    The amplitude at a distance of r waves along the shorter side is r (power 1) or 1 / (r^2 + 1) (power -2). The right
    half of the phases is the left one turned round, as published, which makes the noise all but point-symmetric.
    """
    height, width = size
    left = draws["phase"].double() * _TURN
    left = torch.complex(left.cos(), left.sin())
    parts = [left, left.flip((-2, -1))]
    if width % 2:
        half = draws["middle"].double()[..., None] * _TURN
        half = torch.complex(half.cos(), half.sin())
        centre = half.new_ones(*half.shape[:-2], height % 2, 1)
        parts.insert(1, torch.cat([half, centre, half.flip(-2)], -2))
    amplitude = _amplitude(height, width, power, left.device)
    spectrum = torch.cat(parts, -1).mul_(amplitude).roll((height // 2, width // 2), (-2, -1))
    noise = torch.fft.ifft2(spectrum).real
    deviation: Tensor = noise.std((-2, -1), correction=0, keepdim=True)
    unit: Tensor = noise / deviation.clamp_min(1e-12)
    return unit


@lru_cache(maxsize=16)
def _amplitude(height: int, width: int, power: int, device: torch.device) -> Tensor:
    """Amplitudes float64 [h, w] of a spectrum about (h / 2, w / 2), which lies between pixels where a side is odd."""
    side = min(height, width)
    down = (torch.arange(height, dtype=torch.float64) - height / 2)[:, None] * (side / height)
    across = (torch.arange(width, dtype=torch.float64) - width / 2) * (side / width)
    waves = torch.hypot(down, across)
    return (waves if power == 1 else 1 / (waves.square() + 1)).to(device)


def draw_blue_noise_sample(stream: Stream, size: Size, parameters: Parameters) -> Draws:
    """Phases of half of the Fourier coefficients as uniforms."""
    return _draw_phases(stream, (), size)


def blue_noise_sample(images: Tensor, draws: Draws, parameters: Parameters) -> Tensor:
    """Black where noise of high frequencies does not exceed 3 p - 2.5."""
    noise = _noise_of_random_phase(draws, (images.shape[-2], images.shape[-1]), 1)
    kept: Tensor = images * (noise > 3 * _share(parameters) - 2.5)[:, None]
    return kept


def draw_brownish_noise(stream: Stream, size: Size, parameters: Parameters) -> Draws:
    """Phases of half of the Fourier coefficients of every channel as uniforms."""
    return _draw_phases(stream, (3,), size)


def brownish_noise(images: Tensor, draws: Draws, parameters: Parameters) -> Tensor:
    """x + 64 p noise of low frequencies, independent per channel."""
    noise = _noise_of_random_phase(draws, (images.shape[-2], images.shape[-1]), -2)
    return unit_of(levels_of(images) + noise * (64 * _share(parameters)))


def draw_caustic_refraction(stream: Stream, size: Size, parameters: Parameters) -> Draws:
    """Two uniforms: time and size of the caustic."""
    return {"uniform": stream.uniform(2)}


def caustic_refraction(images: Tensor, draws: Draws, parameters: Parameters) -> Tensor:
    """The image refracted and lit by the slopes of a caustic, as seen through rippled water.

    The light of the caustic, smoothed, is a surface; it refracts a ray from above with the index 4, and the ray meets
    the image p S / 2 further down. The slopes, times 2 p, are added as light. Outside of the image all is black.
    """
    height, width = images.shape[-2:]
    side, share = min(height, width), _share(parameters)
    time, extent = _each(draws["uniform"])
    light = _caustic((height, width), 0.5 + 1.5 * time, (0.75 + 0.5 * extent) * side)
    around = F.pad(blur(light[:, None], 1.0, border=half_mirror)[:, 0], (1, 1, 1, 1))
    down = around[:, 2:, 1:-1] - around[:, :-2, 1:-1]
    across = around[:, 1:-1, 2:] - around[:, 1:-1, :-2]

    cosine = torch.rsqrt(1 + down.square() + across.square())
    bent = (1 - (1 - cosine.square()) / 16).sqrt_() - cosine / 4
    # A surface that is almost level lets rays through straight. Reaches are rounded to thousandths of a pixel.
    reach = (bent * cosine * (share * side / 2)).where(cosine < 1 - 1e-3, 0)
    row, column = _grid((height, width), images.device)
    seen = _seen_at(images, row + (reach * down).round(decimals=3), column + (reach * across).round(decimals=3))
    lit = (down - across) * (2 * share)
    return unit_of((seen + lit[:, None]).clamp_(0, 1) * 255)


def _seen_at(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Bilinear values of [n, 3, h, w] at rows and columns [n, h, w], black outside: float64 [n, 3, h, w]."""
    n, channels, height, width = images.shape
    framed = F.pad(images, (1, 1, 1, 1)).flatten(2).double()
    top, left = rows.floor(), columns.floor()
    below, right = rows - top, columns - left
    seen = images.new_zeros(images.shape, dtype=torch.float64)
    for i, vertical in ((0, 1 - below), (1, below)):
        for j, horizontal in ((0, 1 - right), (1, right)):
            y, x = (top + (i + 1)).clamp(0, height + 1), (left + (j + 1)).clamp(0, width + 1)
            place = (y * (width + 2) + x).long().view(n, 1, -1).expand(-1, channels, -1)
            seen += framed.gather(2, place).view_as(images) * (vertical * horizontal)[:, None]
    return seen


def _caustic(size: Size, time: Tensor, extent: Tensor) -> Tensor:
    """Light [n, h, w] in [0, 1] of the tileable water caustic (D. Hoskins 2014) that repeats every `extent` pixels."""
    row, column = _grid(size, time.device)
    y, x = ((axis / extent % 1) * _TURN - 250 for axis in (row, column))
    at_y, at_x, light = y, x, torch.ones_like(time)
    for step in range(1, 6):
        t = time * (1 - 3.5 / step)
        at_y, at_x = (
            y + torch.cos(t - at_y) + torch.sin(t + at_x),
            x + torch.sin(t - at_x) + torch.cos(t + at_y),
        )
        light = light + 1 / torch.hypot(y * 0.005 / torch.sin(at_y + t), x * 0.005 / torch.cos(at_x + t))
    return (1.17 - (light / 5) ** 1.4).abs().pow_(8).clamp_(0, 1)


def draw_checkerboard_cutout(stream: Stream, size: Size, parameters: Parameters) -> Draws:
    """Uniforms: angle and side of a cell, then one for every cell that may lie in the image."""
    furthest = math.ceil(math.hypot(*size) / (0.1 * min(size))) + 1
    return {"uniform": stream.uniform(2), "cell": stream.uniform(2 * furthest, 2 * furthest)}


def checkerboard_cutout(images: Tensor, draws: Draws, parameters: Parameters) -> Tensor:
    """A rotated checkerboard of square cells of S / 10 to S / 4; a share p of its black cells is grey, 128.

    As published, cell numbers are truncated towards zero, so the cells on both sides of an axis share one draw.
    """
    height, width = images.shape[-2:]
    angle, extent = _each(draws["uniform"])
    row, column = _grid((height, width), images.device)
    sine, cosine = torch.sin(angle * _TURN), torch.cos(angle * _TURN)
    side = ((0.1 + 0.15 * extent) * min(height, width)).clamp_min(1)
    along, aside = (cosine * row + sine * column) / side, (-sine * row + cosine * column) / side
    black = along.remainder(2).floor_() == aside.remainder(2).floor_()
    count = draws["cell"].shape[-1]
    cells = (draws["cell"] < _share(parameters)).flatten(1)
    place = (along.trunc_() + count // 2).mul_(count).add_(aside.trunc_()).add_(count // 2)
    grey = (cells.gather(1, place.flatten(1).long()).view_as(black) & black)[:, None]
    return images.masked_fill(grey, 128 / 255)


def draw_cocentric_sine_waves(stream: Stream, size: Size, parameters: Parameters) -> Draws:
    """Uniforms: row and column of the centre, waves in a turn, their height, width of a ring."""
    return {"uniform": stream.uniform(5)}


def cocentric_sine_waves(images: Tensor, draws: Draws, parameters: Parameters) -> Tensor:
    """x + 128 p (((r + A sin(f angle)) mod w) / w - 1/2): rings round a random centre, f to 10, A and w to S / 10."""
    height, width = images.shape[-2:]
    side = min(height, width)
    top, left, waves, tall, ring = _each(draws["uniform"])
    row, column = _grid((height, width), images.device)
    down, across = row - top * height, column - left * width
    angle = torch.atan2(across, down) * (waves * 10)
    distance = (down.square() + across.square()).sqrt_() + torch.sin(angle) * (tall * (side / 10))
    ring = (ring * (side / 10)).clamp_min(1e-4)
    saw = distance.remainder(ring).div_(ring).sub_(0.5)
    return unit_of(levels_of(images) + (saw * (128 * _share(parameters)))[:, None])


def _burst(size: Size, centre: Tensor, rays: Tensor, length: Tensor, power: float) -> Tensor:
    """Light in [0, 1] of a star burst, [n, h, w]: rays that fade with (length / distance)^(2 power).

    centre: pixels [n, 2]; rays: how many, int64 [n]; length: pixels [n, `_MOST_RAYS`], of which so many count.
    """
    row, column = _grid(size, centre.device)
    down, across = row - centre[:, :1, None], column - centre[:, 1:, None]
    number = rays[:, None, None]
    place = (torch.atan2(across, down) + math.pi).div_(_TURN).mul_(number)
    first = place.floor()
    between = place - first
    ray = first.long() % number
    near, far = (length.gather(1, (ray + step).flatten(1) % rays[:, None]).view_as(place) for step in (0, 1))
    reached = (near + between * (far - near)).square_() / (down.square() + across.square() + 1e-4)
    if power != 1:
        reached.pow_(power)
    return reached.mul_(1 - (between - 0.5).square_()).clamp_(0, 1)


def _draw_bursts(stream: Stream, bursts: int) -> Draws:
    return {"uniform": stream.uniform(bursts, 3), "normal": stream.normal(bursts, _MOST_RAYS)}


def _rays(draws: Draws, radius: float) -> tuple[Tensor, Tensor]:
    """Numbers of rays, and their lengths about a radius, float64: a quarter of it is their deviation."""
    rays = _FEWEST_RAYS + (draws["uniform"][..., 2] * (_MOST_RAYS + 1 - _FEWEST_RAYS)).long()
    return rays, radius + 0.25 * radius * draws["normal"].double()


def draw_sparkles(stream: Stream, size: Size, parameters: Parameters) -> Draws:
    """Of five bursts: uniforms (row and column of the centre, number of rays) and normals (lengths of rays)."""
    return _draw_bursts(stream, _BURSTS)


def sparkles(images: Tensor, draws: Draws, parameters: Parameters) -> Tensor:
    """Five white bursts of 50 to 199 rays of about p S / 10, a pixel at least."""
    height, width = images.shape[-2:]
    rays, length = _rays(draws, _share(parameters) * 0.1 * min(height, width))
    centre = draws["uniform"][..., :2].double() * torch.tensor([height, width], device=images.device)
    levels = levels_of(images)
    for burst in range(_BURSTS):
        light = _burst((height, width), centre[:, burst], rays[:, burst], length[:, burst].clamp_min(1), 1.0)
        # Each burst is laid over a picture in float32, as published.
        levels = levels.float().double()
        levels += light[:, None] * (255 - levels)
    return unit_of(levels)


def draw_inverse_sparkles(stream: Stream, size: Size, parameters: Parameters) -> Draws:
    """Of one burst: uniforms (row and column of the centre, number of rays) and normals (lengths of rays)."""
    return _draw_bursts(stream, 1)


def inverse_sparkles(images: Tensor, draws: Draws, parameters: Parameters) -> Tensor:
    """All but a burst of rays of about S / 4 fades to white, the faster the higher the level."""
    height, width = images.shape[-2:]
    rays, length = _rays(draws, 0.25 * min(height, width))
    centre = (0.25 + 0.5 * draws["uniform"][:, 0, :2].double()) * torch.tensor([height, width], device=images.device)
    power = (100 - (100 - 65 * _share(parameters))) / 50
    light = _burst((height, width), centre, rays[:, 0], length[:, 0], power)
    return unit_of(255 + light[:, None] * (levels_of(images) - 255))


def draw_perlin_noise(stream: Stream, size: Size, parameters: Parameters) -> Draws:
    """Uniforms: two for each of 256 gradients, and one for each whose order shuffles the gradients."""
    return {"slope": stream.uniform(_GRADIENTS, 2), "order": stream.uniform(_GRADIENTS)}


def perlin_noise(images: Tensor, draws: Draws, parameters: Parameters) -> Tensor:
    """Blended, by p / 2, with white turbulence: the sum of |Perlin noise| / f over the octaves f, halved, plus a half,
    at most 1.

    Gradients are points of a square, not of a circle, brought to length 1; where Perlin's original has a factor of
    1.5, so has this. A pixel's noise sums, over the corners of its cell, fade times offset times gradient: a product of
    matrices. A gradient of length 0 (one of 2^18, in which the published code divides by zero) stays 0.
    """
    height, width = images.shape[-2:]
    cell = 32 * min(height, width) / 224
    whole = (draws["slope"].double() * (2 * _GRADIENTS)).floor_().sub_(_GRADIENTS).div_(_GRADIENTS)
    slope = whole / whole.square().sum(-1, keepdim=True).sqrt_().clamp_min(1e-9)
    order = draws["order"].argsort(dim=1, stable=True)
    turbulence = torch.zeros(len(images), height, width, dtype=torch.float64, device=images.device)
    for octave in _OCTAVES:
        fade_y, offset_y = _lattice(height, octave, cell, images.device)
        fade_x, offset_x = _lattice(width, octave, cell, images.device)
        rows, columns = (torch.arange(fade.shape[1], device=images.device) for fade in (fade_y, fade_x))
        # Perlin's hash: the place of a row in the order, and from there so many columns on.
        place = order[:, rows % _GRADIENTS, None].add(columns).remainder_(_GRADIENTS).flatten(1)
        chosen = order.gather(1, place)
        down, across = (axis.gather(1, chosen).view(-1, len(rows), len(columns)) for axis in slope.unbind(-1))
        noise = offset_y @ down @ fade_x.T
        noise += fade_y @ across @ offset_x.T
        turbulence.add_(noise.abs_(), alpha=1.5 / octave)
    share = 0.5 * _share(parameters)
    white = turbulence.mul_(0.5).add_(0.5).clamp_(0, 1).mul_(255 * share)
    # The image is paler in float32, as published.
    paler = levels_of(images).float().mul_(1 - share)
    return unit_of(paler.double() + white[:, None])


@lru_cache(maxsize=64)
def _lattice(length: int, octave: int, cell: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """Perlin's fade of every pixel to every lattice line, and fade times offset: float64 [length, lines]."""
    # As published, counted from 4096, which leaves fewer bits for what lies behind the point.
    place = torch.arange(length, dtype=torch.float64) * (1 / cell) * octave + 4096
    line = place.floor()
    part = place - line
    line -= 4096
    fade = part.square() * (3 - 2 * part)
    pixel, index = torch.arange(length), line.long()
    fades = torch.zeros(length, int(line[-1]) + 2, dtype=torch.float64)
    offsets = torch.zeros_like(fades)
    for step, weight in ((0, 1 - fade), (1, fade)):
        fades[pixel, index + step] = weight
        offsets[pixel, index + step] = weight * (part - step)
    return fades.to(device), offsets.to(device)


def draw_plasma_noise(stream: Stream, size: Size, parameters: Parameters) -> Draws:
    """Uniforms: time, number of warps, sharpness, scale."""
    return {"uniform": stream.uniform(4)}


def plasma_noise(images: Tensor, draws: Draws, parameters: Parameters) -> Tensor:
    """(1 - 64 p / 255) x + 64 p noise: a sine of positions that sines have warped 4 to 6 times, another per channel."""
    row, column = _grid((images.shape[-2], images.shape[-1]), images.device)
    time, warps, sharpness, scale = _each(draws["uniform"])
    time, warps, sharpness = 3 * _TURN * time, 4 + (3 * warps).floor(), 0.5 + 0.5 * sharpness
    extent = (0.075 + 0.125 * scale) * min(images.shape[-2:])
    y, x = row / extent, column / extent
    for warp in range(6):
        reach = (warp < warps) / (2.25 - sharpness) ** warp
        along = torch.cos(y * 1.93**warp + time / 1.15**warp) * reach
        aside = torch.sin(x * 1.93**warp + time / 1.15**warp) * reach
        x, y = x + (along - 0.3 * aside), y + (aside + 0.3 * along)
    noise = torch.stack([torch.sin(x - time), torch.sin((x + y + torch.sin(time)) * 0.5), torch.sin(y + time)], 1)
    strength = 64 * _share(parameters)
    return unit_of((1 - strength / 255) * levels_of(images) + strength * noise)


def draw_single_frequency_greyscale(stream: Stream, size: Size, parameters: Parameters) -> Draws:
    """Uniforms: one frequency, the other as a part of it, phase, which of them is across."""
    return {"uniform": stream.uniform(4)}


def single_frequency_greyscale(images: Tensor, draws: Draws, parameters: Parameters) -> Tensor:
    """x + 196 p sin(f X + g Y + phase): one frequency is uniform in [-pi, pi), the other no larger, in random order."""
    larger, other, phase, order = _each(draws["uniform"])
    larger = (2 * larger - 1) * math.pi
    other = (2 * other - 1) * larger.abs()
    row, column = _grid((images.shape[-2], images.shape[-1]), images.device)
    down = row * torch.where(order < 0.5, other, larger) + phase * _TURN
    across = column * torch.where(order < 0.5, larger, other)
    # sin(a + b) as a product of two thin matrices needs no sine of a pixel.
    left = torch.cat([down.sin(), down.cos()], 2)
    right = torch.cat([across.cos(), across.sin()], 1)
    return unit_of(levels_of(images) + ((left @ right) * (196 * _share(parameters)))[:, None])
