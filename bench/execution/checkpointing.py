"""Checkpoints of a training or a stream in one file, so that a killed one goes on where it was."""

from __future__ import annotations

import hashlib
import io
import logging
import pickle
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.core.cache_dir import write_bytes
from bench.core.errors import BenchError

log = logging.getLogger(__name__)

SECONDS = 60.0
"""Time between two checkpoints: what a kill costs at most."""

_MARK = b"soupbench checkpoint 1\n"
_DIGEST_BYTES = 32
_POINTS = 500
_SECONDS_BETWEEN_LOOKS = 1.0
_LOOK_AT_MOST = 100.0

ReportProgress = Callable[[int, float | None], None]


class FileCheckpointer:
    """Keeps a state in one file, written whole or not at all and at most once in `seconds`.

    The file begins with the SHA-256 of the rest. A damaged one counts as none, and where the disk is full the work goes
    on without. Tensors come back on `place` (None: where they were). `seconds_before` is the time that earlier attempts
    spent up to their last checkpoint; `losses` are those of a finished training, thinned to 500 points. `tell` gets the
    steps that are done and the loss over the last ten of them (None: unknown) at the start and about every second, but
    never so often that looking takes more than a hundredth of the time.
    """

    def __init__(
        self, path: Path, seconds: float | None = None, place: str | None = "cpu", tell: ReportProgress | None = None
    ) -> None:
        self._path, self._place, self._tell = path, place, tell
        self._seconds = SECONDS if seconds is None else seconds
        self._next_look = 0.0
        self._looking: float | None = None
        self._began = self._last = time.monotonic()
        self.seconds_before = 0.0
        self.losses: list[float] = []

    def load(self) -> dict[str, Any] | None:
        state = self._load()
        if self._tell is not None:
            self._tell(0, None) if state is None else self._tell(state["step"], _recent(state))
        return state

    def _load(self) -> dict[str, Any] | None:
        if not self._path.is_file():
            return None
        try:
            content = _checked(self._path)
            state: dict[str, Any] = torch.load(content, map_location=self._place, weights_only=True)
            self.seconds_before = float(state["seconds"])
        except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
            log.warning("checkpoint %s is damaged (%s); this starts again", self._path, error)
            self.forget()
            return None
        log.info("continuing from step %d", state["step"])
        return state

    def due(self) -> bool:
        now = time.monotonic()
        if self._tell is not None and now >= self._next_look:
            self._looking = now
            return True
        return now - self._last >= self._seconds

    def save(self, state: dict[str, Any]) -> None:
        if self._tell is not None and self._looking is not None:
            self._tell(state["step"], _recent(state))
            now = time.monotonic()
            self._next_look = now + max(_SECONDS_BETWEEN_LOOKS, _LOOK_AT_MOST * (now - self._looking))
            self._looking = None
            if now - self._last < self._seconds:
                return
        buffer = io.BytesIO()
        buffer.write(_MARK + bytes(_DIGEST_BYTES))
        torch.save(state | {"seconds": self.seconds_before + time.monotonic() - self._began}, buffer)
        with buffer.getbuffer() as content:
            start = len(_MARK) + _DIGEST_BYTES
            content[len(_MARK) : start] = hashlib.sha256(content[start:]).digest()
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


def _checked(path: Path) -> io.BytesIO:
    """What was kept in a file. Raises ValueError where the file is not what was written."""
    with path.open("rb") as file:
        mark, digest, content = file.read(len(_MARK)), file.read(_DIGEST_BYTES), file.read()
    if mark != _MARK or hashlib.sha256(content).digest() != digest:
        raise ValueError("its content is not what its checksum says")
    return io.BytesIO(content)


def _recent(state: dict[str, Any]) -> float | None:
    return float(state["losses"][-10:].mean()) if "losses" in state else None
