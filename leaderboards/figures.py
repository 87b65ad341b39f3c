"""Figures of a board: methods by track, severity curves, method by corruption, cost and accuracy, parts of a soup.

Colours are seaborn's colour-blind safe ones; markers tell series apart without them. Figures are matplotlib objects,
drawn without a display and without changing its global settings.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal

from leaderboards import heat
from leaderboards.board_data import INGREDIENT, MEANING, REFERENCE, TRACKS, BoardData, BoardRow

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_LINES = 8  # more series cannot be distinguished
MOST_ROWS = 30  # readable rows of a heat map
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
INK = "#010203"  # stands for the text colour of a page; no palette has it
_STYLE: Any = {
    "text.parse_math": False,  # a dollar in a name is a dollar
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    **{f"{part}.color": INK for part in ("text", "xtick", "ytick")},
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "axes.titlesize": 10,
    "legend.frameon": False,
}


def severity_curves(board: BoardData) -> Figure | None:
    """Mean accuracy over corruptions against severity, clean at 0, of the best methods; None with one severity only."""
    rows = _best(board)
    if len(board.severities) < 2 or not rows:
        return None

    def draw(axes: Axes) -> None:
        for row, colour, marker in zip(rows, palette(len(rows)), MARKERS, strict=False):
            points = [(s, row.at_severity(s)) for s in board.severities]
            if row.clean_accuracy is not None:
                points.insert(0, (0.0, row.clean_accuracy))
            axes.plot(
                [s for s, _ in points],
                [100 * (value or 0) for _, value in points],
                color=colour,
                marker=marker,
                label=f"{row.name} ({row.track})",
            )
        axes.set(xlabel="severity (0 is clean)", ylabel="accuracy in %")
        axes.set_xticks([0, *board.severities])
        legend_beside(axes)

    return new_figure(draw, (7, 3.8))


def methods_by_track(board: BoardData) -> Figure | None:
    """Mean accuracy of each method with its interval, best first within its track; None if no row is complete."""
    rows = [row for row in board.rows if row.main and row.accuracy is not None]
    if not rows:
        return None
    tracks = [track for track in TRACKS if any(row.track == track for row in rows)]
    source = next((row for row in rows if row.name == REFERENCE), None)

    def draw(axes: Axes) -> None:
        names: list[str] = []
        for track, colour, marker in zip(tracks, palette(len(tracks)), MARKERS, strict=False):
            axes.annotate(
                *(f"{track}: {MEANING[track]}", (0, len(names))),
                xycoords=axes.get_yaxis_transform(),
                xytext=(4, 0),
                textcoords="offset points",
                va="center",
                weight="bold",
            )
            names.append("")
            for row in sorted((row for row in rows if row.track == track), key=lambda row: -(row.accuracy or 0)):
                _point(axes, len(names), row, colour, marker)
                names.append(row.name)
        if source is not None:
            axes.axvline(100 * (source.accuracy or 0), color=INK, linewidth=0.8, linestyle=":")
        axes.set_yticks(range(len(names)), names)
        axes.set_ylim(len(names) - 0.5, -0.7)
        axes.tick_params(axis="y", length=0)
        axes.set(xlabel="accuracy in %" + (", dotted: the source classifier" if source else ""))
        axes.grid(axis="x", alpha=0.3)

    return new_figure(draw, (7, 1 + 0.19 * (len(rows) + len(tracks))))


def corruption_heatmap(board: BoardData) -> Figure | None:
    """Accuracy of each method under each corruption, best rows first; None if no row is complete."""
    rows = [row for row in board.rows if row.accuracy is not None][:MOST_ROWS]
    if not rows or not board.corruptions:
        return None

    values = [[row.per_corruption[name] for name in board.corruptions] for row in rows]
    names = [f"{row.name} ({row.track})" for row in rows]
    return heat_map(values, list(board.corruptions), names)


def pareto_front(rows: Iterable[BoardRow]) -> list[BoardRow]:
    """Return the rows whose accuracy no other row reaches without more passes for each image, cheapest first.

    The rows must be of one track, since other tracks see other data. Rows without accuracy or cost are left out.
    """
    known = [row for row in rows if row.accuracy is not None and row.forwards]
    front: list[BoardRow] = []
    for row in sorted(known, key=lambda row: (_passes(row), -(row.accuracy or 0), row.name)):
        if not front or (row.accuracy or 0) > (front[-1].accuracy or 0):
            front.append(row)
    return front


def cost_accuracy(board: BoardData) -> Figure | None:
    """Accuracy with its interval against passes for each image, and the Pareto front of each track; None without costs.

    A backward pass counts as two forward passes (Kaplan et al. 2020, Scaling laws for neural language models, section
    2.1). Training is excluded: its cost does not depend on the number of images.
    """
    rows = _costed(board)
    if not rows:
        return None

    def draw(axes: Axes) -> None:
        tracks = [track for track in TRACKS if any(row.track == track for row in rows)]
        fronts: list[BoardRow] = []
        for track, colour, marker in zip(tracks, palette(len(tracks)), MARKERS, strict=False):
            own = [row for row in rows if row.track == track]
            for row in own:
                if row.interval is not None:
                    limits = [100 * row.interval.low, 100 * row.interval.high]
                    axes.plot([_passes(row)] * 2, limits, color=colour, linewidth=1, alpha=0.5)
            axes.plot(
                [_passes(row) for row in own],
                [100 * (row.accuracy or 0) for row in own],
                color=colour,
                marker=marker,
                linestyle="",
                label=f"track {track}",
            )
            fronts += (front := pareto_front(own))
            xs, ys = [_passes(row) for row in front], [100 * (row.accuracy or 0) for row in front]
            axes.step(xs, ys, where="post", color=colour, linewidth=0.8, linestyle="--")
        if len(fronts) > len(tracks):
            axes.plot([], [], color=INK, linewidth=0.8, linestyle="--", label="Pareto front of a track")
        _name_points(axes, fronts if len(rows) > 2 * MOST_LINES else rows)
        axes.set_xscale("log", base=2)
        axes.margins(x=0.3)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.set(
            xlabel="forward passes for each image, a backward one counted as two (log scale)",
            ylabel="accuracy in %",
        )
        legend_beside(axes)

    return new_figure(draw, (7, 4.2))


def soup_anatomy(board: BoardData) -> Figure | None:
    """Accuracy of a Self-Soup, its ingredients, their mean and best, and the source; None if no row has ingredients.

    Other ways to mix the same ingredients (greedy, wise and so on) are shown beside the soup.
    """
    methods = list(dict.fromkeys(r.method for r in board.rows if _ingredient(r) and r.accuracy is not None))
    if not methods:
        return None

    def draw(axes: Axes) -> None:
        sources = [row for row in board.rows if row.name == "source" and row.accuracy is not None]
        blue, orange, green, red, *_ = palette(8)
        names: list[str] = []
        for row in sources:
            _point(axes, len(names), row, red, "D")
            names.append("source (stock)")
        for method in methods:
            before = f"{method}: " if len(methods) > 1 else ""
            rows = [row for row in board.rows if row.method == method and row.accuracy is not None]
            ingredients = sorted((row for row in rows if _ingredient(row)), key=lambda row: row.accuracy or 0)
            others = sorted((row for row in rows if not _ingredient(row)), key=lambda row: row.accuracy or 0)
            for row in ingredients:
                _point(axes, len(names), row, blue, "o")
                best = " (best here)" if row is ingredients[-1] else ""
                names.append(f"{before}{(row.part or '').removeprefix(INGREDIENT)}{best}")
            for row in others:
                _point(axes, len(names), row, green if row.main else orange, "s" if row.main else "^")
                names.append(f"{before}{_of_soup(row)}")
        axes.set_yticks(range(len(names)), names)
        axes.set(xlabel="accuracy in %")
        axes.grid(axis="x", alpha=0.3)

    count = sum(row.method in methods or row.name == "source" for row in board.rows)
    return new_figure(draw, (7, 1.4 + 0.28 * count))


def _of_soup(row: BoardRow) -> str:
    """Return the standard name of a row that is no ingredient: "soup", "greedy soup", "mean of the ingredients"."""
    if row.part == "mean":
        return "mean of the ingredients"
    kind = (row.part or "").removeprefix("soup").removeprefix(":")
    return _NO_SOUPS.get(kind, f"{kind} soup" if kind else "the soup")


_NO_SOUPS = {"best": "ingredient best on held-out images", "ensemble": "ensemble of the ingredients"}


_FIGURES: dict[str, Callable[[BoardData], Figure | None]] = {
    "methods-by-track": methods_by_track,
    "severity-curves": severity_curves,
    "corruption-heatmap": corruption_heatmap,
    "cost-accuracy": cost_accuracy,
    "soup-anatomy": soup_anatomy,
}


TITLES = {
    "methods-by-track": "Methods by track",
    "severity-curves": "Accuracy against severity",
    "corruption-heatmap": "Accuracy by corruption",
    "cost-accuracy": "Cost and accuracy",
    "soup-anatomy": "What the soup is made of",
}
_CAPTIONS = {
    "methods-by-track": "Mean accuracy of each method, best first within its track; dotted: the source classifier.",
    "severity-curves": "Mean accuracy over corruptions at each severity, clean images at 0; the letter is the track.",
    "corruption-heatmap": "Accuracy in percent, mean over severities and seeds; the letter is the track.",
    "cost-accuracy": "Mean accuracy against passes of the network for each image, a backward pass counted as two "
    "forward ones; training before the stream is not counted. Dashed: the Pareto front of a track.",
    "soup-anatomy": "Mean accuracy of the soups, of their ingredients and of the source classifier.",
}
_WITH_BARS = ("methods-by-track", "cost-accuracy", "soup-anatomy")
# A page shows the heat map as a table, which can be searched, read aloud and scrolled.
ON_PAGE = ("severity-curves", "cost-accuracy", "soup-anatomy")


def caption_of(name: str, board: BoardData) -> str:
    """Return what a figure shows, in sentences."""
    bars = any(row.interval is not None for row in board.rows) and name in _WITH_BARS
    return _CAPTIONS[name] + (f" Bars: {100 * board.level:g} % intervals." if bars else "")


def figures(board: BoardData) -> dict[str, Figure]:
    """Return all figures for which this board has the numbers, by name."""
    return _made(board, _FIGURES)


def plot(board: BoardData, name: str) -> Figure:
    """Return one figure. Raises ValueError if its name is unknown or the board lacks the numbers for it."""
    if name not in _FIGURES:
        raise ValueError(f"there is no figure {name!r}; take one of {', '.join(_FIGURES)}")
    figure = _FIGURES[name](board)
    if figure is None:
        having = ", ".join(figures(board)) or "none"
        raise ValueError(f"this board lacks the numbers for {name}; it has those for {having}")
    return figure


def drawn(board: BoardData, *, on_page: bool = False) -> dict[str, bytes]:
    """Return the figures of a board as SVG for `to_inline_svg` and `to_file`; with `on_page` only those of a page."""
    return {name: to_svg(figure) for name, figure in _made(board, ON_PAGE if on_page else _FIGURES).items()}


def to_svg(figure: Figure) -> bytes:
    """Return the figure as SVG without ground, for `to_inline_svg` and `to_file`."""
    return _save(figure, "svg", transparent=True)


def _made(board: BoardData, names: Iterable[str]) -> dict[str, Figure]:
    made = {name: _FIGURES[name](board) for name in names}
    return {name: figure for name, figure in made.items() if figure is not None}


def to_bytes(figure: Figure, form: Literal["svg", "png", "pdf"]) -> bytes:
    """Return the figure as a file on white ground, without a date, so that equal boards give equal bytes."""
    return to_file(_save(figure, form, transparent=False))


def to_file(svg: bytes) -> bytes:
    """Return a figure of `drawn` for a file: black text, no ground."""
    return svg.replace(INK.encode(), b"#000000")


def to_inline_svg(svg: bytes, title: str) -> str:
    """Return an `<svg>` element for a page, in the page's text colour and with ids that clash with no other figure's.

    `svg` is a figure of `drawn`. Screen readers read `title` instead; it is escaped.
    """
    from html import escape

    text = svg.decode()
    salt = hashlib.sha256(svg).hexdigest()[:8]
    text = text[text.index("<svg") :].replace(INK, "currentColor")
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>f{salt}-", text)
    text = re.sub(r'<svg ([^>]*?)height="[\d.]+pt"([^>]*?)width="[\d.]+pt"', r"<svg \1\2", text, count=1)
    return text.replace("<svg ", f'<svg role="img" aria-label="{escape(title)}" ', 1)


def _save(figure: Figure, form: str, *, transparent: bool) -> bytes:
    import matplotlib

    buffer = io.BytesIO()
    metadata = {"svg": {"Date": None}, "pdf": {"CreationDate": None}, "png": {}}[form]
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": "soupbench"}):
        figure.savefig(buffer, format=form, metadata=metadata, transparent=transparent, bbox_inches="tight", dpi=150)
    return buffer.getvalue()


def heat_map(values: Sequence[Sequence[float | None]], columns: Sequence[str], rows: Sequence[str]) -> Figure:
    """Return a heat map of accuracies, fractions [rows][columns], in percent; what is missing is hatched.

    At least one must be there.
    """
    low, high = heat.limits([value for line in values for value in line if value is not None])

    def draw(axes: Axes) -> None:
        import numpy as np
        import seaborn
        from matplotlib.colors import to_hex
        from matplotlib.patches import Rectangle

        seaborn.heatmap(
            [[float("nan") if value is None else 100 * value for value in line] for line in values],
            ax=axes,
            annot=True,
            fmt=".0f",
            annot_kws={"size": 8},
            cmap="cividis",
            vmin=low,
            vmax=high,
            xticklabels=list(columns),
            yticklabels=list(rows),
            cbar_kws={"label": "accuracy in %"},
        )
        colours = iter(np.asarray(axes.collections[0].get_facecolor()))
        texts = iter(axes.texts)
        for (i, j), value in np.ndenumerate(np.array(values, dtype=object)):
            colour = next(colours)
            if value is None:
                axes.add_patch(Rectangle((j, i), 1, 1, fill=False, hatch="///", edgecolor=INK, alpha=0.4, linewidth=0))
            else:
                next(texts).set_color(heat.ink_on(to_hex(tuple(colour))))
        axes.tick_params(axis="x", labelrotation=45)
        for label in axes.get_xticklabels():
            label.set_horizontalalignment("right")

    width = 3.6 + 0.42 * len(columns) + room_for(rows, 25)
    return new_figure(draw, (width, 1.8 + 0.26 * len(rows) + 0.7 * room_for(columns, 18)))


def room_for(names: Sequence[str], letters: int) -> float:
    """Return the inches that the longest of the names needs beyond this number of letters."""
    return 0.08 * max(0, max(map(len, names)) - letters)


def new_figure(draw: Callable[..., None], size: tuple[float, float], heights: Sequence[float] = (1.0,)) -> Figure:
    """Return a figure of a size in inches; `draw` gets its panels, one above the other, of relative `heights`."""
    import matplotlib
    from matplotlib.figure import Figure

    class NotebookFigure(Figure):
        def _repr_png_(self) -> bytes:  # for notebooks, which show only the figures of pyplot by themselves
            return to_bytes(self, "png")

    with matplotlib.rc_context(_STYLE):
        figure = NotebookFigure(figsize=size, layout="constrained")
        draw(*figure.subplots(len(heights), height_ratios=list(heights), squeeze=False)[:, 0])
    return figure


def palette(count: int) -> list[Any]:
    import seaborn

    return list(seaborn.color_palette("colorblind", count))


def legend_beside(axes: Axes) -> None:
    axes.grid(alpha=0.3)
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))


def _best(board: BoardData) -> list[BoardRow]:
    """Return the best main rows, in the order of the board; every track keeps its best one."""
    rows = [row for row in board.rows if row.main and row.accuracy is not None]
    firsts = list({row.track: row for row in reversed(rows)}.values())
    rest = sorted((row for row in rows if row not in firsts), key=lambda row: -(row.accuracy or 0))
    kept = [*firsts, *rest][:MOST_LINES]
    return [row for row in rows if row in kept]


def _costed(board: BoardData) -> list[BoardRow]:
    return [row for row in board.rows if row.main and row.accuracy is not None and row.forwards]


def _passes(row: BoardRow) -> float:
    return (row.forwards or 0) + 2 * (row.backwards or 0)


def _ingredient(row: BoardRow) -> bool:
    return (row.part or "").startswith(INGREDIENT)


def _point(axes: Axes, height: float, row: BoardRow, colour: Any, marker: str) -> None:
    axes.plot(100 * (row.accuracy or 0), height, color=colour, marker=marker, linestyle="")
    if row.interval is not None:
        axes.plot([100 * row.interval.low, 100 * row.interval.high], [height] * 2, color=colour, linewidth=1.2)


def _name_points(axes: Axes, rows: Sequence[BoardRow]) -> None:
    """Write names to the right of points of the cost plot, with a line to the point if a name had to move."""
    heights = [100 * (row.accuracy or 0) for row in rows]
    gap = max(0.5, (max(heights) - min(heights)) / 15)
    neighbours: list[list[int]] = []
    for i in sorted(range(len(rows)), key=lambda i: _passes(rows[i])):
        if neighbours and _passes(rows[i]) < 2.5 * _passes(rows[neighbours[-1][0]]):
            neighbours[-1].append(i)
        else:
            neighbours.append([i])
    for group in neighbours:
        right = 1.12 * max(_passes(rows[i]) for i in group)
        for i, height in zip(group, apart([heights[i] for i in group], gap), strict=True):
            axes.annotate(
                rows[i].name,
                (_passes(rows[i]), heights[i]),
                xytext=(right, height),
                fontsize=7,
                va="center",
                arrowprops={
                    "arrowstyle": "-",
                    "linewidth": 0.4,
                    "color": INK,
                    "alpha": 0.5,
                    "shrinkA": 0,
                    "shrinkB": 2,
                },
            )


def apart(heights: Sequence[float], gap: float) -> list[float]:
    """Return the positions nearest to the heights, in least squares, that keep their order and lie `gap` apart."""
    from scipy.optimize import isotonic_regression

    order = sorted(range(len(heights)), key=heights.__getitem__)
    moved = isotonic_regression([heights[i] - gap * k for k, i in enumerate(order)]).x
    places = {i: float(moved[k]) + gap * k for k, i in enumerate(order)}
    return [places[i] for i in range(len(heights))]
