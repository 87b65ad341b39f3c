"""The ten corruptions of ImageNet-C-bar (Mintun et al. 2021, "On interaction between augmentations and corruptions in
natural corruption robustness", arXiv:2102.11273).

A severity is a level of at most 10; `_share` of it scales a corruption's largest strength. Lengths follow the shorter
side S of the image, so an image looks alike at every size. x is a pixel in [0, 1], 255 the unit of published numbers.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from corruptions.kernels import blur
from corruptions.noise import Draws, Size
from corruptions.rng import Stream
from corruptions.tables import Parameters

_TURN = 2 * math.pi
_BURSTS, _FEWEST_RAYS, _MOST_RAYS = 5, 50, 199
_OCTAVES = (1, 2, 4, 8, 16)


def _share(parameters: Parameters) -> float:
    return parameters[0] / 10


def _grid(size: Size, device: torch.device) -> tuple[Tensor, Tensor]:
    """Row and column of the pixels, float32 [h, 1] and [w]."""
    height, width = size
    row = torch.arange(height, dtype=torch.float32, device=device)[:, None]
    return row, torch.arange(width, dtype=torch.float32, device=device)


def _each(draws: Tensor) -> list[Tensor]:
    """The columns of [n, k] as [n, 1, 1] each."""
    return [column[:, None, None] for column in draws.unbind(1)]


def _noise_of_random_phase(uniform: Tensor, power: int) -> Tensor:
    """Real part of the inverse Fourier transform of random phases, unit deviation of each plane [..., h, w].

    The amplitude of r waves along the shorter side is r (power 1) or 1 / (r^2 + 1) (power -2).
    """
    height, width = uniform.shape[-2:]
    half = width // 2 + 1
    amplitude, phase = _amplitude(height, width, power, uniform.device), uniform * _TURN
    spectrum = torch.complex(torch.cos(phase).mul_(amplitude), phase.sin_().mul_(amplitude))
    # The real part has the spectrum (F(k) + conj F(-k)) / 2, of which half is enough.
    opposite = spectrum.roll((-1, -1), (-2, -1)).flip((-2, -1))[..., :half]
    noise: Tensor = torch.fft.irfft2(spectrum[..., :half] + opposite.conj(), s=(height, width))
    # Sums in float64, so that their order, which depends on threads, does not show.
    mean, square = (value.mean((-2, -1), dtype=torch.float64, keepdim=True) for value in (noise, noise.square()))
    return noise.div_((square - mean.square()).clamp_min_(1e-24).sqrt_().float())


@lru_cache(maxsize=16)
def _amplitude(height: int, width: int, power: int, device: torch.device) -> Tensor:
    down = torch.fft.fftfreq(height, dtype=torch.float64)[:, None]
    waves = min(height, width) * torch.hypot(down, torch.fft.fftfreq(width, dtype=torch.float64))
    # A factor changes nothing, as the noise is brought to unit deviation; this one keeps sums near 1.
    amplitude = waves if power == 1 else height * width / (waves.square() + 1)
    return amplitude.float().to(device)


def draw_blue_noise_sample(stream: Stream, size: Size, parameters: Parameters) -> Draws:
    """Phases of the Fourier coefficients as uniforms."""
    return {"phase": stream.uniform(*size)}


def blue_noise_sample(images: Tensor, draws: Draws, parameters: Parameters) -> Tensor:
    """Black where noise of high frequencies does not exceed 3 p - 2.5."""
    noise = _noise_of_random_phase(draws["phase"], 1)
    return images * (noise > 3 * _share(parameters) - 2.5)[:, None]


def draw_brownish_noise(stream: Stream, size: Size, parameters: Parameters) -> Draws:
    """Phases of the Fourier coefficients of every channel as uniforms."""
    return {"phase": stream.uniform(3, *size)}


def brownish_noise(images: Tensor, draws: Draws, parameters: Parameters) -> Tensor:
    """x + 64 p noise of low frequencies, independent per channel."""
    noise = _noise_of_random_phase(draws["phase"], -2)
    return torch.add(images, noise, alpha=64 / 255 * _share(parameters)).clamp_(0, 1)


def draw_caustic_refraction(stream: Stream, size: Size, parameters: Parameters) -> Draws:
    """Two uniforms: time and size of the caustic."""
    return {"uniform": stream.uniform(2)}


def caustic_refraction(images: Tensor, draws: Draws, parameters: Parameters) -> Tensor:
    """The image bent and lit by the slopes of a caustic, as seen through rippled water.

    The light of the caustic, smoothed, is a surface; a ray from above is refracted by it with the index 4 and meets
    the image p S / 2 further down. The slopes, times 2 p, are added as light. Outside of the image all is black.
    """
    height, width = images.shape[-2:]
    side, share = min(height, width), _share(parameters)
    time, extent = _each(draws["uniform"])
    light = _caustic((height, width), 0.5 + 1.5 * time, (0.75 + 0.5 * extent) * side)
    around = F.pad(blur(light[:, None], 1.0)[:, 0], (1, 1, 1, 1))
    down = around[:, 2:, 1:-1] - around[:, :-2, 1:-1]
    across = around[:, 1:-1, 2:] - around[:, 1:-1, :-2]

    cosine = torch.rsqrt(1 + down.square() + across.square())
    bent = (1 - (1 - cosine.square()) / 16).sqrt_() - cosine / 4
    # A surface that is almost level lets rays through straight.
    reach = (bent * cosine * (share * side / 2)).where(cosine < 1 - 1e-3, 0)
    row, column = _grid((height, width), images.device)
    x = (2 * (column + reach * across) + 1) / width - 1
    y = (2 * (row + reach * down) + 1) / height - 1
    seen = F.grid_sample(images, torch.stack([x, y], -1), mode="bilinear", padding_mode="zeros", align_corners=False)
    return seen.add_(((down - across) * (2 * share))[:, None]).clamp_(0, 1)


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
    """Uniforms: angle and the two sides of a cell, then one for every cell that may lie in the image."""
    furthest = math.ceil(math.hypot(*size) / (0.1 * min(size))) + 1
    return {"uniform": stream.uniform(3), "cell": stream.uniform(2 * furthest, 2 * furthest)}


def checkerboard_cutout(images: Tensor, draws: Draws, parameters: Parameters) -> Tensor:
    """A turned checkerboard of cells of S / 10 to S / 4, of whose black ones a share of p is grey, 128."""
    n, _, height, width = images.shape
    angle, down, across = _each(draws["uniform"])
    row, column = _grid((height, width), images.device)
    sine, cosine = torch.sin(angle * _TURN), torch.cos(angle * _TURN)
    side = min(height, width)
    i = ((row * cosine + column * sine) / ((0.1 + 0.15 * down) * side)).floor_().int()
    j = ((column * cosine - row * sine) / ((0.1 + 0.15 * across) * side)).floor_().int()
    # Only where both are odd or both are even is a cell black; 1 is never below a share.
    count = draws["cell"].shape[-1]
    black = (torch.arange(count, device=images.device)[:, None] + torch.arange(count, device=images.device)) % 2 == 0
    cells = draws["cell"].where(black, 1) < _share(parameters)
    place = i.add_(count // 2).mul_(count).add_(j).add_(count // 2)
    grey = cells.flatten(1).gather(1, place.flatten(1).long()).view(n, 1, height, width)
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
    distance = torch.hypot(down, across) + torch.sin(torch.atan2(across, down) * (waves * 10)) * (tall * side / 10)
    ring = (ring * side / 10).clamp_min(1e-4)
    saw = distance.remainder(ring).div_(ring).sub_(0.5)
    return torch.add(images, saw[:, None], alpha=128 / 255 * _share(parameters)).clamp_(0, 1)


def _burst(size: Size, centre: Tensor, rays: Tensor, length: Tensor, power: float) -> Tensor:
    """Light in [0, 1] of a star burst, [n, h, w]: rays that fade with (length / distance)^(2 power).

    centre: pixels [n, 2]; rays: how many, int64 [n]; length: pixels [n, `_MOST_RAYS`], of which so many count.
    """
    row, column = _grid(size, centre.device)
    down, across = row - centre[:, :1, None], column - centre[:, 1:, None]
    number = rays[:, None, None]
    place = (torch.atan2(across, down) / _TURN + 0.5).mul_(number)
    first = place.floor()
    between = place - first
    ray = first.long() % number
    near, far = (length.gather(1, (ray + step).flatten(1) % rays[:, None]).view_as(place) for step in (0, 1))
    reached = torch.lerp(near, far, between).square_() / (down.square() + across.square() + 1e-4)
    if power != 1:
        reached.pow_(power)
    return reached.mul_(1 - (between - 0.5).square_()).clamp_(0, 1)


def _draw_bursts(stream: Stream, bursts: int) -> Draws:
    return {"uniform": stream.uniform(bursts, 3), "normal": stream.normal(bursts, _MOST_RAYS)}


def _rays(draws: Draws, radius: float) -> tuple[Tensor, Tensor]:
    """Numbers of rays, and their lengths about a radius: a quarter of it is their deviation, a pixel the least."""
    rays = _FEWEST_RAYS + (draws["uniform"][..., 2] * (_MOST_RAYS + 1 - _FEWEST_RAYS)).long()
    return rays, (radius * (1 + draws["normal"] / 4)).clamp_(min=1)


def draw_sparkles(stream: Stream, size: Size, parameters: Parameters) -> Draws:
    """Of five bursts: uniforms (row and column of the centre, number of rays) and normals (lengths of rays)."""
    return _draw_bursts(stream, _BURSTS)


def sparkles(images: Tensor, draws: Draws, parameters: Parameters) -> Tensor:
    """Five white bursts of 50 to 199 rays of about p S / 10."""
    height, width = images.shape[-2:]
    rays, length = _rays(draws, _share(parameters) * min(height, width) / 10)
    centre = draws["uniform"][..., :2] * torch.tensor([height, width], device=images.device)
    dark = torch.ones(len(images), height, width, device=images.device)
    for burst in range(_BURSTS):
        dark *= 1 - _burst((height, width), centre[:, burst], rays[:, burst], length[:, burst], 1.0)
    return 1 - (1 - images) * dark[:, None]


def draw_inverse_sparkles(stream: Stream, size: Size, parameters: Parameters) -> Draws:
    """Of one burst: uniforms (row and column of the centre, number of rays) and normals (lengths of rays)."""
    return _draw_bursts(stream, 1)


def inverse_sparkles(images: Tensor, draws: Draws, parameters: Parameters) -> Tensor:
    """All but a burst of rays of about S / 4 fades to white, the faster the higher the level."""
    height, width = images.shape[-2:]
    rays, length = _rays(draws, min(height, width) / 4)
    centre = (0.25 + 0.5 * draws["uniform"][:, 0, :2]) * torch.tensor([height, width], device=images.device)
    light = _burst((height, width), centre, rays[:, 0], length[:, 0], 65 / 50 * _share(parameters))
    return 1 - (1 - images) * light[:, None]


def draw_perlin_noise(stream: Stream, size: Size, parameters: Parameters) -> Draws:
    """Directions of the gradients on the finest lattice, in turns, as uniforms."""
    return {"angle": stream.uniform(*(math.floor((length - 1) / _finest(size)) + 2 for length in size))}


def _finest(size: Size) -> float:
    """Side of a cell of the finest octave in pixels: 2 of 224."""
    return 32 * min(size) / 224 / _OCTAVES[-1]


def perlin_noise(images: Tensor, draws: Draws, parameters: Parameters) -> Tensor:
    """Blended, by p / 2, with white turbulence: the sum of |Perlin noise| / f over the octaves f, halved, plus a half.

    A pixel's noise sums, over the corners of its cell, fade times offset times gradient: a product of matrices.
    """
    height, width = images.shape[-2:]
    finest = _finest((height, width))
    angle = draws["angle"] * _TURN
    down, across = torch.cos(angle), torch.sin(angle)
    turbulence = torch.zeros(len(images), height, width, device=images.device)
    for octave in _OCTAVES:
        fade_y, slope_y = _lattice(height, finest * _OCTAVES[-1] / octave, images.device)
        fade_x, slope_x = _lattice(width, finest * _OCTAVES[-1] / octave, images.device)
        rows, columns = fade_y.shape[1], fade_x.shape[1]
        noise = slope_y @ down[:, :rows, :columns] @ fade_x.T
        noise += fade_y @ across[:, :rows, :columns] @ slope_x.T
        turbulence.add_(noise.abs_(), alpha=1 / octave)
    share = _share(parameters) / 2
    return torch.add(images * (1 - share), turbulence.add_(1)[:, None], alpha=share / 2).clamp_(0, 1)


@lru_cache(maxsize=64)
def _lattice(length: int, cell: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """Perlin's fade of every pixel to every lattice line, and fade times offset: float32 [length, lines]."""
    place = torch.arange(length, dtype=torch.float64) / cell
    line = place.floor()
    part = place - line
    fade = ((6 * part - 15) * part + 10) * part**3
    pixel, index = torch.arange(length), line.long()
    fades = torch.zeros(length, int(line[-1]) + 2, dtype=torch.float64)
    slopes = torch.zeros_like(fades)
    for step, weight in ((0, 1 - fade), (1, fade)):
        fades[pixel, index + step] = weight
        slopes[pixel, index + step] = weight * (part - step)
    return fades.float().to(device), slopes.float().to(device)


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
    share = 64 / 255 * _share(parameters)
    return torch.add(images * (1 - share), noise, alpha=share).clamp_(0, 1)


def draw_single_frequency_greyscale(stream: Stream, size: Size, parameters: Parameters) -> Draws:
    """Uniforms: one frequency, the other as a part of it, phase, which of them is across."""
    return {"uniform": stream.uniform(4)}


def single_frequency_greyscale(images: Tensor, draws: Draws, parameters: Parameters) -> Tensor:
    """x + 196 p sin(f X + g Y + phase): one frequency is uniform in [-pi, pi), the other no larger, in random order."""
    larger, other, phase, order = _each(draws["uniform"].double())
    larger = (2 * larger - 1) * math.pi
    other = (2 * other - 1) * larger.abs()
    row, column = _grid((images.shape[-2], images.shape[-1]), images.device)
    down = row.double() * torch.where(order < 0.5, other, larger) + phase * _TURN
    across = column.double() * torch.where(order < 0.5, larger, other)
    # sin(a + b) as a product of two thin matrices needs no sine of a pixel.
    left = torch.cat([down.sin(), down.cos()], 2).float()
    right = torch.cat([across.cos(), across.sin()], 1).float()
    return torch.add(images, (left @ right)[:, None], alpha=196 / 255 * _share(parameters)).clamp_(0, 1)
