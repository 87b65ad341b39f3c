"""The stream that a method sees: one batch of pixels at a time, the next one only after its predictions."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from bench.evaluation.protocols import Segment
from bench.shifts.shift import Shift, blended


class StreamError(RuntimeError):
    """The stream was used out of order: a batch was requested too early or twice, or answered twice."""


class LastBatch:
    """A cache of one batch of pixels, shared by streams of the same images that advance together.

    The key is the content of the batch; another key replaces the batch. A stream returns a copy of the pixels.
    """

    def __init__(self) -> None:
        self._key: object = None
        self._pixels: Tensor | None = None

    def get(self, key: object, make: Callable[[], Tensor]) -> Tensor:
        if self._pixels is None or key != self._key:
            self._key, self._pixels = None, None
            self._key, self._pixels = key, make()
        return self._pixels


class BatchStream:
    """The batches of a segment in order. Pixels are made on request, so later batches do not exist yet.

    `ask` returns a batch and nothing else: float [n, 3, h, w] in [0, 1] on the device, n <= `size`, without labels, ids
    or the name of a condition. `answered` closes the batch and returns its rows of the segment. Memory does not grow
    with the length of the stream. The first `start` rows were answered by an earlier, interrupted process. `shared` is
    used by all streams of this shift on this device.
    """

    def __init__(
        self, shift: Shift, segment: Segment, size: int, device: str, start: int = 0, shared: LastBatch | None = None
    ) -> None:
        self._shift, self._segment, self._size, self._device = shift, segment, size, device
        self._shared = shared
        self._next = start
        self._open: np.ndarray | None = None

    @property
    def ended(self) -> bool:
        return self._open is None and self._next >= len(self._segment.ids)

    def ask(self) -> Tensor:
        """Return the next batch. Raises StreamError before the last one was answered, or after the end."""
        if self._open is not None:
            raise StreamError("the last batch was not answered yet; predict it before asking for the next one")
        if self.ended:
            raise StreamError("the stream has ended and no batch comes twice; reset and start a new stream")
        self._open = np.arange(self._next, min(self._next + self._size, len(self._segment.ids)))
        self._next += len(self._open)
        return self._pixels(self._open).float().div_(255)

    def _pixels(self, rows: np.ndarray) -> Tensor:
        if self._shared is None:
            return make_pixels(self._shift, self._segment, rows, self._device)
        return self._shared.get(
            _batch_key(self._segment, rows), lambda: make_pixels(self._shift, self._segment, rows, self._device)
        )

    def answered(self) -> np.ndarray:
        """Close the open batch and return its rows of the segment, int64 [n]. Raises StreamError if none is open."""
        if self._open is None:
            raise StreamError("no batch is open, and none is answered twice; ask for the next one")
        rows, self._open = self._open, None
        return rows


def _batch_key(segment: Segment, rows: np.ndarray) -> object:
    if segment.blend is None:
        return segment.ids[rows].tobytes(), [segment.conditions[number] for number in segment.which[rows]]
    return segment.ids[rows].tobytes(), [segment.blends[number] for number in segment.blend[rows]]


def make_pixels(shift: Shift, segment: Segment, rows: np.ndarray, device: str) -> Tensor:
    """Return the pixels of some rows of a segment, uint8 [n, 3, h, w] on the device."""
    kinds = (segment.which if segment.blend is None else segment.blend)[rows]
    images: Tensor | None = None
    for number in np.unique(kinds):
        here = np.flatnonzero(kinds == number)
        ids = segment.ids[rows[here]]
        if segment.blend is None:
            pixels = shift.images(ids, segment.conditions[number], device)
        else:
            pixels = blended(shift, ids, segment.blends[number], device)
        if len(here) == len(rows):
            return pixels.to(device)
        if images is None:
            images = torch.empty((len(rows), *pixels.shape[1:]), dtype=torch.uint8, device=device)
        images[torch.from_numpy(here).to(device)] = pixels.to(device)
    assert images is not None
    return images
