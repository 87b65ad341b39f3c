"""Padded crops against torchvision's pad, crop and flip, and the frequencies of places against their probabilities."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor
from torchvision.transforms import functional as tv

from methods.views.padded_crops import PaddedCrops


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pictures(count: int, height: int = 6, width: int = 7) -> Tensor:
    return torch.randint(1, 256, (count, 3, height, width), generator=seeded(9), dtype=torch.uint8)


def places_of(image: Tensor, view: Tensor, padding: int) -> list[tuple[int, int, bool]]:
    """The places and mirrorings of a crop that give this view, by torchvision."""
    found = []
    for top in range(2 * padding + 1):
        for left in range(2 * padding + 1):
            for mirrored in (False, True):
                cut = tv.crop(tv.pad(image, [padding] * 4), top, left, *image.shape[1:])
                cut = tv.hflip(cut) if mirrored else cut
                if torch.equal(cut.float() / 255, view):
                    found.append((top, left, mirrored))
    return found


@pytest.mark.parametrize(("padding", "flip"), [(2, True), (2, False), (0, True), (1, False)])
def test_each_view_is_one_of_torchvisions_and_all_are_equally_likely(padding: int, flip: bool) -> None:
    image = pictures(1)
    views = PaddedCrops(padding, flip)(image.expand(1500, -1, -1, -1), seeded())
    assert views.dtype == torch.float32
    different, counts = views.flatten(1).unique(dim=0, return_counts=True)
    seen: Counter[tuple[int, int, bool]] = Counter()
    for view, count in zip(different, counts, strict=True):
        (place,) = places_of(image[0], view.view_as(image[0]), padding)
        seen[place] += int(count)
    assert len(seen) == (2 * padding + 1) ** 2 * (2 if flip else 1)
    assert chisquare(list(seen.values())).pvalue > 1e-3 if len(seen) > 1 else True
    assert any(mirrored for _, _, mirrored in seen) == flip


def test_every_image_of_a_batch_has_its_own_place() -> None:
    images = pictures(40)
    views = PaddedCrops(2)(images, seeded())
    found = [places_of(image, view, 2) for image, view in zip(images, views, strict=True)]
    assert all(len(places) == 1 for places in found)
    assert len({places[0] for places in found}) > 15


def test_views_follow_the_generator_and_lie_as_convolutions_like_it() -> None:
    images = pictures(8, 32, 32)
    before = torch.get_rng_state()
    views = PaddedCrops()(images, seeded())
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(views, PaddedCrops()(images, seeded()))
    assert not torch.equal(views, PaddedCrops()(images, seeded(1)))
    assert views.is_contiguous(memory_format=torch.channels_last)


def test_a_negative_padding_is_refused() -> None:
    with pytest.raises(ValueError, match="padding"):
        PaddedCrops(-1)
