"""A matrix of methods against boards as a terminal table, Markdown, LaTeX, CSV or JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from leaderboards import grid
from leaderboards.boards import Board
from leaderboards.friedman import Friedman
from leaderboards.grid import ABSENT, Grid
from leaderboards.matrix import NATURAL, Matrix, MatrixCell, MatrixRow, RankTest, words

if TYPE_CHECKING:
    from rich.console import RenderableType

_MOST_COLUMNS = 5  # of a LaTeX table on a page, with their intervals; more become further tables
_FIELDS = (
    *("method", "track", "section", "column", "shift", "model", "protocol", "split", "labels_per_class", "limit"),
    *("severities", "state", "accuracy", "low", "high", "rank", "among_best", "clean_accuracy", "ece", "seeds", "n"),
    *("mean", "mean_rank"),
)


def to_terminal(made: Matrix, tests: Sequence[RankTest] = ()) -> RenderableType:
    """Return a renderable for rich; the results of `tests` stand below it."""
    return grid.to_terminal(to_grid(made, tests))


def to_markdown(made: Matrix, tests: Sequence[RankTest] = ()) -> str:
    """Return a pipe table; the results of `tests` stand below it."""
    return grid.to_markdown(to_grid(made, tests))


def to_latex(made: Matrix, tests: Sequence[RankTest] = ()) -> str:
    """Return tables for booktabs and graphicx that fit the width of a page, as many as their columns need.

    Bold is what is significantly better than all others of its track, a dagger the best and what does not differ from
    it significantly, as on boards.
    """
    blocks = range(0, max(1, len(made.titles)), _MOST_COLUMNS)
    return "\n".join(_latex_table(made, tests, first, len(blocks)) for first in blocks)


def to_csv(made: Matrix) -> str:
    """Return one line for each method and board in full precision, accuracies as fractions; empty if missing."""
    lines = [
        {"method": row.name, "track": row.track, "section": row.section, "column": title}
        | _flat(cell)
        | {"severities": "+".join(f"{each:g}" for each in cell.board.severities)}
        | {"mean": row.mean, "mean_rank": row.rank}
        for row in made.rows
        for title, cell in zip(made.titles, row.cells, strict=True)
    ]
    return grid.to_csv(lines, _FIELDS)


def to_json(made: Matrix, tests: Sequence[RankTest] = ()) -> str:
    """Return columns, rows with their cells, and tests, in full precision; a missing number is null."""
    rows = [
        {
            "method": row.name,
            "track": row.track,
            "section": row.section,
            "mean": row.mean,
            "mean_rank": row.rank,
            "cells": [{"column": t, **_flat(cell)} for t, cell in zip(made.titles, row.cells, strict=True)],
        }
        for row in made.rows
    ]
    content = {
        "columns": list(made.titles),
        "axis": made.axis,
        "ranked_within": "section" if made.across else "section and track",
        "rows": rows,
        "tests": [_test(test) for test in tests],
    }
    return json.dumps(content, indent=2, allow_nan=False)


def to_grid(made: Matrix, tests: Sequence[RankTest] = ()) -> Grid:
    """Return the matrix as texts: accuracies in percent with their intervals, then mean and mean rank."""
    sections = any(row.section for row in made.rows)
    rows = [
        [
            *[row.name, row.track, *([row.section] if sections else [])],
            *(f"{'†' if cell.among_best else ''}{_cell(cell)}" for cell in row.cells),
            *[number(row.mean, 100, 1), number(row.rank, 1, 2)],
        ]
        for row in made.rows
    ]
    names = ["method", "track", *(["where"] if sections else [])]
    first = len(names)
    return Grid(
        " · ".join(shared_words(made)),
        [*names, *made.titles, "mean", "mean rank"],
        rows,
        [*(False for _ in names), *(True for _ in made.titles), True, True],
        best=frozenset(
            (i, first + j) for i, row in enumerate(made.rows) for j, cell in enumerate(row.cells) if cell.best
        ),
        groups=frozenset(i for i in range(1, len(rows)) if _place(made.rows[i]) != _place(made.rows[i - 1])),
        notes=[*notes_of(made), *sentences(tests)],
    )


def shared_words(made: Matrix) -> list[str]:
    """Return what all boards have in common, in words."""
    places = [words(board) for board in made.boards]
    found = {name: {place[name] for place in places} - {NATURAL} for name in (places[0] if places else ())}
    return [next(iter(values)) for name, values in found.items() if len(values) == 1 and name != "corruptions"]


def notes_of(made: Matrix) -> list[str]:
    """Return sentences that say what the numbers of a matrix are."""
    whose = "all tracks, whose methods saw different data" if made.across else "its track"
    level = f"{100 * made.boards[0].level:g} % " if made.boards else ""
    marks = any(cell.among_best for row in made.rows for cell in row.cells)
    return [
        f"Accuracy in percent, mean over the corrupted conditions of a column, and its {level}interval.",
        *(["†: the best of its track in that column, or not significantly different from it (paired, Holm)."] * marks),
        f"{ABSENT}: not run. Mean and mean rank (1 is the best of {whose}) stand only where a method is complete in "
        "all columns.",
        *(
            ["Columns hold some results twice, so means and ranks count these twice; choose columns with --where."]
            * _twice(made)
        ),
    ]


def _twice(made: Matrix) -> bool:
    """Return whether a result stands in several columns, as one at severity 3 does on boards of 3 and of 1 to 5."""
    keys = [[key for cell in row.cells if cell.row is not None for key in cell.row.keys] for row in made.rows]
    return any(len(set(own)) < len(own) for own in keys)


def sentences(tests: Sequence[RankTest], *, refused: bool = True) -> list[str]:
    """Return the outcome of each test in sentences, with what the tests assume; if none was done, the first reason."""
    done = [said for test in tests if (said := outcome(test))]
    if done:
        return [*done, assumption(tests[0])]
    reasons = [f"No critical differences ({test.name}): {test.found}." for test in tests[:1]]
    return reasons if refused else []


def outcome(test: RankTest) -> str:
    """Return the outcome of a test in sentences, empty if there is none."""
    found = test.found
    if isinstance(found, str):
        return ""
    said = (
        f"Friedman's test of {test.name}, {len(found.names)} methods over {test.count} {test.blocks}: "
        f"chi-squared({len(found.names) - 1}) = {found.statistic:.2f}, p = {found.p:.2g}."
    )
    if not found.significant:
        return f"{said} No difference is shown, so pairs are not tested."
    if found.critical is not None:
        return (
            f"{said} Mean ranks differ significantly from {found.critical:.2f} on (Nemenyi, {100 * found.alpha:.2g} %)."
        )
    return f"{said} Not significantly different (Holm, {100 * found.alpha:.2g} %): {alike(found) or 'no two methods'}."


def alike(found: Friedman) -> str:
    """Return the groups of methods without a significant difference, in words."""
    return "; ".join(", ".join(found.names[first : last + 1]) for first, last in found.groups)


def assumption(test: RankTest) -> str:
    """Return what a test takes for granted, as a sentence."""
    return (
        f"The test takes {test.blocks} as independent and of equal weight. Where they show the same images, as "
        "conditions of one shift do, p-values are too small."
    )


def number(value: float | None, factor: int, digits: int) -> str:
    """Return a multiple of a number, a dash if there is none."""
    return ABSENT if value is None else f"{factor * value:.{digits}f}"


def _place(row: MatrixRow) -> tuple[str, str]:
    return row.section, row.track


def _cell(cell: MatrixCell) -> str:
    row = cell.row
    if row is None:
        return ABSENT
    if row.accuracy is None:
        return "incomplete"
    if row.interval is None:
        return f"{100 * row.accuracy:.1f}"
    return f"{100 * row.accuracy:.1f} [{100 * row.interval.low:.1f}, {100 * row.interval.high:.1f}]"


def _latex_table(made: Matrix, tests: Sequence[RankTest], first: int, of: int) -> str:
    """Return the table of the columns from `first` on; the last one has the means, and only it the notes."""
    shown = range(first, min(first + _MOST_COLUMNS, len(made.titles)))
    last = shown.stop == len(made.titles)
    rows = [
        [
            row.name,
            *(_cell(row.cells[j]) for j in shown),
            *([number(row.mean, 100, 1), number(row.rank, 1, 2)] if last else []),
        ]
        for row in made.rows
    ]
    cells = {(i, 1 + j - first): row.cells[j] for i, row in enumerate(made.rows) for j in shown}
    headings = {i: _heading(row) for i, row in enumerate(made.rows) if not i or _place(row) != _place(made.rows[i - 1])}
    return grid.to_latex(
        Grid(
            _latex_caption(made, first // _MOST_COLUMNS + 1, of),
            ["method", *(made.titles[j] for j in shown), *(["mean", "mean rank"] if last else [])],
            rows,
            [False, *(True for _ in rows[0][1:])] if rows else [False],
            best=frozenset(place for place, cell in cells.items() if cell.winner),
            marked=frozenset(place for place, cell in cells.items() if cell.tied and cell.among_best),
            groups=frozenset(headings.keys() - {0}),
            headings=headings,
            notes=sentences(tests, refused=False) if last else [],
        ),
        width="page",
        label=f"matrix {first // _MOST_COLUMNS + 1}" if of > 1 else "matrix",
    )


def _heading(row: MatrixRow) -> str:
    return f"{row.section}, track {row.track}" if row.section else f"Track {row.track}"


def _latex_caption(made: Matrix, part: int, of: int) -> str:
    shared = ", ".join(shared_words(made))
    alpha = f"{1 - made.boards[0].level:.2g}" if made.boards else ""
    whose = "over all tracks" if made.across else "within a track"
    said = [
        f"Mean accuracy in percent{f' ({part} of {of})' if of > 1 else ''}{f': {shared}' if shared else ''}.",
        "Bold: significantly better than all other methods of its track; †: the best of its track, or not "
        f"significantly different from it (paired, Holm's correction, level {alpha}).",
        f"{ABSENT}: not run. Mean and mean rank (1 is the best, {whose}) only where a method is complete in all "
        "columns.",
    ]
    return " ".join(said if part == 1 else [*said[:1], "See the first part for the marks."])


def _flat(cell: MatrixCell) -> dict[str, Any]:
    board, row = cell.board, cell.row
    return {**_where(board), "state": cell.state, **(dict.fromkeys(_NUMBERS) if row is None else {
        "accuracy": row.accuracy,
        "low": row.interval.low if row.interval else None,
        "high": row.interval.high if row.interval else None,
        "rank": row.rank,
        "among_best": cell.among_best,
        "clean_accuracy": row.clean_accuracy,
        "ece": row.ece,
        "seeds": len(row.seeds),
        "n": row.n,
    })}  # fmt: skip


_NUMBERS = ("accuracy", "low", "high", "rank", "among_best", "clean_accuracy", "ece", "seeds", "n")


def _where(board: Board) -> dict[str, Any]:
    names = ("shift", "model", "protocol", "split", "labels_per_class", "limit", "severities")
    return {name: getattr(board, name) for name in names}


def _test(test: RankTest) -> Mapping[str, Any]:
    found = test.found
    told: dict[str, Any] = {"rows": test.name, "blocks": test.blocks, "n_blocks": test.count}
    if isinstance(found, str):
        return {**told, "refused": found}
    return {
        **told,
        "methods": list(found.names),
        "mean_ranks": list(found.ranks),
        "statistic": found.statistic,
        "p": found.p,
        "posthoc": found.posthoc,
        "alpha": found.alpha,
        "critical_difference": found.critical,
        "pairs": list(_pairs(found)),
        "not_significantly_different": [list(found.names[a : b + 1]) for a, b in found.groups],
        "assumption": assumption(test),
    }


def _pairs(found: Friedman) -> Iterator[dict[str, Any]]:
    for (a, b), p in found.pairs.items():
        yield {"a": found.names[a], "b": found.names[b], "p": p}
