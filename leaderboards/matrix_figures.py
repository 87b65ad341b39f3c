"""Figures of methods against boards: critical differences of mean ranks, a heat map, and a line for each method."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from leaderboards.escaping import one_line
from leaderboards.figures import (
    INK,
    MARKERS,
    MOST_LINES,
    MOST_ROWS,
    heat_map,
    legend_beside,
    new_figure,
    palette,
    room_for,
)
from leaderboards.friedman import Friedman
from leaderboards.matrix import Matrix, MatrixRow, RankTest
from leaderboards.matrix_tables import alike

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TITLES = {
    "critical-difference": "Critical differences of mean ranks",
    "matrix-heatmap": "Accuracy in each column",
    "parallel-coordinates": "Methods across columns",
}
_BESIDE: Any = {"textcoords": "offset points", "annotation_clip": False}  # a text beside a point, also off the axes
_LONGEST = 44  # letters of a name; more leave no room for the drawing
_LINE = 0.24  # height of a name or a bar in a diagram of critical differences, in inches
_EDGE = 0.75  # height of its heading, its axis and its margins


def figures(made: Matrix, tests: Sequence[RankTest]) -> dict[str, Figure]:
    """Return all figures for which there are numbers, by name."""
    found = {
        "critical-difference": critical_difference(tests),
        "matrix-heatmap": heatmap(made),
        "parallel-coordinates": parallel_coordinates(made),
    }
    return {name: figure for name, figure in found.items() if figure is not None}


def caption_of(name: str, made: Matrix, tests: Sequence[RankTest]) -> str:
    """Return what a figure shows, in sentences; that of critical differences names the groups that it joins."""
    if name == "parallel-coordinates":
        best = f" At most {MOST_LINES} methods, the best by mean rank." if len(_lines(made)) < len(made.rows) else ""
        return f"Accuracy in percent; a line breaks where a method was not run or is incomplete.{best}"
    if name == "matrix-heatmap":
        return "Accuracy in percent; hatched: not run or incomplete."
    done = [(test, test.found) for test in tests if isinstance(test.found, Friedman)]
    groups = [f"{test.name}: {alike(found) or 'all differ'}" for test, found in done]
    return (
        "Mean rank of each method (1 is the best); a bar joins methods whose mean ranks do not differ significantly. "
        f"Not significantly different, {'. '.join(groups)}."
    )


def critical_difference(tests: Sequence[RankTest]) -> Figure | None:
    """Mean ranks on a line, and bars over methods without a significant difference (Demsar 2006, figure 1).

    A panel for each test that was done; None if there is none.
    """
    done = [(test, test.found) for test in tests if isinstance(test.found, Friedman)]
    if not done:
        return None
    heights = [_EDGE + _LINE * (_depth(found) + _above(found)) for _, found in done]

    def draw(*panels: Axes) -> None:
        for axes, (test, found) in zip(panels, done, strict=True):
            _ranks_on_line(axes, test, found)

    names = [_short(name) for _, found in done for name in found.names]
    return new_figure(draw, (7 + 2 * room_for(names, 18), sum(heights)), heights)


def heatmap(made: Matrix) -> Figure | None:
    """Accuracy of each method in each column; None if there is no number."""
    rows = [row for row in made.rows if any(accuracies(row))][:MOST_ROWS]
    if not rows:
        return None
    return heat_map([accuracies(row) for row in rows], list(map(_short, made.titles)), [full_name(row) for row in rows])


def parallel_coordinates(made: Matrix) -> Figure | None:
    """Accuracy of the best methods against the columns, with a gap where one is missing; None with one column."""
    rows = _lines(made)
    if len(made.titles) < 2 or not rows:
        return None

    def draw(axes: Axes) -> None:
        places = range(len(made.titles))
        for row, colour, marker in zip(rows, palette(len(rows)), MARKERS, strict=False):
            values = [float("nan") if value is None else 100 * value for value in accuracies(row)]
            axes.plot(places, values, color=colour, marker=marker, label=full_name(row))
        axes.set_xticks(places, list(map(_short, made.titles)), rotation=30, ha="right", rotation_mode="anchor")
        axes.set(ylabel="accuracy in %")
        legend_beside(axes)

    width = max(7.0, 3.4 + 0.8 * len(made.titles)) + room_for([full_name(row) for row in rows], 25)
    return new_figure(draw, (width, 4.2 + 0.5 * room_for(list(map(_short, made.titles)), 18)))


def _lines(made: Matrix) -> list[MatrixRow]:
    """Return the rows of the best methods in their order: the first of each group, then the second, and so on."""
    groups = [[row for row in own if any(accuracies(row))] for _, own in made.groups()]
    by_place = [(place, row) for own in groups for place, row in enumerate(own)]
    kept = {row.key for _, row in sorted(by_place, key=lambda found: found[0])[:MOST_LINES]}
    return [row for row in made.rows if row.key in kept]


def accuracies(row: MatrixRow) -> list[float | None]:
    """Return the accuracy of a row in each column, None where it is missing."""
    return [None if cell.row is None else cell.row.accuracy for cell in row.cells]


def full_name(row: MatrixRow) -> str:
    """Return method, track and section of a row."""
    return _short(f"{row.name} ({row.track})" + (f", {row.section}" if row.section else ""))


def _short(text: str) -> str:
    """Return a text that leaves room for the drawing, with what is invisible written out; what is cut is marked."""
    text = one_line(text)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


def _depth(found: Friedman) -> int:
    """Return the number of lines below the axis: those of the bars and those of the longer side of names."""
    return len(_bars(found)) + (len(found.names) + 1) // 2


def _above(found: Friedman) -> float:
    """Return the number of lines above the axis, for the critical difference as a scale."""
    return 0.0 if found.critical is None or not found.significant else 1.9


def _bars(found: Friedman) -> list[list[tuple[int, int]]]:
    """Return the groups in as few lines as keep those of one line apart."""
    lines: list[list[tuple[int, int]]] = []
    for group in found.groups:
        line = next((line for line in lines if line[-1][1] < group[0]), None)
        if line is None:
            lines.append(line := [])
        line.append(group)
    return lines


def _ranks_on_line(axes: Axes, test: RankTest, found: Friedman) -> None:
    """Draw a diagram: the best to the left, the better half named on the left side."""
    count, bars = len(found.names), _bars(found)
    axes.set(xlim=(1, count), ylim=(-_depth(found) - 0.3, _above(found)))
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.spines["top"].set(visible=True, position=("data", 0))
    axes.set_yticks([])
    axes.xaxis.tick_top()
    axes.set_xticks(range(1, count + 1))
    axes.set_title(_heading(test, found), loc="left", pad=8)
    if found.critical is not None and found.significant:
        scale = [1, 1 + found.critical]
        axes.plot(scale, [_above(found) - 0.3] * 2, color=INK, linewidth=1.2, marker="|", clip_on=False)
        said = f"critical difference {found.critical:.2f}"
        axes.annotate(said, (scale[1], _above(found) - 0.3), (6, 0), va="center", **_BESIDE)
    for number, line in enumerate(bars):
        for first, last in line:
            ends = [found.ranks[first] - 0.008 * count, found.ranks[last] + 0.008 * count]
            axes.plot(ends, [-number - 0.6] * 2, linewidth=4, color=palette(1)[0], solid_capstyle="butt", clip_on=False)
    half = (count + 1) // 2
    for place, (name, rank) in enumerate(zip(found.names, found.ranks, strict=True)):
        left = place < half
        depth = -len(bars) - 0.6 - (place if left else count - 1 - place)
        edge = 1 - 0.02 * (count - 1) if left else count + 0.02 * (count - 1)
        axes.plot([rank, rank, edge], [0, depth, depth], linewidth=0.8, color=INK, clip_on=False)
        short = _short(name)
        text, side, gap = (f"{short}  {rank:.2f}", "right", -4) if left else (f"{rank:.2f}  {short}", "left", 4)
        axes.annotate(text, (edge, depth), (gap, 0), ha=side, va="center", **_BESIDE)


def _heading(test: RankTest, found: Friedman) -> str:
    how = "Holm" if found.critical is None else "Nemenyi"
    after = f"{how}, {100 * found.alpha:.2g} %" if found.significant else "pairs not tested"
    return f"{_short(test.name)}: {test.count} {test.blocks}, Friedman p = {found.p:.2g}; {after}"
