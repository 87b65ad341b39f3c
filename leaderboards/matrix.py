"""Methods against boards: shifts, protocols or models in columns, with means only over boards that a row has whole."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from leaderboards import grid
from leaderboards.boards import TRACKS, Board, BoardRow
from leaderboards.escaping import csv_row
from leaderboards.grid import ABSENT, Grid
from leaderboards.record import Track

_FIELDS = (
    *("method", "track", "column", "shift", "model", "protocol"),
    *("accuracy", "low", "high", "seeds", "n", "state"),
)

if TYPE_CHECKING:
    from rich.console import RenderableType


@dataclass(frozen=True, slots=True)
class MatrixCell:
    """A method on a board: its row, None if it was not run there, and whether it is the best of its track there."""

    row: BoardRow | None
    best: bool = False


@dataclass(frozen=True, slots=True)
class MatrixRow:
    """A method of one track on all boards.

    `mean` is its mean accuracy over the boards, in [0, 1], and `rank` its mean rank among the rows of its track (1 is
    the best, ties share their ranks). Both are None unless the row is complete on every board; the ranks are among the
    rows that are.
    """

    track: Track
    name: str
    cells: tuple[MatrixCell, ...]
    mean: float | None
    rank: float | None


@dataclass(frozen=True, slots=True)
class Matrix:
    """Methods against boards: `rows` by track, then by mean rank, then by accuracy on the boards in order."""

    titles: tuple[str, ...]
    boards: tuple[Board, ...]
    rows: tuple[MatrixRow, ...]


def matrix(boards: Sequence[Board], titles: Sequence[str] | None = None) -> Matrix:
    """Return all methods against boards; parts of methods are left out.

    Columns are named by `titles`, else by what tells the boards apart. A method that is in different tracks on
    different boards has a row in each.
    """
    found: dict[tuple[Track, str], dict[int, MatrixCell]] = {}
    for number, board in enumerate(boards):
        best: dict[Track, float] = {}
        for row in board.rows:
            if row.main and row.accuracy is not None:
                best[row.track] = max(row.accuracy, best.get(row.track, 0.0))
        for row in board.rows:
            if row.main:
                top = row.accuracy is not None and row.accuracy == best[row.track]
                found.setdefault((row.track, short_name(row)), {})[number] = MatrixCell(row, top)
    cells = {
        key: tuple(own.get(number, MatrixCell(None)) for number in range(len(boards))) for key, own in found.items()
    }
    ranks = _mean_ranks(cells)
    rows = [MatrixRow(*key, own, _mean(own), ranks.get(key)) for key, own in cells.items()]
    return Matrix(tuple(titles or column_titles(boards)), tuple(boards), tuple(sorted(rows, key=_order)))


def short_name(row: BoardRow) -> str:
    """Return the name of a row; that of a soup is its method's."""
    return row.name.removesuffix(" (soup)")


def column_titles(boards: Sequence[Board]) -> list[str]:
    """Return for each board what tells it from the others; its shift for one alone."""
    columns = [[words(board)[number] for board in boards] for number in range(len(words(boards[0])))] if boards else []
    telling = [column for column in columns if len(set(column)) > 1] or columns[:1]
    return [", ".join(column[number] for column in telling) for number in range(len(boards))]


def words(board: Board) -> tuple[str, ...]:
    """Return shift, model, protocol, split, labels, limit and severities of a board in words."""
    return (
        board.shift,
        board.model,
        board.protocol,
        board.split,
        "all labels" if board.labels_per_class is None else f"{board.labels_per_class} labels per class",
        "all images" if board.limit is None else f"{board.limit} images",
        "severity " + "+".join(f"{severity:g}" for severity in board.severities),
        f"{len(board.corruptions)} corruptions",
    )


def _accuracies(cells: Sequence[MatrixCell]) -> list[float] | None:
    """Return the accuracy on every board; None if one is missing or incomplete."""
    found = [cell.row.accuracy for cell in cells if cell.row is not None and cell.row.accuracy is not None]
    return found if len(found) == len(cells) else None


def _mean(cells: Sequence[MatrixCell]) -> float | None:
    found = _accuracies(cells)
    return sum(found) / len(found) if found else None


def _mean_ranks(cells: dict[tuple[Track, str], tuple[MatrixCell, ...]]) -> dict[tuple[Track, str], float]:
    """Return the mean rank of every complete row among the complete rows of its track."""
    from scipy.stats import rankdata

    ranks: dict[tuple[Track, str], float] = {}
    for track in TRACKS:
        whole = {key: found for key, own in cells.items() if key[0] == track and (found := _accuracies(own))}
        if whole:
            each = rankdata([[-accuracy for accuracy in found] for found in whole.values()], axis=0).mean(axis=1)
            ranks |= dict(zip(whole, map(float, each), strict=True))
    return ranks


def _order(row: MatrixRow) -> tuple[int, bool, float, list[tuple[bool, float]], str]:
    accuracies = [None if cell.row is None else cell.row.accuracy for cell in row.cells]
    known = [(value is None, -(value or 0)) for value in accuracies]
    return TRACKS.index(row.track), row.rank is None, row.rank or 0.0, known, row.name


def to_grid(made: Matrix) -> Grid:
    """Return the matrix as texts: accuracies in percent with their intervals, then mean and mean rank."""
    rows = [
        [row.name, row.track, *map(_cell, row.cells), _number(row.mean, 100), _number(row.rank, 1)] for row in made.rows
    ]
    best = {(i, 2 + j) for i, row in enumerate(made.rows) for j, cell in enumerate(row.cells) if cell.best}
    groups = {i for i in range(1, len(made.rows)) if made.rows[i].track != made.rows[i - 1].track}
    shared = [column[0] for column in zip(*map(words, made.boards), strict=True) if len(set(column)) == 1]
    notes = [
        "Accuracy in percent, mean over the corrupted conditions of a column, and its interval; bold: best of a track.",
        f"{ABSENT}: not run. Mean and mean rank (1 is the best of its track) stand only where a method is complete in "
        "all columns.",
    ]
    return Grid(
        " · ".join(shared),
        ["method", "track", *made.titles, "mean", "mean rank"],
        rows,
        [False, False, *(True for _ in made.titles), True, True],
        best=frozenset(best),
        groups=frozenset(groups),
        notes=notes,
    )


def _cell(cell: MatrixCell) -> str:
    row = cell.row
    if row is None:
        return ABSENT
    if row.accuracy is None:
        return "incomplete"
    if row.interval is None:
        return f"{100 * row.accuracy:.1f}"
    return f"{100 * row.accuracy:.1f} [{100 * row.interval.low:.1f}, {100 * row.interval.high:.1f}]"


def _number(value: float | None, factor: int) -> str:
    return ABSENT if value is None else f"{factor * value:.1f}"


def to_terminal(made: Matrix) -> RenderableType:
    """Return a renderable for rich."""
    return grid.to_terminal(to_grid(made))


def to_markdown(made: Matrix) -> str:
    """Return a pipe table."""
    return grid.to_markdown(to_grid(made))


def to_latex(made: Matrix) -> str:
    """Return a table for booktabs that fits the width of a page."""
    return grid.to_latex(to_grid(made), width="page", label="matrix")


def to_csv(made: Matrix) -> str:
    """Return one line for each method and board in full precision, accuracies as fractions; empty if missing."""
    out = io.StringIO()
    rows = [csv_row(row) for row in _flat(made)]
    writer = csv.DictWriter(out, fieldnames=_FIELDS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def to_json(made: Matrix) -> str:
    """Return titles, and rows with their cells in full precision; a missing number is null."""
    lines = list(_flat(made))
    count = len(made.titles)
    rows = [
        {"method": row.name, "track": row.track, "mean": row.mean, "mean_rank": row.rank,
         "cells": [{key: value for key, value in line.items() if key not in ("method", "track")}
                   for line in lines[number * count : (number + 1) * count]]}
        for number, row in enumerate(made.rows)
    ]  # fmt: skip
    return json.dumps({"columns": list(made.titles), "rows": rows}, indent=2, allow_nan=False)


def _flat(made: Matrix) -> list[dict[str, Any]]:
    found = []
    for row in made.rows:
        for title, board, cell in zip(made.titles, made.boards, row.cells, strict=True):
            own = cell.row
            interval = own.interval if own is not None else None
            found.append(
                {
                    "method": row.name,
                    "track": row.track,
                    "column": title,
                    "shift": board.shift,
                    "model": board.model,
                    "protocol": board.protocol,
                    "accuracy": own.accuracy if own is not None else None,
                    "low": interval.low if interval is not None else None,
                    "high": interval.high if interval is not None else None,
                    "seeds": len(own.seeds) if own is not None else None,
                    "n": own.n if own is not None else None,
                    "state": "not run" if own is None else "incomplete" if own.accuracy is None else "complete",
                }
            )
    return found
