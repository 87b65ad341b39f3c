"""Predictive ingredient: LeJEPA (Balestriero and LeCun 2025, arXiv:2511.08544), equal views, Gaussian embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor, nn

from methods.base import Options
from methods.identity import component
from methods.limits import Count, Fraction, at_least
from methods.nets import flops
from methods.nets.weights import AnyArchitecture, Weights
from methods.selfsoup.objectives import base

_KNOTS = 17
_LIMIT = 3.0


@component("methods.selfsoup.objectives.lejepa.Config")
@dataclass(frozen=True)
class Config(Options):
    """Options of the predictive objective.

    balance: weight lambda of the Gaussian term, in [0, 1]; the prediction term has weight 1 - lambda.
    slices: random directions in each step. projection: width of the embeddings. crops: views of each image, all global.
    """

    balance: Fraction = 0.05
    slices: Count = 256
    projection: Count = 64
    crops: Annotated[int, at_least(2)] = 2

    @property
    def cost(self) -> float:
        return 2.0 * self.crops

    def flops(self, shape: AnyArchitecture) -> float:
        head = flops.layers((shape.dim, 4 * shape.dim, self.projection, self.slices))
        return self.crops * (flops.training(shape) + 3 * head)

    def build(self, stock: Weights, generator: torch.Generator) -> Prediction:
        return Prediction(stock, self, generator)


def prediction_loss(embeddings: Tensor) -> Tensor:
    """Return the mean squared distance of each view from the mean of its image's views: [views, n, k] to a scalar.

    Gradient flows through the mean too, which changes nothing: deviations from it sum to zero.
    """
    return (embeddings - embeddings.mean(0)).square().mean()


def random_slices(width: int, slices: int, generator: torch.Generator) -> Tensor:
    """Return random unit vectors as columns, [width, slices], uniform on the sphere."""
    directions = torch.randn(width, slices, generator=generator, device=generator.device)
    lengths: Tensor = torch.linalg.vector_norm(directions, dim=0)
    return directions / lengths


def sigreg(embeddings: Tensor, slices: Tensor) -> Tensor:
    """Return the Epps-Pulley distance of sliced embeddings from N(0, 1), mean over slices and views, in float32.

    embeddings: [views, n, k]; slices: [k, s], unit columns. For each view and slice, with u_i = <p_i, a> and ecf its
    empirical characteristic function over the n images, n * 2 * integral_0^3 |ecf(t) - e^(-t^2 / 2)|^2 e^(-t^2 / 2) dt
    by the trapezoid rule on 17 knots.

    Standard Gaussian embeddings give 1.0525 whatever n (not 0); total collapse to 0 gives 0.40205 n.
    """
    with base.full_precision(embeddings):
        count = embeddings.shape[1]
        knots = torch.linspace(0, _LIMIT, _KNOTS, device=embeddings.device)
        window = torch.exp(-knots.square() / 2)
        weights = 2 * _LIMIT / (_KNOTS - 1) * window
        weights[0], weights[-1] = weights[0] / 2, weights[-1] / 2
        angles = (embeddings.float() @ slices)[..., None] * knots
        distance = (angles.cos().mean(1) - window).square() + angles.sin().mean(1).square()
        value: Tensor = count * (distance @ weights).mean()
        return value


class Prediction(base.Objective):
    """Encodes and projects all views with gradient: no teacher, no predictor."""

    smallest_batch = 2

    def __init__(self, stock: Weights, config: Config, generator: torch.Generator) -> None:
        super().__init__()
        self.config = config
        self.views = config.crops
        self.head = base.small_head(stock.architecture.dim, config.projection, generator)

    def loss(self, encoder: nn.Module, views: Sequence[Tensor], generator: torch.Generator) -> Tensor:
        features = self.share.everyone(encoder(torch.cat(list(views))), len(views))
        embeddings = self.head(features).float().unflatten(0, (len(views), -1))
        slices = random_slices(embeddings.shape[2], self.config.slices, generator)
        balance = self.config.balance
        return (1 - balance) * prediction_loss(embeddings) + balance * sigreg(embeddings, slices)
