"""Floating-point operations of encoders, two for each multiply-add (matrix products and convolutions only).

A forward pass of a transformer block of width D over n tokens is 24 D^2 n + 4 n^2 D; a backward pass is two forward
ones, but for the first layer, which needs no gradient of its input.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from methods.private_apis import flop_counter

if TYPE_CHECKING:
    from methods.nets.weights import AnyArchitecture


class Operations(NamedTuple):
    """Of an encoder on one image: forward; forward and backward; the same while its patch embedding is frozen."""

    forward: float
    training: float
    frozen: float


@contextmanager
def counted() -> Iterator[FlopCounterMode]:
    """Inside, what runs is counted, on any device: ask for `get_total_flops()`.

    The counter knows no fused attention on a CPU, so attention is taken apart into matrix products. It does not tell
    modules apart, which it cannot where a parameter is expanded without gradient.
    """
    counter = flop_counter()
    with counter, sdpa_kernel(SDPBackend.MATH):
        yield counter


def vision_transformer(patch_size: int, dim: int, depth: int, patches: int) -> Operations:
    """A plain vision transformer with one class token that sees so many patches of an image."""
    first = 6.0 * patches * patch_size**2 * dim
    forward = first + blocks(dim, depth, patches + 1)
    return Operations(forward, 3 * forward - first, 3 * forward - 2 * first)


def blocks(dim: int, depth: int, tokens: int) -> float:
    """Transformer blocks with an MLP four times as wide."""
    return depth * (24.0 * dim**2 * tokens + 4.0 * tokens**2 * dim)


def forward(shape: AnyArchitecture) -> float:
    """The encoder on one image."""
    return shape.operations().forward


def training(shape: AnyArchitecture, *, visible: int | None = None, side: int | None = None) -> float:
    """The encoder forward and backward on one image, of which `visible` patches are seen, or on one of `side` pixels
    (None: all of an image of the usual size).
    """
    return shape.operations(visible=visible, side=side).training


def layers(widths: Sequence[int]) -> float:
    """Linear layers on one vector, forward."""
    return 2.0 * sum(width * following for width, following in itertools.pairwise(widths))
