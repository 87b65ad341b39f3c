"""Pools too large for memory: images are made when they are read, corrupted ones only once."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from bench.core.conditions import NATURAL, Condition, digest_of
from bench.core.errors import BenchError
from bench.data.pixel_cache import CachedRows, room_for
from methods.base import Images

if TYPE_CHECKING:
    from bench.shifts.shift import Shift

MEMORY_BUDGET = 1 << 30
"""Bytes of pixels held in memory; larger pools are made batch by batch from the decoded images."""


def pooled(shift: Shift, ids: np.ndarray, conditions: Sequence[Condition], budget: int = MEMORY_BUDGET) -> Images:
    """Return images under each condition in turn: a tensor if it fits into `budget` bytes, else `LazyImages`."""
    lazy = LazyImages(shift, ids, tuple(conditions))
    if np.prod(lazy.shape) > budget:
        return lazy
    return torch.cat([shift.images(ids, condition) for condition in conditions])


class LazyImages:
    """Images uint8 [k n, 3, h, w] of n ids under k conditions, one condition after another, made when indexed.

    Indexing by a slice or an int64 or bool tensor returns a tensor, like a tensor in memory. Reading the same image
    twice returns the same pixels. Generated corruptions are cached on disk for later trainings, seeds and
    processes, keyed by the content of the images and the corruption code, unless they would take more than half of the
    free disk space.
    """

    dtype = torch.uint8
    ndim = 4
    device = torch.device("cpu")

    def __init__(self, shift: Shift, ids: np.ndarray, conditions: tuple[Condition, ...]) -> None:
        self._shift, self._ids, self._conditions = shift, ids, conditions
        self._expected: dict[Condition, str] = {}
        self.shape = torch.Size((len(ids) * len(conditions), *shift.images(ids[:1], conditions[0]).shape[1:]))

    def __getstate__(self) -> dict[str, Any]:
        """Pickle no pixels, but the digests that the other process must find."""
        expected = {condition: self._shift.digest(self._ids, condition) for condition in self._conditions}
        state = {name: value for name, value in vars(self).items() if name != "_kept"}
        return state | {"_expected": self._expected or expected}

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Tensor | slice) -> Tensor:
        numbers = torch.arange(len(self))[rows].cpu().numpy()
        out = torch.empty((len(numbers), *self.shape[1:]), dtype=torch.uint8)
        which, place = np.divmod(numbers, len(self._ids))
        for number in np.unique(which):
            here = np.flatnonzero(which == number)
            out[torch.from_numpy(here)] = torch.from_numpy(self._take(int(number), place[here]))
        return out

    @property
    def kept(self) -> tuple[CachedRows, ...]:
        """The disk caches of corrupted images; empty if they are not cached."""
        return tuple(self._kept.values())

    def _take(self, number: int, places: np.ndarray) -> np.ndarray:
        condition = self._conditions[number]
        if (expected := self._expected.pop(condition, None)) and self._shift.digest(self._ids, condition) != expected:
            raise BenchError(
                f"the images of {self._shift.name}, {condition}, have changed since the run was planned; start the run "
                "again"
            )

        def make(chosen: np.ndarray) -> np.ndarray:
            pixels: np.ndarray = self._shift.images(self._ids[chosen], condition).numpy()
            return pixels

        kept = self._kept.get(condition)
        return make(places) if kept is None else kept.take(places, make)

    @cached_property
    def _kept(self) -> dict[Condition, CachedRows]:
        if not self._shift.made_here:
            return {}
        made = [condition for condition in self._conditions if condition.corruption not in (None, NATURAL)]
        found = {condition: CachedRows(self._key(condition), len(self._ids), self.shape[1:]) for condition in made}
        return found if room_for(list(found.values())) else {}

    def _key(self, condition: Condition) -> str:
        # Processors with other instruction sets may round differently; one machine always rounds alike.
        by = [torch.backends.cpu.get_cpu_capability(), torch.__version__]
        return digest_of([self._shift.digest(self._ids, condition), list(self.shape[1:]), by])
