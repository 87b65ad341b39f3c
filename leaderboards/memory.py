"""A cache of comparisons: intervals and ranks of a board, kept in a folder under a key of all their inputs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from leaderboards.comparable import Line
from leaderboards.files import write_atomically
from leaderboards.ranking import Measured
from leaderboards.record import Record, Track
from leaderboards.uncertainty import Interval

_METHOD = 4  # version of the measurement; a new number invalidates the results of an older one


@dataclass(frozen=True, slots=True)
class Memory:
    """A folder that may be deleted at any time. `state` of a record is a text that changes when its predictions do."""

    folder: Path | str
    state: Callable[[Record], str]

    def key_of(
        self,
        members: Mapping[Line, Sequence[Line]],
        lines: Mapping[Line, Sequence[Record]],
        tracks: Mapping[Track, Sequence[Line]],
        level: float,
    ) -> str:
        """Return the key for the measurement of these lines with these settings."""
        sha = hashlib.sha256()
        sha.update(json.dumps([_METHOD, level]).encode())
        sha.update(json.dumps([[line, own] for line, own in members.items()]).encode())
        sha.update(json.dumps([[track, own] for track, own in tracks.items()]).encode())
        for line in dict.fromkeys(line for own in members.values() for line in own):
            for record in lines[line]:
                accuracy = None if record.metrics is None else record.metrics.accuracy
                place = [line, record.corruption, record.severity, record.seed, record.key, accuracy]
                sha.update(json.dumps([*place, self.state(record)]).encode())
        return sha.hexdigest()

    def recall(self, key: str) -> Measured | None:
        """Return what is stored under a key; None if nothing is, or the file is damaged."""
        try:
            rows = json.loads((Path(self.folder) / f"{key}.json").read_bytes())
            intervals = {
                (r["method"], r["part"]): Interval(r["accuracy"], r["low"], r["high"])
                for r in rows
                if not r["withheld"]
            }
            withheld = {(r["method"], r["part"]): str(r["withheld"]) for r in rows if r["withheld"]}
            ranks = {(r["method"], r["part"]): int(r["rank"]) for r in rows if r["rank"] is not None}
            among_best = frozenset((r["method"], r["part"]) for r in rows if r["among_best"])
        except (OSError, ValueError, TypeError, KeyError):
            return None
        return Measured(intervals, withheld, ranks, among_best)

    def keep(self, key: str, measured: Measured) -> None:
        """Store a measurement. If the folder cannot be written, it is measured again next time."""
        rows = []
        for line in (*measured.intervals, *measured.withheld):
            interval = measured.intervals.get(line)
            limits = (interval.estimate, interval.low, interval.high) if interval else (None, None, None)
            row = dict(zip(("method", "part", "accuracy", "low", "high"), (*line, *limits), strict=True))
            rows.append(row | {"withheld": measured.withheld.get(line), "rank": measured.ranks.get(line)})
            rows[-1]["among_best"] = line in measured.among_best
        try:
            write_atomically(Path(self.folder) / f"{key}.json", json.dumps(rows).encode())
        except OSError:
            return
