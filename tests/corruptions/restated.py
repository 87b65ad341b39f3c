"""LAION-C and ImageNet-C-bar told once more, slowly: one image at a time and pixel by pixel, as the published scripts.

A function takes an image in levels (float64 [h, w, 3]), the draws of this image, the parameters of a severity and, for
mosaic and stickers, the tiles (uint8 [n, side, side, 3]). It gives levels before truncation.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

Array = npt.NDArray[Any]
Draws = dict[str, Array]
Settings = tuple[float, ...]


def scaled(length: float, image: Array) -> int:
    return max(1, round(length * min(image.shape[:2]) / 224))


def counted(count: float, image: Array) -> int:
    return round(count * max(image.shape[:2]) / min(image.shape[:2]))


def pixels(image: Array) -> Iterator[tuple[int, int]]:
    for y in range(image.shape[0]):
        for x in range(image.shape[1]):
            yield y, x


def clipped(image: Array) -> Array:
    result: Array = np.clip(image, 0, 255)
    return result


def luminance_checkerboard(image: Array, draws: Draws, settings: Settings) -> Array:
    low, high = settings
    side = scaled(14, image)
    out = image.copy()
    for i in range(math.ceil(image.shape[0] / side)):
        for j in range(math.ceil(image.shape[1] / side)):
            shift = low + (high - low) * draws["uniform"][i, j]
            out[i * side : (i + 1) * side, j * side : (j + 1) * side] += shift * (-1) ** (i + j)
    return clipped(out)


def stickers(image: Array, draws: Draws, settings: Settings, tiles: Array) -> Array:
    """As the script does it, which lists all free corners anew for every sticker but never marks one as taken."""
    side, count = scaled(16, image), counted(settings[0], image)
    rows, columns = (max(length - side, 1) for length in image.shape[:2])
    out = image.copy()
    for k in range(count):
        row, column, which = draws["uniform"][:, k]
        corners = [(i, j) for i in range(rows) for j in range(columns)]
        top, left = corners[int(row * rows) * columns + int(column * columns)]
        out[top : top + side, left : left + side] = tiles[int(which * len(tiles))]
    return out


def geometric_shapes(image: Array, draws: Draws, settings: Settings) -> Array:
    height, width = image.shape[:2]
    picture = Image.fromarray(image.astype(np.uint8))
    draw = ImageDraw.Draw(picture)
    sizes = [scaled(size, image) for size in range(6, 16)]
    for k in range(counted(settings[0], image)):
        kind, row, column, size, *colour, turn = draws["uniform"][:, k]
        x, y, s = int(column * width), int(row * height), sizes[int(size * 10)]
        fill = tuple(int(part * 256) for part in colour)
        if int(kind * 4) == 0:
            draw.polygon([(x, y), (x + s, y), (x + s / 2, y + s)], fill=fill)
        elif int(kind * 4) == 1:
            draw.rectangle([x, y, x + s, y + s], fill=fill)
        elif int(kind * 4) == 2:
            draw.ellipse([x, y, x + s, y + s], fill=fill)
        else:
            corners = []
            for corner in range(10):
                radius = s / 1.2 if corner % 2 == 0 else s / 1.2 / 2
                angle = math.radians(corner * 36 + int(turn * 360))
                corners.append((x + radius * math.sin(angle), y + radius * math.cos(angle)))
            draw.polygon(corners, fill=fill)
    return np.asarray(picture).astype(float)


def vertical_lines(image: Array, draws: Draws, settings: Settings) -> Array:
    height, width = image.shape[:2]
    lines = max(min(round(settings[0] * width / min(height, width)), width), 1)
    step = scaled(settings[1], image)
    picture = Image.fromarray(image.astype(np.uint8))
    grey = picture.convert("L")
    canvas = Image.new("RGB", (width, height))
    draw = ImageDraw.Draw(canvas)
    for i in range(lines):
        x = i / lines * width
        point = (x, 0)
        for y in range(0, height, step):
            cell = [(u, v) for u in range(int(x), int(x + width / lines)) for v in range(y, min(y + step, height))]
            total, luma = [0, 0, 0], 0
            for place in cell:
                luma += grey.getpixel(place)
                for channel, level in enumerate(picture.getpixel(place)):
                    total[channel] += level
            following = (x - 40 * min(height, width) / 224 * (1 - luma // max(len(cell), 1) / 255), y)
            draw.line([point, following], fill=tuple(part // max(len(cell), 1) for part in total), width=1)
            point = following
    return np.asarray(canvas).astype(float)


def glitched(image: Array, draws: Draws, settings: Settings) -> Array:
    (amount,) = settings
    height, width = image.shape[:2]
    furthest, times = int(amount**2 / 100 * width), int(amount * 2)
    out = image.copy()
    for k in range(times):
        chance = random.Random(1 + k)
        offset = chance.randint(-furthest, furthest)
        if offset == 0:
            continue
        start = chance.randint(0, height)
        stop = min(start + chance.randint(1, max(int(height / 4), 1)), height)
        out[start:stop] = np.roll(image[start:stop], offset, axis=1)
    chance = random.Random(1)
    channel = chance.randint(0, 2)
    across, down = chance.randint(-times, times), chance.randint(-times, times) % height
    out[:, :, channel] = np.roll(image[:, :, channel], down, axis=0)
    out[down, :, channel] = np.roll(image[0, :, channel], across)
    out[::2] = 0
    return out


def mosaic(image: Array, draws: Draws, settings: Settings, tiles: Array) -> Array:
    height, width = image.shape[:2]
    side = scaled(settings[0], image)
    rows, columns = math.ceil(height / side), math.ceil(width / side)
    top, left = (rows * side - height) // 2, (columns * side - width) // 2
    margins = ((top, rows * side - height - top), (left, columns * side - width - left), (0, 0))
    padded = np.pad(image.astype(np.uint8), margins, mode="edge")
    small = np.asarray(Image.fromarray(padded).resize((columns, rows))).astype(float)
    means = tiles.reshape(len(tiles), -1, 3).mean(1)
    out = np.zeros((rows * side, columns * side, 3))
    for i, j in pixels(small):
        nearest = ((means - small[i, j]) ** 2).sum(1).argmin()
        out[i * side : (i + 1) * side, j * side : (j + 1) * side] = tiles[nearest]
    return out[top : top + height, left : left + width]


def part_of(settings: Settings, most: float) -> float:
    return settings[0] * most / 10


def random_phase(left: Array, middle: Array, amplitude: Callable[[float], float]) -> Array:
    """Noise [h, w] whose spectrum, with its centre at (h / 2, w / 2), has the amplitude of the distance to the centre
    in waves of the shorter side. Its phases are the left half, then that half turned round; between them, where the
    width is odd, the middle column, its own mirror image."""
    height, width = len(left), 2 * left.shape[1] + bool(len(middle))
    side = min(height, width)
    spectrum = np.zeros((height, width), complex)
    for y, x in pixels(spectrum):
        if 2 * x + 1 < width:
            turn = left[y, x]
        elif 2 * x + 1 > width:
            turn = left[height - 1 - y, width - 1 - x]
        else:
            turn = 0.0 if 2 * y + 1 == height else middle[min(y, height - 1 - y)]
        distance = math.hypot((y - height / 2) / height, (x - width / 2) / width) * side
        spectrum[y, x] = amplitude(distance) * complex(math.cos(2 * math.pi * turn), math.sin(2 * math.pi * turn))
    noise = np.fft.ifft2(np.roll(spectrum, (height // 2, width // 2), (0, 1))).real
    result: Array = noise / noise.std()
    return result


def blue_noise_sample(image: Array, draws: Draws, settings: Settings) -> Array:
    noise = random_phase(draws["phase"], draws["middle"], lambda distance: distance)
    out = image.copy()
    for y, x in pixels(image):
        if noise[y, x] <= part_of(settings, 3) - 2.5:
            out[y, x] = 0
    return out


def brownish_noise(image: Array, draws: Draws, settings: Settings) -> Array:
    pairs = zip(draws["phase"], draws["middle"], strict=True)
    noise = [random_phase(phase, middle, lambda distance: 1 / (distance**2 + 1)) for phase, middle in pairs]
    return clipped(image + part_of(settings, 64) * np.stack(noise, -1))


def plasma_noise(image: Array, draws: Draws, settings: Settings) -> Array:
    side = min(image.shape[:2])
    one, two, three, four = draws["uniform"]
    time, warps, sharpness, scale = 6 * math.pi * one, 4 + int(3 * two), 0.5 + three / 2, (0.075 + 0.125 * four) * side
    strength = part_of(settings, 64)
    out = np.zeros_like(image)
    for row, column in pixels(image):
        x, y = column / scale, row / scale
        frequency, slow, shrink = 1.0, 1.0, 1.0
        for _ in range(warps):
            r0 = math.cos(y * frequency + time / slow) / shrink
            r1 = math.sin(x * frequency + time / slow) / shrink
            r0, r1 = r0 - 0.3 * r1, r1 + 0.3 * r0
            x, y = x + r0, y + r1
            frequency, slow, shrink = frequency * 1.93, slow * 1.15, shrink * (2.25 - sharpness)
        noise = (math.sin(x - time), math.sin((x + y + math.sin(time)) * 0.5), math.sin(y + time))
        for channel in range(3):
            out[row, column, channel] = (1 - strength / 255) * image[row, column, channel] + strength * noise[channel]
    return clipped(out)


def perlin_noise(image: Array, draws: Draws, settings: Settings) -> Array:
    """Perlin's noise of 1985 with its table of 256 gradients, drawn from a square, and its factor of 1.5."""
    cell = 32 * min(image.shape[:2]) / 224
    share = part_of(settings, 0.5)
    out = np.zeros_like(image)
    slopes = [np.floor(512 * pair) - 256 for pair in draws["slope"]]
    slopes = [slope / max(float(np.linalg.norm(slope)), 1e-9) for slope in slopes]
    order = sorted(range(256), key=lambda i: draws["order"][i])

    def noise(y: float, x: float) -> float:
        top, left = int(y), int(x)
        total = 0.0
        for i in (top, top + 1):
            for j in (left, left + 1):
                dy, dx = y - i, x - j
                weight = 1.0
                for t in (1 - abs(dy), 1 - abs(dx)):
                    weight *= 3 * t**2 - 2 * t**3
                slope = slopes[order[(order[i % 256] + j) % 256]]
                total += weight * (dy * slope[0] + dx * slope[1])
        return 1.5 * total

    for row, column in pixels(image):
        turbulence = sum(abs(noise(row / cell * f, column / cell * f)) / f for f in (1, 2, 4, 8, 16))
        out[row, column] = (1 - share) * image[row, column] + share * 255 * min(0.5 * turbulence + 0.5, 1)
    return clipped(out)


def single_frequency_greyscale(image: Array, draws: Draws, settings: Settings) -> Array:
    one, two, three, four = draws["uniform"]
    larger = math.pi * (2 * one - 1)
    other = abs(larger) * (2 * two - 1)
    across, down = (larger, other) if four < 0.5 else (other, larger)
    out = image.copy()
    for y, x in pixels(image):
        out[y, x] += part_of(settings, 196) * math.sin(across * x + down * y + 2 * math.pi * three)
    return clipped(out)


def cocentric_sine_waves(image: Array, draws: Draws, settings: Settings) -> Array:
    height, width = image.shape[:2]
    side = min(height, width)
    top, left, waves, tall, ring = draws["uniform"] * [height, width, 10, side / 10, side / 10]
    out = image.copy()
    for y, x in pixels(image):
        distance = math.sqrt((y - top) ** 2 + (x - left) ** 2)
        distance += math.sin(math.atan2(x - left, y - top) * waves) * tall
        out[y, x] += part_of(settings, 128) * (distance % ring / ring - 0.5)
    return clipped(out)


def checkerboard_cutout(image: Array, draws: Draws, settings: Settings) -> Array:
    angle, extent = draws["uniform"]
    side = max((0.1 + 0.15 * extent) * min(image.shape[:2]), 1)
    middle = len(draws["cell"]) // 2
    out = image.copy()
    for y, x in pixels(image):
        along = (y * math.cos(2 * math.pi * angle) + x * math.sin(2 * math.pi * angle)) / side
        aside = (x * math.cos(2 * math.pi * angle) - y * math.sin(2 * math.pi * angle)) / side
        black = (math.floor(along) + math.floor(aside)) % 2 == 0
        if black and draws["cell"][middle + int(along), middle + int(aside)] < part_of(settings, 1):
            out[y, x] = 128
    return out


def burst_at(y: int, x: int, centre: Array, lengths: list[float], power: float) -> float:
    dy, dx = y - centre[0], x - centre[1]
    place = (math.atan2(dx, dy) + math.pi) / (2 * math.pi) * len(lengths)
    ray = math.floor(place)
    part = place - ray
    length = (1 - part) * lengths[ray % len(lengths)] + part * lengths[(ray + 1) % len(lengths)]
    light = (length**2 / (dy**2 + dx**2 + 1e-4)) ** power
    return min(max(light * (1 - (part - 0.5) ** 2), 0.0), 1.0)


def ray_lengths(uniform: float, normals: Array, radius: float, least: float = -math.inf) -> list[float]:
    return [max(least, radius + 0.25 * radius * z) for z in normals[: 50 + int(150 * uniform)]]


def sparkles(image: Array, draws: Draws, settings: Settings) -> Array:
    radius = part_of(settings, 0.1) * min(image.shape[:2])
    out = image.copy()
    for (row, column, rays), normals in zip(draws["uniform"], draws["normal"], strict=True):
        centre = np.array([row, column]) * image.shape[:2]
        lengths = ray_lengths(rays, normals, radius, 1.0)
        for y, x in pixels(image):
            light = burst_at(y, x, centre, lengths, 1.0)
            out[y, x] = (1 - light) * out[y, x] + light * 255
    return out


def inverse_sparkles(image: Array, draws: Draws, settings: Settings) -> Array:
    ((row, column, rays),), (normals,) = draws["uniform"], draws["normal"]
    centre = (0.25 + 0.5 * np.array([row, column])) * image.shape[:2]
    lengths = ray_lengths(rays, normals, 0.25 * min(image.shape[:2]))
    amount = 100 - part_of(settings, 65)
    out = image.copy()
    for y, x in pixels(image):
        light = burst_at(y, x, centre, lengths, (100 - amount) / 50)
        out[y, x] = light * out[y, x] + (1 - light) * 255
    return out


def caustic_light(y: float, x: float, time: float, size: float) -> float:
    p = [(y / size % 1) * 2 * math.pi - 250, (x / size % 1) * 2 * math.pi - 250]
    i = list(p)
    c = 1.0
    for n in range(5):
        t = time * (1 - 3.5 / (n + 1))
        i = [
            p[0] + math.cos(t - i[0]) + math.sin(t + i[1]),
            p[1] + math.sin(t - i[1]) + math.cos(t + i[0]),
        ]
        c += 1 / math.sqrt((p[0] / (math.sin(i[0] + t) / 0.005)) ** 2 + (p[1] / (math.cos(i[1] + t) / 0.005)) ** 2)
    return min(max(abs(1.17 - (c / 5) ** 1.4) ** 8, 0.0), 1.0)


def refracted(normal: Array) -> Array:
    """The direction of a ray from above inside a surface of index 4, by Snell's law in the plane of both."""
    incident = np.array([0.0, 0.0, 1.0])
    if incident @ normal >= 1 - 1e-3:
        return incident
    angle = math.asin(math.sin(math.acos(incident @ normal)) / 4)
    spectator = np.cross(incident, normal)
    spectator /= np.linalg.norm(spectator)
    basis = np.stack([normal, np.cross(normal, spectator), spectator])
    ray: Array = np.linalg.inv(basis) @ np.array([math.cos(angle), math.sin(angle), 0.0])
    return ray


def caustic_refraction(image: Array, draws: Draws, settings: Settings) -> Array:
    from scipy.ndimage import gaussian_filter

    height, width = image.shape[:2]
    side = min(height, width)
    one, two = draws["uniform"]
    light = np.zeros((height, width))
    for y, x in pixels(light):
        light[y, x] = caustic_light(y, x, 0.5 + 1.5 * one, (0.75 + 0.5 * two) * side)
    light = gaussian_filter(light, 1, mode="reflect", truncate=4)

    def at(plane: Array, y: int, x: int) -> Any:
        return plane[y, x] if 0 <= y < height and 0 <= x < width else 0.0

    out = np.zeros_like(image)
    for y, x in pixels(image):
        north, south, west, east = at(light, y, x - 1), at(light, y, x + 1), at(light, y - 1, x), at(light, y + 1, x)
        normal = np.array([east - west, south - north, 1.0])
        ray = refracted(normal / np.linalg.norm(normal)) * part_of(settings, 0.5 * side)
        v, u = y + round(ray[0], 3), x + round(ray[1], 3)
        top, left = math.floor(v), math.floor(u)
        dv, du = v - top, u - left
        pixel = (1 - dv) * ((1 - du) * at(image, top, left) + du * at(image, top, left + 1))
        pixel = pixel + dv * ((1 - du) * at(image, top + 1, left) + du * at(image, top + 1, left + 1))
        lit = (north - south + east - west) * part_of(settings, 2)
        out[y, x] = pixel + 255 * lit
    return clipped(out)
