"""Manifold capacity ingredient: MMCR (Yerxa et al. 2023, arXiv:2303.03307) as Self-Souping simplifies it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from methods.identity import component
from methods.nets import flops
from methods.nets.weights import AnyArchitecture, Weights
from methods.selfsoup.objectives import base

_NEAR = 1e-3  # of one minus the cosine; from here on float32 knows it to four digits


@component("methods.selfsoup.objectives.mmcr.Config")
@dataclass(frozen=True)
class Config:
    """Options of the manifold-capacity objective. local: add the nuclear norms of each image's own pair of views."""

    local: bool = True
    cost = 2.4

    def flops(self, shape: AnyArchitecture) -> float:
        head = flops.layers((shape.dim, 4 * shape.dim, shape.dim))
        return flops.training(shape) + flops.forward(shape) + 4 * head

    def build(self, stock: Weights, generator: torch.Generator) -> ManifoldCapacity:
        return ManifoldCapacity(stock, self, generator)


def capacity_loss(first: Tensor, second: Tensor, *, local: bool) -> Tensor:
    """-||C||_* / n with C = (z1 + z2) / 2, rows of z1 and z2 [n, d] scaled to unit length, in float32.

    If local, plus the mean over images of ||[z1_i z2_i]||_* = sqrt(1 + rho_i) + sqrt(1 - rho_i), rho_i the cosine of
    the two views; it lies in [sqrt 2, 2]. The global term is at least -sqrt(min(n, d) / n), reached by equal views with
    centroids orthonormal along the shorter side; total collapse gives -1 / sqrt(n).
    """
    with base.full_precision(first):
        first, second = F.normalize(first.float(), dim=1), F.normalize(second.float(), dim=1)
        singular: Tensor = torch.linalg.svdvals((first + second) / 2)
        loss = -singular.sum() / len(first)
        if local:
            cosine = (first * second).sum(1)
            loss = loss + (_root(1 + cosine, first + second) + _root(1 - cosine, first - second)).mean()
        return loss


def _root(square: Tensor, vectors: Tensor) -> Tensor:
    """Return the square root of 1 + rho (or 1 - rho), [n], given the sum (or difference) of both unit vectors [n, d].

    It is the length of that vector over sqrt 2. Near 0 the number itself is mostly rounding and the slope of its root
    has no bound; the length is exact to rounding and its slope is at most 1 / sqrt 2, and 0 where it vanishes.
    """
    length = torch.linalg.vector_norm(vectors, dim=1) / math.sqrt(2)
    return torch.where(square < _NEAR, length, square.clamp(min=_NEAR).sqrt())


class ManifoldCapacity(base.Objective):
    """Passes both views through the encoder and a small head; the second view without gradient."""

    views = 2
    smallest_batch = 2

    def __init__(self, stock: Weights, config: Config, generator: torch.Generator) -> None:
        super().__init__()
        self.config = config
        self.head = base.small_head(stock.architecture.dim, stock.architecture.dim, generator)

    def loss(self, encoder: nn.Module, views: Sequence[Tensor], generator: torch.Generator) -> Tensor:
        first, second = views
        with torch.no_grad():
            target = self.head(self.share.everyone(encoder(second)))
        return capacity_loss(self.head(self.share.everyone(encoder(first))), target, local=self.config.local)
