"""Averaging weights: the uniform soup (Wortsman et al. 2022, arXiv:2203.05482) and interpolation between two models."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from methods.stock import Weights


@dataclass(frozen=True)
class Interpolation:
    """Where between two models to stop: 0 is the first, 1 the second."""

    position: float = 0.5


def uniform_soup(
    inputs: Sequence[Weights], data: None = None, config: None = None, generator: torch.Generator | None = None
) -> Weights:
    """The arithmetic mean of every tensor of N weights; a job function (methods.base.Job), `data` and `config` unused.

    Each tensor is summed in float64 and divided once, then stored in its own type, so identical inputs come back
    bit by bit and the order of float32 inputs does not matter. Integers and booleans must be equal in all inputs,
    except `num_batches_tracked`, of which the largest is kept.

    Raises ValueError, naming the input and the tensor, for different architectures, names, shapes or types, for
    values that are not finite, for weights stored in half precision and for no input at all.
    """

    def mean(tensors: Sequence[Tensor]) -> Tensor:
        if all(torch.equal(tensor, tensors[0]) for tensor in tensors):
            # Frozen tensors, and float64 ones whose sum would round.
            return tensors[0].clone()
        total = reduce(torch.add, [tensor.double() for tensor in tensors])
        return (total / len(tensors)).to(tensors[0].dtype)

    return _combine(inputs, mean)


def interpolate(
    inputs: Sequence[Weights], data: None, config: Interpolation, generator: torch.Generator | None = None
) -> Weights:
    """(1 - a) first + a second, in float64 (WiSE-FT, Wortsman et al. 2022, arXiv:2109.01903); a job function.

    Raises as `uniform_soup` does, and unless there are two inputs.
    """
    if len(inputs) != 2:
        raise ValueError(f"interpolation goes between two models, not {len(inputs)}; use uniform_soup for more")
    position = config.position

    def between(tensors: Sequence[Tensor]) -> Tensor:
        first, second = tensors
        return ((1 - position) * first.double() + position * second.double()).to(first.dtype)

    return _combine(inputs, between)


def _combine(inputs: Sequence[Weights], mix: Callable[[Sequence[Tensor]], Tensor]) -> Weights:
    if not inputs:
        raise ValueError("a soup needs at least one ingredient")
    first = inputs[0]
    for number, other in enumerate(inputs):
        _refuse_different(first, other, number)
    tensors: dict[str, Tensor] = {}
    for name, tensor in first.tensors.items():
        every = [weights.tensors[name] for weights in inputs]
        if tensor.is_floating_point():
            tensors[name] = mix(every)
        elif name.endswith("num_batches_tracked"):
            tensors[name] = torch.stack(every).amax(0)
        else:
            tensors[name] = _the_same(name, every)
    return Weights(first.architecture, tensors)


def _the_same(name: str, tensors: Sequence[Tensor]) -> Tensor:
    for number, tensor in enumerate(tensors):
        if not torch.equal(tensor, tensors[0]):
            raise ValueError(
                f"{name} holds {tensor.dtype} that differ between ingredients 0 and {number}; cannot average"
            )
    return tensors[0].clone()


def _refuse_different(first: Weights, other: Weights, number: int) -> None:
    who = f"ingredient {number}"
    if other.architecture != first.architecture:
        raise ValueError(f"{who} has another architecture than ingredient 0; soups need one stock")
    missing, extra = sorted(first.tensors.keys() - other.tensors), sorted(other.tensors.keys() - first.tensors)
    if missing or extra:
        raise ValueError(
            f"{who} lacks {missing} and has {extra} beside the tensors of ingredient 0; use one task and stock"
        )
    for name, tensor in other.tensors.items():
        _refuse_tensor(f"{name} of {who}", tensor, first.tensors[name])


def _refuse_tensor(what: str, tensor: Tensor, reference: Any) -> None:
    if tensor.shape != reference.shape or tensor.dtype != reference.dtype:
        raise ValueError(
            f"{what} is {tensor.dtype} {tuple(tensor.shape)}, of ingredient 0 {reference.dtype} "
            f"{tuple(reference.shape)}; average weights of one task only"
        )
    if tensor.dtype in (torch.bfloat16, torch.float16):
        raise ValueError(
            f"{what} is stored in {tensor.dtype}, which rounds away most of what training changed; store float32"
        )
    if tensor.is_floating_point() and not torch.isfinite(tensor).all():
        raise ValueError(f"{what} is not finite; leave that ingredient out or train it with a lower learning rate")
