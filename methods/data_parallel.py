"""One training shared by several processes, each with a share of every batch, so that together they do what one does.

Every process draws the random numbers of the whole batch and keeps those of its own images; a loss that compares images
sees the representations of all; and gradients are averaged. What is left is rounding: sums are taken in another order.
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
    """The processes that share a training, through accelerate; without it, this process alone."""

    accelerator: Accelerator | None = None

    @property
    def size(self) -> int:
        return 1 if self.accelerator is None else int(self.accelerator.num_processes)

    @property
    def rank(self) -> int:
        return 0 if self.accelerator is None else int(self.accelerator.process_index)

    def share(self, total: int, parts: int = 1) -> Share:
        """What this process has of a batch of `total` images that is cut into equal parts: its rows of each part.

        Raises ValueError where it cannot be cut.
        """
        if total % parts:
            raise ValueError(uneven(total, parts))
        return Share(self, total // parts, parts)

    def spread(self, loss: Callable[[Any], Tensor], parameters: Iterable[nn.Parameter]) -> Callable[[Any], Tensor]:
        """The loss, after whose backward pass every process has the mean of the gradients of all of them."""
        if self.accelerator is None:
            return loss
        return cast(Callable[[Any], Tensor], self.accelerator.prepare_model(_Spread(loss, parameters)))

    def held_back(self, loss: Callable[[Any], Tensor]) -> contextlib.AbstractContextManager[Any]:
        """While it lasts, gradients of a `spread` loss pile up in each process and are averaged by the next one."""
        return contextlib.nullcontext() if self.accelerator is None else self.accelerator.no_sync(loss)

    def mean(self, value: Tensor) -> Tensor:
        """The mean over the processes of a number that each has its own of."""
        return value if self.accelerator is None else cast(Tensor, self.accelerator.reduce(value, "mean"))


ALONE = DataParallelGroup()


@dataclass(frozen=True)
class Share:
    """The rows of a batch that one process of a team works on: of each of `parts` parts, a run of its `total` rows.

    Counts of two processes differ by one at most. A part with fewer rows than there are processes is not shared: all
    of them work on all of it.
    """

    parallel: DataParallelGroup = ALONE
    total: int = 0
    parts: int = 1

    @property
    def undivided(self) -> bool:
        return self.total < self.parallel.size or self.parallel.size == 1

    @property
    def counts(self) -> list[int]:
        """Rows of a part that each process has."""
        size = self.parallel.size
        return [(self.total + size - 1 - rank) // size for rank in range(size)]

    def whole(self, own: int) -> int:
        """How many rows the batch has, given how many of them are here."""
        return own if self.undivided else self.total * self.parts

    def own(self, rows: Tensor, dim: int = 0) -> Tensor:
        """What is here of something that is known for the whole batch along `dim`."""
        if self.undivided:
            return rows
        counts, rank = self.counts, self.parallel.rank
        parts = torch.split(rows, self.total, dim)
        return torch.cat([part.narrow(dim, sum(counts[:rank]), counts[rank]) for part in parts], dim)

    def everyone(self, own: Tensor, views: int = 1) -> Tensor:
        """The rows of all processes in the order of a part, as one process would have them, with their gradient.

        own: [views * rows here, ...], view after view. The loss must be a function of the whole result, the same on
        every process; its gradient reaches what was computed here, before and after this call, once.
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
        """A mean over the rows here, weighed so that the mean over processes is the mean over all rows of the part."""
        if self.undivided or self.total % self.parallel.size == 0:
            return loss
        return loss * (self.counts[self.parallel.rank] * self.parallel.size / self.total)


def uneven(total: int, parts: int) -> str:
    """Why a batch cannot be cut, and what to do."""
    return f"a batch of {total} images cannot be cut into {parts} equal parts; choose another accumulate"


class _Spread(nn.Module):
    """A loss as a module that owns the parameters it trains, as torch wants it to average their gradients."""

    def __init__(self, loss: Callable[[Any], Tensor], parameters: Iterable[nn.Parameter]) -> None:
        super().__init__()
        self.loss = loss
        self.trained = nn.ParameterList(parameters)

    def forward(self, batch: Any) -> Tensor:
        return self.loss(batch)


class _Gathered(torch.autograd.Function):
    """The rows of all processes, [size * n, ...], process after process.

    Every process takes the same loss of them and gradients are averaged afterwards, so each sends the gradient of its
    own rows back as often as there are processes: parameters used before and after the gathering then count once.
    """

    @staticmethod
    def forward(ctx: Any, own: Tensor, parallel: DataParallelGroup) -> Tensor:
        ctx.parallel, ctx.count = parallel, len(own)
        return cast(Tensor, cast(Any, parallel.accelerator).gather(own))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        start = ctx.parallel.rank * ctx.count
        return gradients[0][start : start + ctx.count] * ctx.parallel.size, None
