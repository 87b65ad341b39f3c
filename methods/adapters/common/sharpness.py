"""The climb of sharpness-aware minimisation, from where the gradient of SAR and SoTTA is taken."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


@torch.no_grad()
def climb(parameters: Sequence[nn.Parameter], rho: float) -> list[Tensor]:
    """Move parameters up their gradients by the distance `rho`, clear the gradients, and return the values from before.

    The distance is Euclidean, in all parameters together (Foret et al. 2021, arXiv:2010.01412, equation 2). Parameters
    without a gradient stay.
    """
    before = [parameter.detach().clone() for parameter in parameters]
    pairs = [(parameter, parameter.grad) for parameter in parameters if parameter.grad is not None]
    scale = rho / (nn.utils.get_total_norm([slope for _, slope in pairs]) + 1e-12)
    for parameter, slope in pairs:
        parameter.add_(slope * scale)
        parameter.grad = None
    return before


@torch.no_grad()
def put_back(parameters: Sequence[nn.Parameter], values: Sequence[Tensor]) -> None:
    """Give parameters these values, in place."""
    for parameter, value in zip(parameters, values, strict=True):
        parameter.copy_(value)
