"""Our random numbers for the memories of NOTE and SoTTA, handed to their releases in place of Python's `random`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class MemoryDraws:
    """Three uniform numbers for each image that is offered; `next_image` goes to those of the next."""

    def __init__(self, images: int, seed: int = 7) -> None:
        generator = torch.Generator().manual_seed(seed)
        self._rows = iter(torch.rand(images, 3, generator=generator, dtype=torch.float64).tolist())
        self._row: list[float] = []

    def next_image(self) -> None:
        self._row = next(self._rows)

    def uniform(self, low: float, high: float) -> float:
        assert (low, high) == (0, 1)
        return self._row[0]

    def choice(self, items: Sequence[Any]) -> Any:
        return items[int(self._row[1] * len(items))]

    def randrange(self, low: int, high: int) -> int:
        assert low == 0
        return int(self._row[2] * high)


def in_order(*given: Any, shuffle: bool, **named: Any) -> DataLoader[Any]:
    """A loader of the one batch that a memory makes, which the releases shuffle; that changes rounding alone."""
    return DataLoader(*given, **named)


class Normalized(nn.Module):
    """Pixels to what the releases' normalisation layer for ImageNet gives."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(MEAN).view(-1, 1, 1))
        self.register_buffer("deviation", torch.tensor(DEVIATION).view(-1, 1, 1))

    def forward(self, x: Tensor) -> Any:
        return (x - self.mean) / self.deviation


def pixels(stream: Tensor) -> Tensor:
    """The images that `Normalized` turns into a stream, up to rounding."""
    return stream * torch.tensor(DEVIATION).view(-1, 1, 1) + torch.tensor(MEAN).view(-1, 1, 1)
