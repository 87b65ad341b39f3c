"""What streams say while they run, for people only: a small file beside each checkpoint, read by whoever watches.

It is written by the process that scores, after the adapter has answered; nothing of it goes back to an adapter or into
a record.
"""

from __future__ import annotations

import contextlib
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

_SECONDS = 0.5
_SILENT = 600.0


@dataclass(frozen=True)
class Now:
    """Where a stream is: batches answered in this part of it, and the accuracy over them."""

    label: str
    where: str
    batches: int
    of: int
    accuracy: float

    def __str__(self) -> str:
        return f"{self.label}, {self.where}: batch {self.batches} of {self.of}, accuracy {self.accuracy:.1%}"


class Teller:
    """Writes where a stream is, at most twice a second; a disk that refuses is nothing to stop for."""

    def __init__(self, out: Path, name: str, label: str) -> None:
        self._path, self._label = _folder(out) / f"{name}.now", label
        self._last = float("-inf")

    def due(self) -> bool:
        return time.monotonic() - self._last >= _SECONDS

    def tell(self, where: str, batches: int, of: int, accuracy: float) -> None:
        """Say where the stream is. Accuracy is a share of 1."""
        self._last = time.monotonic()
        with contextlib.suppress(OSError):
            half = self._path.with_suffix(".now-half")
            half.write_text(json.dumps(asdict(Now(self._label, where, batches, of, accuracy))))
            half.replace(self._path)

    def end(self) -> None:
        """The stream is over."""
        with contextlib.suppress(OSError):
            self._path.unlink(missing_ok=True)


def running(out: Path) -> list[Now]:
    """Where the streams of a run's folder are; what a killed process left behind is not shown for long."""
    found = []
    for path in sorted(_folder(out).glob("*.now")):
        with contextlib.suppress(OSError, ValueError, TypeError):
            if time.time() - path.stat().st_mtime < _SILENT:
                found.append(Now(**json.loads(path.read_text())))
    return found


def _folder(out: Path) -> Path:
    return out / "state"
