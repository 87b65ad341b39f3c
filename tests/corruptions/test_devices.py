"""The same corruption on a GPU as on the CPU, to a level, and exactly where it is defined by integers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import corruptions
from corruptions.rng import Stream, image_keys
from corruptions.weather import frost_folder

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
EXACT = (
    "impulse_noise",
    "shot_noise",
    "jpeg_compression",
    "pixelate",
    "glitched",
    "stickers",
    "vertical_lines",
    "geometric_shapes",
)


def test_words_and_uniforms_are_equal() -> None:
    keys = image_keys("fog", range(5), 0)
    assert torch.equal(Stream(keys).words(1001), Stream(keys.cuda()).words(1001).cpu())
    assert torch.equal(Stream(keys).uniform(1001), Stream(keys.cuda()).uniform(1001).cpu())


@pytest.mark.parametrize("name", [name for name in corruptions.names() if name != "frost" or frost_folder()])
@pytest.mark.parametrize("side", [32, 96])
def test_devices_agree(name: str, side: int, pictures: Callable[[int, int, int], Tensor]) -> None:
    images = pictures(4, side, side + 5)
    for severity in (1, 3, 5):
        expected = corruptions.corrupt(images, name, severity, ids=range(4))
        found = corruptions.corrupt(images.cuda(), name, severity, ids=range(4))
        assert found.is_cuda
        difference = (found.cpu().int() - expected.int()).abs()
        assert (difference <= 1).float().mean() >= 0.99
        if name in EXACT:
            assert difference.max() == 0
