"""Predictive ingredient as published: LeJEPA (Balestriero and LeCun 2025, arXiv:2511.08544), global and local views."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from methods.base import Options
from methods.identity import component
from methods.limits import Fraction
from methods.nets import flops
from methods.nets.vit import encode
from methods.nets.weights import AnyArchitecture, Weights
from methods.selfsoup.objectives import base
from methods.selfsoup.objectives.lejepa import random_slices, sigreg
from methods.views.ssl_views import Views

_LOCAL_SIDE = 3 / 7  # 96 of 224 pixels


@component("methods.selfsoup.objectives.lejepa_official.Config")
@dataclass(frozen=True)
class Config(Options):
    """Options of LeJEPA; defaults are the recommended ones.

    balance: weight lambda of the Gaussian term, in [0, 1]. globals_, locals_: numbers of global views, which show
    `global_area` to all of the image, and of local views, which show `local_smallest` to `global_area` of it at three
    sevenths of the side. slices: random directions in each step. hidden, out: widths of the projector.
    """

    balance: Fraction = 0.05
    globals_: int = 2
    locals_: int = 6
    global_area: float = 0.3
    local_smallest: float = 0.05
    slices: int = 1024
    hidden: int = 2048
    out: int = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.globals_ < 1 or self.locals_ < 0 or self.globals_ + self.locals_ < 2:
            raise ValueError("LeJEPA needs at least one global view and two views in all")
        if not 0 < self.local_smallest <= self.global_area <= 1:
            raise ValueError("areas must rise: 0 < local_smallest <= global_area <= 1")

    @property
    def cost(self) -> float:
        return 2.0 * (self.globals_ + _LOCAL_SIDE**2 * self.locals_)

    def flops(self, shape: AnyArchitecture) -> float:
        small = flops.training(shape, side=shape.smaller(_LOCAL_SIDE)) if self.locals_ else 0.0
        head = 3 * flops.layers((shape.dim, self.hidden, self.hidden, self.out, self.slices))
        bodies = self.globals_ * flops.training(shape) + self.locals_ * small
        return bodies + (self.globals_ + self.locals_) * head

    def build(self, stock: Weights, generator: torch.Generator) -> GlobalAndLocal:
        return GlobalAndLocal(stock, self, generator)


def centred_prediction_loss(embeddings: Tensor, centres: int) -> Tensor:
    """Return the mean squared distance of all views from the mean of the first `centres`: [views, n, k] to a scalar."""
    return (embeddings - embeddings[:centres].mean(0)).square().mean()


class GlobalAndLocal(base.Objective):
    """Encodes and projects all views with gradient; only global views define the target of an image."""

    smallest_batch = 2

    def __init__(self, stock: Weights, config: Config, generator: torch.Generator) -> None:
        super().__init__()
        self.config = config
        self.views = config.globals_ + config.locals_
        shape = stock.architecture
        self.side = shape.smaller(_LOCAL_SIDE) if config.locals_ else shape.image_size
        self.project = base.projector((shape.dim, config.hidden, config.hidden, config.out), generator, bias=True)

    def pipelines(self, views: Views) -> list[Views]:
        config = self.config
        large = replace(views, scale=(config.global_area, 1.0))
        small = replace(views, scale=(config.local_smallest, config.global_area), size=self.side)
        return [large] * config.globals_ + [small] * config.locals_

    def loss(self, encoder: nn.Module, views: Sequence[Tensor], generator: torch.Generator) -> Tensor:
        count, everyone = self.config.globals_, self.share.everyone
        features = [everyone(encoder(torch.cat(list(views[:count]))), count)]
        if self.config.locals_:
            features.append(everyone(encode(encoder, torch.cat(list(views[count:]))), self.config.locals_))
        embeddings = self.project(torch.cat(features)).float().unflatten(0, (self.views, -1))
        slices = random_slices(embeddings.shape[2], self.config.slices, generator)
        balance = self.config.balance
        return (1 - balance) * centred_prediction_loss(embeddings, count) + balance * sigreg(embeddings, slices)
