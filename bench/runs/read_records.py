"""Read the records of folders and files, and choose among them. No torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench.core.errors import MissingDataError, UsageError, closest, nearest
from bench.core.errors import ValidationError as InvalidResults
from leaderboards.files import StoreError
from leaderboards.record import Record
from leaderboards.store import read


def open_records(folders: list[Path]) -> list[Record]:
    """Return the records of folders. Raises MissingDataError if there are none, InvalidResults if damaged."""
    for folder in folders:
        if not folder.is_file() and not (folder / "records").is_dir() and not (folder / "records.jsonl").is_file():
            raise MissingDataError(f"no records in {folder}; give a folder made by `bench run --out DIR`")
    try:
        records = read(folders)
    except StoreError as error:
        raise InvalidResults(str(error)) from None
    if not records:
        raise MissingDataError(f"no records in {', '.join(map(str, folders))}; run something with --out first")
    return records


def filtered(records: list[Record], where: list[str]) -> list[Record]:
    """Return the records whose fields have the given values ("seed=0", "split=disjoint", "labels_per_class=10").

    A number may be written in any way ("severity=5" or "5.0"). A severity or a corruption keeps the clean records too,
    since they belong to every row.
    """
    for condition in where:
        name, equals, value = condition.partition("=")
        if not equals:
            raise UsageError(f"--where takes FIELD=VALUE, as in --where seed=0, not '{condition}'")
        nearest(name, [*Record.model_fields, "labels_per_class"], "field")
        kept = [record for record in records if _has(record, name, value)]
        if not kept or (not _has_clean(name, value) and all(record.clean for record in kept)):
            close = closest(value, {str(_value(record, name)) for record in records} - {value})
            hint = f"did you mean {name}={close}?" if close else "see `bench results DIR`"
            raise UsageError(f"no record has {condition}; {hint}")
        records = kept
    return records


def _has(record: Record, name: str, value: str) -> bool:
    if name in _OF_CONDITION and record.clean:
        return True
    found = _value(record, name)
    if isinstance(found, int | float) and not isinstance(found, bool):
        try:
            return float(value) == found
        except ValueError:
            return False
    return value == str(found) or (found is None and value in ("none", "null"))


def _value(record: Record, name: str) -> Any:
    return record.data.labels_per_class if name == "labels_per_class" else getattr(record, name)


_OF_CONDITION = ("severity", "corruption")


def _has_clean(name: str, value: str) -> bool:
    """Return whether a condition asks for clean records, which others only keep."""
    return name not in _OF_CONDITION or value in ("None", "none", "null", "0", "0.0")
