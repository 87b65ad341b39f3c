"""What the four self-supervised objectives share: how inter-training asks for a loss, and a small head."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from methods.stock import Weights
from methods.training import reset


class Objective(nn.Module, ABC):
    """A self-supervised loss and the head or decoder that it trains beside the encoder and that is thrown away after.

    `views` is how many views of each image `loss` takes; `smallest_batch` how few images still give a gradient.
    """

    smallest_batch: ClassVar[int] = 1
    views: int

    @abstractmethod
    def loss(self, encoder: nn.Module, views: Sequence[Tensor], generator: torch.Generator) -> Tensor:
        """The scalar loss of a batch. Each view: normalised images, float [n, 3, h, w], row i always of image i."""


class Config(Protocol):
    """Options of an objective: a frozen dataclass that can build it for a stock.

    `cost` is about the time of one step relative to one MAE step with the default options and the same batch size,
    measured on one CPU core for images of 32 pixels, patches of 8, width 64 and depth 4. The ratios of floating-point
    operations of a ViT-B/16 are close: 2.4 for the two-view objectives, 3.6 for LeJEPA with two crops.
    """

    @property
    def cost(self) -> float: ...

    def build(self, stock: Weights, generator: torch.Generator) -> Objective: ...


def small_head(dim: int, out: int, generator: torch.Generator) -> nn.Sequential:
    """Two linear layers with a GELU between, 4 dim wide inside: [n, dim] to [n, out], on the generator's device."""
    head = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, out)).to(generator.device)
    reset(head, generator)
    return head


def full_precision(tensor: Tensor) -> Any:
    """A context without autocast, for losses whose sums must not be taken in half precision."""
    return torch.autocast(tensor.device.type, enabled=False)
