"""The planned streams and trainings of a folder's runs, which tell what is missing or running. Imports no torch."""

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
    """One row of a run, with the record keys of each stream by the name of the stream's lock in `state/`."""

    shift: str
    method: str
    part: str | None
    seed: int
    streams: Mapping[str, tuple[str, ...]]


def write_manifest(folder: Path, rows: Sequence[ManifestRow], trainings: Sequence[str] = ()) -> None:
    """Write the rows that a run will measure, and the keys of its trainings, into the folder.

    Raises BenchError if the folder cannot be written.
    """
    values = [vars(row) | {"streams": dict(row.streams)} for row in rows]
    write_bytes(folder / "state" / f"planned-{digest_of(values)[:16]}.json", json.dumps(values).encode())
    if trainings:
        path = folder / "state" / f"trainings-{digest_of(list(trainings))[:16]}.json"
        write_bytes(path, json.dumps(list(trainings)).encode())


def read_trainings(folder: Path) -> list[str]:
    """Return the keys of all trainings of a folder's runs."""
    keys: dict[str, None] = {}
    for path in sorted((folder / "state").glob("trainings-*.json")):
        try:
            keys |= dict.fromkeys(TypeAdapter(list[str]).validate_json(path.read_bytes()))
        except (OSError, ValidationError):
            continue
    return list(keys)


def read_manifest(folder: Path) -> list[ManifestRow]:
    """Return the rows of all runs of a folder, without unreadable files of killed runs."""
    rows: list[ManifestRow] = []
    for path in sorted((folder / "state").glob("planned-*.json")):
        try:
            rows += TypeAdapter(list[ManifestRow]).validate_json(path.read_bytes())
        except (OSError, ValidationError):
            continue
    return rows


def running(folder: Path, rows: Sequence[ManifestRow]) -> frozenset[str]:
    """Return the record keys of the streams that a process is measuring now."""
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
