"""Two rows compared on the same images: the difference, its interval and p-value, overall and per corruption."""

from __future__ import annotations

import dataclasses
import difflib
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from leaderboards import grid
from leaderboards.boards import Board, BoardError, BoardRow, make_board
from leaderboards.comparable import line_name, line_of
from leaderboards.grid import ABSENT, Grid
from leaderboards.ranking import ReadPredictions, scores_of_row
from leaderboards.record import Record
from leaderboards.tables import access_words, caption
from leaderboards.uncertainty import Difference, ImageScores, holm, over_stocks, paired_difference

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes


@dataclass(frozen=True, slots=True)
class ComparisonLine:
    """One line of a comparison: accuracies of `a` and `b` in [0, 1] and their paired difference, a - b.

    `corruption` is None for the clean condition and for the mean over all corruptions. `p_adjusted` is Holm's over the
    corruptions of the comparison, None for other lines.
    """

    corruption: str | None
    a: float
    b: float
    difference: Difference
    p_adjusted: float | None


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two rows `a` and `b` of a board that were scored on the same images and seeds, or of one board for each stock.

    With several `stocks`, `board` and both rows are those of the first, with the keys of all.

    `overall` is over all corrupted conditions, `per_corruption` over the severities of each, `clean` is None unless
    both have it.
    """

    board: Board
    a: BoardRow
    b: BoardRow
    overall: ComparisonLine
    clean: ComparisonLine | None
    per_corruption: tuple[ComparisonLine, ...]
    stocks: tuple[str, ...] = ()

    @property
    def caption(self) -> str:
        """What was compared, and which row a positive sign favours."""
        return f"{self.a.name} minus {self.b.name} on the same images · {caption(self.board)}"

    @property
    def notes(self) -> list[str]:
        """Notes on results from different versions of code, or on rows with different access to data."""
        notes = list(self.board.versions)
        if self.stocks:
            notes.append(
                f"means over {len(self.stocks)} stocks ({', '.join(self.stocks)}), each one observation: intervals "
                f"speak of stocks like these and have {len(self.stocks) - 1} degrees of freedom over them"
            )
        if self.a.access != self.b.access:
            words = [f"{row.name}: track {row.track}, {access_words(row.access)}" for row in (self.a, self.b)]
            notes.append(f"the two saw different information: {'; '.join(words)}")
        return notes

    def to_pandas(self) -> pd.DataFrame:
        """Return the numbers of `to_csv`, fractions in full precision: one row for each condition, the mean first."""
        import pandas as pd

        contrasts = _contrasts(self)
        index = pd.Index([name for name, _ in contrasts], name="condition")
        return pd.DataFrame([_flat(contrast) for _, contrast in contrasts], index=index, dtype=float)

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw every difference with its interval, in points, the mean on top; on new axes unless `ax` is given."""
        import matplotlib.pyplot as plt
        import seaborn

        contrasts = _contrasts(self)
        axes = ax if ax is not None else plt.subplots(figsize=(6, 1.2 + 0.3 * len(contrasts)), layout="constrained")[1]
        places = range(len(contrasts))
        differences = [contrast.difference for _, contrast in contrasts]
        colour = seaborn.color_palette("colorblind")[0]
        axes.hlines(places, [100 * d.low for d in differences], [100 * d.high for d in differences], color=colour)
        axes.plot([100 * d.estimate for d in differences], places, "o", color=colour)
        axes.axvline(0, color="0.5", linewidth=0.8, linestyle="--")
        axes.set_yticks(places, [name for name, _ in contrasts], parse_math=False)
        axes.set_ylim(len(contrasts) - 0.5, -0.5)
        title = f"{self.a.name} minus {self.b.name}"
        axes.set_title(title, parse_math=False)
        axes.set_xlabel(f"difference in accuracy in points, {self.board.level:.0%} interval")
        return axes

    def _repr_html_(self) -> str:
        return grid.to_html(_grid(self))


def compare_rows(
    records: Sequence[Record],
    a: str,
    b: str,
    predictions: ReadPredictions,
    *,
    level: float = 0.95,
    across_stocks: bool = False,
) -> Comparison:
    """Compare two rows by name: "tent", "selfsoup", "selfsoup (ingredient:mae)", "selfsoup (mean)".

    The name of a method that has parts means its soup. Differences are those of
    `leaderboards.uncertainty.paired_difference`; `across_stocks`: of the means over all stocks on which both rows are,
    by `leaderboards.uncertainty.over_stocks`. Raises BoardError if a name is unknown, the two must not be compared,
    either is incomplete, or there are not two stocks with equal conditions and images.
    """
    sides = [choose_rows(own, a, b, level) for own in (by_stock(records, a, b) if across_stocks else [records])]
    board, rows = (_joined if across_stocks else _alone)([(board, rows) for _, board, rows in sides])

    def scores(conditions: Collection[str | None]) -> tuple[ImageScores, ImageScores]:
        each: list[list[ImageScores]] = [[], []]
        for chosen, _, own_rows in sides:
            for found, row in zip(each, own_rows, strict=True):
                keys = {key for cell in row.cells if cell.corruption in conditions for key in cell.keys}
                found.append(scores_of_row(keys, chosen, predictions, clean=None in conditions))
        if any(not np.array_equal(one.ids, each[0][0].ids) for own in each for one in own):
            raise BoardError(f"{a} and {b} were scored on different images; compare rows of one results folder")
        one, two = (over_stocks(own) if across_stocks else own[0] for own in each)
        return one, two

    def contrast(corruption: str | None, conditions: Collection[str | None]) -> ComparisonLine:
        one, two = scores(conditions)
        return ComparisonLine(corruption, one.accuracy, two.accuracy, paired_difference(one, two, level=level), None)

    singles = [contrast(name, [name]) for name in board.corruptions]
    adjusted = holm([single.difference.p for single in singles])
    both_clean = all(row.clean_accuracy is not None for _, _, own in sides for row in own)
    return Comparison(
        board=board,
        a=rows[0],
        b=rows[1],
        overall=contrast(None, board.corruptions),
        clean=contrast(None, [None]) if both_clean else None,
        per_corruption=tuple(
            dataclasses.replace(single, p_adjusted=p) for single, p in zip(singles, adjusted, strict=True)
        ),
        stocks=tuple(own.model for _, own, _ in sides) if across_stocks else (),
    )


Rows = tuple[BoardRow, BoardRow]


def _alone(sides: Sequence[tuple[Board, Rows]]) -> tuple[Board, Rows]:
    (side,) = sides
    return side


def _joined(sides: Sequence[tuple[Board, Rows]]) -> tuple[Board, Rows]:
    """Return the first board and rows with the keys and versions of all. Raises BoardError if they cannot be joined."""
    if len(sides) < 2:
        raise BoardError("a mean over stocks needs both rows on two of them at least; add folders to --from")
    board, rows = sides[0]
    for field in ("shift", "protocol", "split", "limit", "labels_per_class", "corruptions", "severities", "n"):
        if any(getattr(own, field) != getattr(board, field) for own, _ in sides):
            raise BoardError(f"the boards of the stocks differ in {field}; keep what all of them have with --where")
    keys = [tuple(key for _, own in sides for key in own[place].keys) for place in (0, 1)]
    a, b = (dataclasses.replace(row, keys=own) for row, own in zip(rows, keys, strict=True))
    versions = tuple(dict.fromkeys(line for own, _ in sides for line in own.versions))
    model = f"{len(sides)} stocks"
    seeds = tuple(sorted({seed for own, _ in sides for seed in own.seeds}))
    return dataclasses.replace(board, model=model, versions=versions, seeds=seeds), (a, b)


def by_stock(records: Sequence[Record], a: str, b: str) -> list[list[Record]]:
    """Return the records of each stock, by name and weights, on which both rows are; all as one where there is none."""
    stocks: dict[tuple[str, str], list[Record]] = defaultdict(list)
    for record in records:
        stocks[record.model, record.weights.digest].append(record)
    found = [
        own for _, own in sorted(stocks.items()) if all(any(_named(record, name) for record in own) for name in (a, b))
    ]
    return found or [list(records)]


def choose_rows(
    records: Sequence[Record], a: str, b: str, level: float
) -> tuple[list[Record], Board, tuple[BoardRow, BoardRow]]:
    """Return the records of two rows by name, the board of these, without intervals, and both rows.

    Raises BoardError if a name is unknown, the two must not be compared, or either is incomplete.
    """
    for name in (a, b):
        if not any(_named(record, name) for record in records):
            names = sorted({line_name(line_of(record)) for record in records})
            close = difflib.get_close_matches(name, names, n=1)
            hint = f"did you mean '{close[0]}'?" if close else f"compare two of {', '.join(names) or 'none'}"
            raise BoardError(f"{name} is not among the records; {hint}")
    chosen = [record for record in records if _named(record, a) or _named(record, b)]
    board = make_board(chosen, level=level)
    return chosen, board, (_row(board, a), _row(board, b))


def _named(record: Record, name: str) -> bool:
    return name in (record.method, line_name(line_of(record))) or name == f"{record.method} (mean)"


def _row(board: Board, name: str) -> BoardRow:
    rows = board.rows
    # A row alone of its method is also found without its setting: a filter may have left out what it has met.
    found = (
        [row for row in rows if row.name == name]
        or [row for row in rows if row.method == name and row.main]
        or [row for row in rows if line_name((row.method, row.part)) == name]
    )
    if len(found) != 1:
        problem = "several rows" if found else "no row of its own"
        raise BoardError(f"{name} has {problem}; compare two of {', '.join(row.name for row in found or rows)}")
    (row,) = found
    if row.incomplete:
        raise BoardError(f"{name} cannot be compared: {row.incomplete}; run what is missing or filter with --where")
    return row


def renderings(comparison: Comparison) -> dict[str, Callable[[], Any]]:
    """Return what makes the comparison in each format.

    Tables have accuracies in percent and differences in points; CSV (a line for the mean, for clean and for each
    corruption) and JSON (with what both rows share and the keys behind them) are in full precision, as fractions.
    """
    board = comparison.board
    names = ("shift", "model", "protocol", "split", "limit", "labels_per_class", "severities", "seeds", "n", "level")
    content = {
        **{name: getattr(board, name) for name in names},
        "a": {"name": comparison.a.name, "track": comparison.a.track, "keys": comparison.a.keys},
        "b": {"name": comparison.b.name, "track": comparison.b.track, "keys": comparison.b.keys},
        "overall": _flat(comparison.overall),
        "clean": comparison.clean and _flat(comparison.clean),
        "per_corruption": {str(c.corruption): _flat(c) for c in comparison.per_corruption},
        **({"stocks": list(comparison.stocks)} if comparison.stocks else {}),
        "notes": comparison.notes,
    }
    lines = [{"condition": name, **_flat(contrast)} for name, contrast in _contrasts(comparison)]
    return grid.renderings(_grid(comparison), lines, content)


def _contrasts(comparison: Comparison) -> list[tuple[str, ComparisonLine]]:
    clean = [("clean", comparison.clean)] if comparison.clean else []
    return [("mean", comparison.overall), *clean, *((str(c.corruption), c) for c in comparison.per_corruption)]


def _flat(contrast: ComparisonLine) -> dict[str, float | None]:
    difference = contrast.difference
    return {
        "a": contrast.a,
        "b": contrast.b,
        "difference": difference.estimate,
        "low": difference.low,
        "high": difference.high,
        "p": difference.p,
        "p_adjusted": contrast.p_adjusted,
    }


def _grid(comparison: Comparison) -> Grid:
    contrasts = _contrasts(comparison)
    level = comparison.board.level
    return Grid(
        caption=comparison.caption,
        titles=["condition", comparison.a.name, comparison.b.name, "difference", "p", "p (Holm)"],
        rows=[
            [
                name,
                f"{100 * contrast.a:.1f}",
                f"{100 * contrast.b:.1f}",
                "{:+.1f} [{:+.1f}, {:+.1f}]".format(
                    *(100 * getattr(contrast.difference, limit) + 0.0 for limit in ("estimate", "low", "high"))
                ),
                _probability(contrast.difference.p),
                _probability(contrast.p_adjusted),
            ]
            for name, contrast in contrasts
        ],
        numbers=[False, True, True, True, True, True],
        best=frozenset(
            (i, 3)
            for i, (_, c) in enumerate(contrasts)
            if (c.difference.p if c.p_adjusted is None else c.p_adjusted) <= 1 - level
        ),
        groups=frozenset([len(contrasts) - len(comparison.per_corruption)])
        if comparison.per_corruption
        else frozenset(),
        notes=comparison.notes,
    )


def _probability(p: float | None) -> str:
    if p is None:
        return ABSENT
    return "< 0.001" if p < 0.001 else f"{p:.3f}"
