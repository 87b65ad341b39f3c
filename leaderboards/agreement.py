"""Boards beside published tables of the same shift and protocol: does the order of the methods agree?

Published numbers come from other weights, images and code, so differences of accuracy say little; orders can agree.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any

from leaderboards import grid
from leaderboards.boards import Board, BoardRow
from leaderboards.grid import Grid
from leaderboards.known import known
from leaderboards.reference import ReferenceRow, our_method, reference_rows

OTHER_IMAGES = ("-gen", "-5k")
"""Ends of names of shifts with the corruptions of a published one: on images made here, or on 5,000 of its own."""
FEWEST = 5
_LEVEL = 0.95


@dataclass(frozen=True, slots=True)
class Pair:
    """A published accuracy and ours, both in [0, 1], with their places among the pairs (1 is best, ties share)."""

    published: ReferenceRow
    ours: BoardRow
    accuracy: float
    their_place: float
    our_place: float


@dataclass(frozen=True, slots=True)
class RankCorrelation:
    """Spearman's rank correlation in [-1, 1] of n methods, with its 95 % interval.

    The methods count as a sample of methods; the noise of each accuracy is not part of it. The interval is that of
    Bonett and Wright 2000 (Psychometrika 65, doi:10.1007/BF02294183): Fisher's z with the variance
    (1 + rho^2 / 2) / (n - 3). `low` and `high` are None where it is not defined: for an order that is the same or the
    reverse.
    """

    rho: float
    n: int
    low: float | None
    high: float | None

    def __str__(self) -> str:
        between = "" if self.low is None or self.high is None else f" [{self.low:.2f}, {self.high:.2f}]"
        return f"Spearman's rank correlation {self.rho:.2f}{between} over {self.n} methods"


@dataclass(frozen=True, slots=True)
class Agreement:
    """A board and one published table: what both have, the best published first, and what only the table has.

    `correlation` is None below five methods, or if all accuracies of one side are equal.
    """

    board: Board
    pairs: tuple[Pair, ...]
    only_published: tuple[str, ...]
    correlation: RankCorrelation | None

    @property
    def published(self) -> ReferenceRow:
        """A row of the table, for its model, setting and source."""
        return self.pairs[0].published

    def __str__(self) -> str:
        row, board = self.published, self.board
        found = str(self.correlation or f"no rank correlation of fewer than {FEWEST} methods, or of equal numbers")
        missing = f"; not here: {', '.join(self.only_published)}" if self.only_published else ""
        about = "; ".join((row.setting, f"weights: {row.weights}", row.source))
        return f"{board.shift}, {board.model}, {board.protocol} beside {row.model} ({about}): {found}{missing}"


def rank_correlation(a: Sequence[float], b: Sequence[float]) -> RankCorrelation | None:
    """Return Spearman's correlation of two lists of the same methods; None below five, or if one list is constant."""
    from scipy.stats import norm, spearmanr

    n = len(a)
    if n < FEWEST or len(set(a)) == 1 or len(set(b)) == 1:
        return None
    rho = float(spearmanr(a, b).statistic)
    if abs(rho) > 1 - 1e-12:
        return RankCorrelation(round(rho), n, None, None)
    half = norm.ppf((1 + _LEVEL) / 2) * math.sqrt((1 + rho**2 / 2) / (n - 3))
    return RankCorrelation(rho, n, math.tanh(math.atanh(rho) - half), math.tanh(math.atanh(rho) + half))


def agreements(boards: Iterable[Board]) -> list[Agreement]:
    """Return the boards beside each published table of the same shift, protocol and severity, where both share a row.

    Of a board, rows count that represent their method in its plain setting and are complete. A shift of generated
    images ("cifar10-c-gen") is beside the published one ("cifar10-c"). A board of some of the corruptions is beside
    nothing, since a mean over others is another number.
    """
    found = []
    for board in boards:
        ours = {row.method: row for row in board.rows if row.main and row.setting is None and row.accuracy is not None}
        for table in _tables(_published_for(board)):
            both = [(row, ours[name]) for row in table if (name := our_method(row.method)) in ours]
            if both:
                absent = tuple(row.method for row in table if our_method(row.method) not in ours)
                found.append(_agreement(board, both, absent))
    return found


def _published_for(board: Board) -> list[ReferenceRow]:
    """Return the published numbers of a board's shift, protocol and severity, none if it lacks corruptions."""
    name = board.shift
    for end in OTHER_IMAGES:
        name = name.removesuffix(end)
    whole = known().definitions.get(name)
    if whole is None or set(board.corruptions) != set(whole.corruptions):
        return []
    return [row for row in reference_rows(name, protocol=board.protocol) if (row.severity,) == board.severities]


def _tables(rows: Sequence[ReferenceRow]) -> list[list[ReferenceRow]]:
    """Return published numbers by table, each with the best first."""

    def table(row: ReferenceRow) -> tuple[str | float, ...]:
        return (row.shift, row.protocol, row.severity, row.model, row.source, row.setting, row.weights)

    return [list(own) for _, own in groupby(sorted(rows, key=lambda row: (table(row), -row.accuracy)), key=table)]


def _agreement(board: Board, both: Sequence[tuple[ReferenceRow, BoardRow]], absent: tuple[str, ...]) -> Agreement:
    from scipy.stats import rankdata

    theirs = [-row.accuracy for row, _ in both]
    ours = [-(row.accuracy or 0.0) for _, row in both]  # complete rows have one
    places = zip(ours, rankdata(theirs), rankdata(ours), strict=True)
    pairs = [Pair(*rows, -own, float(a), float(b)) for rows, (own, a, b) in zip(both, places, strict=True)]
    pairs.sort(key=lambda pair: (pair.their_place, pair.our_place))
    return Agreement(board, tuple(pairs), absent, rank_correlation(theirs, ours))


def renderings(found: Sequence[Agreement]) -> dict[str, Callable[[], Any]]:
    """Return what makes the agreements in each format.

    Tables are in percent; CSV (a line for each pair) and JSON (with the correlations) hold fractions in full precision.
    """
    content = {"agreements": [_content(each) for each in found]}
    return grid.renderings(_grid(found), [line for each in found for line in _lines(each)], content)


def published_tables(rows: Sequence[ReferenceRow]) -> dict[str, Callable[[], Any]]:
    """Return what makes a list of published numbers in each format: a line for each table, in CSV for each number."""
    tables = _tables(rows)
    lines = [asdict(row) for own in tables for row in own]
    cells = [
        [
            own[0].shift,
            own[0].protocol,
            f"{own[0].severity:g}",
            own[0].model,
            ", ".join(f"{row.method} {100 * row.accuracy:.1f}" for row in own),
            own[0].source,
        ]
        for own in tables
    ]
    made = Grid(
        caption="Published mean accuracies in %, best first; severity 0 is the clean accuracy",
        titles=("shift", "protocol", "severity", "model", "accuracies", "source"),
        rows=cells,
        numbers=(False, False, True, False, False, False),
    )
    return grid.renderings(made, lines, {"published": lines})


def _lines(each: Agreement) -> list[dict[str, object]]:
    return [
        {
            "shift": each.board.shift,
            "model": each.board.model,
            "protocol": each.board.protocol,
            "published_model": pair.published.model,
            "source": pair.published.source,
            "method": pair.ours.method,
            "published_as": pair.published.method,
            "published": pair.published.accuracy,
            "ours": pair.accuracy,
            "low": pair.ours.interval and pair.ours.interval.low,
            "high": pair.ours.interval and pair.ours.interval.high,
            "published_place": pair.their_place,
            "our_place": pair.our_place,
        }
        for pair in each.pairs
    ]


def _content(each: Agreement) -> dict[str, Any]:
    row, board = each.published, each.board
    return {
        "board": {name: getattr(board, name) for name in ("shift", "model", "protocol", "n")},
        "published": {name: getattr(row, name) for name in ("shift", "model", "setting", "weights", "source", "url")},
        "correlation": each.correlation and asdict(each.correlation),
        "pairs": _lines(each),
        "only_published": list(each.only_published),
    }


def _grid(found: Sequence[Agreement]) -> Grid:
    lines = [(each, pair) for each in found for pair in each.pairs]
    starts = [number for number, (each, pair) in enumerate(lines) if number and pair is each.pairs[0]]
    return Grid(
        caption="Accuracy in %, published and ours, and places among the methods that both have",
        titles=("protocol", "published model", "method", "published", "ours", "difference", "place", "our place"),
        rows=[
            [
                each.board.protocol,
                pair.published.model,
                pair.ours.method,
                f"{100 * pair.published.accuracy:.1f}",
                _ours(pair),
                f"{100 * (pair.accuracy - pair.published.accuracy):+.1f}",
                f"{pair.their_place:g}",
                f"{pair.our_place:g}",
            ]
            for each, pair in lines
        ],
        numbers=(False, False, False, True, True, True, True, True),
        groups=frozenset(starts),
        notes=[str(each) for each in found],
    )


def _ours(pair: Pair) -> str:
    interval = pair.ours.interval
    within = "" if interval is None else f" [{100 * interval.low:.1f}, {100 * interval.high:.1f}]"
    return f"{100 * pair.accuracy:.1f}{within}"
