"""A grid of texts shown as Markdown, LaTeX or on a terminal: the common form of boards and comparisons."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from leaderboards.escaping import csv_row, markdown, one_line, visible

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
    from rich.table import Table

ABSENT = "–"

_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "–": "--",
    "−": "$-$",
    "·": r"$\cdot$",
    **{character: f"\\{character}" for character in "&%$#_{}"},
}


@dataclass(frozen=True, slots=True)
class Grid:
    """A table for display: `rows[i][j]` is under `titles[j]`; columns with `numbers[j]` are right-aligned.

    `short[j]` is the title where room is scarce. `best` holds the cells (i, j) in bold, `marked` those with a dagger,
    `groups` the rows above which a line is drawn, `headings` (by row) what LaTeX writes there. `hidden` columns are
    left out on a terminal, `optional` ones (in order) if it is too narrow, and `below` replaces them there. `notes`
    follow the table.
    """

    caption: str
    titles: Sequence[str]
    rows: Sequence[Sequence[str]]
    numbers: Sequence[bool]
    short: Sequence[str] = ()
    best: frozenset[tuple[int, int]] = frozenset()
    marked: frozenset[tuple[int, int]] = frozenset()
    groups: frozenset[int] = frozenset()
    headings: Mapping[int, str] = field(default_factory=dict)
    hidden: frozenset[int] = frozenset()
    optional: Sequence[int] = ()
    below: Sequence[str] = ()
    notes: Sequence[str] = ()


def renderings(
    grid: Grid, lines: Sequence[Mapping[str, object]], content: Mapping[str, object]
) -> dict[str, Callable[[], Any]]:
    """Return what makes a result in each format: of its table, its numbers in full precision, and all that it holds."""
    return {
        "terminal": lambda: to_terminal(grid),
        "md": lambda: to_markdown(grid),
        "latex": lambda: to_latex(grid),
        "csv": lambda: to_csv(lines),
        "json": lambda: json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False),
    }


def to_csv(lines: Iterable[Mapping[str, object]], fields: Sequence[str] = ()) -> str:
    """Return a line for each mapping under the names of its values, by default those of the first; text is escaped."""
    made = [csv_row(dict(line)) for line in lines]
    out = io.StringIO()
    writer = csv.DictWriter(out, fieldnames=fields or list(made[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(made)
    return out.getvalue()


def to_markdown(grid: Grid) -> str:
    """Return a pipe table under its caption, with the notes as a list."""
    from tabulate import tabulate

    body = tabulate(
        [[markdown(cell) for cell in row] for row in grid.rows],
        headers=[markdown(title) for title in grid.titles],
        tablefmt="pipe",
        disable_numparse=True,
        colalign=["right" if number else "left" for number in grid.numbers],
    )
    notes = "".join(f"- {markdown(note)}\n" for note in grid.notes)
    return f"{markdown(grid.caption)}\n\n{body}\n" + (f"\n{notes}" if notes else "")


def to_latex(grid: Grid, *, width: Literal["column", "page"] | None = None, label: str = "") -> str:
    """Return a table for the package booktabs, best values in bold, all text escaped; notes follow the table.

    With a `width` the table is set in footnote size, a long name breaks, and what is still wider than a column, or than
    a page of two columns, is scaled down to it (package graphicx).
    """
    names = next((j for j, number in enumerate(grid.numbers) if not number), None)
    folded = width and names is not None and max(len(row[names]) for row in grid.rows) > _LONGEST_NAME
    kinds = ["r" if number else "l" for number in grid.numbers]
    if folded and names is not None:
        kinds[names] = rf"p{{{_WIDTH_OF_NAMES}\columnwidth}}"
    edge = "@{}" if width else ""
    star = "*" if width == "page" else ""
    lines = [
        rf"\begin{{table{star}}}[t]",
        r"\centering",
        r"\caption{" + escape_latex(grid.caption).replace("†", r"$^\dagger$") + "}",
        *([rf"\label{{tab:{re.sub('[^A-Za-z0-9]+', '-', label)}}}"] if label else []),
        *(_BEFORE[width] if width else []),
        rf"\begin{{tabular}}{{{edge}{''.join(kinds)}{edge}}}",
        r"\toprule",
        " & ".join(_latex_title(grid, j, turned=width is not None) for j in range(len(grid.titles))) + r" \\",
        r"\midrule",
    ]
    for i, row in enumerate(grid.rows):
        if i in grid.groups:
            lines.append(r"\midrule")
        if heading := grid.headings.get(i):
            lines.append(rf"\multicolumn{{{len(row)}}}{{{edge}l}}{{\textit{{{escape_latex(heading)}}}}} \\")
        cells = [
            _latex_cell(grid, i, j, fold=bool(folded) and j == names, minus=width is not None) for j in range(len(row))
        ]
        # A bracket after a line break would be read as its optional argument.
        lines.append(("{}" if cells[0].startswith("[") else "") + " & ".join(cells) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}" + ("}" if width else "")]
    lines += [rf"\par\smallskip\footnotesize {escape_latex(note)}" for note in grid.notes]
    return "\n".join([*lines, rf"\end{{table{star}}}"]) + "\n"


_LONGEST_NAME = 24
_ROOM = 3  # letters by which a title may be wider than its numbers before it is turned
_WIDTH_OF_NAMES = 0.42
_BEFORE = {
    width: [
        r"\footnotesize",
        r"\setlength{\tabcolsep}{3.5pt}",
        rf"\resizebox{{\ifdim\width>\{limit}\{limit}\else\width\fi}}{{!}}{{%",
    ]
    for width, limit in (("column", "columnwidth"), ("page", "textwidth"))
}


def _latex_title(grid: Grid, j: int, *, turned: bool) -> str:
    title = escape_latex(grid.titles[j])
    wide = len(grid.titles[j]) > max(len(row[j]) for row in grid.rows) + _ROOM
    return rf"\rotatebox{{90}}{{{title}}}" if turned and grid.numbers[j] and wide else title


def _latex_cell(grid: Grid, i: int, j: int, *, fold: bool, minus: bool) -> str:
    text = grid.rows[i][j]
    if minus and grid.numbers[j]:
        text = re.sub(r"(?<!\w)-(?=\d)", "−", text)
    cell = escape_latex(text)
    if fold and len(text) > _LONGEST_NAME:
        cell = r"\raggedright " + r"\allowbreak{}".join(map(escape_latex, re.split(r"(?<=[:=_+])", text)))
    if (i, j) in grid.best:
        return rf"\textbf{{{cell}}}"
    return rf"{cell}\rlap{{$^\dagger$}}" if (i, j) in grid.marked else cell


def to_html(grid: Grid) -> str:
    """Return a table element under its caption, best values in bold, all text escaped; notes follow as a list."""
    from html import escape

    titles = "".join(f"<th>{escape(title)}</th>" for title in grid.titles)
    lines = []
    for i, row in enumerate(grid.rows):
        cells = [f"<b>{escape(cell)}</b>" if (i, j) in grid.best else escape(cell) for j, cell in enumerate(row)]
        aligned = zip(grid.numbers, cells, strict=True)
        columns = "".join(f'<td style="text-align:{"right" if n else "left"}">{cell}</td>' for n, cell in aligned)
        lines.append(f"<tr>{columns}</tr>")
    notes = "".join(f"<li>{escape(note)}</li>" for note in grid.notes)
    return (
        f"<table><caption>{escape(grid.caption)}</caption><thead><tr>{titles}</tr></thead>"
        f"<tbody>{''.join(lines)}</tbody></table>" + (f"<ul>{notes}</ul>" if notes else "")
    )


def to_terminal(grid: Grid) -> RenderableType:
    """Return a renderable for rich: names fold, numbers never do, and text is never read as markup."""
    from rich.console import Group
    from rich.text import Text

    return Group(
        Text(visible(grid.caption)),
        _Fitting(grid),
        *(Text(visible(line)) for line in grid.below),
        *(Text(visible(f"- {note}")) for note in grid.notes),
    )


@dataclass(frozen=True, slots=True)
class _Fitting:
    """The table in the widest form that fits the terminal.

    The forms are: all columns; without some of the optional ones; without all of these, with short titles and folded
    names; several tables, each with the names.
    """

    grid: Grid

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        def width(table: Table) -> int:
            return console.measure(table, options=options.update(max_width=10_000)).maximum

        room = options.max_width
        shown = [j for j in range(len(self.grid.titles)) if j not in self.grid.hidden]
        for dropped in range(len(self.grid.optional) + 1):
            kept = [j for j in shown if j not in self.grid.optional[:dropped]]
            if width(table := _table(self.grid, kept)) <= room:
                yield table
                return
        brief = replace(self.grid, titles=self.grid.short or self.grid.titles)
        spare = room - width(table := _table(brief, kept, _SHORTEST_FOLD))
        if spare >= 0:
            wider = _table(brief, kept, _SHORTEST_FOLD + spare)
            yield wider if width(wider) <= room else table
            return
        yield from self._blocks(kept, max(12, room // 3), lambda table: width(table) <= room)

    def _blocks(self, kept: Sequence[int], longest: int, fits: Callable[[Table], bool]) -> Iterator[Table]:
        name = next((j for j in kept if not self.grid.numbers[j]), kept[0])
        block: list[int] = []
        for j in kept:
            if len(block) > 1 and not fits(_table(self.grid, [*block, j], longest)):
                yield _table(self.grid, block, longest)
                block = [name]
            block.append(j)
        yield _table(self.grid, block, longest)


_SHORTEST_FOLD = 20
"""Letters of a folded name in a line; with fewer, several tables are easier to read."""


def _table(grid: Grid, shown: Sequence[int], longest: int | None = None) -> Table:
    """Return the table with these columns; texts longer than `longest` are folded."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for j in shown:
        number = grid.numbers[j]
        table.add_column(
            Text(visible(grid.titles[j])),
            justify="right" if number else "left",
            no_wrap=number,
            overflow="fold",
            max_width=None if number else longest,
        )
    for i, row in enumerate(grid.rows):
        table.add_row(*(Text(visible(row[j])) for j in shown), end_section=i + 1 in grid.groups)
    return table


def escape_latex(text: str) -> str:
    """Escape a text so that LaTeX prints it as it is."""
    return "".join(_LATEX.get(character, character) for character in one_line(text))
