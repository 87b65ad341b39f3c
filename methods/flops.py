"""Floating-point operations of vision transformers in closed form, two for each multiply-add (matrix products only).

A forward pass of a block of width D over n tokens is 24 D^2 n + 4 n^2 D; a backward pass is two forward ones, but for
the first layer, which needs no gradient of its input.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from methods.stock import Architecture


def embedding(shape: Architecture, patches: int) -> float:
    """The patch embedding of an image."""
    return 6.0 * patches * shape.patch_size**2 * shape.dim


def blocks(dim: int, depth: int, tokens: int) -> float:
    """Transformer blocks with an MLP four times as wide."""
    return depth * (24.0 * dim**2 * tokens + 4.0 * tokens**2 * dim)


def forward(shape: Architecture, patches: int | None = None) -> float:
    """The encoder on one image, of which `patches` are seen (None: all)."""
    seen = shape.tokens if patches is None else patches
    return embedding(shape, seen) + blocks(shape.dim, shape.depth, seen + 1)


def training(shape: Architecture, patches: int | None = None) -> float:
    """The encoder forward and backward on one image."""
    return 3 * forward(shape, patches) - embedding(shape, shape.tokens if patches is None else patches)


def layers(widths: Sequence[int]) -> float:
    """Linear layers on one vector, forward."""
    return 2.0 * sum(width * following for width, following in itertools.pairwise(widths))
