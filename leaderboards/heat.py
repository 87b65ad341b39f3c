"""A heat map of accuracies as a table, with a colour and a text that can be read on it for each value."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from typing import Any

from leaderboards.board_data import BoardData
from leaderboards.grid import ABSENT

SHADES = 32
_MOST_ROWS = 100


@cache
def shades() -> tuple[str, ...]:
    """Return the colours from low to high as "#rrggbb": cividis, even for colour-blind readers (Nunez et al. 2018)."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    return tuple(to_hex(colormaps["cividis"](step / (SHADES - 1))) for step in range(SHADES))


def luminance(colour: str) -> float:
    """Return the relative luminance in [0, 1] of "#rrggbb" (WCAG 2.2)."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def ink_on(colour: str) -> str:
    """Return black or white, whichever contrasts more: at least 4.58 to 1 on any colour."""
    return "#000000" if (luminance(colour) + 0.05) ** 2 >= 1.05 * 0.05 else "#ffffff"


def limits(values: Sequence[float]) -> tuple[int, int]:
    """Return the limits of the colours in percent: the tens around all values."""
    low = 10 * math.floor(10 * min(values))
    return low, max(low + 10, 10 * math.ceil(10 * max(values)))


@cache
def style() -> str:
    """Return the CSS of the classes h0, h1, ... of the colours."""
    return "".join(f".h{i} {{ background: {each}; color: {ink_on(each)}; }}\n" for i, each in enumerate(shades()))


@dataclass(frozen=True, slots=True)
class HeatCell:
    """One value: its text, and the class of its colour."""

    text: str
    colour: str


@dataclass(frozen=True, slots=True)
class HeatRow:
    """One method."""

    track: str
    name: str
    cells: tuple[HeatCell, ...]


@dataclass(frozen=True, slots=True)
class Heat:
    """A heat map: `low` and `high` in percent are the limits of its colours."""

    columns: tuple[str, ...]
    rows: tuple[HeatRow, ...]
    low: int
    high: int
    caption: str

    @property
    def groups(self) -> list[dict[str, Any]]:
        """The rows of each track."""
        return [{"track": track, "rows": list(own)} for track, own in groupby(self.rows, key=lambda row: row.track)]

    @property
    def ramp(self) -> str:
        """The colours as stops of a gradient."""
        return ", ".join(shades())


def table_of(board: BoardData) -> Heat | None:
    """Return accuracies in percent by corruption; None if there are none. What is missing has no colour."""
    lines = [(row.track, row.name, [row.per_corruption[name] for name in board.corruptions]) for row in board.rows]
    return table(lines, board.corruptions, "Accuracy in percent under each corruption, mean over severities and seeds.")


def table(
    lines: Sequence[tuple[str, str, Sequence[float | None]]], columns: Sequence[str], caption: str
) -> Heat | None:
    """Return the heat map of lines, each a track, a name and its values; None if no line has a value."""
    lines = [line for line in lines if any(value is not None for value in line[2])]
    shown = lines[:_MOST_ROWS]
    values = [value for _, _, own in shown for value in own if value is not None]
    if not values:
        return None
    low, high = limits(values)
    more = f" The first {len(shown)} of {len(lines)} rows." if len(shown) < len(lines) else ""
    return Heat(
        columns=tuple(columns),
        rows=tuple(HeatRow(track, name, _cells(own, low, high)) for track, name, own in shown),
        low=low,
        high=high,
        caption=f"{caption}{more}",
    )


def _cells(values: Sequence[float | None], low: int, high: int) -> tuple[HeatCell, ...]:
    def cell(value: float | None) -> HeatCell:
        if value is None:
            return HeatCell(ABSENT, "missing")
        return HeatCell(f"{100 * value:.0f}", f"h{round((100 * value - low) / (high - low) * (SHADES - 1))}")

    return tuple(map(cell, values))
