"""Pictures for the tests of the corruptions: made up here, or the photographs that scikit-image ships."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import torch
import torchvision.transforms.v2 as v2
from torch import Tensor


def _pictures(n: int, height: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(height * 1009 + width)
    coarse = torch.rand(n, 3, max(height // 8, 2), max(width // 8, 2), generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bilinear")
    noise = torch.rand(n, 3, height, width, generator=generator)
    return (255 * (0.8 * smooth + 0.2 * noise)).round().to(torch.uint8)


@pytest.fixture(scope="session")
def pictures() -> Callable[[int, int, int], Tensor]:
    """Makes n colour pictures with structure and texture: uint8 [n, 3, height, width], always the same."""
    return _pictures


@pytest.fixture(scope="session")
def photographs() -> Callable[[int], Tensor]:
    """Makes the three pictures of the golden table at a side of 224, 64 or 32 pixels: uint8 [3, 3, side, side]."""
    image = pytest.importorskip("PIL.Image")
    data = pytest.importorskip("skimage.data", reason="the golden table needs scikit-image's pictures")
    crop = v2.Compose([v2.Resize(256), v2.CenterCrop(224)])

    @functools.cache
    def make(side: int) -> Tensor:
        sources = [crop(image.fromarray(getattr(data, name)())) for name in ("astronaut", "chelsea", "coffee")]
        sized = sources if side == 224 else [source.resize((side, side), image.BILINEAR) for source in sources]
        return torch.stack([v2.functional.pil_to_tensor(picture) for picture in sized])

    return make
