"""Checkpoints of a training or a stream in one file, so that a killed one goes on where it was."""

from __future__ import annotations

import io
import logging
import pickle
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.cache import write_bytes
from bench.errors import BenchError

log = logging.getLogger(__name__)

SECONDS = 60.0
"""Time between two checkpoints: what a kill costs at most."""

_POINTS = 500


class FileKeeper:
    """Keeps a state in one file, written whole or not at all and at most once in `seconds`.

    A damaged file counts as none, and where the disk is full the work goes on without. Tensors come back on `place`
    (None: where they were). `seconds_before` is the time that earlier attempts spent up to their last
    checkpoint; `losses` are those of a finished training, thinned to 500 points.
    """

    def __init__(self, path: Path, seconds: float | None = None, place: str | None = "cpu") -> None:
        self._path, self._place = path, place
        self._seconds = SECONDS if seconds is None else seconds
        self._began = self._last = time.monotonic()
        self.seconds_before = 0.0
        self.losses: list[float] = []

    def load(self) -> dict[str, Any] | None:
        if not self._path.is_file():
            return None
        try:
            state: dict[str, Any] = torch.load(self._path, map_location=self._place, weights_only=True)
            self.seconds_before = float(state["seconds"])
        except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
            log.warning("checkpoint %s is damaged (%s); this starts again", self._path, error)
            self.forget()
            return None
        log.info("continuing from step %d", state["step"])
        return state

    def due(self) -> bool:
        return time.monotonic() - self._last >= self._seconds

    def save(self, state: dict[str, Any]) -> None:
        buffer = io.BytesIO()
        torch.save(state | {"seconds": self.seconds_before + time.monotonic() - self._began}, buffer)
        try:
            write_bytes(self._path, buffer.getvalue())
        except BenchError as error:
            log.warning("no checkpoint: %s", error)
        self._last = time.monotonic()

    def finished(self, losses: Tensor) -> None:
        step = -(-len(losses) // _POINTS)
        self.losses = [round(float(value), 6) for value in losses[::step].tolist()]

    def forget(self) -> None:
        """Remove the checkpoint: the training is finished, or the file is of no use."""
        self._path.unlink(missing_ok=True)
