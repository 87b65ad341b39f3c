"""LAION-C and ImageNet-C-bar against slow restatements with the same draws, against the packages they were made with,
and in their draws."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import numpy.typing as npt
import pytest
import scipy.stats
import torch
import torchvision.transforms.v2 as v2
from PIL import Image
from torch import Tensor

import corruptions
from corruptions.catalog import describe, parameters
from corruptions.kernels import BICUBIC, BILINEAR, resized
from corruptions.tiles import TilePool, _nearest, folder_pool, procedural_pool, tensor_pool

Pictures = Callable[[int, int, int], Tensor]
Array = npt.NDArray[np.float64]
LAION, BAR = corruptions.names("laion_c"), corruptions.names("imagenet_c_bar")


@pytest.fixture(scope="module")
def restated() -> ModuleType:
    path = Path(__file__).with_name("restated.py")
    spec = importlib.util.spec_from_file_location("restated", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def pool(pictures: Pictures) -> TilePool:
    """Two hundred small pictures whose means differ."""
    base = torch.randint(0, 256, (200, 3, 1, 1), generator=torch.Generator().manual_seed(0))
    return tensor_pool((base * 0.7 + pictures(200, 40, 32) * 0.3).to(torch.uint8), "test")


def differences(
    name: str, severity: float, images: Tensor, restated: ModuleType, profile: str, pool: TilePool
) -> list[Array]:
    """Absolute differences in levels, [h, w, 3] for each image, before truncation."""
    size = (images.shape[2], images.shape[3])
    settings = parameters(name, severity, profile)
    own = pool if describe(name).pool else None
    draws = corruptions.sample(name, severity, size, ids=range(len(images)), profile=profile)
    out = corruptions.apply(name, images.float() / 255, draws, severity, profile=profile, pool=own)
    found = []
    for i, image in enumerate(images):
        given = [
            image.permute(1, 2, 0).double().numpy(),
            {k: v[i].double().numpy() for k, v in draws.items()},
            settings,
        ]
        if own is not None:
            side = restated.scaled(16 if name == "stickers" else settings[0], given[0])
            given.append(own.tiles(side, torch.device("cpu")).permute(0, 2, 3, 1).numpy())
        expected = getattr(restated, name)(*given)
        found.append(np.abs(255 * out[i].permute(1, 2, 0).double().numpy() - expected))
    return found


# Levels, and the share of pixels that may differ by more.
TOLERANCES = dict.fromkeys((*LAION, *BAR), (1e-3, 0.0)) | {
    "geometric_shapes": (1e-3, 0.004),  # Pillow cuts star corners outside of the image towards zero, not downwards
    "mosaic": (1e-3, 0.002),  # of two tiles at the same distance either may be taken
}


# Wide pictures at odd severities and tall ones at even ones are quick.
@pytest.mark.parametrize(
    ("severity", "size"),
    [
        pytest.param(severity, size, marks=() if severity % 2 == odd else pytest.mark.slow)
        for odd, size in ((1, (24, 31)), (0, (33, 26)))
        for severity in (1, 2, 3, 4, 5)
    ],
)
@pytest.mark.parametrize("name", [*LAION, *BAR])
def test_restatements(
    name: str, severity: int, size: tuple[int, int], restated: ModuleType, pictures: Pictures, pool: TilePool
) -> None:
    levels, share = TOLERANCES[name]
    for difference in differences(name, severity, pictures(2, *size), restated, "imagenet224", pool):
        assert (difference > levels).mean() <= (share if min(size) > 100 else 2 * share)


@pytest.mark.parametrize("severity", [1, 4, *(pytest.param(other, marks=pytest.mark.slow) for other in (2, 3, 5))])
@pytest.mark.parametrize("name", LAION)
def test_restatements_of_laion_c_at_its_size(
    name: str, severity: int, restated: ModuleType, pictures: Pictures, pool: TilePool
) -> None:
    levels, share = TOLERANCES[name]
    size = (224, 224) if severity in (2, 4) else (130, 190)
    if name == "stickers":
        size = (100, 90)
    for difference in differences(name, severity, pictures(1, *size), restated, "imagenet224", pool):
        assert (difference > levels).mean() <= share


@pytest.mark.parametrize("size", [(224, 224), (100, 151), (37, 20)])
@pytest.mark.parametrize("severity", [1, 2, 3, 4, 5])
def test_glitched_is_glitch_this(size: tuple[int, int], severity: int, pictures: Pictures) -> None:
    package = pytest.importorskip("glitch_this", reason="needs glitch-this")
    (image,) = pictures(1, *size)
    (amount,) = parameters("glitched", severity, "imagenet224")
    picture = Image.fromarray(image.permute(1, 2, 0).numpy())
    expected = package.ImageGlitcher().glitch_image(picture, amount, seed=1, color_offset=True, scan_lines=True)
    out = corruptions.corrupt(image, "glitched", severity, ids=[0], profile="imagenet224")
    assert np.array_equal(out.permute(1, 2, 0).numpy(), np.asarray(expected))


@pytest.mark.parametrize(("kind", "name"), [(BICUBIC, "BICUBIC"), (BILINEAR, "BILINEAR")])
@pytest.mark.parametrize("target", [(56, 56), (14, 8), (38, 38), (1, 1), (224, 224), (300, 250), (3, 100)])
def test_resizing_is_pillows(kind: object, name: str, target: tuple[int, int], pictures: Pictures) -> None:
    for image in pictures(2, 224, 229):
        picture = Image.fromarray(image.permute(1, 2, 0).numpy())
        expected = np.asarray(picture.resize(target[::-1], getattr(Image.Resampling, name)))
        out = resized(image.float(), *target, kind)  # type: ignore[arg-type]
        assert np.array_equal(out.permute(1, 2, 0).numpy(), expected)


def test_stickers_cover_as_much_as_published_and_spare_the_last_row_and_column(pool: TilePool) -> None:
    black = torch.zeros(24, 3, 224, 224, dtype=torch.uint8)
    bright = tensor_pool(torch.full((5, 3, 4, 4), 9, dtype=torch.uint8), "bright")
    before = torch.zeros_like(black, dtype=torch.bool)
    # Of 208 corners along each axis so many put a sticker of 16 pixels over a pixel.
    hits = np.array([max(min(x, 207) - max(x - 15, 0) + 1, 0) for x in range(224)]) / 208
    for severity, count, published in zip(
        range(1, 6), (100, 200, 400, 600, 1200), (0.39, 0.62, 0.82, 0.89, 0.96), strict=True
    ):
        covered = corruptions.corrupt(black, "stickers", severity, ids=range(24), pool=bright) > 0
        expected = (1 - (1 - np.outer(hits, hits)) ** count).mean()
        assert float(covered.float().mean()) == pytest.approx(expected, abs=0.008)
        assert expected == pytest.approx(published, abs=0.02)
        assert not covered[..., -1].any()
        assert not covered[..., -1, :].any()
        assert (covered | ~before).all()  # a stronger severity adds to a weaker one
        before = covered


def test_stickers_are_drawn_alike(pool: TilePool) -> None:
    uniform = corruptions.sample("stickers", 1, (224, 224), ids=range(20))["uniform"].double().numpy()
    for values, count in zip(np.moveaxis(uniform, 1, 0), (208, 208, 200), strict=True):
        found = np.bincount((values * count).astype(int).ravel(), minlength=count)
        assert len(found) == count
        assert scipy.stats.chisquare(found).pvalue > 1e-3


def test_shapes_are_drawn_alike() -> None:
    uniform = corruptions.sample("geometric_shapes", 1, (224, 224), ids=range(20))["uniform"].double().numpy()
    assert uniform.shape == (20, 8, 1000)
    for values, count in zip(np.moveaxis(uniform, 1, 0), (4, 224, 224, 10, 256, 256, 256, 360), strict=True):
        found = np.bincount((values * count).astype(int).ravel(), minlength=count)
        assert scipy.stats.chisquare(found).pvalue > 1e-3


def test_luminance_shifts_lie_in_their_range_with_signs_in_turn() -> None:
    grey = torch.full((6, 3, 224, 224), 128, dtype=torch.uint8)
    out = corruptions.corrupt(grey, "luminance_checkerboard", 2, ids=range(6)).double().numpy()
    tiles = out.reshape(6, 3, 16, 14, 16, 14)
    assert (tiles == tiles[:, :1, :, :1, :, :1]).all()
    shift = tiles[:, 0, :, 0, :, 0] - 128
    sign = (-1.0) ** np.add.outer(np.arange(16), np.arange(16))
    assert (shift * sign >= 49).all()  # truncation takes up to a level
    assert (shift * sign <= 101).all()
    assert scipy.stats.kstest(shift[:, sign > 0].ravel() + 0.5, scipy.stats.uniform(50, 50).cdf).pvalue > 1e-3
    assert len(np.unique(shift[:, 0, 0])) > 3  # every image has its own


def test_vertical_lines_of_white_are_upright_and_of_black_are_black() -> None:
    images = torch.tensor([255, 0], dtype=torch.uint8).view(2, 1, 1, 1).expand(-1, 3, 224, 224)
    out = corruptions.corrupt(images, "vertical_lines", 3, ids=range(2))
    expected = torch.zeros(224, 224, dtype=torch.uint8)
    # The last point of a line is the first row of its last cell; some lines begin just before a pixel's edge.
    expected[:221, [int(i / 112 * 224) for i in range(112)]] = 255
    assert torch.equal(out[0], expected.expand(3, -1, -1))
    assert not out[1].any()


def test_mosaic_tiles_of_a_plain_image_are_the_nearest_one() -> None:
    colours = torch.tensor([[10, 20, 30], [200, 100, 0], [90, 90, 90]], dtype=torch.uint8)
    pool = tensor_pool(colours.view(3, 3, 1, 1).expand(-1, -1, 8, 8), "plain")
    plain = torch.tensor([180, 120, 20], dtype=torch.uint8).view(1, 3, 1, 1).expand(-1, -1, 224, 230)
    for severity in range(1, 6):
        out = corruptions.corrupt(plain, "mosaic", severity, ids=[0], pool=pool)
        assert torch.equal(out, colours[1].view(1, 3, 1, 1).expand_as(out))


def test_the_nearest_tile_is_found_in_both_ways() -> None:
    pool = procedural_pool()
    colours = torch.randint(0, 256, (500, 3), generator=torch.Generator().manual_seed(0)).float()
    means = pool.tiles(8, torch.device("cpu")).double().mean((2, 3))
    least = torch.cdist(colours.double(), means).min(1).values
    for found in (pool.nearest(colours, 8), _nearest(colours, means)):
        assert torch.equal(
            (colours - means[found]).norm(dim=1), (colours - means[_nearest(colours, means)]).norm(dim=1)
        )
        assert torch.allclose((colours - means[found]).norm(dim=1), least, atol=1e-6)


def test_the_procedural_pool_covers_the_colours_and_never_changes() -> None:
    pool = procedural_pool()
    assert (pool.name, len(pool)) == ("plasma-4096", 4096)
    means = pool.tiles(16, torch.device("cpu")).double().mean((2, 3))
    corners = torch.cartesian_prod(*[torch.arange(0, 256, 51).double()] * 3)
    assert torch.cdist(corners, means).min(1).values.max() < 16
    # Pinned: other pictures must have another name.
    assert tensor_pool(pool.tiles(32, torch.device("cpu")), "x").name == PINNED


PINNED = "x-4096-127670c62d86"


def test_a_folder_is_a_pool_as_published(tmp_path: Path, pictures: Pictures) -> None:
    (tmp_path / "tiles" / "more").mkdir(parents=True)
    sources = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in pictures(2, 300, 280)]
    sources[0].save(tmp_path / "tiles" / "b.png")
    sources[1].save(tmp_path / "tiles" / "more" / "a.png")
    (tmp_path / "tiles" / "notes.txt").write_text("no picture")
    pool = folder_pool(tmp_path / "tiles")
    assert pool.name.startswith("tiles-2-")
    for side in (4, 16):
        steps = v2.Compose([v2.Resize(256), v2.CenterCrop(224), v2.Resize((side, side)), v2.PILToTensor()])
        assert torch.equal(pool.tiles(side, torch.device("cpu")), torch.stack([steps(source) for source in sources]))
    sources[1].save(tmp_path / "tiles" / "b.png")
    assert folder_pool(tmp_path / "tiles").name != pool.name
    (tmp_path / "tiles" / "c.jpg").write_bytes(b"broken")
    with pytest.raises(ValueError, match=r"c\.jpg is no picture .*take it out of the pool"):
        folder_pool(tmp_path / "tiles").tiles(4, torch.device("cpu"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="has no pictures"):
        folder_pool(tmp_path / "empty")


def test_pools_are_used_where_they_belong(pictures: Pictures, pool: TilePool) -> None:
    images = pictures(2, 64, 48)
    for name in ("mosaic", "stickers"):
        ours = corruptions.corrupt(images, name, 3, ids=[0, 1], pool=pool)
        assert not torch.equal(ours, corruptions.corrupt(images, name, 3, ids=[0, 1]))
        assert torch.equal(ours[1], corruptions.corrupt(images[1], name, 3, ids=[1], pool=pool))
        transform = corruptions.Corruption(name, 3, pool=pool)
        array = images[0].permute(1, 2, 0).numpy()
        single = corruptions.corrupt_image(array, name, 3, pool=pool)
        assert torch.equal(transform(images[0]).permute(1, 2, 0), torch.from_numpy(single))
        assert not np.array_equal(single, corruptions.corrupt_image(array, name, 3))
    with pytest.raises(ValueError, match="fog is not made of tiles"):
        corruptions.corrupt(images, "fog", 3, pool=pool)
    with pytest.raises(ValueError, match="fog is not made of tiles"):
        corruptions.Corruption("fog", 3, pool=pool)
    for bad in (torch.zeros(0, 3, 8, 8, dtype=torch.uint8), torch.zeros(2, 3, 8, 8), torch.zeros(3, 8, 8).byte()):
        with pytest.raises(ValueError, match=r"made of uint8 \[n, 3, h, w\]"):
            tensor_pool(bad, "bad")


def test_blue_and_brownish_noise_have_their_spectra() -> None:
    grey = torch.full((8, 3, 224, 224), 0.5)
    draws = corruptions.sample("brownish_noise", 1, (224, 224), ids=range(8))
    noise = (corruptions.apply("brownish_noise", grey, draws, 1).double().numpy() - 0.5) * 255 / 6.4
    assert noise.std((2, 3)) == pytest.approx(np.ones((8, 3)), abs=1e-4)
    power = (np.abs(np.fft.fft2(noise)) ** 2).mean((0, 1))
    waves = np.hypot(*np.meshgrid(*[np.fft.fftfreq(224, 1 / 224)] * 2))
    rings = np.array([power[(waves >= r) & (waves < r + 1)].mean() for r in (8, 16, 32, 64, 100)])
    expected = np.array([((waves**2 + 1.0) ** -2)[(waves >= r) & (waves < r + 1)].mean() for r in (8, 16, 32, 64, 100)])
    assert rings / rings[0] == pytest.approx(expected / expected[0], rel=0.35)
    assert abs(np.corrcoef(noise[:, 0].ravel(), noise[:, 1].ravel())[0, 1]) < 0.5

    white = torch.ones(8, 3, 224, 224)
    for severity in (3, 5):
        out = corruptions.corrupt(white, "blue_noise_sample", severity, ids=range(8)).numpy()
        (level,) = parameters("blue_noise_sample", severity, "imagenet224")
        assert (out == 0).mean() == pytest.approx(scipy.stats.norm.cdf(0.3 * level - 2.5), abs=0.004)
        assert (out[:, 0] == out[:, 1]).all()
    power = (np.abs(np.fft.fft2(out[:, 0] - out[:, 0].mean())) ** 2).mean(0)
    assert power[(waves > 90) & (waves < 110)].mean() > 1.5 * power[(waves > 2) & (waves < 15)].mean()


def test_perlin_noise_vanishes_where_all_its_lattices_meet() -> None:
    black = torch.zeros(1, 3, 224, 224)
    draws = corruptions.sample("perlin_noise", 5, (224, 224), ids=[0])
    out = corruptions.apply("perlin_noise", black, draws, 5)[0, 0]
    assert torch.allclose(out[::32, ::32], torch.tensor(0.44 / 2), atol=1e-6)
    assert out.min() >= 0.44 / 2 - 1e-6
    assert out[16, 16] > 0.44 / 2 + 0.01


def test_checkerboards_drop_their_share_of_black_cells() -> None:
    white = torch.ones(200, 3, 64, 64)
    for severity in (1, 5):
        out = corruptions.corrupt(white, "checkerboard_cutout", severity, ids=range(200), storage="none")
        (level,) = parameters("checkerboard_cutout", severity, "imagenet224")
        assert float((out < 1).float().mean()) == pytest.approx(level / 20, abs=0.02)
        assert out.unique().tolist() == pytest.approx([128 / 255, 1])


def test_one_frequency_is_one_peak() -> None:
    grey = torch.full((200, 3, 64, 64), 0.5)
    draws = corruptions.sample("single_frequency_greyscale", 1, (64, 64), ids=range(200))
    out = corruptions.apply("single_frequency_greyscale", grey, draws, 1).double().numpy()
    assert (out[:, 0] == out[:, 2]).all()
    wave = (out[:, 0] - 0.5) * 255
    assert abs(wave).max() <= 19.6 + 1e-4
    # Twice the values on both sides is 2 cos(frequency) of the value between: the law of a sine.
    for axis in (1, 2):
        sides = np.roll(wave, 1, axis) + np.roll(wave, -1, axis)
        inner = (slice(None), slice(1, -1), slice(1, -1))
        factor = (sides[inner] * wave[inner]).sum((1, 2)) / (wave[inner] ** 2).sum((1, 2))
        assert abs(sides[inner] - factor[:, None, None] * wave[inner]).max() < 0.01
    uniform = draws["uniform"].double().numpy()
    assert scipy.stats.kstest(uniform[:, 0], "uniform").pvalue > 1e-3
    assert 70 < (uniform[:, 3] < 0.5).sum() < 130


def test_sparkles_are_white_at_their_centres_and_inverse_ones_spare_them() -> None:
    draws = corruptions.sample("sparkles", 5, (224, 224), ids=[0])
    out = corruptions.apply("sparkles", torch.zeros(1, 3, 224, 224), draws, 5)[0, 0]
    for row, column in (draws["uniform"][0, :, :2] * 224).long().clamp(max=222).tolist():
        assert out[row : row + 2, column : column + 2].min() > 0.7
    draws = corruptions.sample("inverse_sparkles", 5, (224, 224), ids=[0])
    out = corruptions.apply("inverse_sparkles", torch.zeros(1, 3, 224, 224), draws, 5)[0, 0]
    row, column = (56 + draws["uniform"][0, 0, :2] * 112).long().tolist()
    assert out[row : row + 2, column : column + 2].max() < 0.3
    assert torch.stack([out[0, 0], out[0, -1], out[-1, 0], out[-1, -1]]).mean() > 0.7
    many = corruptions.sample("sparkles", 1, (32, 32), ids=range(400))["uniform"][..., 2].double().numpy()
    rays = 50 + (150 * many).astype(int)
    assert (rays.min(), rays.max()) == (50, 199)


def test_a_level_surface_of_water_changes_nothing_inside() -> None:
    plain = torch.full((1, 3, 64, 64), 0.25)
    draws = corruptions.sample("caustic_refraction", 1, (64, 64), ids=[0])
    faint = corruptions.apply("caustic_refraction", plain, draws, 0.01)
    assert (faint - plain)[..., 2:-2, 2:-2].abs().max() < 4e-3


@pytest.mark.parametrize(
    "name",
    [
        "luminance_checkerboard",
        "blue_noise_sample",
        "brownish_noise",
        "checkerboard_cutout",
        "cocentric_sine_waves",
        "inverse_sparkles",
        "perlin_noise",
        "plasma_noise",
        "single_frequency_greyscale",
        "sparkles",
    ],
)
def test_fractions_of_severity_lead_further_away(name: str, pictures: Pictures) -> None:
    images = pictures(6, 64, 64).float() / 255
    outs = [corruptions.corrupt(images, name, s, ids=range(6), storage="none") for s in np.arange(0.5, 5.5, 0.5)]
    distances = [float((out - images).square().mean()) for out in outs]
    assert distances == sorted(distances)
    assert distances[0] < distances[-1]
