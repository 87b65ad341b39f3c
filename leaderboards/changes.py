"""What a submission would do to the published results: what would vanish, change or be added, one sentence each.

More seeds, rows, boards and files are additions, with all that follows from them: the mean of a row over more seeds,
ranks beside a new row. Whatever was published stays as it was, under its address and its name.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from leaderboards.boards import REFERENCE, BoardRow
from leaderboards.comparable import line_name, line_of
from leaderboards.site import Entry, Site

_SAME = 1e-9  # by which a number that nothing touches may move
_SAME_LIMIT = 1e-3  # the same for the limits of an interval, which are drawn
_NUMBERS = ("accuracy", "clean_accuracy", "ece", "mce", "relative_mce", "fit_seconds", "forwards", "backwards", "n")


@dataclass(frozen=True, slots=True)
class Change:
    """One difference between two states of the published results, as a sentence without full stop."""

    kind: Literal["vanishes", "changes", "is added"]
    text: str

    @property
    def harmless(self) -> bool:
        """Whether it only adds."""
        return self.kind == "is added"


def changes(before: Site, after: Site) -> Iterator[Change]:
    """Yield everything that differs, what harms first."""
    found = [*_files(before, after), *_records(before, after), *_boards(before, after)]
    yield from sorted(found, key=lambda change: change.harmless)


def _files(before: Site, after: Site) -> Iterator[Change]:
    then, now = ({name for names in site.published.homes.values() for name in names} for site in (before, after))
    yield from (Change("vanishes", f"the file {name} would vanish") for name in sorted(then - now))
    yield from (Change("is added", f"the file {name} is added") for name in sorted(now - then))


def _records(before: Site, after: Site) -> Iterator[Change]:
    then, now = before.published, after.published
    gone = Counter(line_name(line_of(then.records[key])) for key in then.records.keys() - now.records.keys())
    for name, count in sorted(gone.items()):
        yield Change("vanishes", f"{count} records of {name} would vanish")
    both = then.records.keys() & now.records.keys()
    moved = Counter(
        line_name(line_of(then.records[key]))
        for key in both
        if then.records[key] != now.records[key] or not np.array_equal(then.bits[key].hits, now.bits[key].hits)
    )
    for name, count in sorted(moved.items()):
        yield Change("changes", f"{count} records of {name} would change; leave out what is published already")


def _boards(before: Site, after: Site) -> Iterator[Change]:
    then, now = ({entry.slug: entry for entry in site.entries} for site in (before, after))
    yield from (Change("vanishes", f"the board {slug} would vanish") for slug in sorted(then.keys() - now.keys()))
    for slug in sorted(now.keys() - then.keys()):
        rows = len(now[slug].board.rows)
        yield Change("is added", f"the board {slug} is added, with {rows} row{'' if rows == 1 else 's'}")
    for slug in sorted(then.keys() & now.keys()):
        if then[slug].board != now[slug].board:
            yield from _rows(slug, then[slug], now[slug])


def _rows(slug: str, before: Entry, after: Entry) -> Iterator[Change]:
    then, now = ({row.name: row for row in entry.board.rows} for entry in (before, after))
    for name in sorted(then.keys() - now.keys()):
        keys = set(then[name].keys)
        renamed = [other for other, row in now.items() if keys <= set(row.keys) and row.part == then[name].part]
        kind: Literal["vanishes", "changes"] = "changes" if renamed else "vanishes"
        fate = f"would be named {renamed[0]}" if renamed else "would vanish"
        yield Change(kind, f"{slug}: the row {name} {fate}")
    new = now.keys() - then.keys()
    yield from (Change("is added", f"{slug}: the row {name} is added, {_seeds(now[name])}") for name in sorted(new))
    grown = {name for name in then.keys() & now.keys() if set(now[name].keys) > set(then[name].keys)}
    for name in sorted(then.keys() & now.keys()):
        yield from _row(f"{slug}: the row {name}", then[name], now[name], _touched(now[name], now, new | grown))


def _touched(row: BoardRow, rows: Mapping[str, BoardRow], added: set[str]) -> set[str]:
    """Return what of a row may move because of the rows that are added or have more seeds."""
    ranks = {"rank"} if any(rows[name].track == row.track and rows[name].main for name in added) else set()
    return ranks | ({"forgetting"} if any(rows[name].method == REFERENCE for name in added) else set())


def _row(what: str, then: BoardRow, now: BoardRow, touched: set[str]) -> Iterator[Change]:
    if now.accuracy is None and then.accuracy is not None:
        yield Change("changes", f"{what} would lose its mean: {now.incomplete}")
        return
    if not set(then.keys) <= set(now.keys):
        yield Change("changes", f"{what} would lose {len({*then.keys} - {*now.keys})} of its records")
        return
    if set(now.keys) > set(then.keys):
        yield Change("is added", f"{what} has {_seeds(now)} instead of {_seeds(then)}")
        return
    moved = [name for name in _NUMBERS if not _close(getattr(then, name), getattr(now, name), _SAME)]
    limits = [(r.interval.low, r.interval.high) if r.interval else (None, None) for r in (then, now)]
    moved += ["interval"] if not all(_close(a, b, _SAME_LIMIT) for a, b in zip(*limits, strict=True)) else []
    moved += ["track"] if then.track != now.track else []
    if not _close(then.forgetting, now.forgetting, _SAME) and "forgetting" not in touched:
        moved.append("forgetting")
    if moved:
        yield Change("changes", f"{what} would change its {', '.join(moved)}")
    if then.rank != now.rank:
        kind: Literal["is added", "changes"] = "is added" if "rank" in touched else "changes"
        yield Change(kind, f"{what} has rank {now.rank} instead of {then.rank}")


def _close(a: float | None, b: float | None, most: float) -> bool:
    return a is b if a is None or b is None else math.isclose(a, b, rel_tol=most, abs_tol=most)


def _seeds(row: BoardRow) -> str:
    accuracy = "no mean" if row.accuracy is None else f"{100 * row.accuracy:.1f}"
    return f"{accuracy} over {len(row.seeds)} seed{'' if len(row.seeds) == 1 else 's'}"
