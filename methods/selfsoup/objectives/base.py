"""The interface and the building blocks that the self-supervised objectives share."""

from __future__ import annotations

import copy
import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from methods.data_parallel import Share
from methods.nets.weights import AnyArchitecture, Weights
from methods.training.loop import reset
from methods.views.ssl_views import Views


class Objective(nn.Module, ABC):
    """A self-supervised loss, with the head or decoder that is trained beside the encoder and discarded afterwards.

    `views` is the number of views of each image that `loss` takes; `smallest_batch` the smallest batch that gives a
    gradient; `once_a_step` says that `loss` also updates a moving average, so that a batch cannot be cut into parts.
    `share` names the images of each batch (or part) in this process: a loss that compares images gathers the features
    of all processes with it, other losses weigh their mean with it, and random numbers for images are drawn for the
    whole batch.
    """

    smallest_batch: ClassVar[int] = 1
    once_a_step: bool = False
    views: int
    share: Share = Share()

    def prepare(self, encoder: nn.Module, steps: int) -> None:
        """Prepare to train an encoder for `steps` steps, before the first one: freeze parts of it, or copy it."""

    def pipelines(self, views: Views) -> list[Views]:
        """Return the transform of each view, given the ingredient's views."""
        return [views] * self.views

    @abstractmethod
    def loss(self, encoder: nn.Module, views: Sequence[Tensor], generator: torch.Generator) -> Tensor:
        """Return the scalar loss of a batch; called once in each step, or for each part of a batch that is cut.

        Each view: normalised images, float [n, 3, h, w]; row i always belongs to image i of the `share` of a batch.
        """


class Config(Protocol):
    """Options of an objective: a frozen dataclass that can build it for a stock.

    `cost` is approximately the time of one step relative to one MAE step with the default options and the same batch
    size, measured on one CPU core for images of 32 pixels, patches of 8, width 64 and depth 4. The ratios of
    floating-point operations of a ViT-B/16 are close: 2.4 for the two-view objectives, 3.6 for LeJEPA with two crops.
    """

    @property
    def cost(self) -> float: ...

    def flops(self, shape: AnyArchitecture) -> float:
        """Return the floating-point operations of training on one image: its views, forward and backward."""
        ...

    def build(self, stock: Weights, generator: torch.Generator) -> Objective: ...


def small_head(dim: int, out: int, generator: torch.Generator) -> nn.Sequential:
    """Return two linear layers with a GELU between, hidden width 4 dim: [n, dim] to [n, out], on generator.device."""
    head = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, out)).to(generator.device)
    reset(head, generator)
    return head


def projector(
    widths: Sequence[int], generator: torch.Generator, *, bias: bool = False, last_norm: bool = False
) -> nn.Sequential:
    """Return an MLP with linear, batch norm and ReLU for each pair of widths, on the generator's device.

    The last layer is linear (with `bias`), followed by a batch norm without affine parameters if `last_norm`. Batches
    must have at least two images.
    """
    layers: list[nn.Module] = []
    for number, (width, following) in enumerate(itertools.pairwise(widths)):
        last = number == len(widths) - 2
        layers.append(nn.Linear(width, following, bias=bias and last))
        if not last:
            layers += [nn.BatchNorm1d(following), nn.ReLU()]
        elif last_norm:
            layers.append(nn.BatchNorm1d(following, affine=False))
    head = nn.Sequential(*layers).to(generator.device)
    reset(head, generator)
    return head


class Momentum(nn.Module):
    """A moving average of an online module, without gradients: theta' <- m theta' + (1 - m) theta.

    m rises from `start` to 1 by half a cosine over `steps` updates (He et al. 2020; Chen et al. 2021), or stays at
    `start` if `steps` is 0. Floating-point buffers are averaged likewise.
    """

    def __init__(self, online: nn.Module, start: float, steps: int) -> None:
        super().__init__()
        self.average = copy.deepcopy(online).requires_grad_(False)
        self.start, self.steps = start, steps
        self.taken = 0

    @torch.no_grad()
    def update(self, online: nn.Module) -> None:
        """Move one step towards the online module."""
        share = 1 - self.start
        if self.steps:
            share *= (1 + math.cos(math.pi * self.taken / self.steps)) / 2
        mine = [t for t in (*self.average.parameters(), *self.average.buffers()) if t.is_floating_point()]
        theirs = [t.detach() for t in (*online.parameters(), *online.buffers()) if t.is_floating_point()]
        torch._foreach_lerp_(mine, theirs, share)
        self.taken += 1

    def get_extra_state(self) -> int:
        return self.taken

    def set_extra_state(self, state: int) -> None:
        self.taken = state

    def forward(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            out: Tensor = self.average(images)
        return out


def full_precision(tensor: Tensor) -> Any:
    """Return a context without autocast, for losses whose sums must not be taken in half precision."""
    return torch.autocast(tensor.device.type, enabled=False)
