"""What streams and trainings say while they run, for people only: a small file beside each checkpoint.

A stream's is written by the process that scores, after the adapter has answered; nothing of it goes back to a method or
into a record. Without torch.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from bench.core.cache_dir import cache_dir

_SECONDS = 0.5
_SILENT = 600.0
_SILENT_RUN = 60.0


@dataclass(frozen=True)
class Now:
    """Where a stream is (`done` batches of this part of it, the accuracy over them) or a training (steps, loss).

    `share` is that of the whole task, in 0 .. 1, of which this process has done `gained` in `seconds`.
    """

    label: str
    where: str
    unit: Literal["batch", "step"]
    done: int
    of: int
    accuracy: float | None
    loss: float | None
    share: float
    gained: float
    seconds: float

    @property
    def name(self) -> str:
        return f"{self.label}, {self.where}" if self.where else self.label

    @property
    def value(self) -> str:
        """The number that people look for, in words; empty where there is none yet."""
        if self.accuracy is not None:
            return f"accuracy {self.accuracy:.1%}"
        return "" if self.loss is None else f"loss {self.loss:.4f}"

    def __str__(self) -> str:
        return ", ".join(filter(None, (f"{self.name}: {self.unit} {self.done} of {self.of}", self.value)))


class ProgressWriter:
    """Writes where a stream or training is, at most twice a second; a disk that refuses is nothing to stop for."""

    def __init__(self, path: Path, label: str) -> None:
        self._path, self._label = path, label
        self._last = float("-inf")
        self._before = 0.0
        self._began: float | None = None

    def begin(self, share: float) -> None:
        """The work starts, with a share of it done by a process that was killed; else it starts when first told."""
        self._before, self._began = share, time.monotonic()

    def due(self) -> bool:
        return time.monotonic() - self._last >= _SECONDS

    def batch(self, where: str, batches: int, of: int, accuracy: float, share: float) -> None:
        """Say where a stream is. Accuracy and share of the whole are in 0 .. 1."""
        self._tell(where, "batch", batches, of, accuracy, None, share)

    def step(self, of: int, steps: int, loss: float | None) -> None:
        """Say where a training of so many steps is."""
        self._tell("", "step", steps, of, None, loss, steps / of)

    def _tell(
        self,
        where: str,
        unit: Literal["batch", "step"],
        done: int,
        of: int,
        accuracy: float | None,
        loss: float | None,
        share: float,
    ) -> None:
        if self._began is None:
            self.begin(share)
        self._last = time.monotonic()
        gained, seconds = share - self._before, self._last - (self._began or self._last)
        now = Now(self._label, where, unit, done, of, accuracy, loss, share, gained, seconds)
        _write(self._path, asdict(now))

    def end(self) -> None:
        """The work is over."""
        with contextlib.suppress(OSError):
            self._path.unlink(missing_ok=True)


@dataclass(frozen=True)
class Left:
    """How far a run is: tasks that have ended, of how many, and seconds that are left (None: unknown yet)."""

    done: int
    of: int
    seconds: float | None


def tell_left(out: Path, left: Left | None) -> None:
    """Leave in a run's folder how far this process's run is; None: it is over."""
    path = _folder(out) / f"{socket.gethostname()}-{os.getpid()}.left"
    if left is not None:
        _write(path, asdict(left))
        return
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)


def left(out: Path) -> Left | None:
    """How far the runs of a folder are together; None where none runs."""
    found = [Left(**values) for values in _read(_folder(out).glob("*.left"), _SILENT_RUN).values()]
    if not found:
        return None
    known = [each.seconds for each in found if each.seconds is not None]
    slowest = max(known) if len(known) == len(found) else None
    return Left(sum(each.done for each in found), sum(each.of for each in found), slowest)


def stream_file(out: Path, name: str) -> Path:
    """Where a stream of a run's folder says where it is."""
    return _folder(out) / f"{name}.now"


def training_file(key: str) -> Path:
    """Where a training says where it is, for every run that waits for it."""
    return cache_dir() / "training" / f"{key}.now"


def running(out: Path, trainings: Iterable[str] = ()) -> Mapping[str, Now]:
    """Where the streams of a run's folder and these trainings are, by name and key, trainings first.

    What a killed process left behind is not shown for long.
    """
    files = [*map(training_file, trainings), *sorted(_folder(out).glob("*.now"))]
    found = {}
    for name, values in _read(files, _SILENT).items():
        with contextlib.suppress(TypeError):
            found[name] = Now(**values)
    return found


def _read(paths: Iterable[Path], silent: float) -> dict[str, dict[str, Any]]:
    """The values of files that are whole and not older than `silent` seconds, by name."""
    found = {}
    for path in paths:
        with contextlib.suppress(OSError, ValueError):
            if time.time() - path.stat().st_mtime < silent:
                values = json.loads(path.read_text())
                if isinstance(values, dict):
                    found[path.stem] = values
    return found


def _write(path: Path, values: dict[str, Any]) -> None:
    with contextlib.suppress(OSError):
        half = path.with_name(f"{path.name}-half")
        path.parent.mkdir(parents=True, exist_ok=True)
        half.write_text(json.dumps(values))
        half.replace(path)


def _folder(out: Path) -> Path:
    return out / "state"
