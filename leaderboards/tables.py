"""One board shown as Markdown, LaTeX, CSV, JSON or on a terminal, with the same numbers in all formats."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import TYPE_CHECKING, Any, TypeVar

from leaderboards import grid
from leaderboards.board_data import MEANING, TRACKS, BoardData, BoardRow
from leaderboards.grid import ABSENT, Grid
from leaderboards.record import Access

if TYPE_CHECKING:
    from pandas import DataFrame
    from rich.console import RenderableType


AnyBoard = TypeVar("AnyBoard", bound=BoardData)

# Columns that a narrow terminal leaves out, in this order; the other renderers have them all.
_OPTIONAL = ("memory MB", "backwards", "forgetting")
# Columns by the name of a preset; "full" are all that have a value.
PRESETS: Mapping[str, Sequence[str]] = {"paper": ("method", "track", "accuracy", "clean", "ECE"), "full": ()}
_TEXTS = ("method", "part", "track", "seeds", "incomplete")
# Columns without values on most boards; shown only if one row has a value.
_RARE = ("mCE", "rel. mCE")


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a board: how a cell is written, and the value it is sorted by, if that is a number.

    `better` is +1 if more is better, -1 if less is, and 0 if no value is the best. `shared` says that the caption gives
    the value if it is the same in all rows. `short` is a title for narrow tables.
    """

    title: str
    help: str
    cell: Callable[[BoardRow], str]
    value: Callable[[BoardRow], float | None] | None = None
    better: int = 0
    shared: bool = False
    short: str = ""

    @property
    def label(self) -> str:
        """The short title, for pages and papers."""
        return self.short or self.title


def to_markdown(board: BoardData, *, per_corruption: bool = False, columns: Sequence[str] = ()) -> str:
    """Return a Markdown table under a line that says what is compared; accuracies in percent, `63.1 [61.0, 65.2]`.

    `columns` are titles of `columns_of`, in the wanted order, or the name of one of `PRESETS`; by default all columns
    with a value in some row. The same holds for `to_latex` and `to_terminal`.
    """
    return grid.to_markdown(_grid(board, per_corruption, _titles(columns)))


def to_latex(board: BoardData, *, per_corruption: bool = False, columns: Sequence[str] = ()) -> str:
    """Return a table for a paper (packages booktabs and graphicx), text escaped.

    The preset "paper" fits a column of a page, other columns fit a page. An accuracy is bold only where it is
    significantly better than those of all other main rows of its track; else the best and all that do not differ from
    it significantly have a dagger. The track is a heading above its rows, and values that the caption gives are left
    out, unless `columns` names titles.
    """
    chosen = _titles(columns)
    made = _grid(board, per_corruption, chosen)
    kept = [j for j, title in enumerate(made.titles) if title != "track" or len(made.titles) == 1]
    if not chosen:
        kept = [j for j in kept if j not in made.hidden or made.titles[j] == _ACCESS.title]
    best, marked = _significant(board)
    place = {title: k for k, title in enumerate(made.titles[j] for j in kept)}
    labels = {column.title: column.label for column in columns_of(board)}
    accuracy = place.get("accuracy")
    return grid.to_latex(
        dataclasses.replace(
            made,
            caption=_latex_caption(board, marks=accuracy is not None),
            titles=[labels.get(made.titles[j], made.titles[j]) for j in kept],
            rows=[[row[j] for j in kept] for row in made.rows],
            numbers=[made.numbers[j] for j in kept],
            best=frozenset((i, accuracy) for i in best if accuracy is not None),
            marked=frozenset((i, accuracy) for i in marked if accuracy is not None),
            headings={i: f"Track {board.rows[i].track}" for i in {0, *made.groups}} if "track" in made.titles else {},
        ),
        width="column" if columns == "paper" and not per_corruption else "page",
        label=f"{board.shift} {board.model}",
    )


def _significant(board: BoardData) -> tuple[set[int], set[int]]:
    """Return rows that are significantly better than all others of their track, and best ones that are not."""
    best: set[int] = set()
    marked: set[int] = set()
    for track in {row.track for row in board.rows}:
        compared = [i for i, row in enumerate(board.rows) if row.track == track and row.among_best is not None]
        among = {i for i in compared if board.rows[i].among_best}
        if len(compared) > 1:
            (best if len(among) == 1 else marked).update(among)
    return best, marked


def _latex_caption(board: BoardData, *, marks: bool) -> str:
    tracks = "; ".join(f"{track}, {MEANING[track]}" for track in dict.fromkeys(row.track for row in board.rows))
    shared = ", ".join(words for words in _shared(board) if not words.endswith("% intervals"))
    sentences = [f"Mean accuracy in percent: {shared}."]
    if marks and any(row.interval for row in board.rows):
        alpha = f"{1 - board.level:.2g}"
        sentences += [
            interval_words(board),
            "Bold: significantly better than all other methods of its track; †: the best of its track, or not "
            f"significantly different from it (paired, Holm's correction, level {alpha}).",
        ]
    return " ".join([*sentences, f"What a method sees, by track: {tracks}."])


def to_terminal(board: BoardData, *, per_corruption: bool = False, columns: Sequence[str] = ()) -> RenderableType:
    """Return the numbers of the Markdown table as a renderable for rich, with a gap between tracks.

    Values that the caption gives for all rows (seeds, n, batch) and columns without any value are left out, and access
    is below the table. A narrow terminal also lacks memory, backwards and forgetting; names fold, numbers never do.
    """
    return grid.to_terminal(_grid(board, per_corruption, _titles(columns)))


def arranged(board: AnyBoard, title: str) -> AnyBoard:
    """Return the board with rows sorted by a column of `columns_of`, best or smallest first, within their tracks.

    Rows without a value come last. Raises KeyError if there is no such column.
    """
    column = {column.title: column for column in columns_of(board, per_corruption=True)}[title]

    def place(row: BoardRow) -> tuple[int, bool, float, str]:
        value = column.value(row) if column.value else None
        number = 0.0 if value is None else -(column.better or -1) * value
        return TRACKS.index(row.track), column.value is not None and value is None, number, column.cell(row)

    return dataclasses.replace(board, rows=tuple(sorted(board.rows, key=place)))


def _titles(columns: Sequence[str]) -> Sequence[str]:
    return PRESETS[columns] if isinstance(columns, str) else columns


def _grid(board: BoardData, per_corruption: bool, chosen: Sequence[str]) -> Grid:
    columns = columns_of(board, per_corruption=per_corruption or bool(chosen))
    if chosen:
        by_title = {column.title: column for column in columns}
        more = [name for name in board.corruptions if per_corruption and name not in chosen]
        columns = [by_title[title] for title in (*chosen, *more)]
        shown = columns
    else:
        columns = [column for column in columns if column.title not in _RARE or column in telling(board, columns)]
        shown = [column for column in telling(board, columns) if column is not _ACCESS]
    rows = [[column.cell(row) for column in columns] for row in board.rows]
    titles = [column.title for column in columns]
    return Grid(
        caption=caption(board),
        titles=titles,
        rows=rows,
        numbers=[column.value is not None for column in columns],
        short=[column.label for column in columns],
        best=best_cells(board, columns),
        groups=frozenset(i for i, row in enumerate(board.rows) if i and row.track != board.rows[i - 1].track),
        hidden=frozenset(j for j, column in enumerate(columns) if column not in shown),
        optional=[titles.index(title) for title in _OPTIONAL if title in titles and not chosen],
        below=_access_lines(board),
        notes=notes_of(board),
    )


def telling(board: BoardData, columns: list[Column]) -> list[Column]:
    """Return the columns that have a value, without those that the caption gives for all rows.

    Peak memory is shown only if at least half of the rows have it.
    """
    told = []
    for column in columns:
        cells = Counter(column.cell(row) for row in board.rows)
        rare = column is _MEMORY and 2 * cells[ABSENT] > len(board.rows)
        if not rare and set(cells) != {ABSENT} and not (column.shared and len(cells) == 1):
            told.append(column)
    return told


def best_cells(board: BoardData, columns: list[Column]) -> frozenset[tuple[int, int]]:
    """Return cells (row, column) of the best values among the main rows of each track; equal texts are equally good."""
    best: set[tuple[int, int]] = set()
    for track in {row.track for row in board.rows}:
        rows = [(i, row) for i, row in enumerate(board.rows) if row.track == track and row.main and not row.incomplete]
        for j, column in enumerate(columns):
            values = {i: v for i, row in rows if column.value and (v := column.value(row)) is not None}
            if column.better and values:
                top = max(values.values(), key=lambda value: column.better * value)
                best.update((i, j) for i, value in values.items() if f"{100 * value:.1f}" == f"{100 * top:.1f}")
    return frozenset(best)


def _access_lines(board: BoardData) -> list[str]:
    methods: dict[str, dict[str, None]] = {}
    for row in board.rows:
        methods.setdefault(f"{row.track}: {_ACCESS.cell(row)}", {})[row.method] = None
    return [f"{access} ({', '.join(names)})" for access, names in methods.items()]


def to_csv(board: BoardData, *, per_corruption: bool = False) -> str:
    """Return one line for each row with all numbers in full precision, accuracies as fractions; empty if missing."""
    return grid.to_csv(_flat(board, row, per_corruption) for row in board.rows)


def to_pandas(board: BoardData) -> DataFrame:
    """Return the lines of `to_csv`, with a column `accuracy:NAME` for each corruption, as a data frame."""
    from pandas import DataFrame

    frame = DataFrame([_flat(board, row, True) for row in board.rows])
    numbers = [name for name in frame if name not in _TEXTS and not str(name).startswith("access_")]
    return frame.astype(dict.fromkeys(numbers, "float64"))


def to_html(board: BoardData) -> str:
    """Return the table of the page as an element for a notebook, best of each track in bold, text escaped."""
    from leaderboards.html import render

    columns = telling(board, columns_of(board))
    return render(
        "notebook.html.jinja", grid=_grid(board, False, [column.title for column in columns]), columns=columns
    )


def to_json(board: BoardData) -> str:
    """Return the whole board in full precision: its fields, and its rows with all theirs. A missing number is null."""
    content = {field.name: getattr(board, field.name) for field in dataclasses.fields(board)}
    content["rows"] = [_plain(row) for row in board.rows]
    return json.dumps(content, indent=2, allow_nan=False)


def caption(board: BoardData) -> str:
    """Return what all rows have in common, in one line."""
    return " · ".join(_shared(board))


def _shared(board: BoardData) -> list[str]:
    severities = ", ".join(f"{severity:g}" for severity in board.severities)
    words = [
        board.shift,
        f"model {board.model}",
        f"protocol {board.protocol}",
        f"split {board.split}",
        f"{_count(len(board.corruptions), 'corruption')} at severity {severities or ABSENT}",
        f"{_count(board.n, 'image')} each",
        _seeds(board),
        f"{100 * board.level:g} % intervals",
    ]
    if len(batches := {row.batch_size for row in board.rows}) == 1:
        words.append(f"batch {batches.pop()}")
    if board.suite is not None:
        words.append(f"suite {board.suite}")
    if board.labels_per_class is not None:
        words.append(f"{_count(board.labels_per_class, 'label')} per class")
    if board.limit is not None:
        words.append(f"limited to {_count(board.limit, 'image')}: not for publication")
    return words


def interval_words(board: BoardData) -> str:
    """Return a sentence that says what the intervals of a board cover; empty if it has none."""
    if all(row.interval is None for row in board.rows):
        return ""
    over = "images and seeds" if len(board.seeds) > 1 else "images; one seed"
    return f"Brackets: {100 * board.level:g} % intervals over {over}."


def columns_of(board: BoardData, *, per_corruption: bool = False) -> list[Column]:
    """Return the columns of a board in order, with one for each corruption on demand."""
    accuracy = Column(
        "accuracy",
        f"Mean accuracy over corrupted conditions in percent, with its {100 * board.level:g} % interval.",
        _accuracy,
        lambda row: row.accuracy,
        better=1,
    )
    named = "Accuracy in percent under {}, mean over severities and seeds."
    by_corruption = [
        _number(name, lambda row, name=name: row.per_corruption[name], named.format(name), percent, better=1)  # type: ignore[misc]
        for name in (board.corruptions if per_corruption else ())
    ]
    return [*_WHO, accuracy, *_QUALITY, *by_corruption, *_CORRUPTION_ERRORS, *_COSTS, *_COUNTS]


def access_words(access: Access) -> str:
    """Return what a method sees and does in a few words: test data, source data if any, state, trained parameters."""
    source = [] if access.source == "none" else [f"{access.source} source"]
    backprop = [] if access.backprop == "none" else [f"{access.backprop} backprop"]
    test = {"none": "no test data", "other": "other shift seen"}.get(access.test, access.test)
    return ", ".join([test, *source, access.state, *backprop])


_ACCESS = Column("access", "What the method sees and what it changes.", lambda row: access_words(row.access))


def _number(
    title: str, value: str | Callable[[BoardRow], Any], text: str, write: Callable[[Any], str], **more: Any
) -> Column:
    """Return the column of a number of a row (the name of a field, or how to get it), which `write` makes a text."""
    get = attrgetter(value) if isinstance(value, str) else value
    return Column(title, text, lambda row: write(get(row)), get, **more)


def percent(fraction: float | None) -> str:
    """Return a fraction in percent with one decimal, as every renderer writes it."""
    # A small loss must not be written as minus zero.
    return ABSENT if fraction is None else f"{100 * fraction:.1f}".replace("-0.0", "0.0")


def _decimal(value: float | None) -> str:
    return ABSENT if value is None else f"{value:.1f}"


def _whole(value: float | None) -> str:
    return ABSENT if value is None else f"{value:.0f}"


_WHO = (
    _number("rank", "rank", "1 + the number of methods of the same track that are significantly better.", _whole),
    Column("method", "The method, and a part of it in parentheses.", lambda row: row.name),
    Column("track", "Methods are ranked only with those that saw as much as they did.", lambda row: row.track),
    _ACCESS,
)
_FORGETTING = "Points of clean accuracy lost against the source classifier; negative where gained."
_MCE = "Mean corruption error in percent of AlexNet's, where all of ImageNet-C was run at all severities."
_QUALITY = (
    _number("clean", "clean_accuracy", "Accuracy on uncorrupted images in percent.", percent, better=1),
    _number("forgetting", "forgetting", _FORGETTING, percent, better=-1, short="forget."),
    _number("ECE", "ece", "Expected calibration error in percent, mean over corrupted conditions.", percent, better=-1),
)
_CORRUPTION_ERRORS = (
    _number("mCE", "mce", _MCE, percent, better=-1),
    _number("rel. mCE", "relative_mce", "The same of the errors beyond those on clean images.", percent, better=-1),
)
_MEMORY = _number(
    "memory MB", "peak_memory_mb", "Largest memory in use, of methods that ran alone.", _whole, short="mem. MB"
)
_COSTS = (
    _number("fit s", "fit_seconds", "Seconds of training behind one condition.", _decimal),
    _number("forwards", "forwards", "Forward passes for each scored image.", _decimal, short="fwd"),
    _number("backwards", "backwards", "Backward passes for each scored image.", _decimal, short="bwd"),
    _MEMORY,
)
_COUNTS = (
    Column("seeds", "Number of seeds.", lambda row: str(len(row.seeds)), lambda row: len(row.seeds), shared=True),
    _number("n", "n", "Images scored in each corrupted condition.", _whole, shared=True),
    _number("batch", "batch_size", "Images in a batch.", _whole, shared=True),
)


def _accuracy(row: BoardRow) -> str:
    if row.accuracy is None:
        return "incomplete"
    if row.interval is None:
        return percent(row.accuracy)
    return f"{percent(row.accuracy)} [{percent(row.interval.low)}, {percent(row.interval.high)}]"


def _seeds(board: BoardData) -> str:
    """Return how many seeds the rows have, and which."""
    counts = {len(row.seeds) for row in board.rows if row.seeds} or {len(board.seeds)}
    several = f"{min(counts)} to " if len(counts) > 1 else ""
    return f"{several}{_count(max(counts), 'seed')} ({', '.join(map(str, board.seeds))})"


def _count(number: int | None, noun: str) -> str:
    return f"{ABSENT if number is None else number} {noun}{'' if number == 1 else 's'}"


def notes_of(board: BoardData) -> list[str]:
    """Return notes on different versions of code, on what failed or is missing in a row, and on withheld intervals."""
    return [
        *board.versions,
        *(f"{row.name}: {' '.join(row.incomplete.split())}" for row in board.rows if row.incomplete),
        *(f"{row.name} has no interval: {row.withheld}" for row in board.rows if row.withheld),
    ]


def _flat(board: BoardData, row: BoardRow, per_corruption: bool) -> dict[str, object]:
    corruptions = {f"accuracy:{name}": row.per_corruption[name] for name in board.corruptions} if per_corruption else {}
    return {
        "rank": row.rank,
        "method": row.method,
        "setting": row.setting,
        "part": row.part,
        "track": row.track,
        **{f"access_{name}": value for name, value in row.access.model_dump().items()},
        "accuracy": row.accuracy,
        "accuracy_low": row.interval.low if row.interval else None,
        "accuracy_high": row.interval.high if row.interval else None,
        "clean_accuracy": row.clean_accuracy,
        "forgetting": row.forgetting,
        "ece": row.ece,
        "mce": row.mce,
        "relative_mce": row.relative_mce,
        **corruptions,
        "fit_seconds": row.fit_seconds,
        "forwards": row.forwards,
        "backwards": row.backwards,
        "peak_memory_mb": row.peak_memory_mb,
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
    content["cells"] = [dataclasses.asdict(cell) for cell in row.cells]
    return content
