"""What a comparison of a given size could show: expected half-widths of its intervals, from a pilot."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leaderboards import grid
from leaderboards.boards import Board, BoardError, BoardRow
from leaderboards.comparable import line_of
from leaderboards.compare import choose_rows
from leaderboards.grid import ABSENT, Grid
from leaderboards.ranking import ReadPredictions, outcomes_of
from leaderboards.record import Record
from leaderboards.uncertainty import FEWEST

_NODES = 200  # quantiles over which a half-width is averaged


@dataclass(frozen=True, slots=True)
class Size:
    """A study of `n` images under `conditions` conditions with `seeds` seeds, and the half-widths that it expects.

    Fractions: `difference` of the paired difference, `a` and `b` of the accuracy of each row, None where too few images
    would be right or wrong for an interval.
    """

    n: int
    conditions: int
    seeds: int
    difference: float
    a: float | None
    b: float | None


@dataclass(frozen=True, slots=True)
class Design:
    """Expected half-widths of studies of several sizes, from a pilot in which rows `a` and `b` were measured.

    `images`, `conditions` and `seeds` are the size of the pilot.
    """

    board: Board
    a: BoardRow
    b: BoardRow
    images: int
    conditions: int
    seeds: int
    sizes: tuple[Size, ...]

    @property
    def caption(self) -> str:
        """What the numbers are, and from what."""
        pilot = f"{self.images} images, {_count(self.conditions, 'condition')} and {_count(self.seeds, 'seed')}"
        return (
            f"{self.a.name} and {self.b.name} on {self.board.shift} · expected half-widths of {self.board.level:.0%} "
            f"intervals, in points · from {pilot}"
        )

    @property
    def notes(self) -> list[str]:
        """What is assumed."""
        notes = [
            "more images, conditions and seeds are taken to be like those of the pilot, drawn from the same source",
            "a true difference as large as the half-width is found in about half of such studies",
        ]
        if any(size.seeds == 1 for size in self.sizes):
            notes.append("with one seed, intervals speak of that seed only")
        if self.seeds > 1:
            low, high = _range_of_spread(self.seeds - 1)
            notes.append(
                f"the spread over seeds is known from {self.seeds}: the true one may be {low:.1f} to {high:.1f} times "
                "what was seen (90 % range)"
            )
        return notes


def design(
    records: Sequence[Record],
    a: str,
    b: str,
    predictions: ReadPredictions,
    *,
    n: Sequence[int] = (),
    conditions: Sequence[int] = (),
    seeds: Sequence[int] = (),
    level: float = 0.95,
) -> Design:
    """Expected half-widths of the intervals of `compare_rows` and of the board, for all combinations of sizes.

    By default the pilot's size, twice and four times its images, and with two seeds or more also 3, 5 and 10 seeds. The
    variance of a mean over images, conditions and seeds has parts that fall with images, with seeds and with both; each
    is estimated by a two-way analysis of variance (Searle, Casella & McCulloch 1992, Variance components, chapter 4),
    once for single conditions and once for their mean, which gives the share of it that falls with conditions. Raises
    BoardError as `compare_rows`, or if images differ between conditions or the pilot says nothing about a size.
    """
    chosen, board, rows = choose_rows(records, a, b, level)
    tables = [_table(row, chosen, predictions) for row in rows]
    if tables[0].shape != tables[1].shape:
        raise BoardError(f"{a} and {b} have different seeds; keep those that both have with --where")
    of_seeds, of_conditions, images = tables[0].shape
    n = n or (images, 2 * images, 4 * images)
    seeds = seeds or (sorted({of_seeds, 3, 5, 10}) if of_seeds > 1 else (1,))
    conditions = conditions or (of_conditions,)
    _check_sizes(n, conditions, seeds, tables[0].shape)
    parts = [_Parts.of(table) for table in (tables[0] - tables[1], *tables)]
    shares = [None, *(float(table.mean()) for table in tables)]
    sizes = [
        Size(*size, *(part.half_width(*size, level, share) for part, share in zip(parts, shares, strict=True)))  # type: ignore[arg-type]
        for size in product(n, conditions, seeds)
    ]
    return Design(board, *rows, images, of_conditions, of_seeds, tuple(sizes))


def _check_sizes(n: Sequence[int], conditions: Sequence[int], seeds: Sequence[int], pilot: tuple[int, ...]) -> None:
    of_seeds, of_conditions, images = pilot
    if min(*n, images) < 2 or min(*conditions, *seeds) < 1:
        raise BoardError("a study needs two images, one condition and one seed at least; give larger numbers")
    if of_seeds < 2 and max(seeds) > 1:
        raise BoardError(
            "a pilot of one seed says nothing about the spread over seeds; run two or more, or use --seeds 1"
        )
    if of_conditions < 2 and max(conditions) > 1:
        raise BoardError("a pilot of one condition says nothing about others; run two or more, or use --conditions 1")


def _table(row: BoardRow, records: Sequence[Record], predictions: ReadPredictions) -> NDArray[np.float64]:
    """Return outcomes [seeds, conditions, images] of a row, in the order of seeds, conditions and image ids."""
    keys = {key for cell in row.cells if cell.corruption is not None for key in cell.keys}
    lines: dict[object, dict[tuple[int, str, float], NDArray[np.bool_]]] = defaultdict(dict)
    ids: NDArray[np.int64] | None = None
    for record in sorted((r for r in records if r.key in keys), key=lambda r: (r.seed, r.corruption or "", r.severity)):
        read = outcomes_of(record, predictions)
        order = np.argsort(read.ids)
        ids = read.ids[order] if ids is None else ids
        if not np.array_equal(read.ids[order], ids) or len(np.unique(ids)) != len(ids):
            raise BoardError("a design needs the same images in all conditions; take a pilot that resets at each shift")
        lines[line_of(record)][record.seed, record.corruption or "", record.severity] = read.hits[order]
    tables = [np.stack(list(own.values())).reshape(len(row.seeds), -1, row.n or 0) for own in lines.values()]
    mean: NDArray[np.float64] = np.mean(tables, axis=0)
    return mean


@dataclass(frozen=True, slots=True)
class _Parts:
    """Variances [images, seeds, noise] of one outcome: what all conditions share, and what falls with their number."""

    shared: NDArray[np.float64]
    single: NDArray[np.float64]

    @staticmethod
    def of(table: NDArray[np.float64]) -> _Parts:
        count = table.shape[1]
        of_mean = _two_way(table.mean(axis=1))
        if count == 1:
            return _Parts(np.zeros(3), of_mean)
        each = np.mean([_two_way(table[:, j]) for j in range(count)], axis=0)
        single = np.maximum(0, (each - of_mean) / (1 - 1 / count))
        return _Parts(of_mean - single / count, single)

    def half_width(self, n: int, conditions: int, seeds: int, level: float, share: float | None) -> float | None:
        """Expected half-width of an interval; None if an accuracy `share` would have too few images for one."""
        from scipy.special import chdtri, stdtrit

        images, over_seeds, noise = np.maximum(0, self.shared + self.single / conditions) / [n, seeds, n * seeds]
        if share is not None and min(share, 1 - share) * share * (1 - share) < FEWEST * (images + noise):
            return None
        upper = (1 + level) / 2
        if seeds == 1:
            return float(stdtrit(n - 1, upper) * np.sqrt(images + noise))
        # The spread that a study sees is its own: the half-width is averaged over it.
        seen = chdtri(seeds - 1, (np.arange(_NODES) + 0.5) / _NODES) / (seeds - 1)
        of_seeds = stdtrit(seeds - 1, upper) * np.sqrt((over_seeds + noise) * seen)
        halves = np.hypot(stdtrit(n - 1, upper) * np.sqrt(images), of_seeds)
        if share is None:  # never narrower than over images alone
            return float(np.maximum(halves, stdtrit(n - 1, upper) * np.sqrt(images + noise)).mean())
        return float((np.minimum(halves, share) + np.minimum(halves, 1 - share)).mean() / 2)  # limits in [0, 1]


def _two_way(table: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the variances [images, seeds, noise] of outcomes [seeds, images]; with one seed all is the images'."""
    seeds, n = table.shape
    if seeds == 1:
        return np.array([table[0].var(ddof=1), 0.0, 0.0])
    of_image, of_seed = table.mean(axis=0), table.mean(axis=1)
    rest = table - of_image - of_seed[:, None] + table.mean()
    noise = float(np.square(rest).sum()) / ((seeds - 1) * (n - 1))
    return np.array([of_image.var(ddof=1) - noise / seeds, of_seed.var(ddof=1) - noise / n, noise])


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
        **{name: getattr(found.board, name) for name in ("shift", "model", "protocol", "split", "level")},
        "a": found.a.name,
        "b": found.b.name,
        "pilot": {"n": found.images, "conditions": found.conditions, "seeds": found.seeds},
        "sizes": _lines(found),
        "notes": found.notes,
    }
    return grid.renderings(_grid(found), _lines(found), content)


def _lines(found: Design) -> list[dict[str, float | None]]:
    names = ("n", "conditions", "seeds", "difference", "a", "b")
    return [{name: getattr(size, name) for name in names} for size in found.sizes]


def _grid(found: Design) -> Grid:
    sizes = found.sizes
    return Grid(
        caption=found.caption,
        titles=["images", "conditions", "seeds", "difference", found.a.name, found.b.name],
        rows=[
            [str(s.n), str(s.conditions), str(s.seeds), *(_points(half) for half in (s.difference, s.a, s.b))]
            for s in sizes
        ],
        numbers=[True] * 6,
        groups=frozenset(i for i, size in enumerate(sizes) if i and size.n != sizes[i - 1].n),
        notes=found.notes,
    )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _points(half: float | None) -> str:
    return ABSENT if half is None else f"±{100 * half:.1f}"
