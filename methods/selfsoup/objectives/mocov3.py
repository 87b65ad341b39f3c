"""Contrastive ingredient: MoCo v3 (Chen et al. 2021, arXiv:2104.02057) as Self-Souping simplifies it (section 4)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from methods import flops
from methods.selfsoup.objectives import base
from methods.stock import Architecture, Weights


@dataclass(frozen=True)
class Config:
    """Options of the contrastive objective. temperature: positive; the paper uses 0.1 and 1.0."""

    temperature: float = 1.0
    cost = 2.4

    def __post_init__(self) -> None:
        if self.temperature <= 0:
            raise ValueError(f"temperature must be positive, not {self.temperature}")

    def flops(self, shape: Architecture) -> float:
        head = flops.layers((shape.dim, 4 * shape.dim, shape.dim))
        return flops.training(shape) + flops.forward(shape) + 3 * head

    def build(self, stock: Weights, generator: torch.Generator) -> Contrast:
        return Contrast(stock, self, generator)


def info_nce(queries: Tensor, keys: Tensor, temperature: float) -> Tensor:
    """2 T CE(q k^T / T, identity) with rows of queries and keys [n, d] scaled to unit length, in float32.

    Identical rows everywhere give 2 T ln n; q = k with orthonormal rows gives 2 T ln(1 + (n - 1) e^(-1 / T)).
    """
    with base.full_precision(queries):
        similarity = F.normalize(queries.float(), dim=1) @ F.normalize(keys.float(), dim=1).T
        labels = torch.arange(len(queries), device=queries.device)
        return 2 * temperature * F.cross_entropy(similarity / temperature, labels)


class Contrast(base.Objective):
    """Queries: a small head on the first view. Keys: the bare encoder on the second, without gradient or momentum."""

    views = 2
    smallest_batch = 2

    def __init__(self, stock: Weights, config: Config, generator: torch.Generator) -> None:
        super().__init__()
        self.config = config
        self.head = base.small_head(stock.architecture.dim, stock.architecture.dim, generator)

    def loss(self, encoder: nn.Module, views: Sequence[Tensor], generator: torch.Generator) -> Tensor:
        first, second = views
        with torch.no_grad():
            keys = encoder(second)
        return info_nce(self.head(encoder(first)), keys, self.config.temperature)
