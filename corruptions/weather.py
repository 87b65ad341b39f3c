"""The weather group: fog and brightness (Hendrycks and Dietterich 2019, arXiv:1903.12261)."""

from __future__ import annotations

from torch import Tensor

from corruptions.catalog import Parameters
from corruptions.kernels import plasma
from corruptions.noise import Draws, Size
from corruptions.rng import Stream


def draw_fog(stream: Stream, size: Size, parameters: Parameters) -> Draws:
    """Uniforms of a plasma map whose side is the profile's, or the next power of two that covers a larger image."""
    side = max(int(parameters[2]), 1 << (max(size) - 1).bit_length())
    return {"uniform": stream.uniform(side * side - 1)}


def fog(images: Tensor, draws: Draws, parameters: Parameters) -> Tensor:
    """(x + s m) M / (M + s): plasma m is added to all channels; M is the brightest value of that image."""
    strength, decay, _ = parameters
    height, width = images.shape[-2:]
    layer = plasma(draws["uniform"], decay)[:, None, :height, :width]
    brightest = images.amax((1, 2, 3), keepdim=True)
    return (images + strength * layer).mul_(brightest / (brightest + strength)).clamp_(0, 1)


def brightness(images: Tensor, draws: Draws, parameters: Parameters) -> Tensor:
    """HSV value + c, clipped at 1. Scaling a pixel by V' / V is the same thing without the colour space."""
    (amount,) = parameters
    value = images.amax(1, keepdim=True)
    raised = (value + amount).clamp_(max=1)
    # Divided first, the brightest channel becomes exactly V'.
    return (images / value).mul_(raised).where(value > 0, raised)
