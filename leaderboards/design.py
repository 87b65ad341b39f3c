"""What a comparison of a given size could show: expected half-widths, from a pilot or from numbers that are given."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leaderboards import grid
from leaderboards.boards import Board, BoardError, BoardRow
from leaderboards.comparable import line_of
from leaderboards.compare import by_stock, choose_rows
from leaderboards.grid import ABSENT, Grid
from leaderboards.ranking import ReadPredictions, draw_of, outcomes_of
from leaderboards.record import Record
from leaderboards.uncertainty import join_draws
from leaderboards.variance import Counts, Floats, Spread, components, half_width

_SHARED = ("shift", "model", "protocol", "split")


@dataclass(frozen=True, slots=True)
class Size:
    """A study of `n` images under `conditions` conditions, and the half-widths that it expects.

    On each of `stocks` stocks it has `seeds` label draws, nested in `ingredient_draws` sets of ingredients, as many
    where each seed draws its own. Half-widths are fractions: `difference` of the paired difference, `a` and `b` of the
    accuracy of each row, None where too few images would be right or wrong for an interval, or nothing is known of it.
    `conditions` is None where spreads were given, which are those under all of the study's conditions.
    """

    n: int
    conditions: int | None
    seeds: int
    ingredient_draws: int
    stocks: int
    difference: float
    a: float | None
    b: float | None


@dataclass(frozen=True, slots=True)
class Pilot:
    """The size of a pilot; `seeds` and `ingredient_draws` are those of the stock with the fewest.

    `shares_ingredients`: whether some of its seeds share their ingredients.
    """

    n: int
    conditions: int
    seeds: int
    ingredient_draws: int
    stocks: int
    shares_ingredients: bool

    @property
    def words(self) -> str:
        """The size in words."""
        sets = f" of {_count(self.ingredient_draws, 'set')} of ingredients" if self.shares_ingredients else ""
        stocks = f" on each of {self.stocks} stocks" if self.stocks > 1 else ""
        seeds = f"{_count(self.seeds, 'seed')}{sets}{stocks}"
        return f"{self.n} images, {_count(self.conditions, 'condition')} and {seeds}"


@dataclass(frozen=True, slots=True)
class Design:
    """Expected half-widths of studies of several sizes that compare rows `a` and `b`.

    `spread` is that of their difference, under all conditions of the pilot where there was one. `shared` holds what all
    records of the pilot have in common, by name.
    """

    a: str
    b: str
    level: float
    spread: Spread
    sizes: tuple[Size, ...]
    pilot: Pilot | None = None
    shared: Mapping[str, str] | None = None

    @property
    def caption(self) -> str:
        """What the numbers are, and from what."""
        where = f" on {self.shared['shift']}" if self.shared else ""
        source = self.pilot.words if self.pilot else f"the given spreads {_written(self.spread)}"
        return (
            f"{self.a} and {self.b}{where} · expected half-widths of {self.level:.0%} intervals, in points · "
            f"from {source}"
        )

    @property
    def notes(self) -> list[str]:
        """What is assumed."""
        notes = ["a true difference as large as the half-width is found in about half of such studies"]
        if self.pilot:
            notes.insert(0, "more images, conditions and seeds are taken to be like those of the pilot")
            notes.append(f"spread of the difference in the pilot, as --spread takes it: {_written(self.spread)}")
        if any(size.stocks > 1 for size in self.sizes):
            notes.append("of several stocks, each is one observation, as in `bench compare --across-stocks`")
        if any(size.seeds == size.stocks == 1 for size in self.sizes):
            notes.append("with one seed, intervals speak of that seed only")
        if any(size.ingredient_draws == 1 < size.seeds and size.stocks == 1 for size in self.sizes):
            notes.append("with one set of ingredients, intervals speak of that set only")
        for draws, what in self._draws():
            low, high = _range_of_spread(draws - 1)
            notes.append(
                f"the spread over {what} is known from {draws}: the true one may be {low:.1f} to {high:.1f} times "
                "what was seen (90 % range)"
            )
        return notes

    def _draws(self) -> list[tuple[int, str]]:
        """The draws of which the pilot has several, by what is drawn."""
        if self.pilot is None:
            return []
        several = [
            (self.pilot.stocks, "stocks"),
            (self.pilot.ingredient_draws if self.pilot.shares_ingredients else 1, "sets of ingredients"),
            (self.pilot.seeds, "seeds"),
        ]
        return [(draws, what) for draws, what in several if draws > 1]


def design(
    records: Sequence[Record],
    a: str,
    b: str,
    predictions: ReadPredictions,
    *,
    n: Sequence[int] = (),
    conditions: Sequence[int] = (),
    seeds: Sequence[int] = (),
    ingredient_draws: Sequence[int] = (),
    stocks: Sequence[int] = (),
    level: float = 0.95,
) -> Design:
    """Expected half-widths of the intervals of `compare_rows` and of the board, for all combinations of sizes.

    The records are a pilot of one stock or several, whose seeds may share ingredients. By default the pilot's size,
    twice and four times its images, and with two seeds or more also 3, 5 and 10 seeds, or, where seeds share
    ingredients, twice and four times their sets with as many seeds each.

    Variances are those of `leaderboards.variance.components`, once for single conditions and once for their mean, which
    gives the share of each that falls with conditions. Raises BoardError as `compare_rows`, if images differ between
    conditions, or if the pilot says nothing about a size.
    """
    found = [_on_one_stock(own, a, b, predictions, level) for own in by_stock(records, a, b)]
    first = found[0]
    if any(each.ids != first.ids or each.shared != first.shared for each in found):
        raise BoardError("the stocks of a pilot need one shift, protocol and split and the same images; filter --where")
    pilot = _pilot_of(found)
    wanted = (n or (pilot.n, 2 * pilot.n, 4 * pilot.n), conditions or (pilot.conditions,), stocks or (pilot.stocks,))
    draws = _pairs(seeds, ingredient_draws, pilot)
    _check_sizes(*wanted, draws, pilot)
    parts = [_Parts.of([each.nested(each.tables[row]) for each in found]) for row in (-1, 0, 1)]
    shares = [None, *(float(np.mean([each.tables[row].mean() for each in found])) for row in (0, 1))]
    sizes = []
    for images, of_conditions, of_stocks, (labels, sets) in product(*wanted, draws):
        counts = Counts(images, of_stocks, sets, labels)
        halves = [
            half_width(part.under(of_conditions), counts, level, share)
            for part, share in zip(parts, shares, strict=True)
        ]
        sizes.append(Size(images, of_conditions, labels, sets, of_stocks, *halves))  # type: ignore[arg-type]
    spread = Spread.of(parts[0].under(pilot.conditions))
    names = [row.name for row in first.rows]
    shared = dict(first.shared) | {"model": ", ".join(dict.fromkeys(each.board.model for each in found))}
    return Design(names[0], names[1], level, spread, tuple(sizes), pilot, shared)


def planned(
    a: str,
    b: str,
    spread: Spread,
    *,
    n: Sequence[int],
    seeds: Sequence[int] = (1,),
    ingredient_draws: Sequence[int] = (),
    stocks: Sequence[int] = (1,),
    level: float = 0.95,
) -> Design:
    """Expected half-widths of the interval of a difference with a given spread, before anything is run.

    By default each seed draws its own ingredients. Raises BoardError for sizes that no study has.
    """
    draws = _combined(seeds, ingredient_draws)
    _check_positive(n, stocks, draws)
    sizes = []
    for images, of_stocks, (labels, sets) in product(n, stocks, draws):
        half = half_width(spread.variances, Counts(images, of_stocks, sets, labels), level)
        sizes.append(Size(images, None, labels, sets, of_stocks, half or 0.0, None, None))
    return Design(a, b, level, spread, tuple(sizes))


def _pairs(seeds: Sequence[int], ingredient_draws: Sequence[int], pilot: Pilot) -> list[tuple[int, int]]:
    """Return (label draws, draws of ingredients) of each size, by default as `design` says."""
    if seeds or ingredient_draws:
        return _combined(seeds or (pilot.seeds,), ingredient_draws)
    if pilot.shares_ingredients:
        each = max(1, pilot.seeds // pilot.ingredient_draws)
        times = (1, 2, 4) if pilot.ingredient_draws > 1 else (1,)
        return [(more * pilot.ingredient_draws * each, more * pilot.ingredient_draws) for more in times]
    return [(count, count) for count in (sorted({pilot.seeds, 3, 5, 10}) if pilot.seeds > 1 else (1,))]


def _combined(seeds: Sequence[int], ingredient_draws: Sequence[int]) -> list[tuple[int, int]]:
    if not ingredient_draws:
        return [(labels, labels) for labels in seeds]
    for labels, sets in product(seeds, ingredient_draws):
        if sets < 1 or labels % sets:
            raise BoardError(
                f"{labels} label draws cannot be divided among {sets} sets of ingredients; give multiples of them"
            )
    return list(product(seeds, ingredient_draws))


def _check_positive(n: Sequence[int], others: Sequence[int], draws: Sequence[tuple[int, int]]) -> None:
    if min(n) < 2 or min(*others, *(min(pair) for pair in draws), 1) < 1:
        raise BoardError(
            "a study needs two images, one condition, one stock and one seed at least; give larger numbers"
        )


def _check_sizes(
    n: Sequence[int],
    conditions: Sequence[int],
    stocks: Sequence[int],
    draws: Sequence[tuple[int, int]],
    pilot: Pilot,
) -> None:
    _check_positive((*n, pilot.n), (*conditions, *stocks), draws)
    if pilot.stocks < 2 and max(stocks) > 1:
        raise BoardError("a pilot of one stock says nothing about others; add records of more, or give --spread")
    if pilot.seeds < 2 and max(labels for labels, _ in draws) > 1:
        raise BoardError(
            "a pilot of one seed says nothing about the spread over seeds; run two or more, or use --seeds 1"
        )
    if pilot.shares_ingredients:
        untold = pilot.ingredient_draws < 2 and any(sets > 1 for _, sets in draws)
    else:
        untold = any(sets < labels for labels, sets in draws)
    if untold:
        raise BoardError(
            "labels and ingredients cannot be told apart in this pilot; run one with several label draws of several "
            "sets, as --label-draws 4 --ingredient-draws 2, or give --spread"
        )
    if pilot.conditions < 2 and max(conditions) > 1:
        raise BoardError("a pilot of one condition says nothing about others; run two or more, or use --conditions 1")


@dataclass(frozen=True, eq=False, slots=True)
class _OnOneStock:
    """The outcomes of both rows on one stock, [seeds, conditions, images], and their difference as the last table."""

    board: Board
    rows: tuple[BoardRow, BoardRow]
    ids: tuple[int, ...]
    tables: tuple[Floats, Floats, Floats]
    draws: tuple[int, ...]

    @property
    def shared(self) -> dict[str, str]:
        return {name: getattr(self.board, name) for name in _SHARED if name != "model"}

    @property
    def groups(self) -> list[int]:
        """The draws of ingredients; one where all seeds draw their own, whose spread is then that of both."""
        return sorted(set(self.draws)) or [0]

    def nested(self, table: Floats) -> list[Floats]:
        """Cut a table by draws of ingredients."""
        which = np.array(self.draws or (0,) * len(table))
        return [table[which == group] for group in self.groups]


def _on_one_stock(records: Sequence[Record], a: str, b: str, predictions: ReadPredictions, level: float) -> _OnOneStock:
    chosen, board, rows = choose_rows(records, a, b, level)
    (one, ids, own), (other, ids_b, own_b) = (_table(row, chosen, predictions) for row in rows)
    if one.shape != other.shape or ids != ids_b:
        raise BoardError(f"{a} and {b} have different seeds or images; keep those that both have with --where")
    draws = join_draws([*own, *own_b], len(one))
    return _OnOneStock(board, rows, ids, (one, other, one - other), draws)


def _pilot_of(found: Sequence[_OnOneStock]) -> Pilot:
    tables = [each.tables[0] for each in found]
    if len({table.shape[1:] for table in tables}) > 1:
        raise BoardError("the stocks of a pilot need the same conditions and images; keep those that all have")
    seeds, conditions, images = min(table.shape for table in tables)
    shares = any(each.draws for each in found)
    sets = min(len(each.groups) if shares else len(each.tables[0]) for each in found)
    return Pilot(images, conditions, seeds, sets, len(found), shares)


def _table(
    row: BoardRow, records: Sequence[Record], predictions: ReadPredictions
) -> tuple[Floats, tuple[int, ...], list[tuple[int, ...]]]:
    """Return outcomes [seeds, conditions, images] of a row, in the order of seeds, conditions and image ids; the ids;
    and the draws of ingredients of its seeds, once for each line that it averages.
    """
    keys = {key for cell in row.cells if cell.corruption is not None for key in cell.keys}
    lines: dict[object, dict[tuple[int, str, float], NDArray[np.bool_]]] = defaultdict(dict)
    draws: dict[object, dict[int, int]] = defaultdict(dict)
    ids: NDArray[np.int64] | None = None
    for record in sorted((r for r in records if r.key in keys), key=lambda r: (r.seed, r.corruption or "", r.severity)):
        read = outcomes_of(record, predictions)
        order = np.argsort(read.ids)
        ids = read.ids[order] if ids is None else ids
        if not np.array_equal(read.ids[order], ids) or len(np.unique(ids)) != len(ids):
            raise BoardError("a design needs the same images in all conditions; take a pilot that resets at each shift")
        lines[line_of(record)][record.seed, record.corruption or "", record.severity] = read.hits[order]
        draws[line_of(record)][record.seed] = draw_of(record)
    tables = [np.stack(list(own.values())).reshape(len(row.seeds), -1, row.n or 0) for own in lines.values()]
    mean: Floats = np.mean(tables, axis=0)
    known = () if ids is None else tuple(ids.tolist())
    return mean, known, [tuple(own.values()) for own in draws.values()]


@dataclass(frozen=True, slots=True)
class _Parts:
    """Variances of one outcome, as `components` gives them: what all conditions share, and what falls with them."""

    shared: Floats
    single: Floats

    @staticmethod
    def of(stocks: Sequence[Sequence[Floats]]) -> _Parts:
        """Of outcomes [label draws, conditions, images] for each draw of ingredients of each stock."""
        count = stocks[0][0].shape[1]

        def of(take: Callable[[Floats], Floats]) -> Floats:
            return components([[take(table) for table in stock] for stock in stocks])

        of_mean = of(lambda table: table.mean(axis=1))
        if count == 1:
            return _Parts(np.zeros_like(of_mean), of_mean)
        each = np.mean([of(lambda table, j=j: table[:, j]) for j in range(count)], axis=0)  # type: ignore[misc]
        single = np.maximum(0, (each - of_mean) / (1 - 1 / count))
        return _Parts(of_mean - single / count, single)

    def under(self, conditions: int) -> Floats:
        """The variances of a mean over this number of conditions."""
        return np.maximum(0, self.shared + self.single / conditions)


def _range_of_spread(freedom: int) -> tuple[float, float]:
    """Return factors between which the true spread lies around one seen with these degrees of freedom, in 90 %."""
    from scipy.special import chdtri

    return float(np.sqrt(freedom / chdtri(freedom, 0.05))), float(np.sqrt(freedom / chdtri(freedom, 0.95)))


def renderings(found: Design) -> dict[str, Callable[[], Any]]:
    """Return what makes the design in each format.

    Tables are in points; CSV (a line for each size, empty where no interval is expected) and JSON (with the size of the
    pilot and what is assumed) are in full precision, as fractions.
    """
    content = {
        **(found.shared or {}),
        "level": found.level,
        "a": found.a,
        "b": found.b,
        "pilot": found.pilot and asdict(found.pilot),
        "spread": asdict(found.spread),
        "sizes": _lines(found),
        "notes": found.notes,
    }
    return grid.renderings(_grid(found), _lines(found), content)


def _lines(found: Design) -> list[dict[str, float | None]]:
    return [asdict(size) for size in found.sizes]


def _grid(found: Design) -> Grid:
    sizes = found.sizes
    columns: list[tuple[str, Callable[[Size], str]]] = [("images", lambda size: str(size.n))]
    if found.pilot:
        columns.append(("conditions", lambda size: str(size.conditions)))
    if any(size.stocks > 1 for size in sizes):
        columns.append(("stocks", lambda size: str(size.stocks)))
    if any(size.ingredient_draws != size.seeds for size in sizes):
        columns.append(("ingredient draws", lambda size: str(size.ingredient_draws)))
        columns.append(("label draws", lambda size: str(size.seeds)))
    else:
        columns.append(("seeds", lambda size: str(size.seeds)))
    columns.append(("difference", lambda size: _points(size.difference)))
    if found.pilot:
        columns += [(found.a, lambda size: _points(size.a)), (found.b, lambda size: _points(size.b))]
    return Grid(
        caption=found.caption,
        titles=[title for title, _ in columns],
        rows=[[cell(size) for _, cell in columns] for size in sizes],
        numbers=[True] * len(columns),
        groups=frozenset(i for i, size in enumerate(sizes) if i and size.n != sizes[i - 1].n),
        notes=found.notes,
    )


def _written(spread: Spread) -> str:
    """Return the spread as the option takes it, in points, without what is zero."""
    return ",".join(f"{name}={100 * value:.3g}" for name, value in asdict(spread).items() if value >= 5e-6)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _points(half: float | None) -> str:
    return ABSENT if half is None else f"±{100 * half:.1f}"
