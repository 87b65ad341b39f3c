"""Contrastive ingredient: MoCo v3 (Chen et al. 2021, arXiv:2104.02057) as Self-Souping simplifies it (section 4)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from methods.base import Options
from methods.identity import component
from methods.limits import Fraction, Positive
from methods.nets import flops
from methods.nets.weights import AnyArchitecture, Weights
from methods.selfsoup.objectives import base


@component("methods.selfsoup.objectives.mocov3.Config")
@dataclass(frozen=True)
class Config(Options):
    """Options of the contrastive objective; the defaults give the simplified form.

    temperature: positive; the paper uses 0.1 and 1.0. symmetric: also match queries of the second view with keys of the
    first, and add both losses. momentum: start of the momentum, rising to 1 by a cosine, of a moving average of encoder
    and head that makes the keys and is updated before them; 0 or None: the online encoder makes the keys. key_head:
    whether keys pass through the head.
    """

    temperature: Positive = 1.0
    symmetric: bool | None = None
    momentum: Fraction | None = None
    key_head: bool | None = None

    @property
    def cost(self) -> float:
        return 4.8 if self.symmetric else 2.4

    def flops(self, shape: AnyArchitecture) -> float:
        head = flops.layers((shape.dim, 4 * shape.dim, shape.dim))
        one = flops.training(shape) + flops.forward(shape) + (4 if self.key_head else 3) * head
        return 2 * one if self.symmetric else one

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
    """Queries: a small head on the first view. Keys: the bare encoder on the second, without gradient or momentum.

    The options restore, one by one, what the simplification removed.
    """

    views = 2
    smallest_batch = 2

    def __init__(self, stock: Weights, config: Config, generator: torch.Generator) -> None:
        super().__init__()
        self.config = config
        self.once_a_step = bool(config.momentum)
        self.head = base.small_head(stock.architecture.dim, stock.architecture.dim, generator)

    def prepare(self, encoder: nn.Module, steps: int) -> None:
        if self.config.momentum:
            self.average = base.Momentum(nn.ModuleList([encoder, self.head]), self.config.momentum, steps)

    def loss(self, encoder: nn.Module, views: Sequence[Tensor], generator: torch.Generator) -> Tensor:
        body, head = encoder, cast(nn.Module, self.head)
        if self.config.momentum:
            self.average.update(nn.ModuleList([encoder, self.head]))
            body, head = self.average.average.children()
        total = torch.zeros((), device=views[0].device)
        for first, second in (views, views[::-1]) if self.config.symmetric else (views,):
            with torch.no_grad():
                keys = self.share.everyone(body(second))
                keys = head(keys) if self.config.key_head else keys
            queries = self.head(self.share.everyone(encoder(first)))
            total = total + info_nce(queries, keys, self.config.temperature)
        return total
