"""Views against torchvision, scipy and closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter1d
from scipy.stats import ks_2samp
from torch import Tensor
from torchvision.transforms import InterpolationMode, RandomResizedCrop
from torchvision.transforms import functional as tv

from methods.views import ssl_views as views_module
from methods.views.resample import bicubic_taps, gaussian_taps, weigh_rows
from methods.views.ssl_views import Views, blend_gray, colour_jitter, crop_boxes, gaussian_blur, resample, resampling

NOTHING = Views(scale=(1.0, 1.0), ratio=(1.0, 1.0), flip=False, three_augment=False, jitter=0.0)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pictures(count: int = 16, height: int = 24, width: int = 24, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, (count, 3, height, width), generator=seeded(seed), dtype=torch.uint8)


def test_views_are_unit_floats_of_the_same_size_and_follow_the_generator() -> None:
    images = pictures()
    one, same, other = Views()(images, seeded(1)), Views()(images, seeded(1)), Views()(images, seeded(2))
    assert one.shape == images.shape
    assert one.dtype == torch.float32
    assert 0 <= float(one.min()) < float(one.max()) <= 1
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


@pytest.mark.parametrize("jitter", [0.0, 0.3])
@pytest.mark.parametrize("three_augment", [False, True])
def test_overshoot_of_the_interpolation_is_cut(three_augment: bool, jitter: float) -> None:
    edges = torch.randint(0, 2, (16, 3, 24, 24), generator=seeded(), dtype=torch.uint8) * 255
    views = Views(three_augment=three_augment, jitter=jitter)(edges, seeded())
    assert float(views.min()) >= 0
    assert float(views.max()) <= 1


def test_each_image_has_its_own_draws() -> None:
    views = Views()(pictures(1).expand(32, -1, -1, -1), seeded())
    assert len(torch.unique(views.flatten(1), dim=0)) == 32


def test_a_view_does_not_depend_on_its_neighbours() -> None:
    images = pictures()
    changed = images.clone()
    changed[1:] = 255 - changed[1:]
    assert torch.equal(Views()(images, seeded())[0], Views()(changed, seeded())[0])


def test_nothing_to_do_gives_the_image() -> None:
    images = pictures()
    assert torch.allclose(NOTHING(images, seeded()), images / 255, atol=1e-6)


@pytest.mark.parametrize(("height", "width"), [(24, 24), (17, 30)])
def test_crops_equal_torchvision_bicubic(height: int, width: int) -> None:
    images = pictures(40, height, width)
    top, left, tall, wide = crop_boxes(
        torch.rand(40, 40, generator=seeded()), height, width, (0.08, 1.0), (3 / 4, 4 / 3)
    )
    ours = resample(images, resampling(top, tall, height) / 255, resampling(left, wide, width))
    for index in range(len(images)):
        box = [int(each[index]) for each in (top, left, tall, wide)]
        theirs = tv.resized_crop(
            images[index].float() / 255, *box, [height, width], InterpolationMode.BICUBIC, antialias=True
        )
        assert torch.allclose(ours[index], theirs, atol=2e-6), box


def test_crop_boxes_are_distributed_as_torchvision_draws_them() -> None:
    scale, ratio, count = (0.08, 1.0), (0.3, 3.0), 3000
    ours = torch.stack(crop_boxes(torch.rand(40, count, generator=seeded()), 32, 40, scale, ratio)).numpy()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        picture = torch.zeros(3, 32, 40)
        theirs = np.array([RandomResizedCrop.get_params(picture, list(scale), list(ratio)) for _ in range(count)]).T
    assert (ours == np.round(ours)).all()
    assert (ours[0] >= 0).all()
    assert (ours[0] + ours[2] <= 32).all()
    assert (ours[1] + ours[3] <= 40).all()
    for mine, reference in zip(ours, theirs, strict=True):
        assert ks_2samp(mine, reference).pvalue > 1e-3
    assert ks_2samp(ours[2] * ours[3], theirs[2] * theirs[3]).pvalue > 1e-3


@pytest.mark.parametrize(("height", "width"), [(8, 32), (32, 8)])
def test_impossible_crops_fall_back_to_the_centre(height: int, width: int) -> None:
    ours = crop_boxes(torch.rand(40, 5, generator=seeded()), height, width, (1.0, 1.0), (3 / 4, 4 / 3))
    theirs = RandomResizedCrop.get_params(torch.zeros(3, height, width), [1.0, 1.0], [3 / 4, 4 / 3])
    for mine, reference in zip(ours, theirs, strict=True):
        assert mine.tolist() == [reference] * 5


def test_flip_mirrors_about_half_of_the_images() -> None:
    images = pictures(400, 8, 8)
    views = Views((1.0, 1.0), (1.0, 1.0), flip=True, three_augment=False, jitter=0.0)(images, seeded()) * 255
    kept = torch.isclose(views, images.float(), atol=1e-3).flatten(1).all(1)
    mirrored = torch.isclose(views, images.flip(3).float(), atol=1e-3).flatten(1).all(1)
    assert (kept ^ mirrored).all()
    assert 150 < int(mirrored.sum()) < 250  # five deviations


@pytest.mark.parametrize("deviation", [0.1, 0.7, 2.0])
def test_blur_equals_a_renormalised_gaussian_filter(deviation: float) -> None:
    signal = torch.rand(19, dtype=torch.float64, generator=seeded()).numpy()

    def blur(values: np.ndarray) -> np.ndarray:
        return gaussian_filter1d(values, deviation, mode="constant", truncate=20.0)

    ours = gaussian_blur(torch.tensor([deviation], dtype=torch.float64), 19)[0].numpy() @ signal
    assert np.allclose(ours, blur(signal) / blur(np.ones(19)), atol=1e-6)


def test_colour_jitter_equals_torchvision_in_this_order() -> None:
    images = pictures(12).float() / 255
    factors = 0.2 + 1.6 * torch.rand(3, 12, generator=seeded())
    ours = colour_jitter(images, *factors)
    for index, image in enumerate(images):
        brightness, contrast, saturation = (float(each[index]) for each in factors)
        theirs = tv.adjust_brightness(image, brightness)
        theirs = tv.adjust_saturation(tv.adjust_contrast(theirs, contrast), saturation)
        assert torch.allclose(ours[index], theirs, atol=1e-5)


def test_jitter_factors_span_their_interval() -> None:
    flat = torch.full((2000, 3, 4, 4), 100, dtype=torch.uint8)
    bright = Views((1.0, 1.0), (1.0, 1.0), flip=False, three_augment=False, jitter=0.3)(flat, seeded())
    # A flat gray image shows the brightness factor alone.
    factors = bright[:, 0, 0, 0] * 255 / 100
    assert 0.7 - 1e-3 <= float(factors.min()) < 0.705
    assert 1.295 < float(factors.max()) <= 1.3 + 1e-3


def test_blending_with_gray() -> None:
    images = pictures(4).float() / 255
    gray = tv.rgb_to_grayscale(images, 3)
    assert torch.allclose(blend_gray(images, torch.zeros(4)), gray, atol=1e-6)
    assert torch.allclose(blend_gray(images, torch.ones(4)), images, atol=1e-6)
    assert torch.allclose(blend_gray(images, torch.full((4,), 0.25)), 0.25 * images + 0.75 * gray, atol=1e-6)


def test_three_augment_is_exactly_one_of_three() -> None:
    images = pictures(300, 12, 12)
    images[:, :, 0, 0] = torch.tensor([127, 128, 129], dtype=torch.uint8)
    views = Views((1.0, 1.0), (1.0, 1.0), flip=False, jitter=0.0)(images, seeded()) * 255
    gray = torch.isclose(views, tv.rgb_to_grayscale(images.float(), 3), atol=1e-2).flatten(1).all(1)
    solarised = torch.isclose(views, tv.solarize(images, 128).float(), atol=1e-2).flatten(1).all(1)
    assert not (gray & solarised).any()
    for share in (gray, solarised, ~gray & ~solarised):
        assert 60 < int(share.sum()) < 140  # five deviations


@pytest.mark.parametrize("width", [24, 32])
def test_three_augment_comes_after_the_crop(width: int) -> None:
    images = pictures(200, 24, width)
    crops = Views(flip=True, three_augment=False, jitter=0.0)(images, seeded())
    views = Views(flip=True, three_augment=True, jitter=0.0, blur=(1.0, 2.0))(images, seeded())
    gray = torch.isclose(views, tv.rgb_to_grayscale(crops, 3), atol=1e-4).flatten(1).all(1)
    solarised = torch.isclose(views, torch.where(crops >= 0.5, 1 - crops, crops), atol=1e-4).flatten(1).all(1)
    # A blur of whatever deviation keeps the mean of an image's inner part about as it was, and flattens it.
    rest = ~gray & ~solarised
    assert 40 < int(rest.sum()) < 95
    kept = crops[rest].mean((1, 2, 3)) - views[rest].mean((1, 2, 3))
    assert kept.abs().max() < 0.05
    assert (views[rest].std((2, 3)) < crops[rest].std((2, 3))).all()


def test_three_augment_leaves_flat_dark_images() -> None:
    flat = torch.full((300, 3, 12, 12), 100, dtype=torch.uint8)
    assert torch.allclose(Views((1.0, 1.0), (1.0, 1.0), jitter=0.0)(flat, seeded()) * 255, flat.float(), atol=1e-2)


def test_blur_deviations_span_their_interval() -> None:
    # The spread of one bright pixel is the squared deviation; 120 stays below the solarisation threshold.
    images = torch.zeros(600, 3, 31, 31, dtype=torch.uint8)
    images[:, :, 15, 15] = 120
    views = Views((1.0, 1.0), (1.0, 1.0), flip=False, jitter=0.0, blur=(0.6, 2.0))(images, seeded())[:, 0].double()
    offsets = torch.arange(31) - 15.0
    mass = views.sum((1, 2))
    for axis in (1, 2):
        deviations = ((views.sum(axis) * offsets.square()).sum(1) / mass).sqrt()
        blurred = deviations[deviations > 1e-3]
        assert 140 < len(blurred) < 260
        assert 0.59 < float(blurred.min()) < 0.65
        assert 1.95 < float(blurred.max()) < 2.01


@pytest.mark.parametrize(
    "wrong",
    [
        {"scale": (0.0, 1.0)},
        {"scale": (0.5, 1.5)},
        {"ratio": (2.0, 1.0)},
        {"jitter": 1.5},
        {"blur": (0.0, 1.0)},
    ],
)
def test_impossible_settings_are_refused(wrong: dict[str, tuple[float, float]]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Views(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(("size", "out"), [(224, 224), (230, 112), (100, 150), (40, 37)])
def test_taps_are_the_matrices_without_their_zeros(size: int, out: int) -> None:
    lines = torch.rand(size, 50, generator=seeded(2))
    start = torch.tensor([0.0, 3.0, 20.0, 0.0, 35.0])
    length = torch.tensor([size, size - 9.0, 20.0, 1.0, 5.0])
    mirrored = torch.tensor([True, False, True, False, True])
    matrices = resampling(start, length, size, out)
    matrices = torch.where(mirrored[:, None, None], matrices.flip(1), matrices)
    taps = bicubic_taps(length, out, mirrored)
    for matrix, first, count, own in zip(matrices, start.int().tolist(), length.int().tolist(), taps, strict=True):
        made = weigh_rows(lines[first : first + count], own)
        torch.testing.assert_close(made, matrix @ lines, rtol=0, atol=1e-5)


@pytest.mark.parametrize("deviation", [0.1, 0.7, 2.0, 40.0])
def test_taps_of_a_blur_are_its_matrix(deviation: float) -> None:
    lines = torch.rand(31, 7, generator=seeded(2))
    matrix = gaussian_blur(torch.tensor([deviation]), 31)[0]
    torch.testing.assert_close(weigh_rows(lines, gaussian_taps(deviation, 31)), matrix @ lines, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("size", "views"),
    [
        ((224, 224), Views()),
        ((160, 224), Views(jitter=0.0)),
        ((131, 97), Views(three_augment=False, flip=False)),
        ((200, 150), Views(size=96)),
        ((64, 96), Views(size=160, blur=(0.1, 3.0))),
    ],
)
def test_views_of_large_images_are_those_of_whole_matrices(
    size: tuple[int, int], views: Views, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = pictures(24, *size)
    one_by_one = views(images, seeded(1))
    monkeypatch.setattr(views_module, "_LARGE", 10**6)
    together = views(images, seeded(1))
    assert one_by_one.is_contiguous()
    assert one_by_one.shape == together.shape
    assert (one_by_one - together).abs().max() < 1e-4
    assert (one_by_one - together.roll(1, 0)).abs().max() > 0.1


@pytest.mark.parametrize(("count", "side"), [(9, 8), (128, 32), (50, 64), (1, 32)])
def test_parts_of_a_batch_are_bit_for_bit_the_whole(count: int, side: int, monkeypatch: pytest.MonkeyPatch) -> None:
    images = pictures(count, side, side)
    parts = Views()(images, seeded(1))
    monkeypatch.setattr(views_module, "_CACHED", 1000)
    assert torch.equal(Views()(images, seeded(1)), parts)
    monkeypatch.setattr(views_module, "_CACHED", 10**9)
    assert torch.equal(Views()(images, seeded(1)), parts)
