"""Methods against boards in HTML: the front page of a site, its page of means and ranks, and a page for one matrix."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any

from leaderboards import heat, matrix_figures
from leaderboards.boards import MEANING, TRACKS, Board, BoardRow
from leaderboards.figures import to_inline_svg, to_svg
from leaderboards.grid import ABSENT
from leaderboards.matrix import Matrix, MatrixCell, MatrixRow, RankTest, matrix
from leaderboards.matrix_tables import number, sentences, shared_words
from leaderboards.page import Download, RecordUrl, board_id, id_ends, row_id, to_page
from leaderboards.record import Track

Address = Callable[[Board, BoardRow | None], str]
_ON_PAGE = ("critical-difference", "parallel-coordinates")  # the heat map is a table there


def matrix_page(made: Matrix, tests: Sequence[RankTest], *, record_url: RecordUrl | None = None) -> str:
    """Return a page that needs no other: the matrix, and below it every board, to whose rows its numbers lead."""
    ends = {id(board): end for board, end in zip(made.boards, id_ends(made.boards), strict=True)}

    def address(board: Board, row: BoardRow | None) -> str:
        return f"#{row_id(board, row) if row else board_id(board)}{ends.get(id(board), '')}"

    title = "Methods and " + (f"{made.axis}s" if made.axis in ("shift", "model", "protocol") else "boards")
    view = section(made, tests, address, heading="Means and ranks", drawn=drawn(made, tests))
    boards = list(made.boards)
    return to_page(boards, title=title, record_url=record_url, drawn=[{}] * len(boards), matrices=[view])


def drawn(made: Matrix, tests: Sequence[RankTest]) -> dict[str, bytes]:
    """Return the figures of a matrix as SVG, for `section` and for files."""
    return {name: to_svg(figure) for name, figure in matrix_figures.figures(made, tests).items()}


def section(
    made: Matrix,
    tests: Sequence[RankTest],
    address: Address,
    *,
    heading: str,
    drawn: Mapping[str, bytes],
    downloads: Sequence[Download] = (),
) -> dict[str, Any]:
    """Return a matrix for the templates, with its tests, figures and files."""
    lines = [
        (row.track, f"{row.name}, {row.section}" if row.section else row.name, matrix_figures.accuracies(row))
        for row in made.rows
    ]
    return {
        **_table(made, address),
        "id": f"matrix-{made.axis or 'boards'}",
        "heading": heading,
        "shared": ", ".join(shared_words(made)),
        "ranked": "of all tracks, whose methods saw different data" if made.across else "of its track",
        "means": True,
        "notes": sentences(tests),
        "figures": [
            {
                "name": name,
                "title": matrix_figures.TITLES[name],
                "caption": matrix_figures.caption_of(name, made, tests),
                "svg": to_inline_svg(svg, matrix_figures.TITLES[name]),
            }
            for name, svg in drawn.items()
            if name in _ON_PAGE
        ],
        "heat": heat.table(lines, made.titles, "Accuracy in percent, mean over conditions and seeds.")
        if drawn
        else None,
        "downloads": downloads,
    }


def _table(made: Matrix, address: Address) -> dict[str, Any]:
    """Return columns and groups of rows for the template; a cell has the address of its row."""
    there = {id(board) for board in made.boards}
    columns = []
    for place, title in enumerate(made.titles):
        boards = {id(row.cells[place].board): row.cells[place].board for row in made.rows}
        known = [board for board in boards.values() if id(board) in there]
        columns.append({"title": title, "label": title, "address": address(known[0], None) if len(known) == 1 else ""})
    groups = [
        {"track": track, "heading": _heading(where, track), "rows": [_row(row, address, made) for row in own]}
        for (where, track), own in groupby(made.rows, key=lambda row: _group(row, made))
    ]
    return {"columns": columns, "over": (), "groups": groups}


def _group(row: MatrixRow, made: Matrix) -> tuple[str, Track | None]:
    return row.section, None if made.across else row.track


def _heading(where: str, track: Track | None) -> str:
    meaning = (
        f"Track {track}: {next(said for name, said in MEANING.items() if name == track)}" if track else "All tracks"
    )
    return f"{where} · {meaning}" if where else meaning


def _row(row: MatrixRow, address: Address, made: Matrix) -> dict[str, Any]:
    def shown(cell: MatrixCell) -> dict[str, Any]:
        return {
            "row": cell.row,
            "address": address(cell.board, cell.row) if cell.row else "",
            "best": cell.best,
            "among_best": cell.among_best,
        }

    return {
        "name": f"{row.name} ({row.track})" if made.across else row.name,
        "cells": [shown(cell) for cell in row.cells],
        "mean": number(row.mean, 100, 1),
        "rank": number(row.rank, 1, 2),
        "mean_value": "" if row.mean is None else repr(row.mean),
        "rank_value": "" if row.rank is None else repr(row.rank),
    }


def front(pages: Sequence[tuple[str, Board]]) -> dict[str, Any]:
    """Return the table of a front page for the template, given the address of each board's page.

    It holds all methods against all boards, by shift; nothing is averaged.
    """
    ordered = sorted(pages, key=lambda page: page[1].shift)
    addresses = {id(board): page for page, board in ordered}
    made = matrix([board for _, board in ordered])
    rows = sorted(made.rows, key=lambda row: (TRACKS.index(row.track), [_missing_last(cell) for cell in row.cells]))

    def address(board: Board, row: BoardRow | None) -> str:
        return addresses[id(board)] + (f"#{row_id(board, row)}" if row else "")

    found = _table(replace(made, rows=tuple(rows)), address)
    for column, board in zip(found["columns"], made.boards, strict=True):
        column["title"] = _words(board)
        column["label"] = f"{board.shift}, {_words(board)}"
    shifts = [(shift, len(list(own))) for shift, own in groupby(board.shift for board in made.boards)]
    return {**found, "id": "matrix", "over": shifts, "means": False}


def _missing_last(cell: MatrixCell) -> tuple[bool, float]:
    accuracy = None if cell.row is None else cell.row.accuracy
    return accuracy is None, -(accuracy or 0.0)


def _words(board: Board) -> str:
    """Return model, protocol and severities: how a board differs from others of its shift."""
    severities = ", ".join(f"{severity:g}" for severity in board.severities)
    return f"{board.model} · {board.protocol} · severity {severities or ABSENT}"
