"""One board shown four ways, with the same numbers: Markdown and terminal for people, CSV and JSON for programs."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from leaderboards.boards import Board, BoardRow
from leaderboards.record import Access

if TYPE_CHECKING:
    from rich.console import RenderableType

ABSENT = "–"


@dataclass(frozen=True, slots=True)
class _Column:
    """`shared` says that the caption tells the value where all rows have the same."""

    title: str
    cell: Callable[[BoardRow], str]
    number: bool = True
    shared: bool = False


def to_markdown(board: Board, *, per_corruption: bool = False) -> str:
    """A Markdown table under a line that says what is compared; accuracies in percent, `63.1 [61.0, 65.2]`."""
    from tabulate import tabulate

    columns = _columns(board, per_corruption)
    body = tabulate(
        [[_escape(column.cell(row)) for column in columns] for row in board.rows],
        headers=[_escape(column.title) for column in columns],
        tablefmt="pipe",
        disable_numparse=True,
        colalign=["right" if column.number else "left" for column in columns],
    )
    notes = "".join(f"- {_escape(note)}\n" for note in _notes(board))
    return f"{_escape(caption(board))}\n\n{body}\n" + (f"\n{notes}" if notes else "")


def to_terminal(board: Board, *, per_corruption: bool = False) -> RenderableType:
    """The same numbers as in Markdown, as a renderable for rich, with a gap between tracks.

    To fit narrow terminals, what the caption says for all rows alike (seeds, n, batch) is left out, access stands below
    the table, and names fold; numbers never do.
    """
    from rich.box import SIMPLE_HEAD
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    columns = [
        column
        for column in _columns(board, per_corruption)
        if column is not _ACCESS and not (column.shared and len({column.cell(row) for row in board.rows}) == 1)
    ]
    for column in columns:
        alignment: Literal["left", "right"] = "right" if column.number else "left"
        table.add_column(column.title, justify=alignment, no_wrap=column.number, overflow="fold")
    for row, following in zip(board.rows, [*board.rows[1:], None], strict=True):
        last_of_track = following is not None and following.track != row.track
        # Text, because square brackets in names and intervals are not markup.
        table.add_row(*(Text(column.cell(row)) for column in columns), end_section=last_of_track)
    return Group(
        Text(caption(board)), table, *map(Text, _access_lines(board)), *(Text(f"- {n}") for n in _notes(board))
    )


def _access_lines(board: Board) -> list[str]:
    methods: dict[str, dict[str, None]] = {}
    for row in board.rows:
        methods.setdefault(f"{row.track}: {_ACCESS.cell(row)}", {})[row.method] = None
    return [f"{access} ({', '.join(names)})" for access, names in methods.items()]


def to_csv(board: Board, *, per_corruption: bool = False) -> str:
    """One line a row with every number in full precision, accuracies as fractions; an empty cell is no number."""
    rows = [_flat(board, row, per_corruption) for row in board.rows]
    out = io.StringIO()
    writer = csv.DictWriter(out, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def to_json(board: Board) -> str:
    """The whole board in full precision: its fields, and its rows with all of theirs. An absent number is null."""
    content = {field.name: getattr(board, field.name) for field in dataclasses.fields(board)}
    content["rows"] = [_plain(row) for row in board.rows]
    return json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False)


def caption(board: Board) -> str:
    """What all rows have in common, in one line."""
    severities = ", ".join(f"{severity:g}" for severity in board.severities)
    words = [
        board.shift,
        f"model {board.model}",
        f"protocol {board.protocol}",
        f"split {board.split}",
        f"{_count(len(board.corruptions), 'corruption')} at severity {severities or ABSENT}",
        f"{_count(board.n, 'image')} each",
        f"{_count(len(board.seeds), 'seed')} ({', '.join(map(str, board.seeds))})",
        f"{100 * board.level:g} % intervals",
    ]
    if len(batches := {row.batch_size for row in board.rows}) == 1:
        words.append(f"batch {batches.pop()}")
    if board.labels_per_class is not None:
        words.append(f"{_count(board.labels_per_class, 'label')} per class")
    if board.limit is not None:
        words.append(f"limited to {_count(board.limit, 'image')}: not for publication")
    return " · ".join(words)


def _columns(board: Board, per_corruption: bool) -> list[_Column]:
    corruptions = [_Column(name, _per_corruption(name)) for name in board.corruptions] if per_corruption else []
    return [
        _Column("rank", lambda row: ABSENT if row.rank is None else str(row.rank)),
        _Column("method", lambda row: row.name, number=False),
        _Column("track", lambda row: row.track, number=False),
        _ACCESS,
        _Column("accuracy", _accuracy),
        _Column("clean", lambda row: _percent(row.clean_accuracy)),
        _Column("ECE", lambda row: _percent(row.ece)),
        *corruptions,
        _Column("fit s", lambda row: _decimal(row.fit_seconds)),
        _Column("forwards", lambda row: _decimal(row.forwards)),
        _Column("seeds", lambda row: str(len(row.seeds)), shared=True),
        _Column("n", lambda row: ABSENT if row.n is None else str(row.n), shared=True),
        _Column("batch", lambda row: str(row.batch_size), shared=True),
    ]


def access_words(access: Access) -> str:
    """What a method sees and does, in a few words: test data, source data if any, state, and what gradients change."""
    source = [] if access.source == "none" else [f"{access.source} source"]
    backprop = [] if access.backprop == "none" else [f"{access.backprop} backprop"]
    return ", ".join(["no test data" if access.test == "none" else access.test, *source, access.state, *backprop])


_ACCESS = _Column("access", lambda row: access_words(row.access), number=False)


def _accuracy(row: BoardRow) -> str:
    if row.accuracy is None:
        return "incomplete"
    if row.interval is None:
        return _percent(row.accuracy)
    return f"{_percent(row.accuracy)} [{_percent(row.interval.low)}, {_percent(row.interval.high)}]"


def _per_corruption(name: str) -> Callable[[BoardRow], str]:
    return lambda row: _percent(row.per_corruption[name])


def _percent(fraction: float | None) -> str:
    return ABSENT if fraction is None else f"{100 * fraction:.1f}"


def _decimal(value: float | None) -> str:
    return ABSENT if value is None else f"{value:.1f}"


def _count(number: int | None, noun: str) -> str:
    return f"{ABSENT if number is None else number} {noun}{'' if number == 1 else 's'}"


def _notes(board: Board) -> list[str]:
    return [f"{row.name}: {' '.join(row.incomplete.split())}" for row in board.rows if row.incomplete]


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")


def _flat(board: Board, row: BoardRow, per_corruption: bool) -> dict[str, object]:
    corruptions = {f"accuracy:{name}": row.per_corruption[name] for name in board.corruptions} if per_corruption else {}
    return {
        "rank": row.rank,
        "method": row.method,
        "part": row.part,
        "track": row.track,
        **{f"access_{name}": value for name, value in row.access.model_dump().items()},
        "accuracy": row.accuracy,
        "accuracy_low": row.interval.low if row.interval else None,
        "accuracy_high": row.interval.high if row.interval else None,
        "clean_accuracy": row.clean_accuracy,
        "ece": row.ece,
        **corruptions,
        "fit_seconds": row.fit_seconds,
        "forwards": row.forwards,
        "backwards": row.backwards,
        "seeds": " ".join(map(str, row.seeds)),
        "n": row.n,
        "batch_size": row.batch_size,
        "incomplete": row.incomplete,
    }


def _plain(row: BoardRow) -> dict[str, object]:
    content: dict[str, object] = {field.name: getattr(row, field.name) for field in dataclasses.fields(row)}
    content["access"] = row.access.model_dump()
    content["interval"] = None if row.interval is None else {"low": row.interval.low, "high": row.interval.high}
    content["per_corruption"] = dict(row.per_corruption)
    return content
