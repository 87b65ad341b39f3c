"""Against the index package that restates ImageNet-C with OpenCV and scikit-image, where it does so faithfully.

It differs from ImageNet-C in zoom blur (cut at a corner), snow, frost (sizes) and elastic transform (no affine part);
those are tested against restatements and against the reference's photographs.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import corruptions
from corruptions.catalog import parameters
from corruptions.kernels import disc, plasma, trail

Photographs = Callable[[int], Tensor]
severities = pytest.mark.parametrize("severity", [1, 2, 3, 4, 5])


@pytest.fixture(scope="module")
def oracle() -> Any:
    pytest.importorskip("imagecorruptions", reason="needs pip install --no-deps imagecorruptions-imaug")
    return importlib.import_module("imagecorruptions.corruptions")


def theirs(oracle: Any, name: str, image: Tensor, severity: int) -> np.ndarray:
    """In levels, before truncation where the package gives that."""
    from PIL import Image

    found = getattr(oracle, name)(Image.fromarray(image.permute(1, 2, 0).numpy()), severity)
    return np.asarray(found, dtype=np.float64)


# The largest difference in levels before truncation, and the share of bytes that may differ (by one level).
DETERMINISTIC = {
    "gaussian_blur": (1e-3, 0.02),
    "defocus_blur": (2e-3, 0.05),
    "brightness": (1e-3, 0.08),
    "contrast": (1e-3, 0.02),
    "saturate": (2e-3, 0.2),
    "jpeg_compression": (0, 0),
    "pixelate": (0, 0),
}


@severities
@pytest.mark.parametrize("name", DETERMINISTIC)
def test_what_has_no_chance_is_equal(name: str, severity: int, oracle: Any, photographs: Photographs) -> None:
    images = photographs(224)
    exact = 255 * corruptions.corrupt(images / 255, name, severity, storage="none").double()
    stored = corruptions.corrupt(images, name, severity)
    tolerance, flips = DETERMINISTIC[name]
    for image, ours, bytes_ in zip(images, exact.permute(0, 2, 3, 1), stored.permute(0, 2, 3, 1), strict=True):
        expected = theirs(oracle, name, image, severity)
        assert abs(ours.numpy() - expected).max() <= tolerance + 1e-4
        difference = abs(bytes_.numpy().astype(int) - expected.astype(np.uint8).astype(int))
        assert difference.max() <= (1 if flips else 0)
        assert (difference > 0).mean() <= flips


@severities
def test_motion_blur_at_a_given_angle(severity: int, oracle: Any, photographs: Photographs) -> None:
    image = photographs(224)[:1].float() / 255
    radius, sigma = parameters("motion_blur", severity, "imagenet224")
    for degrees in (-45, -20.5, 0, 13, 44):
        expected = oracle._motion_blur(image[0].permute(1, 2, 0).numpy(), int(radius), sigma, degrees)
        found = trail(image, torch.tensor([np.deg2rad(degrees)]), radius, sigma)[0].permute(1, 2, 0).numpy()
        assert abs(found - expected).max() * 255 < 1e-3


@pytest.mark.parametrize("decay", [1.4, 1.7, 2, 3])
def test_plasma_of_the_same_uniforms(decay: float, oracle: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[np.ndarray] = []
    rng = np.random.default_rng(0)

    def uniform(low: float, high: float, size: tuple[int, ...]) -> np.ndarray:
        drawn.append(rng.random(size))
        return low + (high - low) * drawn[-1]

    monkeypatch.setattr(oracle.np.random, "uniform", uniform)
    expected = oracle.plasma_fractal(mapsize=64, wibbledecay=decay)
    levels = torch.from_numpy(np.concatenate([level.ravel() for level in drawn]))
    assert abs(plasma(levels[None], decay)[0].numpy() - expected).max() < 1e-4


@severities
def test_the_disc_of_defocus(severity: int, oracle: Any) -> None:
    radius, sigma = parameters("defocus_blur", severity, "imagenet224")
    assert abs(disc(radius, sigma).numpy() - oracle.disk(int(radius), sigma)).max() < 1e-6


RANDOM = ("gaussian_noise", "shot_noise", "impulse_noise", "speckle_noise", "glass_blur", "fog", "motion_blur")


@pytest.mark.slow
@severities
@pytest.mark.parametrize("name", RANDOM)
def test_what_has_chance_is_equal_in_distribution(
    name: str, severity: int, oracle: Any, photographs: Photographs
) -> None:
    seeds = 24
    image = photographs(224)[0]
    batch = image.expand(seeds, -1, -1, -1)
    ours = corruptions.corrupt(batch, name, severity, ids=range(seeds)).double().permute(0, 2, 3, 1).numpy()
    found = np.stack([theirs(oracle, name, image, severity).astype(np.uint8) for _ in range(seeds)]).astype(float)
    clean = image.permute(1, 2, 0).numpy().astype(float)
    for measure in (
        lambda x: x.mean((1, 2, 3)),
        lambda x: x.std((1, 2, 3)),
        lambda x: 10 * np.log10(255**2 / ((x - clean) ** 2).mean((1, 2, 3))),
        lambda x: abs(np.diff(x, axis=2)).mean((1, 2, 3)),
    ):
        a, b = measure(ours), measure(found)
        error = np.sqrt((a.var(ddof=1) + b.var(ddof=1)) / seeds)
        assert abs(a.mean() - b.mean()) <= 4.5 * error + 0.05
