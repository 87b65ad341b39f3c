"""Recompute every published number of a results folder from its stored predictions, without trusting the records."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from leaderboards.files import lines_of
from leaderboards.identity import key_of_record, labels_digest
from leaderboards.metrics import diagnose, score
from leaderboards.record import Record, RecordError
from leaderboards.store import Predictions, Store, StoreError, read_record

TOLERANCE = 1e-9


@dataclass(frozen=True, slots=True)
class Problem:
    """A violated rule: the record's key where known, the file (relative to the folder) and the reason."""

    key: str | None
    file: str
    message: str


@dataclass(frozen=True, slots=True)
class Report:
    """`checked` are the keys of the done records whose numbers were recomputed, right or wrong."""

    checked: tuple[str, ...]
    problems: tuple[Problem, ...]

    @property
    def ok(self) -> bool:
        return not self.problems


LabelsOf = Callable[[Record], str | None]
"""The digest of the labels that a record's images have by what is known of its shift; None where nothing is."""


def verify(folder: Path | str, labels_of: LabelsOf = lambda _: None) -> Report:
    """Check a results folder; what is broken becomes a problem, never an exception.

    The key of every record must follow from its other fields. Every metric and diagnostic of every done record must
    follow from its predictions to 1e-9, and `n` be their number. An image must have one label in all records of a
    shift, those of the digest in the record, and those of `labels_of`; methods must be scored on the same images of a
    stream, and no two conditions may share their predictions. records.jsonl, if there, must say what records/ says. No
    file may be missing, named wrongly or belong to no record.
    """
    store = Store(folder)
    if not store.folder.is_dir():
        return Report((), (Problem(None, str(folder), "is not a folder; give one that `bench run --out` wrote"),))
    parse: Callable[[bytes], Record] = cache(Record.from_json)  # a line is what its file says, byte for byte
    records, problems = _read_files(store, parse)
    lines, line_problems = _read_lines(store, parse)
    problems += line_problems
    if (store.folder / "records").is_dir():
        problems += _compare(records, lines, store)
    else:
        records = lines
    if not records and not problems:
        problems.append(Problem(None, str(folder), "holds no records; give a folder that `bench run --out` wrote"))
    checked: list[str] = []
    labels: dict[object, tuple[str, NDArray[np.int64], NDArray[np.int64]]] = {}
    streams: dict[object, tuple[str, NDArray[np.int64]]] = {}
    contents: dict[str, Record] = {}
    for key in sorted(records):
        record = records[key]
        problems += [Problem(key, f"records/{key}.json", message) for message in wrong_key(record)]
        if record.predictions is None:
            continue
        try:
            predictions = store.predictions(record)
        except StoreError as error:
            problems.append(Problem(key, record.predictions, str(error)))
            continue
        checked.append(key)
        problems += [Problem(key, record.predictions, message) for message in _wrong_numbers(record, predictions)]
        problems += [
            Problem(key, record.predictions, message)
            for message in _wrong_labels(record, predictions, labels, labels_of(record))
        ]
        problems += [
            Problem(key, record.predictions, message) for message in _wrong_images(record, predictions, streams)
        ]
        problems += [Problem(key, record.predictions, message) for message in _copied(record, predictions, contents)]
    problems += _orphans(store, records)
    return Report(tuple(checked), tuple(problems))


def wrong_key(record: Record) -> Iterator[str]:
    """Return sentences on how a record contradicts its key."""
    if not record.components:
        yield "was written before keys could be checked; run the trial again with this version"
    elif key_of_record(record) != record.key:
        yield f"has fields of another key, {key_of_record(record)}: one was changed; run the trial again with --rerun"


def _read_files(store: Store, parse: Callable[[bytes], Record]) -> tuple[dict[str, Record], list[Problem]]:
    records: dict[str, Record] = {}
    problems: list[Problem] = []
    for path in sorted((store.folder / "records").glob("*")):
        file = f"records/{path.name}"
        if path.suffix != ".json":
            problems.append(Problem(None, file, "is no record; delete it, an interrupted write may have left it"))
            continue
        try:
            records[path.stem] = read_record(path, parse)
        except (StoreError, OSError) as error:
            problems.append(Problem(path.stem, file, str(error)))
    return records, problems


def _read_lines(store: Store, parse: Callable[[bytes], Record]) -> tuple[dict[str, Record], list[Problem]]:
    records: dict[str, Record] = {}
    problems: list[Problem] = []
    try:
        lines = list(lines_of(store.jsonl)) if store.jsonl.exists() else []
    except StoreError as error:
        return {}, [Problem(None, store.jsonl.name, str(error))]
    for number, line in lines:
        try:
            record = parse(line)
        except RecordError as error:
            problems.append(Problem(None, store.jsonl.name, f"line {number}: {error}"))
            continue
        if record.key in records:
            problems.append(Problem(record.key, store.jsonl.name, f"line {number} repeats a key; delete it"))
        records.setdefault(record.key, record)
    return records, problems


def _compare(files: dict[str, Record], lines: dict[str, Record], store: Store) -> Iterator[Problem]:
    if not store.jsonl.exists():
        return
    name = store.jsonl.name
    fix = "compile it again from records/"
    for key in sorted(files.keys() | lines.keys()):
        if key not in lines:
            yield Problem(key, name, f"lacks the record {key} that records/ has; {fix}")
        elif key not in files:
            yield Problem(key, name, f"has the record {key} that records/ lacks; {fix} or restore the file")
        elif files[key] != lines[key]:
            yield Problem(key, name, f"differs from records/{key}.json; {fix}")


def _wrong_numbers(record: Record, predictions: Predictions) -> Iterator[str]:
    if len(predictions) != record.n:
        yield f"has {len(predictions)} rows where the record says n = {record.n}; run the trial again with --rerun"
    if record.metrics is None:
        return
    for name, value in score(predictions).model_dump().items():
        published = getattr(record.metrics, name)
        if not abs(published - value) <= TOLERANCE:
            yield f"gives {name} {value!r} where the record says {published!r}; run the trial again with --rerun"
    if record.diagnostics is None:
        return
    after = record.diagnostics.clean_accuracy_after  # of images that are not in this file
    for name, value in diagnose(predictions, after).model_dump(exclude={"clean_accuracy_after"}).items():
        published = getattr(record.diagnostics, name)
        if not abs(published - value) <= TOLERANCE:
            yield f"gives {name} {value!r} where the record says {published!r}; run the trial again with --rerun"


def _wrong_labels(
    record: Record,
    predictions: Predictions,
    known: dict[object, tuple[str, NDArray[np.int64], NDArray[np.int64]]],
    expected: str | None,
) -> Iterator[str]:
    """Labels are the same under every condition and for every method, so deviating labels are found by comparison."""
    ids, first = np.unique(predictions.id, return_index=True)
    labels = predictions.label[first]
    if np.any(labels[np.searchsorted(ids, predictions.id)] != predictions.label):
        yield "gives one image two labels; run the trial again with --rerun"
        return
    other, other_ids, other_labels = known.setdefault(record.shift, (record.key, ids, labels))
    _, here, there = np.intersect1d(ids, other_ids, assume_unique=True, return_indices=True)
    made = labels_digest(ids, labels)
    if np.any(labels[here] != other_labels[there]):
        yield f"has other labels than the record {other} for the same images; run the wrong one again with --rerun"
    elif expected is not None and made != expected:
        yield f"has other labels than {record.shift} has; run the trial again with --rerun"
    elif record.components and made != record.data.labels:
        yield "has other images or labels than the record says (data.labels); run the trial again with --rerun"
    new = np.setdiff1d(np.arange(len(ids)), here)
    if len(new):
        known[record.shift] = (other, np.append(other_ids, ids[new]), np.append(other_labels, labels[new]))


def _wrong_images(
    record: Record, predictions: Predictions, known: dict[object, tuple[str, NDArray[np.int64]]]
) -> Iterator[str]:
    """A stream depends on protocol and seed, not on the method, so lost or repeated images are found by comparison."""
    place = (record.shift, record.corruption, record.severity, record.data.digest)
    stream = (place, record.protocol, record.split, record.seed, record.limit)
    ids = np.sort(predictions.id)
    other, expected = known.setdefault(stream, (record.key, ids))
    if not np.array_equal(ids, expected):
        yield f"has other images than the record {other} of the same stream; run the wrong one again with --rerun"


def _copied(record: Record, predictions: Predictions, known: dict[str, Record]) -> Iterator[str]:
    """Different pixels never give the same probabilities, so a file used for two conditions was copied.

    Two methods may predict alike, for example if one of them finds nothing to adapt.
    """
    order = np.argsort(predictions.id, kind="stable")
    content = hashlib.sha256(predictions.id[order].tobytes() + predictions.confidence[order].tobytes()).hexdigest()
    other = known.setdefault(content, record)
    if (other.shift, other.corruption, other.severity) != (record.shift, record.corruption, record.severity):
        yield f"has the predictions of another condition, record {other.key}; run both again with --rerun"


def _orphans(store: Store, records: dict[str, Record]) -> Iterator[Problem]:
    wanted = {record.predictions for record in records.values()}
    for path in sorted((store.folder / "predictions").glob("*")):
        file = f"predictions/{path.name}"
        if file not in wanted:
            yield Problem(None, file, "belongs to no done record; delete it or restore its record")
