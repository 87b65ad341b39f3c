"""What the runs of a folder set out to measure, so that what is missing or under way can be told. Without torch."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from bench.core.cache_dir import write_bytes
from bench.core.conditions import digest_of


@dataclass(frozen=True)
class ManifestRow:
    """One row of a run: the record keys of each of its streams, by the name of the stream's lock in `state/`."""

    shift: str
    method: str
    part: str | None
    seed: int
    streams: Mapping[str, tuple[str, ...]]


def write_manifest(folder: Path, rows: Sequence[ManifestRow], trainings: Sequence[str] = ()) -> None:
    """Leave what a run will measure, and the keys of what it trains for that, in the folder.

    Raises BenchError where it cannot be written.
    """
    values = [vars(row) | {"streams": dict(row.streams)} for row in rows]
    write_bytes(folder / "state" / f"planned-{digest_of(values)[:16]}.json", json.dumps(values).encode())
    if trainings:
        path = folder / "state" / f"trainings-{digest_of(list(trainings))[:16]}.json"
        write_bytes(path, json.dumps(list(trainings)).encode())


def read_trainings(folder: Path) -> list[str]:
    """The keys of all trainings that runs of a folder wait for or waited for."""
    keys: dict[str, None] = {}
    for path in sorted((folder / "state").glob("trainings-*.json")):
        try:
            keys |= dict.fromkeys(TypeAdapter(list[str]).validate_json(path.read_bytes()))
        except (OSError, ValidationError):
            continue
    return list(keys)


def read_manifest(folder: Path) -> list[ManifestRow]:
    """The rows of all runs of a folder; a file that cannot be read, of a run that was killed, counts as none."""
    rows: list[ManifestRow] = []
    for path in sorted((folder / "state").glob("planned-*.json")):
        try:
            rows += TypeAdapter(list[ManifestRow]).validate_json(path.read_bytes())
        except (OSError, ValidationError):
            continue
    return rows


def running(folder: Path, rows: Sequence[ManifestRow]) -> frozenset[str]:
    """The record keys of the streams that some process is measuring now."""
    from filelock import FileLock, Timeout

    keys: set[str] = set()
    for row in rows:
        for name, wanted in row.streams.items():
            path = folder / "state" / f"{name}.lock"
            if not path.exists():
                continue
            try:
                with FileLock(path, timeout=0):
                    pass
            except Timeout:
                keys.update(wanted)
            except OSError:
                continue
    return frozenset(keys)
