"""AugMix against PIL: each operation, each crop, and whole views from the same uniform numbers, one by one."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.transforms import functional as vision

from methods.views.augmix import OPERATIONS, UNIFORMS, augmix, draw

Picture = Image.Image
Bytes = np.ndarray[Any, np.dtype[np.uint8]]


def affine(picture: Picture, matrix: tuple[float, ...]) -> Picture:
    return picture.transform(
        picture.size, Image.Transform.AFFINE, matrix, resample=Image.Resampling.BILINEAR, fillcolor=128
    )


# The release's operations at severity 1, where its level is a uniform number of [0.1, 1] and its integers are cut.
PIL_OPERATIONS: dict[str, Callable[[Picture, float, int], Picture]] = {
    "autocontrast": lambda p, u, s: ImageOps.autocontrast(p),
    "equalize": lambda p, u, s: ImageOps.equalize(p),
    "posterize": lambda p, u, s: ImageOps.posterize(p, 4 - int(u * 4 / 10)),
    "rotate": lambda p, u, s: p.rotate(s * int(u * 30 / 10), resample=Image.Resampling.BILINEAR, fillcolor=128),
    "solarize": lambda p, u, s: ImageOps.solarize(p, 256 - int(u * 256 / 10)),
    "shear_x": lambda p, u, s: affine(p, (1, s * u * 0.3 / 10, 0, 0, 1, 0)),
    "shear_y": lambda p, u, s: affine(p, (1, 0, 0, s * u * 0.3 / 10, 1, 0)),
    "translate_x": lambda p, u, s: affine(p, (1, 0, s * int(u * (p.width / 3) / 10), 0, 1, 0)),
    "translate_y": lambda p, u, s: affine(p, (1, 0, 0, 0, 1, s * int(u * (p.height / 3) / 10))),
}
POINT = ("autocontrast", "equalize", "posterize", "solarize")
WHOLE_PIXELS = ("translate_x", "translate_y")


def pictures(height: int = 32, width: int = 32) -> Tensor:
    """Uint8 pictures with awkward histograms: noise, dark, bright, few values, flat, a ramp, two values."""
    generator = torch.Generator().manual_seed(11)

    def noise(low: int, high: int) -> Tensor:
        return torch.randint(low, high, (3, height, width), generator=generator)

    ramp = (torch.arange(height * width) * 255 // (height * width - 1)).view(1, height, width).expand(3, -1, -1)
    coarse = noise(0, 256)[None, :, :5, :5].float()
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")[0]
    flat, binary = torch.full_like(noise(0, 2), 77), noise(0, 2) * 255
    uneven = torch.cat([noise(0, 256)[:1], noise(5, 6)[:1], noise(9, 80)[:1]])
    ranges = [noise(0, 256), noise(0, 60), noise(190, 256), noise(100, 104)]
    return torch.stack([*ranges, flat, binary, uneven, ramp, smooth]).to(torch.uint8)


def to_pil(pixels: Tensor) -> Picture:
    return Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())


def from_pil(picture: Picture) -> Tensor:
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)


def compare(name: str, pixels: Tensor, levels: Tensor, signs: Tensor) -> Tensor:
    """Absolute differences in 8-bit levels between ours and PIL's."""
    ours = OPERATIONS[name](pixels, levels, signs).int()
    theirs = torch.stack(
        [
            from_pil(PIL_OPERATIONS[name](to_pil(p), float(u), int(s)))
            for p, u, s in zip(pixels, levels, signs, strict=True)
        ]
    ).int()
    return (ours - theirs).abs()


def settings(name: str, height: int = 32, width: int = 32) -> tuple[Tensor, Tensor, Tensor]:
    base = pictures(height, width)
    generator = torch.Generator().manual_seed(len(name))
    pixels = base.repeat(2 if height > 100 else 6, 1, 1, 1)
    levels = 0.1 + 0.9 * torch.rand(len(pixels), generator=generator).double()
    levels[: len(base)] = 0.999999
    signs = torch.where(torch.rand(len(pixels), generator=generator) < 0.5, -1.0, 1.0).double()
    return pixels, levels, signs


def test_the_release_has_these_nine_operations() -> None:
    assert set(OPERATIONS) == set(PIL_OPERATIONS)


@pytest.mark.parametrize("size", [(32, 32), (24, 61), (224, 224)])
@pytest.mark.parametrize("name", POINT + WHOLE_PIXELS)
def test_point_operations_and_whole_shifts_are_pil_bit_for_bit(name: str, size: tuple[int, int]) -> None:
    assert int(compare(name, *settings(name, *size)).max()) == 0


@pytest.mark.parametrize("size", [(32, 32), (24, 61), (224, 224)])
@pytest.mark.parametrize("name", ["rotate", "shear_x", "shear_y"])
def test_geometry_is_pil_but_for_rounding(name: str, size: tuple[int, int]) -> None:
    pixels, levels, signs = settings(name, *size)
    difference = compare(name, pixels, levels, signs)
    assert int(difference.max()) <= 1
    assert float((difference > 0).float().mean()) < 0.01


@pytest.mark.parametrize("name", ["rotate", "shear_x", "shear_y", *WHOLE_PIXELS])
def test_the_comparison_tells_a_wrong_sign(name: str) -> None:
    pixels, levels, signs = settings(name, 64, 64)
    wrong = OPERATIONS[name](pixels, levels, -signs).int() - OPERATIONS[name](pixels, levels, signs).int()
    assert float((wrong.abs() > 1).float().mean()) > 0.01


@pytest.mark.parametrize("low", range(0, 255, 15))
def test_autocontrast_keeps_the_rounding_of_pil_for_every_range(low: int) -> None:
    highs = torch.arange(low, 256, 3)
    generator = torch.Generator().manual_seed(low)
    inner = (low + torch.rand(len(highs), 3, 16, 16, generator=generator) * (highs - low + 1).view(-1, 1, 1, 1)).long()
    pixels = torch.minimum(inner, highs.view(-1, 1, 1, 1)).to(torch.uint8)
    pixels[:, :, 0, 0] = low
    pixels[:, :, 0, 1] = highs.to(torch.uint8).view(-1, 1)
    ones = torch.ones(len(pixels), dtype=torch.float64)
    assert int(compare("autocontrast", pixels, ones, ones).max()) == 0


def slow_box(row: list[float], height: int, width: int) -> tuple[int, int, int, int]:
    """Top, left, height, width as torchvision's RandomResizedCrop chooses them, from given uniform numbers."""
    for try_ in range(10):
        area = height * width * (0.08 + 0.92 * row[1 + try_])
        aspect = math.exp(math.log(3 / 4) + (math.log(4 / 3) - math.log(3 / 4)) * row[11 + try_])
        wide, tall = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < wide <= width and 0 < tall <= height:
            return int((height - tall + 1) * row[21]), int((width - wide + 1) * row[22]), tall, wide
    if width / height < 3 / 4:
        wide, tall = width, round(width / (3 / 4))
    elif width / height > 4 / 3:
        wide, tall = round(height * (4 / 3)), height
    else:
        wide, tall = width, height
    return (height - tall) // 2, (width - wide) // 2, tall, wide


def slow_start(picture: Picture, row: list[float], crop: str, flip: bool) -> Picture:
    """The cropped and mirrored view, by torchvision on PIL."""
    if crop == "resized":
        top, left, tall, wide = slow_box(row, picture.height, picture.width)
        picture = vision.resized_crop(picture, top, left, tall, wide, [picture.height, picture.width])
    elif crop == "padded":
        padded = vision.pad(picture, [4])
        picture = vision.crop(padded, int(row[21] * 9), int(row[22] * 9), picture.height, picture.width)
    return vision.hflip(picture) if flip and row[0] < 0.5 else picture


def slow_view(picture: Picture, row: list[float], crop: str, flip: bool) -> np.ndarray[Any, np.dtype[np.float64]]:
    """One AugMix view [3, h, w] in [0, 1], operation by operation."""
    start = slow_start(picture, row, crop, flip)
    exponentials = [-math.log(1 - u) for u in row[24:27]]
    mixture = np.zeros((picture.height, picture.width, 3))
    for chain in range(3):
        image = start
        for step in range(1 + int(row[27 + chain] * 3)):
            kind, level, sign = row[30 + 9 * chain + 3 * step :][:3]
            operation = list(OPERATIONS)[int(kind * 9)]
            image = PIL_OPERATIONS[operation](image, 0.1 + 0.9 * level, -1 if sign > 0.5 else 1)
        mixture += exponentials[chain] / sum(exponentials) * np.asarray(image) / 255
    share = row[23]
    view = share * np.asarray(start) / 255 + (1 - share) * mixture
    return view.transpose(2, 0, 1)


@pytest.mark.parametrize(
    ("crop", "flip", "size"),
    [
        ("none", False, (32, 32)),
        ("none", True, (32, 32)),
        ("padded", True, (32, 32)),
        ("padded", False, (20, 40)),
        ("resized", True, (48, 48)),
        ("resized", False, (30, 90)),
    ],
)
def test_whole_views_are_those_of_pil(crop: Any, flip: bool, size: tuple[int, int]) -> None:
    base = pictures(*size)
    uniforms = draw(len(base), 6, torch.Generator().manual_seed(2))
    ours = augmix(base.float() / 255, uniforms, crop=crop, flip=flip)
    assert ours.shape == (len(base), 6, 3, *size)
    theirs = np.stack(
        [
            [slow_view(to_pil(picture), row, crop, flip) for row in rows]
            for picture, rows in zip(base, uniforms.double().tolist(), strict=True)
        ]
    )
    difference = (ours.double() - torch.from_numpy(theirs)).abs() * 255
    # One level off in a geometric operation is more than one after a threshold or an equalisation, in few pixels.
    few = 0.02 if crop == "resized" else 0.005
    assert float((difference > 1.01).double().mean()) < few
    assert float(difference.mean()) < 10 * few
    # Views made of another's numbers are nowhere near.
    other = (ours.double() - torch.from_numpy(theirs).roll(1, dims=1)).abs() * 255
    assert float((other > 1.01).double().mean()) > 0.5


@pytest.mark.parametrize("size", [(48, 48), (30, 90), (90, 30), (224, 224)])
def test_crops_alone_are_those_of_torchvision(size: tuple[int, int]) -> None:
    base = pictures(*size)
    uniforms = draw(len(base), 5, torch.Generator().manual_seed(4))
    uniforms[..., 23] = 1.0  # all of the start, nothing of the chains
    uniforms[0, :2, 1:11] = 0.999  # no try of ten fits some of these shapes
    ours = augmix(base.float() / 255, uniforms)
    theirs = torch.stack(
        [
            torch.stack([from_pil(slow_start(to_pil(picture), row, "resized", True)) for row in rows])
            for picture, rows in zip(base, uniforms.double().tolist(), strict=True)
        ]
    )
    difference = (ours * 255 - theirs).abs()
    # PIL's weights are whole multiples of 2^-22, which decides ties at random: a few a hundred, twice over at worst.
    assert float(difference.max()) <= 2.001
    assert float((difference > 0.5).float().mean()) < 0.03


def test_extreme_uniforms_give_finite_views_in_range() -> None:
    images = torch.rand(2, 3, 17, 23, generator=torch.Generator().manual_seed(0))
    for value in (0.0, 1 - 2**-24):
        for crop in ("resized", "padded", "none"):
            views = augmix(images, torch.full((2, 3, UNIFORMS), value), crop=crop)
            assert torch.isfinite(views).all()
            assert views.min() >= 0
            assert views.max() <= 1


@pytest.mark.parametrize("crop", ["resized", "padded", "none"])
def test_views_do_not_depend_on_the_batch(crop: Any) -> None:
    images = pictures().float() / 255
    together = augmix(images, draw(len(images), 4, torch.Generator().manual_seed(1)), crop=crop)
    generator = torch.Generator().manual_seed(1)
    parts = [augmix(part, draw(len(part), 4, generator), crop=crop) for part in torch.split(images, [1, 3, 5])]
    assert torch.equal(torch.cat(parts), together)


def test_uniform_numbers_spread_over_operations_depths_and_crops() -> None:
    """No column is used twice: over many views, each decision is uniform and pairs of them are uncorrelated."""
    uniforms = draw(200, 50, torch.Generator().manual_seed(0)).flatten(0, 1)
    assert uniforms.shape == (10_000, UNIFORMS)
    correlation = torch.corrcoef(uniforms.T) - torch.eye(UNIFORMS)
    assert float(correlation.abs().max()) < 0.05


def test_images_are_left_alone() -> None:
    images = pictures().float() / 255
    before = images.clone()
    augmix(images, draw(len(images), 2, torch.Generator()))
    assert torch.equal(images, before)
