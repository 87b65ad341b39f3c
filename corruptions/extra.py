"""The four extra corruptions, kept for tuning hyper-parameters, never for scores: speckle noise and Gaussian blur."""

from __future__ import annotations

from torch import Tensor

from corruptions.catalog import Parameters
from corruptions.kernels import blur
from corruptions.noise import Draws, Size
from corruptions.rng import Stream


def draw_speckle_noise(stream: Stream, size: Size, parameters: Parameters) -> Draws:
    """Standard normals, one per pixel and channel."""
    return {"normal": stream.normal(3, *size)}


def speckle_noise(images: Tensor, draws: Draws, parameters: Parameters) -> Tensor:
    """x + sigma x z, independent per pixel and channel."""
    (sigma,) = parameters
    return images.addcmul(images, draws["normal"], value=sigma).clamp_(0, 1)


def gaussian_blur(images: Tensor, draws: Draws, parameters: Parameters) -> Tensor:
    """Gaussian blur of each channel; borders repeat the edge pixel."""
    (sigma,) = parameters
    return blur(images, sigma).clamp(0, 1)
