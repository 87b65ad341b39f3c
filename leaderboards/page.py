"""Boards as one self-contained HTML page.

The tables are plain HTML and can be read without the script, which sorts, filters and opens the single conditions.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from leaderboards import figures, heat
from leaderboards.boards import MEANING, TRACKS, Board, BoardRow
from leaderboards.grid import ABSENT
from leaderboards.html import fragment, legend, render, size_in_words
from leaderboards.matrix import short_name
from leaderboards.provenance import MEANING as CONFIRMATIONS
from leaderboards.provenance import meaning_of, weakest
from leaderboards.reference import reference_rows
from leaderboards.tables import (
    Column,
    best_cells,
    caption,
    columns_of,
    interval_words,
    notes_of,
    percent,
    telling,
    to_latex,
)

RecordUrl = Callable[[str], str | None]
_FIRST = ("method", "accuracy", "rank")  # stay in sight on a phone, but for the rank
_LAST = ("access",)
_DATA_HELP = "Who has confirmed the data of the row. " + "; ".join(": ".join(item) for item in CONFIRMATIONS.items())


@dataclass(frozen=True, slots=True)
class Download:
    """A file beside a page: its address relative to the page, its kind in words ("CSV") and its size in bytes."""

    address: str
    kind: str
    size: int

    @property
    def name(self) -> str:
        """The file's name."""
        return self.address.rpartition("/")[2]

    @property
    def words(self) -> str:
        """The size in words."""
        return size_in_words(self.size)


def to_page(
    boards: Sequence[Board],
    *,
    title: str = "soupbench",
    record_url: RecordUrl | None = None,
    with_figures: bool = True,
    drawn: Sequence[Mapping[str, bytes]] | None = None,
    links: Sequence[tuple[str, str]] = (),
    downloads: Sequence[Sequence[Download]] = (),
    confirmed: Mapping[str, str] | None = None,
    matrices: Sequence[Mapping[str, Any]] = (),
) -> str:
    """Return a page with a section for each board, in the given order; boards are never merged.

    `record_url` gives the address of the record with a key, relative to the page, or None if it is not published; by
    default `records/<key>.json`. Numbers of single conditions link there. `links` are addresses and texts for the head
    of the page, `downloads` the files beside each board, `drawn` its figures if `leaderboards.figures.drawn` made them
    already. `confirmed` says of records, by key, who has confirmed them (`leaderboards.provenance`); a row has the word
    of its weakest record. `matrices` stand above the boards (`leaderboards.matrix_page`). Raises ValueError if there
    is no board.
    """
    if not boards:
        raise ValueError("a page needs at least one board; make one with make_board")
    url = record_url or (lambda key: f"records/{key}.json")
    if drawn is None:
        drawn = [figures.drawn(board, on_page=True) if with_figures else {} for board in boards]
    files = list(downloads) or [()] * len(boards)
    sections = [
        _section(board, svgs, confirmed or {})
        | {"downloads": own, "heat": heat.table_of(board) if with_figures else None}
        for board, svgs, own in zip(boards, drawn, files, strict=True)
    ]
    if len(boards) == 1:
        sections[0]["heading"] = "Results"
    for end, section in zip(id_ends(boards), sections, strict=True):
        for part in (section, *(line for group in section["groups"] for line in group["rows"])):
            part["id"] += end
    return render(
        "board.html.jinja",
        title=title,
        links=links,
        legend=legend(boards),
        filters=_filters(boards),
        boards=sections,
        matrices=matrices,
        details=_packed([_details(board, url) for board in boards]),
        colours=heat.style() if with_figures else "",
    )


def _filters(boards: Sequence[Board]) -> list[tuple[str, list[str]]]:
    """Return the fields in which the rows of a page differ, each with its values."""
    found: list[tuple[str, list[str]]] = [
        ("shift", sorted({board.shift for board in boards})),
        ("protocol", sorted({board.protocol for board in boards})),
        ("model", sorted({board.model for board in boards})),
        ("track", sorted({row.track for board in boards for row in board.rows}, key=TRACKS.index)),
    ]
    return [(name, values) for name, values in found if len(values) > 1]


def board_id(board: Board) -> str:
    """Return the id of a board on its page. It stays when results at other severities or seeds join the board."""
    labels = () if board.labels_per_class is None else (f"labels{board.labels_per_class}",)
    return fragment(board.shift, board.model, board.protocol, board.split, *labels)


def id_ends(boards: Sequence[Board]) -> list[str]:
    """Return what the ids of each board and of its rows end with on a page of all, where boards have equal ids."""
    ids = [board_id(board) for board in boards]
    return [f":{number}" if each in ids[:number] else "" for number, each in enumerate(ids)]


def row_id(board: Board, row: BoardRow) -> str:
    """Return the id of a row on the page of its board: an address that stays, whatever its place."""
    return f"{board_id(board)}.{fragment(short_name(row))}"


def _section(board: Board, drawn: Mapping[str, bytes], confirmed: Mapping[str, str]) -> dict[str, Any]:
    confirmation, standing = _confirmation(board, confirmed)
    columns = [*_columns(board), *confirmation]
    best = best_cells(board, columns)
    rows: list[dict[str, Any]] = [
        {
            "row": row,
            "id": row_id(board, row),
            "place": i,
            "cells": [
                {
                    "text": column.cell(row),
                    "value": _sortable(column.value(row)) if column.value else None,
                    "best": (i, j) in best,
                    "column": column,
                }
                for j, column in enumerate(columns)
            ],
        }
        for i, row in enumerate(board.rows)
    ]
    return {
        "board": board,
        "id": board_id(board),
        "heading": f"{board.shift} · {board.model} · {board.protocol}",
        "caption": caption(board),
        "intervals": interval_words(board),
        "columns": columns,
        "groups": [
            {"track": track, "meaning": MEANING[track], "rows": list(group)}
            for track, group in groupby(rows, key=lambda line: line["row"].track)
        ],
        "references": [
            row for row in reference_rows(board.shift, board.model, board.protocol) if row.severity in board.severities
        ],
        "notes": [*notes_of(board), *standing],
        "figures": [
            {
                "name": name,
                "title": figures.TITLES[name],
                "caption": figures.caption_of(name, board),
                "svg": figures.to_inline_svg(svg, f"{figures.TITLES[name]}: {board.shift}, model {board.model}"),
            }
            for name, svg in drawn.items()
            if name in figures.ON_PAGE
        ],
        "latex": to_latex(board, columns="paper"),
    }


def _columns(board: Board) -> list[Column]:
    """Return the columns of every table but the track, under which the rows are; the names and accuracies first."""
    columns = [column for column in telling(board, columns_of(board)) if column.title != "track"]
    first = [column for title in _FIRST for column in columns if column.title == title]
    last = [column for column in columns if column.title in _LAST]
    return first + [column for column in columns if column not in first + last] + last


def _confirmation(board: Board, confirmed: Mapping[str, str]) -> tuple[list[Column], list[str]]:
    """Return a column with who has confirmed each row if rows differ, else a note for all of them."""
    known = {row.name: [confirmed[key] for key in row.keys if key in confirmed] for row in board.rows}
    words = {name: weakest(own) for name, own in known.items() if own}
    if len(set(words.values())) == 1 and len(words) == len(board.rows):
        word = next(iter(words.values()))
        return [], [f"Data of all rows: {word} ({meaning_of(word)})."]
    column = Column("data", _DATA_HELP, lambda row: words.get(row.name, ABSENT))
    return ([column] if words else []), []


def _sortable(value: float | None) -> str:
    return "" if value is None else repr(value)


def _details(board: Board, url: RecordUrl) -> dict[str, Any]:
    """Return the details of each row, shown on demand; an address is given as the number of its folder and a key."""
    folders: dict[str, int] = {}

    def place(key: str) -> list[Any]:
        address = url(key)
        if address is None:
            return [key]
        before, found, after = address.partition(key)
        if not found:
            raise ValueError(f"the address {address} of a record must hold its key {key}; build it from the key")
        return [key, folders.setdefault(json.dumps([before, after]), len(folders))]

    rows = [
        [
            [c.corruption, c.severity, percent(c.accuracy), percent(c.ece), [place(key) for key in c.keys]]
            for c in row.cells
        ]
        for row in board.rows
    ]
    return {
        "rows": rows,
        "folders": [json.loads(text) for text in folders],
        "seeds": [list(r.seeds) for r in board.rows],
    }


def _packed(content: Any) -> str:
    """Return compressed JSON in base64, whose letters cannot end a script element."""
    text = json.dumps(content, separators=(",", ":"), allow_nan=False)
    return base64.b64encode(zlib.compress(text.encode(), 9)).decode()
