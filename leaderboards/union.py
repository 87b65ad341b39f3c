"""All published results together: which of them stand on one board, and at which address.

A board is a place: shift, model, protocol, split, number of labels, and the severities over which its means are taken.
Its address follows from these alone, so no other file, name or order of reading can move it. Every set of conditions
that somebody has run whole is a place, and every row that has all of its conditions stands there, with all its seeds.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

import numpy as np

from leaderboards.bundle import Bits, Bundle
from leaderboards.comparable import line_of, place_of
from leaderboards.record import Metrics, Record
from leaderboards.settings import Settings
from leaderboards.verify import Problem

# Protocols in which the stream of one condition is the same whatever other conditions are run.
_APART = ("reset_each_shift", "episodic", "label_shifts")
_SAME = 1e-3  # by which metrics of equal outcomes may differ between machines
_LONGEST = 150  # characters of an address

_Family = tuple[str, str, str, str, int | None, int | None, str]
_Grid = frozenset[tuple[str | None, float]]


@dataclass(frozen=True, slots=True)
class PublishedRecords:
    """The records of all files by key, each once, with their outcomes, and the files that hold each."""

    records: Mapping[str, Record]
    bits: Mapping[str, Bits]
    homes: Mapping[str, tuple[str, ...]]


def merge(bundles: Mapping[str, Bundle]) -> PublishedRecords:
    """Merge files, by name; of a result that several of them hold, the record that was made first stays."""
    records: dict[str, Record] = {}
    bits: dict[str, Bits] = {}
    homes: dict[str, list[str]] = defaultdict(list)
    for name in sorted(bundles):
        for record in bundles[name].records:
            homes[record.key].append(name)
            if record.key not in records or _age(record) < _age(records[record.key]):
                records[record.key] = record
                bits[record.key] = bundles[name].bits[record.key]
    order = sorted(records)
    return PublishedRecords(
        {key: records[key] for key in order}, {key: bits[key] for key in order}, {k: tuple(homes[k]) for k in order}
    )


def clashes(bundles: Mapping[str, Bundle], proposed: Collection[str] = ()) -> Iterator[Problem]:
    """Yield a problem for each result that another file contradicts, with the name of a `proposed` file or the later.

    The same result in two files is none: the same key, the same outcome of every image, and metrics that differ by what
    two machines round. Other outcomes under one key, or one result under two keys, are.
    """
    settings = Settings()
    by_key: dict[str, tuple[str, Record]] = {}
    by_cell: dict[tuple[object, ...], tuple[str, Record]] = {}
    again: dict[str, set[str]] = defaultdict(set)
    entries = [(record, name) for name in sorted(bundles) for record in bundles[name].records]
    for record, name in sorted(entries, key=lambda entry: (entry[1] in proposed, _age(entry[0]))):
        home, other = by_key.setdefault(record.key, (name, record))
        if other is not record:
            again[name].add(record.key)
            if not _equal(record, bundles[name].bits[record.key], other, bundles[home].bits[other.key]):
                yield Problem(record.key, name, f"{place_of(record)} is published in {home} already, {_OTHER_OUTCOMES}")
            continue
        setting = settings.of(record)
        cell = (*_family(record), *line_of(record), setting, record.corruption, record.severity, record.seed)
        home, other = by_cell.setdefault(cell, (name, record))
        if home != name:
            message = f"{place_of(record)} is published in {home} already, under another key; leave one of the two out"
            yield Problem(record.key, name, message)
    for name, keys in again.items():
        if len(keys) == len(bundles[name].records):
            yield Problem(None, name, "holds nothing that is not published already; leave the file out")


_OTHER_OUTCOMES = (
    "with other outcomes under the same key; leave it out, for example with `bench publish bundle --where method=NAME`"
)


def boards_of(records: Iterable[Record]) -> dict[str, list[Record]]:
    """Return the records of each board by its address, in the order of addresses.

    A row stands on every board whose conditions it has all, with the seeds that have them; under a protocol whose
    stream runs through its conditions only if it has no others, since the stream is another one then.
    """
    settings = Settings()
    families: dict[_Family, dict[tuple[object, ...], list[Record]]] = defaultdict(lambda: defaultdict(list))
    for record in records:
        families[_family(record)][*line_of(record), settings.of(record), record.seed].append(record)
    found: dict[str, list[Record]] = {}
    for family in sorted(families, key=_sorted):
        runs = [(_grid(own), own) for own in families[family].values()]
        grids = {grid for grid, _ in runs if grid}
        for grid in sorted(grids, key=lambda grid: sorted(map(str, grid))):
            apart = family[2].partition(":")[0] in _APART
            chosen = [own for had, own in runs if (had >= grid if apart else had == grid)]
            address = _address(family, grid, grids)
            while address in found:
                address += f"-{_digest([_sorted(family), sorted(map(str, grid))])}"
            found[address] = [r for own in chosen for r in own if r.clean or (r.corruption, r.severity) in grid]
    return dict(sorted(found.items()))


def _family(record: Record) -> _Family:
    labels, digest = record.data.labels_per_class, record.weights.digest
    return record.shift, record.model, record.protocol, record.split, labels, record.limit, digest


def _sorted(family: _Family) -> tuple[str, ...]:
    return tuple(map(str, family))


def _grid(records: Sequence[Record]) -> _Grid:
    return frozenset((record.corruption, record.severity) for record in records if not record.clean)


def _address(family: _Family, grid: _Grid, grids: Iterable[_Grid]) -> str:
    """Return the address of a board; of several with equal severities, those that lack conditions of another say so."""
    severities = _severities(grid)
    words = [*family[:5], "-".join(f"{severity:g}" for severity in severities)]
    address = re.sub(r"[^a-z0-9.]+", "-", "-".join(map(str, words)).lower()).strip("-.")
    if len(address) > _LONGEST:
        address = f"{address[:_LONGEST]}-{_digest(words)}"
    if any(other > grid and _severities(other) == severities for other in grids):
        address += f"-{_digest(sorted(map(str, grid)))}"
    return address


def _severities(grid: _Grid) -> list[float]:
    return sorted({severity for _, severity in grid})


def _age(record: Record) -> tuple[datetime, str]:
    return datetime.fromisoformat(record.created), record.to_json()


def _equal(record: Record, bits: Bits, other: Record, others: Bits) -> bool:
    return (
        np.array_equal(bits.id, others.id)
        and np.array_equal(bits.hits, others.hits)
        and _close(record.metrics, other.metrics)
    )


def _close(a: Metrics | None, b: Metrics | None) -> bool:
    if a is None or b is None:
        return a is b
    ours, theirs = a.model_dump(), b.model_dump()
    return all(abs(ours[name] - theirs[name]) <= _SAME for name in ours)


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:8]
