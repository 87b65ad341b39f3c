"""Data-parallel training: each process takes a share of every batch, and together they match a single process.

Every process draws the random numbers of the whole batch and keeps those of its own images. A loss that compares images
sees the representations of all images, and gradients are averaged. Only rounding differs, because sums are taken in
another order.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass(frozen=True)
class DataParallelGroup:
    """The processes that share a training, through accelerate; without an accelerator, this process alone."""

    accelerator: Accelerator | None = None

    @property
    def size(self) -> int:
        return 1 if self.accelerator is None else int(self.accelerator.num_processes)

    @property
    def rank(self) -> int:
        return 0 if self.accelerator is None else int(self.accelerator.process_index)

    def share(self, total: int, parts: int = 1) -> Share:
        """Return this process's share of a batch of `total` images cut into equal parts: its rows of each part.

        Raises ValueError where the batch cannot be cut.
        """
        if total % parts:
            raise ValueError(uneven(total, parts))
        return Share(self, total // parts, parts)

    def spread(self, loss: Callable[[Any], Tensor], parameters: Iterable[nn.Parameter]) -> Callable[[Any], Tensor]:
        """Wrap a loss so that after its backward pass every process holds the mean gradient of all processes."""
        if self.accelerator is None:
            return loss
        return cast(Callable[[Any], Tensor], self.accelerator.prepare_model(_SpreadLoss(loss, parameters)))

    def held_back(self, loss: Callable[[Any], Tensor]) -> contextlib.AbstractContextManager[Any]:
        """Return a context in which gradients of a `spread` loss accumulate locally, without averaging."""
        return contextlib.nullcontext() if self.accelerator is None else self.accelerator.no_sync(loss)

    def mean(self, value: Tensor) -> Tensor:
        """Return the mean over the processes of a value that differs between them."""
        return value if self.accelerator is None else cast(Tensor, self.accelerator.reduce(value, "mean"))


ALONE = DataParallelGroup()


@dataclass(frozen=True)
class Share:
    """The rows of a batch that one process of a group handles: of each of `parts` parts, a run of its `total` rows.

    Counts of two processes differ by at most one. A part with fewer rows than there are processes is not divided: every
    process handles all of it.
    """

    parallel: DataParallelGroup = ALONE
    total: int = 0
    parts: int = 1

    @property
    def undivided(self) -> bool:
        return self.total < self.parallel.size or self.parallel.size == 1

    @property
    def counts(self) -> list[int]:
        """Rows of a part in each process."""
        size = self.parallel.size
        return [(self.total + size - 1 - rank) // size for rank in range(size)]

    def whole(self, own: int) -> int:
        """Return the rows of the whole batch, given the rows in this process."""
        return own if self.undivided else self.total * self.parts

    def own(self, rows: Tensor, dim: int = 0) -> Tensor:
        """Return this process's rows of a tensor that covers the whole batch along `dim`."""
        if self.undivided:
            return rows
        counts, rank = self.counts, self.parallel.rank
        parts = torch.split(rows, self.total, dim)
        return torch.cat([part.narrow(dim, sum(counts[:rank]), counts[rank]) for part in parts], dim)

    def everyone(self, own: Tensor, views: int = 1) -> Tensor:
        """Gather the rows of all processes in the order of a part, as a single process would have them, with gradients.

        own: [views * rows in this process, ...], view after view. The loss must be a function of the whole result and
        the same on every process; its gradient reaches what this process computed, before and after this call, once.
        """
        if self.undivided:
            return own
        counts = self.counts
        own = own.view(views, -1, *own.shape[1:]).transpose(0, 1)
        padding = [0, 0] * (own.ndim - 1) + [0, counts[0] - len(own)]
        blocks = _Gathered.apply(F.pad(own, padding).contiguous(), self.parallel).split(counts[0])
        rows = torch.cat([block[:count] for block, count in zip(blocks, counts, strict=True)])
        return rows.transpose(0, 1).flatten(0, 1)

    def weighed(self, loss: Tensor) -> Tensor:
        """Scale a mean over local rows so that the mean over processes is the mean over all rows of the part."""
        if self.undivided or self.total % self.parallel.size == 0:
            return loss
        return loss * (self.counts[self.parallel.rank] * self.parallel.size / self.total)


def uneven(total: int, parts: int) -> str:
    """Return the message for a batch that cannot be cut into equal parts."""
    return f"a batch of {total} images cannot be cut into {parts} equal parts; choose another accumulate"


class _SpreadLoss(nn.Module):
    """A loss as a module that owns its trained parameters, as torch requires to average their gradients."""

    def __init__(self, loss: Callable[[Any], Tensor], parameters: Iterable[nn.Parameter]) -> None:
        super().__init__()
        self.loss = loss
        self.trained = nn.ParameterList(parameters)

    def forward(self, batch: Any) -> Tensor:
        return self.loss(batch)


class _Gathered(torch.autograd.Function):
    """The rows of all processes, [size * n, ...], process after process.

    Every process computes the same loss from them and gradients are averaged afterwards, so backward scales the
    gradient of the own rows by the number of processes: parameters used before and after gathering then count once.
    """

    @staticmethod
    def forward(ctx: Any, own: Tensor, parallel: DataParallelGroup) -> Tensor:
        ctx.parallel, ctx.count = parallel, len(own)
        return cast(Tensor, cast(Any, parallel.accelerator).gather(own))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        start = ctx.parallel.rank * ctx.count
        return gradients[0][start : start + ctx.count] * ctx.parallel.size, None
