"""Read the records of folders and files, and choose among them. No torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench.core.errors import MissingDataError, UsageError, closest, nearest
from bench.core.errors import ValidationError as InvalidResults
from corruptions.catalog import group
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
    """Return the records whose fields have the given values ("seed=0", "split=disjoint", "corruption=fog,snow").

    A number may be written in any way ("severity=5" or "5.0"), a corruption also as a group of them ("noise"). A
    severity or a corruption keeps the clean records too, since they belong to every row.
    """
    for condition in where:
        name, equals, value = condition.partition("=")
        if not equals:
            raise UsageError(f"--where takes FIELD=VALUE, as in --where seed=0, not '{condition}'")
        nearest(name, [*Record.model_fields, "labels_per_class"], "field")
        chosen: set[str] = set()
        for each in _values(name, value, records):
            kept = {record.key for record in records if _has(record, name, each)}
            if not kept or (not _has_clean(name, each) and all(r.clean for r in records if r.key in kept)):
                close = closest(each, {str(_value(record, name)) for record in records} - {each})
                hint = f"did you mean {name}={close}?" if close else "see `bench results DIR`"
                raise UsageError(f"no record has {name}={each}; {hint}")
            chosen |= kept
        records = [record for record in records if record.key in chosen]
    return records


def _values(name: str, text: str, records: list[Record]) -> list[str]:
    """Split a list of values, unless a record has all of it as one; a group of corruptions stands for those here."""
    if any(str(_value(record, name)) == text for record in records):
        return [text]
    values = [part.strip() for part in text.split(",")]
    if name != "corruption":
        return values
    here = {record.corruption for record in records}
    members = {part: [each for each in group(part) if each in here] for part in values}
    return [each for part in values for each in members[part] or [part]]


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
