"""Floating-point operations of encoders, two for each multiply-add (matrix products and convolutions only).

A forward pass of a transformer block of width D over n tokens takes 24 D^2 n + 4 n^2 D. A backward pass takes two
forward passes, except in the first layer, which needs no gradient of its input.
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
    """The cost of an encoder on one image: forward; forward and backward; the same with a frozen patch embedding."""

    forward: float
    training: float
    frozen: float


@contextmanager
def counted() -> Iterator[FlopCounterMode]:
    """Count the operations inside the context, on any device; the counter's `get_total_flops()` returns them.

    The counter does not support fused attention on a CPU, so attention runs as matrix products. Operations are not
    counted by module, because torch's module tracking fails where a parameter is expanded without gradient.
    """
    counter = flop_counter()
    with counter, sdpa_kernel(SDPBackend.MATH):
        yield counter


def vision_transformer(patch_size: int, dim: int, depth: int, patches: int) -> Operations:
    """Return the cost of a plain vision transformer with one class token on this many patches of an image."""
    first = 6.0 * patches * patch_size**2 * dim
    forward = first + blocks(dim, depth, patches + 1)
    return Operations(forward, 3 * forward - first, 3 * forward - 2 * first)


def blocks(dim: int, depth: int, tokens: int) -> float:
    """Return the forward cost of transformer blocks whose MLP is four times as wide."""
    return depth * (24.0 * dim**2 * tokens + 4.0 * tokens**2 * dim)


def forward(shape: AnyArchitecture) -> float:
    """Return the forward cost of the encoder on one image."""
    return shape.operations().forward


def training(shape: AnyArchitecture, *, visible: int | None = None, side: int | None = None) -> float:
    """Return the forward and backward cost of the encoder on one image.

    `visible`: only this many patches are seen. `side`: image side in pixels. None: the whole image at its usual size.
    """
    return shape.operations(visible=visible, side=side).training


def layers(widths: Sequence[int]) -> float:
    """Return the forward cost of linear layers on one vector."""
    return 2.0 * sum(width * following for width, following in itertools.pairwise(widths))
