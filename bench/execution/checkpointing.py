"""Checkpoint a training or a stream in one file, so that a killed one can resume."""

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

from bench.core.cache_dir import remove, write_bytes
from bench.core.errors import BenchError

log = logging.getLogger(__name__)

SECONDS = 60.0
"""Seconds between two checkpoints: the most work that a kill can lose."""

_MARK = b"soupbench checkpoint 1\n"
_DIGEST_BYTES = 32
_POINTS = 500
_SECONDS_BETWEEN_REPORTS = 1.0
_REPORT_PAUSE = 100.0
"""Least time between two reports, in multiples of the time that a report takes."""

ReportProgress = Callable[[int, float | None], None]


class FileCheckpointer:
    """Saves a state to one file atomically, at most once in `seconds`.

    The file begins with the SHA-256 of the rest. A damaged file counts as missing, and a full disk does not stop the
    work. Tensors are loaded on the device `place` (None: the device they were saved from). `seconds_before` is the time
    that earlier attempts spent up to their last checkpoint. `losses` are the losses of a finished training, thinned to
    500 points. `report` receives the completed steps and the mean loss over the last ten of them (None: unknown), at
    the start and about every second, but takes at most a hundredth of the time.
    """

    def __init__(
        self, path: Path, seconds: float | None = None, place: str | None = "cpu", report: ReportProgress | None = None
    ) -> None:
        self._path, self._place, self._report = path, place, report
        self._seconds = SECONDS if seconds is None else seconds
        self._next_report = 0.0
        self._report_began: float | None = None
        self._began = self._last = time.monotonic()
        self.seconds_before = 0.0
        self.losses: list[float] = []

    def load(self) -> dict[str, Any] | None:
        state = self._load()
        if self._report is not None:
            self._report(0, None) if state is None else self._report(state["step"], _recent_loss(state))
        return state

    def _load(self) -> dict[str, Any] | None:
        if not self._path.is_file():
            return None
        try:
            content = _checked(self._path)
            state: dict[str, Any] = torch.load(content, map_location=self._place, weights_only=True)
            self.seconds_before = float(state["seconds"])
        except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
            log.warning("checkpoint %s is damaged (%s); starting from the beginning", self._path, error)
            self.forget()
            return None
        log.info("continuing from step %d", state["step"])
        return state

    def due(self) -> bool:
        now = time.monotonic()
        if self._report is not None and now >= self._next_report:
            self._report_began = now
            return True
        return now - self._last >= self._seconds

    def save(self, state: dict[str, Any]) -> None:
        if self._report is not None and self._report_began is not None:
            self._report(state["step"], _recent_loss(state))
            now = time.monotonic()
            self._next_report = now + max(_SECONDS_BETWEEN_REPORTS, _REPORT_PAUSE * (now - self._report_began))
            self._report_began = None
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
        """Remove the checkpoint of a finished training, or a damaged one."""
        remove(self._path)


def _checked(path: Path) -> io.BytesIO:
    """Return the content of a checkpoint file. Raises ValueError if its checksum does not match."""
    with path.open("rb") as file:
        mark, digest, content = file.read(len(_MARK)), file.read(_DIGEST_BYTES), file.read()
    if mark != _MARK or hashlib.sha256(content).digest() != digest:
        raise ValueError("its content is not what its checksum says")
    return io.BytesIO(content)


def _recent_loss(state: dict[str, Any]) -> float | None:
    return float(state["losses"][-10:].mean()) if "losses" in state else None
