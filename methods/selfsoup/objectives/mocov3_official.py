"""Contrastive ingredient as published: MoCo v3 (Chen et al. 2021, arXiv:2104.02057), with its momentum encoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from methods.base import Options
from methods.identity import component
from methods.limits import Fraction, Positive
from methods.nets import flops
from methods.nets.weights import AnyArchitecture, Weights
from methods.selfsoup.objectives import base
from methods.selfsoup.objectives.mocov3 import info_nce


@component("methods.selfsoup.objectives.mocov3_official.Config")
@dataclass(frozen=True)
class Config(Options):
    """Options of MoCo v3; defaults are those of its ViT-B.

    temperature: positive. momentum: start of the moving average's momentum, rising to 1 by a cosine. hidden, out:
    widths of the projector (three layers) and the predictor (two). freeze_patches: whether the patch embedding, if the
    network has one, stays frozen.
    """

    temperature: Positive = 0.2
    momentum: Fraction = 0.99
    hidden: int = 4096
    out: int = 256
    freeze_patches: bool = True
    cost = 4.8

    def flops(self, shape: AnyArchitecture) -> float:
        project = flops.layers((shape.dim, self.hidden, self.hidden, self.out))
        predict = flops.layers((self.out, self.hidden, self.out))
        encoder = shape.operations()
        training = encoder.frozen if self.freeze_patches else encoder.training
        return 2 * (training + encoder.forward + 4 * project + 3 * predict)

    def build(self, stock: Weights, generator: torch.Generator) -> MomentumContrast:
        return MomentumContrast(stock, self, generator)


class MomentumContrast(base.Objective):
    """Queries: predictor of projector of encoder. Keys: the moving average of projector and encoder, updated first.

    Each view is matched with the other one: the loss is ctr(q1, k2) + ctr(q2, k1).
    """

    views = 2
    smallest_batch = 2
    once_a_step = True

    def __init__(self, stock: Weights, config: Config, generator: torch.Generator) -> None:
        super().__init__()
        self.config = config
        dim = stock.architecture.dim
        self.project = base.projector((dim, config.hidden, config.hidden, config.out), generator, last_norm=True)
        self.predict = base.projector((config.out, config.hidden, config.out), generator, last_norm=True)

    def prepare(self, encoder: nn.Module, steps: int) -> None:
        embedding = getattr(encoder, "patch_embed", None)
        if self.config.freeze_patches and isinstance(embedding, nn.Module):
            embedding.requires_grad_(False)
        self.encoder = base.Momentum(encoder, self.config.momentum, steps)
        self.projected = base.Momentum(self.project, self.config.momentum, steps)

    def loss(self, encoder: nn.Module, views: Sequence[Tensor], generator: torch.Generator) -> Tensor:
        self.encoder.update(encoder)
        self.projected.update(self.project)
        everyone = self.share.everyone
        first, second = (self.predict(self.project(everyone(encoder(view)))) for view in views)
        keys = [self.projected(everyone(self.encoder(view))) for view in views]
        temperature = self.config.temperature
        return info_nce(first, keys[1], temperature) + info_nce(second, keys[0], temperature)
