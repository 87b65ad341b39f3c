"""Residual networks for small images, as first trained on CIFAR-10 (He et al. 2016, arXiv:1512.03385, section 4.2)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from methods.identity import component
from methods.nets.flops import Operations

GROUPS = 8
"""Groups of GroupNorm, as in the networks of test-time training (Sun et al. 2020, arXiv:1909.13231)."""

_LARGEST = 1024


@component("methods.small_resnets.SmallResNet")
@dataclass(frozen=True)
class SmallResNet:
    """A residual network of 6 n + 2 layers, in three stages of n blocks with 16, 32 and 64 times `factor` channels.

    Shortcuts have no parameters: between stages every second pixel is kept and channels of zeros are added (option A).
    norm: "bn" (BatchNorm) or "gn" (GroupNorm of 8 groups, which treats each image alone). image_size, mean, std: as in
    methods.nets.weights.Architecture; images of any size are taken. Depth 20 and factor 1 have 0.27 million parameters.

    Raises ValueError for a depth that is not 6 n + 2 and for an invalid factor, norm, size, mean or std.
    """

    depth: int = 20
    factor: int = 1
    norm: Literal["bn", "gn"] = "bn"
    image_size: int = 32
    mean: tuple[float, float, float] = (0.491, 0.482, 0.447)
    std: tuple[float, float, float] = (0.247, 0.243, 0.262)

    # It has no patches, and so no decoder that could predict them.
    tokens, patch_size, prefix = 0, 1, 0
    decoder_dim = decoder_depth = decoder_heads = 0
    layer_norm_eps = 1e-6

    def __post_init__(self) -> None:
        if not 8 <= self.depth <= _LARGEST or self.depth % 6 != 2:
            raise ValueError(f"depth must be 6 n + 2, as in 8, 14, 20, 32, 44, 56, not {self.depth}")
        if not 1 <= self.factor <= 64 or not 1 <= self.image_size <= _LARGEST:
            raise ValueError(f"factor {self.factor} must lie in 1 .. 64 and image_size {self.image_size} in 1 .. 1024")
        if self.norm not in ("bn", "gn"):
            raise ValueError(f"norm must be bn or gn, not '{self.norm}'")
        if not all(map(math.isfinite, (*self.mean, *self.std))) or min(self.std) <= 0:
            raise ValueError("mean must be finite and std positive")

    @property
    def dim(self) -> int:
        return 64 * self.factor

    @property
    def cut(self) -> tuple[int, str, bool]:
        # As for other stocks: small images are taken whole.
        return (round(self.image_size * 8 / 7) if self.image_size >= 128 else self.image_size), "bicubic", False

    @property
    def name(self) -> str:
        """The name that `bench train --arch` takes, without the size of images."""
        return f"resnet{self.depth}{f'x{self.factor}' if self.factor > 1 else ''}{'-gn' if self.norm == 'gn' else ''}"

    @property
    def description(self) -> str:
        kind = "BatchNorm" if self.norm == "bn" else "GroupNorm"
        return f"ResNet-{self.depth} with {16 * self.factor} to {self.dim} channels and {kind}"

    def build(self) -> nn.Module:
        return Network(self)

    def initial(self, generator: torch.Generator) -> nn.Module:
        """Return the untrained network: convolutions normal with variance 2 / fan-in (He et al. 2015)."""
        network = self.build().to(generator.device)
        for layer in network.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu", generator=generator)
        return network

    def operations(self, *, visible: int | None = None, side: int | None = None) -> Operations:
        """Return the cost of an image. Raises ValueError for `visible`: it has no patches to leave out."""
        if visible is not None:
            raise ValueError(f"{self.description} has no patches that could be left out")
        first, *others = _convolutions(self, side or self.image_size)
        forward = first + sum(others)
        return Operations(forward, 3 * forward - first, 3 * forward - first)

    def smaller(self, fraction: float) -> int:
        return max(1, round(self.image_size * fraction))


def _convolutions(shape: SmallResNet, side: int) -> Iterator[float]:
    """Yield the forward cost of each convolution, in order."""

    def cost(channels: int, out: int, pixels: int) -> float:
        return 2.0 * 9 * channels * out * pixels**2

    width = 16 * shape.factor
    yield cost(3, width, side)
    for stage in range(3):
        out = 16 * shape.factor << stage
        side = side if stage == 0 else (side + 1) // 2
        for _ in range((shape.depth - 2) // 6):
            yield cost(width, out, side)
            yield cost(out, out, side)
            width = out


class Block(nn.Module):
    """Two convolutions with norms, and the input added before the last activation."""

    def __init__(self, channels: int, out: int, norm: Literal["bn", "gn"]) -> None:
        super().__init__()
        self.stride = 1 if out == channels else 2
        self.added = (out - channels) // 2
        self.conv1 = _convolution(channels, out, self.stride)
        self.norm1 = _norm(out, norm)
        self.conv2 = _convolution(out, out)
        self.norm2 = _norm(out, norm)

    def forward(self, images: Tensor) -> Tensor:
        # Activations are new tensors, since methods keep what norms return.
        out: Tensor = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(images)))))
        if self.stride > 1:
            images = F.pad(images[:, :, ::2, ::2], (0, 0, 0, 0, self.added, self.added))
        return F.relu(out + images)


class Network(nn.Module):
    """The layers before the classifier: normalised images [n, 3, h, w] to features [n, dim]."""

    def __init__(self, shape: SmallResNet) -> None:
        super().__init__()
        width = 16 * shape.factor
        self.conv = _convolution(3, width)
        self.norm = _norm(width, shape.norm)
        blocks = []
        for stage in range(3):
            out = 16 * shape.factor << stage
            for _ in range((shape.depth - 2) // 6):
                blocks.append(Block(width, out, shape.norm))
                width = out
        self.blocks = nn.Sequential(*blocks)

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = self.blocks(F.relu(self.norm(self.conv(images))))
        return out.mean((2, 3))


def _convolution(channels: int, out: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(channels, out, 3, stride, 1, bias=False)


def _norm(channels: int, norm: Literal["bn", "gn"]) -> nn.Module:
    return nn.BatchNorm2d(channels) if norm == "bn" else nn.GroupNorm(GROUPS, channels)
