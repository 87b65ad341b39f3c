"""Methods against boards: shifts, protocols or models in columns, with means only over boards that a row has whole."""

from __future__ import annotations

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from leaderboards.boards import TRACKS, Board, BoardRow
from leaderboards.friedman import Friedman, friedman, mean_ranks
from leaderboards.record import Track

AXES = ("shift", "model", "protocol", "split", "labels", "severity")
_FIELDS = {"labels": "labels_per_class", "severity": "severities"}  # where the name of an axis is not that of the field
BLOCKS = ("columns", "conditions")


@dataclass(frozen=True, slots=True)
class MatrixCell:
    """A method on a board: its row, None if it was not run there.

    `board` has no rows if nobody ran anything there. `best` says whether the accuracy is the highest of its track on
    the board, `among_best` whether it does not differ significantly from that (None if nothing was compared), `tied`
    whether this holds for several methods of the track.
    """

    board: Board
    row: BoardRow | None = None
    best: bool = False
    among_best: bool | None = None
    tied: bool = False

    @property
    def winner(self) -> bool:
        """Whether the method is significantly better than all others of its track."""
        return bool(self.among_best) and not self.tied

    @property
    def state(self) -> str:
        """ "complete", "incomplete" or "not run"."""
        return "not run" if self.row is None else "incomplete" if self.row.accuracy is None else "complete"


@dataclass(frozen=True, slots=True)
class MatrixRow:
    """A method of one track on the boards of one section.

    `mean` is its mean accuracy over the columns, in [0, 1], and `rank` its mean rank (1 is the best, ties share their
    ranks). Both are None unless the row is complete in every column; the ranks are among the rows that are, of its
    section and track.
    """

    section: str
    track: Track
    name: str
    cells: tuple[MatrixCell, ...]
    mean: float | None = None
    rank: float | None = None

    @property
    def key(self) -> tuple[str, str, str]:
        """What tells the row from others."""
        return self.section, self.track, self.name

    @property
    def accuracies(self) -> list[float] | None:
        """The accuracy in every column; None if one is missing or incomplete."""
        found = [cell.row.accuracy for cell in self.cells if cell.row is not None and cell.row.accuracy is not None]
        return found if len(found) == len(self.cells) else None


@dataclass(frozen=True, slots=True)
class Matrix:
    """Methods against boards: `rows` by section, track, mean rank, and accuracy in the columns in order.

    A column is a board, or, if `axis` names what tells columns apart, all boards that agree in that: then each
    combination of the rest is a section. With `across` the ranks are over all tracks.
    """

    titles: tuple[str, ...]
    boards: tuple[Board, ...]
    rows: tuple[MatrixRow, ...]
    axis: str | None = None
    across: bool = False

    def groups(self) -> list[tuple[str, list[MatrixRow]]]:
        """Return the rows that are ranked together, each with its name in words."""
        made = []
        for (section, track), own in groupby(
            self.rows, key=lambda row: (row.section, "" if self.across else row.track)
        ):
            name = f"track {track}" if track else "all tracks"
            made.append((f"{section}, {name}" if section else name, list(own)))
        return made


def matrix(
    boards: Sequence[Board], titles: Sequence[str] | None = None, *, by: str | None = None, across: bool = False
) -> Matrix:
    """Return all methods against boards; parts of methods are left out.

    Without `by` each board is a column, named by `titles`, else by what tells the boards apart. With `by`, one of
    `AXES`, columns are its values, and methods have a row for each combination of all else. A method that is in
    different tracks on different boards has a row in each. Ranks are within tracks, unless `across`.
    """
    if by and boards:
        names, sections = _by_axis(boards, by)
    else:
        names, sections = list(titles or column_titles(boards)), [("", list(boards))]
    rows = [row for section, own in sections for row in _rows(section, own)]
    place = {section: number for number, (section, _) in enumerate(sections)}
    ranks = _mean_ranks(rows, across)
    rows = [dataclasses.replace(row, mean=_mean(row), rank=ranks.get(row.key)) for row in rows]
    rows.sort(key=lambda row: (place[row.section], *(() if across else (TRACKS.index(row.track),)), *_order(row)))
    return Matrix(tuple(names), tuple(boards), tuple(rows), by, across)


def comparable(boards: Sequence[Board]) -> dict[str, Matrix]:
    """Return a matrix by shift, by protocol and by model, of the boards that differ in nothing else.

    An axis without two such boards is left out.
    """
    made = {}
    for axis in ("shift", "protocol", "model"):
        groups: dict[tuple[str, ...], list[Board]] = defaultdict(list)
        for board, place in zip(boards, _places(boards), strict=True):
            groups[_halves(place, axis)[1]].append(board)
        if several := [board for own in groups.values() if len(own) > 1 for board in own]:
            made[axis] = matrix(several, by=axis)
    return made


def short_name(row: BoardRow) -> str:
    """Return the name of a row; that of a soup is its method's."""
    return row.name.removesuffix(" (soup)")


def column_titles(boards: Sequence[Board]) -> list[str]:
    """Return for each board what tells it from the others; its shift for one alone."""
    return _told(_places(boards))


def words(board: Board) -> dict[str, str]:
    """Return what identifies a board, in words: its shift, model, protocol and so on."""
    labels, limit = board.labels_per_class, board.limit
    severities = "+".join(f"{severity:g}" for severity in board.severities)
    return {
        "shift": board.shift,
        "model": board.model,
        "protocol": board.protocol,
        "split": board.split,
        "labels": "all labels" if labels is None else f"{labels} labels per class",
        "limit": "all images" if limit is None else f"{limit} images",
        "severity": NATURAL if board.corruptions == (NATURAL,) else f"severity {severities}",
        "corruptions": f"{len(board.corruptions)} corruptions",
    }


NATURAL = "natural"  # the only condition of a shift without corruptions, which has no severity
_OWN = {"shift": ("shift", "severity", "corruptions")}  # what goes with the value of an axis
_TOLD_LAST = ("corruptions", "number")  # told only of what would have equal names
_Place = dict[str, str]


def _places(boards: Sequence[Board]) -> list[_Place]:
    """Return the words of each board, and a number that tells boards with equal words apart."""
    seen: Counter[tuple[str, ...]] = Counter()
    places = []
    for board in boards:
        found = words(board)
        seen[tuple(found.values())] += 1
        places.append({**found, "number": f"board {seen[tuple(found.values())]}"})
    return places


def _told(places: Sequence[_Place]) -> list[str]:
    """Return of each place the words in which places differ; the first word of one alone."""
    if not places:
        return []
    fields = [name for name in places[0] if name not in _TOLD_LAST]
    telling = [name for name in fields if len({place[name] for place in places} - {NATURAL}) > 1]
    titles = [_joined(place, telling or fields[:1]) for place in places]
    for title in [title for title, count in Counter(titles).items() if count > 1]:
        alike = [i for i, other in enumerate(titles) if other == title]
        more = [n for n in places[0] if n not in telling and len({places[i][n] for i in alike}) > 1]
        for i in alike:
            titles[i] = ", ".join(filter(None, [title, _joined(places[i], more)]))
    return titles


def _joined(place: _Place, fields: Sequence[str]) -> str:
    told = [place[name] for name in fields if place[name] != NATURAL or len(fields) == 1]
    return ", ".join(told)


def _halves(place: _Place, axis: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the words of the value on an axis, and those of the rest."""
    own = _OWN.get(axis, (axis,))
    return tuple(place[name] for name in own), tuple(word for name, word in place.items() if name not in own)


def _by_axis(boards: Sequence[Board], axis: str) -> tuple[list[str], list[tuple[str, list[Board]]]]:
    """Return the titles of the values of an axis, and for each combination of the rest a name and a board for each."""
    found: dict[tuple[str, ...], dict[tuple[str, ...], Board]] = defaultdict(dict)
    values: dict[tuple[str, ...], Board] = {}
    places = _places(boards)
    for board, place in zip(boards, places, strict=True):
        value, rest = _halves(place, axis)
        values.setdefault(value, board)
        found[rest][value] = board
    own = _OWN.get(axis, (axis,))
    others = [name for name in places[0] if name not in own]
    titles = _told([dict(zip(own, value, strict=True)) for value in values])
    names = _told([dict(zip(others, rest, strict=True)) for rest in found]) if len(found) > 1 else [""]
    sections = [
        (name, [there.get(value) or _absent(there, values[value], own) for value in values])
        for name, there in zip(names, found.values(), strict=True)
    ]
    return titles, sections


def _absent(there: Mapping[tuple[str, ...], Board], other: Board, own: Sequence[str]) -> Board:
    """Return the board that a section lacks, without rows: its value on the axis is that of the other board."""
    fields = {_FIELDS.get(name, name): getattr(other, _FIELDS.get(name, name)) for name in own}
    return dataclasses.replace(next(iter(there.values())), rows=(), versions=(), **fields)


def _rows(section: str, boards: Sequence[Board]) -> list[MatrixRow]:
    columns = [_cells(board) for board in boards]
    keys = dict.fromkeys(key for column in columns for key in column)
    return [
        MatrixRow(
            section,
            *key,
            tuple(column.get(key, MatrixCell(board)) for column, board in zip(columns, boards, strict=True)),
        )
        for key in keys
    ]


def _cells(board: Board) -> dict[tuple[Track, str], MatrixCell]:
    """Return the cells of the main rows of a board, by track and name."""
    main = [row for row in board.rows if row.main]
    found = {}
    for row in main:
        peers = [other for other in main if other.track == row.track]
        compared = [other for other in peers if other.among_best is not None]
        top = max((other.accuracy for other in peers if other.accuracy is not None), default=None)
        found[row.track, short_name(row)] = MatrixCell(
            board,
            row,
            best=row.accuracy is not None and row.accuracy == top,
            among_best=row.among_best if len(compared) > 1 else None,
            tied=sum(bool(other.among_best) for other in compared) > 1,
        )
    return found


def _mean(row: MatrixRow) -> float | None:
    return sum(row.accuracies) / len(row.accuracies) if row.accuracies else None


def _mean_ranks(rows: Iterable[MatrixRow], across: bool) -> dict[tuple[str, str, str], float]:
    """Return the mean rank of every complete row among the complete rows it is ranked with."""
    groups: dict[tuple[str, str], dict[tuple[str, str, str], list[float]]] = defaultdict(dict)
    for row in rows:
        if row.accuracies:
            groups[row.section, "" if across else row.track][row.key] = row.accuracies
    return {
        key: float(rank)
        for own in groups.values()
        for key, rank in zip(own, mean_ranks(np.array(list(own.values()))), strict=True)
    }


def _order(row: MatrixRow) -> tuple[bool, float, list[tuple[bool, float]], int, str]:
    accuracies = [None if cell.row is None else cell.row.accuracy for cell in row.cells]
    known = [(value is None, -(value or 0)) for value in accuracies]
    return row.rank is None, row.rank or 0.0, known, TRACKS.index(row.track), row.name


@dataclass(frozen=True, slots=True)
class RankTest:
    """Friedman's test of rows that are ranked together, or the sentence that says why there is none.

    `name` says which rows, `blocks` what they are ranked in and `count` the number of these.
    """

    name: str
    found: Friedman | str
    blocks: str
    count: int


def comparisons(made: Matrix, *, blocks: str = "columns", posthoc: str = "nemenyi") -> list[RankTest]:
    """Return the test of each group of rows, over the methods that are complete in all columns.

    `blocks` are the columns, or the single conditions of all columns. `posthoc` is one of
    `leaderboards.friedman.POSTHOC`.
    """
    alpha = 1 - made.boards[0].level if made.boards else 0.05
    tested = []
    for name, rows in made.groups():
        whole = [row for row in rows if row.accuracies]
        table = np.array([_by_block(row, blocks) for row in whole] or np.empty((0, 0)))
        found = friedman([_named(row, made) for row in whole], table, posthoc=posthoc, alpha=alpha, blocks=blocks)
        tested.append(RankTest(name, found, blocks, table.shape[1]))
    return tested


def _by_block(row: MatrixRow, blocks: str) -> list[float]:
    if blocks == "columns":
        return row.accuracies or []
    boards = [cell.row.cells for cell in row.cells if cell.row is not None]
    return [
        condition.accuracy
        for conditions in boards
        for condition in conditions
        if condition.corruption is not None and condition.accuracy is not None
    ]


def _named(row: MatrixRow, made: Matrix) -> str:
    return f"{row.name} ({row.track})" if made.across else row.name
