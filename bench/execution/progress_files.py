"""Write and read progress files, which show users the state of running streams and trainings.

A training's file lies beside its checkpoint. A stream's file is written by the process that scores, after the adapter
has predicted; its content reaches neither methods nor records. Does not import torch.
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
    """The progress of a stream (batches and accuracy of its current segment) or of a training (steps and loss).

    `share` is the completed share of the whole task, in 0 .. 1; this process completed `gained` of it in `seconds`.
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
        """The accuracy or loss as text; empty while there is none."""
        if self.accuracy is not None:
            return f"accuracy {self.accuracy:.1%}"
        return "" if self.loss is None else f"loss {self.loss:.4f}"

    def __str__(self) -> str:
        return ", ".join(filter(None, (f"{self.name}: {self.unit} {self.done} of {self.of}", self.value)))


class ProgressWriter:
    """Writes the progress of a stream or training at most twice a second, and ignores errors of the disk."""

    def __init__(self, path: Path, label: str) -> None:
        self._path, self._label = path, label
        self._last = float("-inf")
        self._before = 0.0
        self._began: float | None = None

    def begin(self, share: float) -> None:
        """Start the clock, with the share that a killed process completed. Else the first report starts it."""
        self._before, self._began = share, time.monotonic()

    def due(self) -> bool:
        return time.monotonic() - self._last >= _SECONDS

    def batch(self, where: str, batches: int, of: int, accuracy: float, share: float) -> None:
        """Write the progress of a stream. Accuracy and share of the whole are in 0 .. 1."""
        self._report(where, "batch", batches, of, accuracy, None, share)

    def step(self, of: int, steps: int, loss: float | None) -> None:
        """Write the progress of a training of `of` steps."""
        self._report("", "step", steps, of, None, loss, steps / of)

    def _report(
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
        """Remove the file, because the work has ended."""
        with contextlib.suppress(OSError):
            self._path.unlink(missing_ok=True)


@dataclass(frozen=True)
class Left:
    """The progress of a run: ended tasks, all tasks, and remaining seconds (None: not yet known)."""

    done: int
    of: int
    seconds: float | None


def tell_left(out: Path, left: Left | None) -> None:
    """Write the progress of this process's run to the run's folder, or remove it if `left` is None."""
    path = _folder(out) / f"{socket.gethostname()}-{os.getpid()}.left"
    if left is not None:
        _write(path, asdict(left))
        return
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)


def left(out: Path) -> Left | None:
    """Return the combined progress of all runs in a folder; None if none is running."""
    found = [Left(**values) for values in _read(_folder(out).glob("*.left"), _SILENT_RUN).values()]
    if not found:
        return None
    known = [each.seconds for each in found if each.seconds is not None]
    slowest = max(known) if len(known) == len(found) else None
    return Left(sum(each.done for each in found), sum(each.of for each in found), slowest)


def stream_file(out: Path, name: str) -> Path:
    """Return the progress file of a stream in a run's folder."""
    return _folder(out) / f"{name}.now"


def training_file(key: str) -> Path:
    """Return the progress file of a training, which all runs that wait for it share."""
    return cache_dir() / "training" / f"{key}.now"


def running(out: Path, trainings: Iterable[str] = ()) -> Mapping[str, Now]:
    """Return the progress of the given trainings by key, then of the streams in a run's folder by name.

    Files older than ten minutes, which killed processes leave behind, are omitted.
    """
    files = [*map(training_file, trainings), *sorted(_folder(out).glob("*.now"))]
    found = {}
    for name, values in _read(files, _SILENT).items():
        with contextlib.suppress(TypeError):
            found[name] = Now(**values)
    return found


def _read(paths: Iterable[Path], silent: float) -> dict[str, dict[str, Any]]:
    """Return the values of readable files that are younger than `silent` seconds, by name."""
    found = {}
    for path in paths:
        with contextlib.suppress(OSError, ValueError):
            if time.time() - path.stat().st_mtime < silent:
                values = json.loads(path.read_text(encoding="utf-8"))
                if isinstance(values, dict):
                    found[path.stem] = values
    return found


def _write(path: Path, values: dict[str, Any]) -> None:
    with contextlib.suppress(OSError):
        half = path.with_name(f"{path.name}-half")
        path.parent.mkdir(parents=True, exist_ok=True)
        half.write_text(json.dumps(values), encoding="utf-8")
        half.replace(path)


def _folder(out: Path) -> Path:
    return out / "state"
