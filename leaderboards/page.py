"""Boards as one self-contained HTML page: nothing is fetched, every text is escaped, and only its own script may run.

The tables are plain HTML and can be read without the script, which sorts, filters and opens the single conditions.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import zlib
from collections.abc import Callable, Sequence
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any

from leaderboards import figures
from leaderboards.boards import MEANING, Board
from leaderboards.escaping import shown, visible
from leaderboards.reference import reference_rows
from leaderboards.tables import Column, best_cells, caption, columns_of, notes_of, percent, telling, to_latex

if TYPE_CHECKING:
    from jinja2 import Template

RecordUrl = Callable[[str], str | None]


def to_page(
    boards: Sequence[Board],
    *,
    title: str = "soupbench",
    record_url: RecordUrl | None = None,
    with_figures: bool = True,
    links: Sequence[tuple[str, str]] = (),
) -> str:
    """Return a page with a section for each board, in the given order; boards are never merged.

    `record_url` gives the address of the record with a key, relative to the page, or None if it is not published; by
    default `records/<key>.json`. Numbers of single conditions link there. `links` are addresses and texts for the head
    of the page. Raises ValueError if there is no board.
    """
    if not boards:
        raise ValueError("a page needs at least one board; make one with make_board")
    url = record_url or (lambda key: f"records/{key}.json")
    script, style = _text("page.js"), _text("page.css")
    return _template().render(
        title=title,
        links=links,
        style=style,
        script=script,
        script_digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        filters=[
            ("shift", sorted({board.shift for board in boards})),
            ("protocol", sorted({board.protocol for board in boards})),
            ("model", sorted({board.model for board in boards})),
            ("track", sorted({row.track for board in boards for row in board.rows}, key="RABCD".index)),
        ],
        boards=[_section(board, with_figures) for board in boards],
        details=_packed([_details(board, url) for board in boards]),
    )


def _section(board: Board, with_figures: bool) -> dict[str, Any]:
    columns = _columns(board)
    best = best_cells(board, columns)
    drawn = figures.figures(board) if with_figures else {}
    rows = [
        {
            "row": row,
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
        "caption": caption(board),
        "columns": columns,
        "groups": [
            {
                "track": track,
                "meaning": MEANING[track],
                "rows": [rows[i] for i, row in enumerate(board.rows) if row.track == track],
            }
            for track in dict.fromkeys(row.track for row in board.rows)
        ],
        "references": [
            row for row in reference_rows(board.shift, board.model, board.protocol) if row.severity in board.severities
        ],
        "notes": notes_of(board),
        "figures": {
            name: figures.to_inline_svg(figure, f"{name.replace('-', ' ')} of {board.shift}, model {board.model}")
            for name, figure in drawn.items()
        },
        "latex": to_latex(board),
    }


def _columns(board: Board) -> list[Column]:
    """Return the columns of every table, except that rows are under their track and access has its own column here."""
    columns = [column for column in telling(board, columns_of(board)) if column.title != "track"]
    return sorted(columns, key=lambda column: column.title == "access")


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


def _text(name: str) -> str:
    return (resources.files("leaderboards") / "templates" / name).read_text(encoding="utf-8")


@cache
def _template() -> Template:
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, finalize=shown
    )
    # A long name of a part may break between words.
    environment.filters["breakable"] = lambda text: Markup("<wbr>").join(re.split(r"(?<=[:=_+])", visible(text)))
    environment.filters["ours"] = Markup  # for trusted parts: style, script and figures
    return environment.from_string(_text("page.html.jinja"))
