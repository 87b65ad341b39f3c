"""Check which records may share a board: differences that would make a comparison false are refused, not averaged."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence

from leaderboards.record import Record

Line = tuple[str, str | None]

_SEPARATE = "make a board of one results folder at a time"

# Name of the field, as a filter takes it, and where a record keeps it.
_SHARED: dict[str, Callable[[Record], Hashable]] = {
    "shift": lambda record: record.shift,
    "model": lambda record: record.model,
    "protocol": lambda record: record.protocol,
    "split": lambda record: record.split,
    "limit": lambda record: record.limit,
    "labels_per_class": lambda record: record.data.labels_per_class,
}


class BoardError(ValueError):
    """Raised where records do not make one board; the message says what differs and which filter to use."""


def line_of(record: Record) -> Line:
    """Return the line of a board to which a record belongs: (method, part)."""
    return record.method, record.part


def line_name(line: Line) -> str:
    """Return a line in words: the method, with its part in parentheses."""
    method, part = line
    return method if part is None else f"{method} ({part})"


def condition_name(corruption: str | None, severity: float) -> str:
    """Return a condition in words."""
    return "clean" if corruption is None else f"{corruption} at severity {severity:g}"


def place_of(record: Record) -> str:
    """Return where a record stands, for messages: its row, condition and seed."""
    return f"{line_name(line_of(record))}, {condition_name(record.corruption, record.severity)}, seed {record.seed}"


def check_comparable(records: Sequence[Record]) -> None:
    """Raise BoardError at the first difference that keeps these records from being the results of one run.

    What `check_shared` demands; and one batch size, precision, access and set of options within a line, no cell twice.
    """
    check_shared(records)
    lines: dict[Line, list[Record]] = defaultdict(list)
    for record in records:
        lines[line_of(record)].append(record)
    check_severities(lines)
    for line, group in lines.items():
        _check_options(line_name(line), group)
        check_row(line_name(line), group)


def check_shared(records: Sequence[Record]) -> None:
    """Raise BoardError at the first difference that keeps records from one board, or if there are no records.

    One board has one shift, model (by name and by weights), protocol, split, limit and number of labels; the same data
    in every record of a condition, and the same number of images in all corrupted conditions.
    """
    if not records:
        raise BoardError("there is no record to make a board of; loosen the filter or run something first")
    for field, value in _SHARED.items():
        _same("the records", field, map(value, records), _filter(field))
    _same("the records of one model", "weights", (record.weights.digest for record in records), _SEPARATE)
    _check_images([record for record in records if record.status == "done"])


def check_severities(lines: Mapping[Line, Sequence[Record]]) -> None:
    """Raise BoardError unless all lines with corrupted conditions have the same severities."""
    severities = {line: {r.severity for r in group if not r.clean} for line, group in lines.items()}
    severities = {line: found for line, found in severities.items() if found}
    for line, found in severities.items():
        first, expected = next(iter(severities.items()))
        if found != expected:
            common = sorted(found & expected) or sorted(found)
            raise BoardError(
                f"{line_name(first)} has severity {_listed(expected)} and {line_name(line)} has {_listed(found)}; "
                f"filter, for example with --where severity={common[-1]:g}"
            )


def _check_images(done: Sequence[Record]) -> None:
    _same("the corrupted conditions", "n, the scored images", (r.n for r in done if not r.clean), _SEPARATE)
    _same("the clean records", "n, the scored images", (r.n for r in done if r.clean), _SEPARATE)
    conditions: dict[str, list[Record]] = defaultdict(list)
    for record in done:
        conditions[condition_name(record.corruption, record.severity)].append(record)
    for condition, group in conditions.items():
        for field in ("digest", "seed", "storage", "profile"):
            values = (getattr(record.data, field) for record in group)
            _same(f"the records of {condition}", f"data {field}", values, _SEPARATE)


def _check_options(name: str, group: Sequence[Record]) -> None:
    where = f"the records of {name}"
    for field in ("batch_size", "precision"):
        _same(where, field, (getattr(record, field) for record in group), _filter(field))
    options = [{(m, o): json.dumps(v) for m, given in r.options.items() for o, v in given.items()} for r in group]
    for method, option in sorted({key for given in options for key in given}):
        values = (given.get((method, option), "absent") for given in options)
        _same(where, f"option {method}.{option}", values, _SEPARATE)


def check_row(name: str, group: Sequence[Record]) -> None:
    """Raise BoardError if the records of one row differ in access, or one cell is there twice."""
    where = f"the records of {name}"
    _same(where, "access", (record.access for record in group), _SEPARATE)
    seen: set[tuple[str | None, float, int]] = set()
    for record in group:
        cell = (record.corruption, record.severity, record.seed)
        if cell in seen:
            condition = condition_name(record.corruption, record.severity)
            made = next(iter(_versions(group)), "")
            raise BoardError(
                f"{where} hold {condition} with seed {record.seed} twice{made and f', made by {made}'}; "
                f"{'run it again in a new folder with --out' if made else _SEPARATE}"
            )
        seen.add(cell)


def ingredient_notes(lines: Mapping[Line, Sequence[Record]]) -> list[str]:
    """Return a sentence for the methods whose seeds share so many sets of ingredients."""
    found: dict[tuple[int, int], list[str]] = {}
    for (method, _), records in lines.items():
        sets = {r.seed: r.seed if r.data.ingredients is None else r.data.ingredients for r in records}
        if (count := len(set(sets.values()))) < len(sets):
            found.setdefault((len(sets), count), []).append(method)
    return [
        f"the {seeds} seeds of {', '.join(dict.fromkeys(methods))} share "
        + (f"{count} sets of ingredients, over which intervals are" if count > 1 else "one set of ingredients")
        for (seeds, count), methods in found.items()
    ]


def version_notes(lines: Mapping[Line, Sequence[Record]]) -> tuple[str, ...]:
    """A sentence for each row, and one for all rows, whose numbers were made by different versions of one component."""
    notes = [
        f"{line_name(line)}: its numbers were made by {each}" for line, own in lines.items() for each in _versions(own)
    ]
    named = {note.partition("made by ")[2] for note in notes}
    everywhere = _versions([record for group in lines.values() for record in group])
    return (*notes, *(f"the rows were made by {each}" for each in everywhere if each not in named))


def _versions(records: Iterable[Record]) -> list[str]:
    found: dict[str, set[str]] = defaultdict(set)
    for record in records:
        for name, version in record.components.items():
            found[name].add(version)
    return [f"versions {' and '.join(sorted(made))} of {name}" for name, made in sorted(found.items()) if len(made) > 1]


def _same(where: str, what: str, values: Iterable[Hashable], remedy: str) -> None:
    found = set(values)
    if len(found) > 1:
        some = sorted(map(str, found))[0]
        raise BoardError(f"{where} differ in {what} ({_listed(found)}); {remedy.replace('VALUE', some)}")


def _filter(field: str) -> str:
    return f"filter, for example with --where {field}=VALUE"


def _listed(values: Iterable[Hashable]) -> str:
    texts = [f"{value:g}" if isinstance(value, float) else str(value) for value in sorted(values, key=_order)]
    return ", ".join(texts[:4]) + (", …" if len(texts) > 4 else "")


def _order(value: Hashable) -> tuple[float, str]:
    return (float(value), "") if isinstance(value, int | float) else (float("inf"), str(value))
