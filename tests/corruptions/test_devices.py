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


@pytest.mark.parametrize("name", [name for name in corruptions.names() if corruptions.describe(name).random])
def test_draws_are_equal(name: str) -> None:
    for severity in (1, 5):
        expected = corruptions.sample(name, severity, (40, 37), ids=["a", 2, 3])
        found = corruptions.sample(name, severity, (40, 37), ids=["a", 2, 3], device="cuda")
        assert expected.keys() == found.keys()
        for key, draw in expected.items():
            assert found[key].is_cuda
            if key == "uniform":
                assert torch.equal(found[key].cpu(), draw)
            else:
                assert torch.allclose(found[key].cpu().double(), draw.double(), atol=1e-5)


@pytest.mark.parametrize(
    "name", [name for name in corruptions.names("imagenet_c") if name != "frost" or frost_folder()]
)
def test_a_large_batch_needs_few_copies_of_itself(name: str) -> None:
    images = torch.randint(0, 256, (256, 3, 224, 224), dtype=torch.uint8, device="cuda")
    corruptions.corrupt(images[:2], name, 3, ids=range(2))
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    corruptions.corrupt(images, name, 3, ids=range(256))
    # Copies of the batch as it is worked on, in float32.
    assert (torch.cuda.max_memory_allocated() - before) / (4 * images.numel()) < 6


def test_each_image_may_have_its_own_severity(pictures: Callable[[int, int, int], Tensor]) -> None:
    images = pictures(4, 32, 32)
    severity = torch.tensor([1.0, 0.0, 2.5, 5.0])
    expected = corruptions.corrupt(images, "impulse_noise", severity, ids=range(4))
    found = corruptions.corrupt(images.cuda(), "impulse_noise", severity.cuda(), ids=range(4))
    assert torch.equal(found.cpu(), expected)
