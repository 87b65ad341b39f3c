"""Manifold capacity ingredient as published: MMCR (Yerxa et al. 2023, arXiv:2303.03307), optionally with momentum."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from methods.base import Options
from methods.identity import component
from methods.limits import FractionBelowOne, at_least
from methods.nets import flops
from methods.nets.weights import AnyArchitecture, Weights
from methods.selfsoup.objectives import base


@component("methods.selfsoup.objectives.mmcr_official.Config")
@dataclass(frozen=True)
class Config(Options):
    """Options of MMCR; defaults are those of its ImageNet training.

    crops: views of each image. local: weight lambda of the added mean nuclear norm of each image's own views. momentum:
    of the moving average of encoder and projector, whose centroids are averaged with the online ones; 0 for no moving
    average. divide: divide the global term by the number of images, as Self-Souping does. hidden, out: widths of the
    projector.
    """

    crops: Annotated[int, at_least(2)] = 2
    local: float = 0.0
    momentum: FractionBelowOne = 0.0
    divide: bool = False
    hidden: int = 8192
    out: int = 512

    @property
    def cost(self) -> float:
        return (2.4 if self.momentum else 1.8) * self.crops

    def flops(self, shape: AnyArchitecture) -> float:
        project = flops.layers((shape.dim, self.hidden, self.hidden, self.out))
        average = flops.forward(shape) + project if self.momentum else 0.0
        return self.crops * (flops.training(shape) + 3 * project + average)

    def build(self, stock: Weights, generator: torch.Generator) -> Manifold:
        return Manifold(stock, self, generator)


def manifold_loss(embeddings: Tensor, others: Tensor | None, *, local: float, divide: bool) -> Tensor:
    """local * mean_b ||Z_b||_* - ||C||_*, rows of embeddings [views, n, d] scaled to unit length, in float32.

    Z_b [views, d] are the views of image b, C [n, d] their means, averaged with those of `others` (the moving average)
    where given. `divide`: the global term over n.
    """
    with base.full_precision(embeddings):
        unit = F.normalize(embeddings.float(), dim=2)
        centroids = unit.mean(0)
        if others is not None:
            centroids = (centroids + F.normalize(others.float(), dim=2).mean(0)) / 2
        loss: Tensor = -torch.linalg.svdvals(centroids).sum()
        if divide:
            loss = loss / len(centroids)
        if local:
            loss = loss + local * torch.linalg.svdvals(unit.transpose(0, 1)).sum(1).mean()
        return loss


class Manifold(base.Objective):
    """Passes all views through encoder and projector with gradient; the moving average, if any, without."""

    smallest_batch = 2
    once_a_step = True

    def __init__(self, stock: Weights, config: Config, generator: torch.Generator) -> None:
        super().__init__()
        self.config = config
        self.views = config.crops
        self.project = base.projector((stock.architecture.dim, config.hidden, config.hidden, config.out), generator)

    def prepare(self, encoder: nn.Module, steps: int) -> None:
        if self.config.momentum:
            self.average = base.Momentum(nn.ModuleList([encoder, self.project]), self.config.momentum, 0)

    def loss(self, encoder: nn.Module, views: Sequence[Tensor], generator: torch.Generator) -> Tensor:
        images = torch.cat(list(views))
        features = self.share.everyone(encoder(images), len(views))
        embeddings = self.project(features).unflatten(0, (len(views), -1))
        others = None
        if self.config.momentum:
            self.average.update(nn.ModuleList([encoder, self.project]))
            body, head = self.average.average.children()
            with torch.no_grad():
                others = head(self.share.everyone(body(images), len(views))).unflatten(0, (len(views), -1))
        return manifold_loss(embeddings, others, local=self.config.local, divide=self.config.divide)
