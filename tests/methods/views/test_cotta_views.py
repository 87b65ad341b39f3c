"""CoTTA's views against torchvision's operations one after the other on padded images, as the release has them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as tv

from methods.views.cotta_views import View, draw_view, make_view


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def released(picture: Tensor, view: View, padding: str) -> Tensor:
    """One picture [3, n, n], padded to twice its side before it is turned, cropped at the end; without the noise."""
    picture = picture.clamp(0, 1)
    for which in view.order:
        factor = view.colours[which]
        if which < 3:
            picture = [tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation][which](picture, factor)
        elif which == 3:
            picture = tv.adjust_hue(picture, factor)
        else:
            picture = tv.adjust_gamma(picture.clamp(1e-8, 1.0), factor)
    side = picture.shape[-1]
    picture = tv.pad(picture, [side // 2] * 4, padding_mode=padding)
    padded = picture.shape[-1]
    shift = [round(part * padded) for part in view.translation]
    picture = tv.affine(picture, view.degrees, shift, view.scale, [0.0, 0.0], InterpolationMode.BILINEAR)
    if view.sigma is not None:
        picture = tv.gaussian_blur(picture, [5, 5], [view.sigma, view.sigma])
    picture = tv.center_crop(picture, [side, side])
    return tv.hflip(picture) if view.mirrored else picture


@pytest.mark.parametrize("side", [24, 32, 33])
@pytest.mark.parametrize("padding", ["edge", "reflect"])
@pytest.mark.parametrize("smooth", [True, False])
def test_equals_the_release_operation_by_operation(padding: str, smooth: bool, side: int) -> None:
    images = torch.rand(3, 3, side, side, generator=generator()) * 1.2 - 0.1
    for seed in range(12):
        view = draw_view(generator(seed), smooth=smooth)
        ours = make_view(images, view, generator(9), padding=padding)  # type: ignore[arg-type]
        theirs = torch.stack([released(picture, view, padding) for picture in images])
        if smooth:
            theirs = theirs + 0.005 * torch.randn(theirs.shape, generator=generator(9))
        torch.testing.assert_close(ours, theirs.clamp(0, 1), atol=2e-5, rtol=0)


def test_draws_cover_their_ranges_and_nothing_else() -> None:
    one = generator()
    views = [draw_view(one) for _ in range(1200)]
    ranges = [(0.6, 1.4), (0.7, 1.3), (0.5, 1.5), (-0.06, 0.06), (0.7, 1.3), (-15, 15), (-1 / 16, 1 / 16)]
    ranges += [(-1 / 16, 1 / 16), (0.9, 1.1), (0.001, 0.5)]
    for place, (low, high) in enumerate(ranges):
        values = [(*view.colours, view.degrees, *view.translation, view.scale, view.sigma)[place] for view in views]
        assert all(value is not None and low <= value <= high for value in values)
        known = [value for value in values if value is not None]
        assert min(known) < low + 0.02 * (high - low)
        assert max(known) > high - 0.02 * (high - low)
    assert len({view.order for view in views}) == math.factorial(5)
    assert 500 < sum(view.mirrored for view in views) < 700
    assert not any(draw_view(one, flip=False).mirrored for _ in range(20))
    assert draw_view(one, smooth=False).sigma is None


def test_options_do_not_move_the_other_draws() -> None:
    full, bare = draw_view(generator(3)), draw_view(generator(3), smooth=False, flip=False)
    assert (full.order, full.colours, full.degrees) == (bare.order, bare.colours, bare.degrees)
    one, other = generator(3), generator(3)
    draw_view(one)
    draw_view(other, smooth=False, flip=False)
    assert torch.equal(one.get_state(), other.get_state())


def test_views_keep_shape_dtype_and_range_and_leave_the_images_alone() -> None:
    images = torch.rand(2, 3, 20, 28, generator=generator()).bfloat16()
    before = images.clone()
    made = make_view(images, draw_view(generator(1)), generator(2))
    assert (made.shape, made.dtype) == (images.shape, images.dtype)
    assert float(made.min()) >= 0
    assert float(made.max()) <= 1
    assert torch.equal(images, before)
    assert make_view(images[:0], draw_view(generator(1)), generator(2)).shape == (0, 3, 20, 28)
