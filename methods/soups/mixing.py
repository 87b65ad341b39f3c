"""Ways to mix the weights of several models, tensor by tensor, so that they work in memory and from files alike.

Each rule is a frozen dataclass with `mix(tensors, stock)`, which maps one tensor of every ingredient (and of the stock
they started from) to the mixed tensor. All arithmetic is in float64; the result has the type of the inputs.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from methods.base import Options
from methods.identity import component
from methods.limits import Finite, Fraction, FractionAboveZero
from methods.nets.weights import Weights

_CACHED = 2**16  # numbers to average at once, so that their sum in float64 stays in a processor's cache


class Mixer(Protocol):
    """A mixing rule. `needs_stock`: whether it measures from the weights that all ingredients started from."""

    needs_stock: ClassVar[bool]

    def mix(self, tensors: Sequence[Tensor], stock: Tensor | None) -> Tensor:
        """Return the mixture of one tensor; `stock` is given if `needs_stock` is set."""


@dataclass(frozen=True)
class Mixed(Weights):
    """Mixed weights and the coefficients used: `shares` of the inputs, in order, by layer, or for "all" layers."""

    shares: Mapping[str, tuple[float, ...]] = field(default_factory=dict)


def _mean(tensors: Sequence[Tensor]) -> Tensor:
    """Return the mean: a sum in float64, divided once; exact for equal tensors, any order (float32 or less)."""
    return reduce(torch.add, (tensor.double() for tensor in tensors)) / len(tensors)


@dataclass(frozen=True)
class Uniform:
    """The arithmetic mean (model soups, Wortsman et al. 2022, arXiv:2203.05482)."""

    needs_stock: ClassVar[bool] = False

    def mix(self, tensors: Sequence[Tensor], stock: Tensor | None = None) -> Tensor:
        if all(torch.equal(tensor, tensors[0]) for tensor in tensors):
            return tensors[0].clone()  # frozen tensors, and float64 ones whose sum would round
        made = torch.empty_like(tensors[0], memory_format=torch.contiguous_format)
        flat = [tensor.reshape(-1) for tensor in (made, *tensors)]
        for low in range(0, made.numel(), _CACHED):
            block, *parts = (each[low : low + _CACHED] for each in flat)
            block.copy_(_mean(parts))
        return made


@component("methods.mixing.Weighted")
@dataclass(frozen=True)
class Weighted:
    """sum_i w_i theta_i. Weights sum to 1, so equal tensors stay unchanged; single weights may be negative."""

    weights: tuple[float, ...]
    needs_stock: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not self.weights or not all(map(math.isfinite, self.weights)):
            raise ValueError(f"weights must be finite numbers, one for each ingredient, not {list(self.weights)}")
        if abs(sum(self.weights) - 1) > 1e-6:
            raise ValueError(f"weights must sum to 1, not {sum(self.weights):g}; divide them by their sum")

    def mix(self, tensors: Sequence[Tensor], stock: Tensor | None = None) -> Tensor:
        """Raises ValueError unless there is a weight for each tensor."""
        if len(tensors) != len(self.weights):
            raise ValueError(f"{len(self.weights)} weights for {len(tensors)} ingredients; give one for each")
        if all(torch.equal(tensor, tensors[0]) for tensor in tensors):
            return tensors[0].clone()
        total = torch.zeros_like(tensors[0], dtype=torch.float64)
        for tensor, weight in zip(tensors, self.weights, strict=True):
            total.add_(tensor.double(), alpha=weight)
        return total.to(tensors[0].dtype)


@component("methods.mixing.Wise")
@dataclass(frozen=True)
class Wise(Options):
    """(1 - a) stock + a mean (WiSE-FT, Wortsman et al. 2022, arXiv:2109.01903); a = 1 is the uniform soup."""

    alpha: Fraction = 0.5
    needs_stock: ClassVar[bool] = True

    def mix(self, tensors: Sequence[Tensor], stock: Tensor | None) -> Tensor:
        start = given(stock).double()
        return ((1 - self.alpha) * start + self.alpha * _mean(tensors)).to(tensors[0].dtype)


@component("methods.mixing.ModelStock")
@dataclass(frozen=True)
class ModelStock:
    """t mean + (1 - t) stock with t = k cos / ((k - 1) cos + 1) for each tensor (Jang et al. 2024, arXiv:2403.19522).

    cos is the mean cosine between the displacements of the k ingredients from the stock; a negative mean counts as 0,
    and a tensor that no ingredient moved stays. `filter_wise`: choose t for each output of a layer (each row along the
    first dimension) separately, as in the paper's second variant.
    """

    filter_wise: bool | None = None
    needs_stock: ClassVar[bool] = True

    def mix(self, tensors: Sequence[Tensor], stock: Tensor | None) -> Tensor:
        """Raises ValueError for fewer than two ingredients."""
        if len(tensors) < 2:
            raise ValueError("Model Stock compares ingredients with one another; give at least two")
        start = given(stock).double()
        if self.filter_wise and start.ndim > 1:
            return self._of_rows(tensors, start).to(tensors[0].dtype)
        moves = torch.stack([(tensor.double() - start).flatten() for tensor in tensors])
        lengths = moves.norm(dim=1)
        products = moves @ moves.T
        pairs = torch.triu_indices(len(moves), len(moves), offset=1)
        scale = lengths[pairs[0]] * lengths[pairs[1]]
        cosine = torch.where(scale > 0, products[pairs[0], pairs[1]] / scale.clamp(min=1e-300), 0.0)
        cos = float(cosine.mean().clamp(0, 1))
        share = len(moves) * cos / ((len(moves) - 1) * cos + 1)
        return (start + share * moves.mean(0).view_as(start)).to(tensors[0].dtype)

    def _of_rows(self, tensors: Sequence[Tensor], start: Tensor) -> Tensor:
        count = len(tensors)
        moves = torch.stack([(tensor.double() - start).flatten(1) for tensor in tensors])
        lengths = moves.norm(dim=2)
        first, second = torch.triu_indices(count, count, offset=1)
        scale = lengths[first] * lengths[second]
        products = (moves[first] * moves[second]).sum(2)
        cos = torch.where(scale > 0, products / scale.clamp(min=1e-300), 0.0).mean(0).clamp(0, 1)
        share = count * cos / ((count - 1) * cos + 1)
        return start + (share[:, None] * moves.mean(0)).view_as(start)


@component("methods.mixing.TaskArithmetic")
@dataclass(frozen=True)
class TaskArithmetic(Options):
    """stock + scale * sum of the displacements (Ilharco et al. 2023, arXiv:2212.04089); 1 / k is the uniform soup."""

    scale: Finite = 0.3
    needs_stock: ClassVar[bool] = True

    def mix(self, tensors: Sequence[Tensor], stock: Tensor | None) -> Tensor:
        start = given(stock).double()
        total = reduce(torch.add, (tensor.double() - start for tensor in tensors))
        return (start + self.scale * total).to(tensors[0].dtype)


@component("methods.mixing.Ties")
@dataclass(frozen=True)
class Ties(Options):
    """Trim, elect signs, merge (TIES, Yadav et al. 2023, arXiv:2306.01708), for each tensor.

    Of each displacement the fraction `keep` of largest magnitude stays, rounded down to a whole number as in mergekit
    (at least one); each entry takes the sign of the sum; the mean of the entries that agree with it, times `scale`, is
    added to the stock.
    """

    keep: FractionAboveZero = 0.2
    scale: Finite = 1.0
    needs_stock: ClassVar[bool] = True

    def mix(self, tensors: Sequence[Tensor], stock: Tensor | None) -> Tensor:
        start = given(stock).double()
        total = torch.zeros_like(start)
        for tensor in tensors:
            total += self._trim(tensor.double() - start)
        sign = total.sign()
        agreed, count = torch.zeros_like(start), torch.zeros_like(start)
        for tensor in tensors:
            move = self._trim(tensor.double() - start)
            same = (move.sign() == sign) & (move != 0)
            agreed += torch.where(same, move, 0.0)
            count += same
        return (start + self.scale * agreed / count.clamp(min=1)).to(tensors[0].dtype)

    def _trim(self, move: Tensor) -> Tensor:
        if move.numel() == 0:
            return move
        kept = max(1, int(self.keep * move.numel()))
        threshold = move.abs().flatten().kthvalue(move.numel() - kept + 1).values
        return torch.where(move.abs() >= threshold, move, 0.0)


@dataclass(frozen=True)
class Dare(Options):
    """Drop and rescale (DARE, Yu et al. 2024, arXiv:2311.03099), for each tensor.

    Each entry of a displacement stays with probability `keep` and is then divided by it; the mean over ingredients,
    times `scale`, is added to the stock. `seed`, the ingredient's position and the stock's tensor fix the random draw.
    """

    keep: FractionAboveZero = 0.5
    scale: Finite = 1.0
    seed: int = 0
    needs_stock: ClassVar[bool] = True

    def mix(self, tensors: Sequence[Tensor], stock: Tensor | None) -> Tensor:
        origin = given(stock)
        start = origin.double()
        content = hashlib.sha256(origin.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        total = torch.zeros_like(start)
        for place, tensor in enumerate(tensors):
            drawn = hashlib.sha256(f"{int(self.seed)}|{place}|{content.hexdigest()}".encode()).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(drawn[:7], "big"))
            stays = torch.rand(start.shape, generator=generator, dtype=torch.float64).to(start.device) < self.keep
            total += torch.where(stays, tensor.double() - start, 0.0) / self.keep
        return (start + self.scale * total / len(tensors)).to(tensors[0].dtype)


@dataclass(frozen=True)
class Slerp(Options):
    """Spherical interpolation from one model to another (Shoemake 1985), for each tensor as one vector.

    `position` is 0 for the first model and 1 for the second. Vectors that are nearly parallel, or one of which is 0,
    are mixed on a straight line.
    """

    position: Fraction = 0.5
    needs_stock: ClassVar[bool] = False

    def mix(self, tensors: Sequence[Tensor], stock: Tensor | None = None) -> Tensor:
        """Raises ValueError unless there are two ingredients."""
        if len(tensors) != 2:
            raise ValueError(f"slerp goes from one model to another; give two, not {len(tensors)}")
        if torch.equal(tensors[0], tensors[1]):
            return tensors[0].clone()
        first, second = (tensor.double() for tensor in tensors)
        lengths = first.norm() * second.norm()
        cos = float(((first * second).sum() / lengths).clamp(-1, 1)) if lengths > 0 else 1.0
        if abs(cos) > _PARALLEL:
            return ((1 - self.position) * first + self.position * second).to(tensors[0].dtype)
        angle = math.acos(cos)
        shares = math.sin((1 - self.position) * angle), math.sin(self.position * angle)
        return ((shares[0] * first + shares[1] * second) / math.sin(angle)).to(tensors[0].dtype)


_PARALLEL = 0.9995


def given(stock: Tensor | None) -> Tensor:
    """Return the stock's tensor. Raises ValueError if a rule needs it and it is None."""
    if stock is None:
        raise ValueError("this way of mixing needs the stock; give the weights that all ingredients started from")
    return stock


MIXERS: dict[str, type] = {
    "uniform": Uniform,
    "weighted": Weighted,
    "wise": Wise,
    "model_stock": ModelStock,
    "task_arithmetic": TaskArithmetic,
    "ties": Ties,
    "dare": Dare,
    "slerp": Slerp,
}
