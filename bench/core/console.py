"""Print results to stdout and everything else to stderr."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Iterable, Sequence
from itertools import zip_longest
from typing import Any

_GAP = "  "


def print_json(value: Any) -> None:
    """Print a JSON value to stdout. Raises ValueError for numbers that are not finite."""
    import json

    sys.stdout.write(json.dumps(value, indent=2, allow_nan=False, default=str) + "\n")


def print_text(text: str) -> None:
    """Print text to stdout unchanged."""
    sys.stdout.write(text if text.endswith("\n") else text + "\n")


def say(text: str) -> None:
    """Print a line to stderr and flush it."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def duration(seconds: float) -> str:
    """Format seconds in a readable unit."""
    if seconds < 100:
        return f"{seconds:.2g} s"
    return f"{seconds / 60:.2g} min" if seconds < 6000 else f"{seconds / 3600:.3g} h"


def print_rich(renderable: Any) -> None:
    """Print a rich table or text to stdout, 200 columns wide if it is not a terminal, so that nothing is cut."""
    from rich.console import Console

    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=200)
    console.print(renderable)


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Format a plain table as text. On a terminal that is too narrow the widest columns wrap; nothing wraps elsewhere.

    This avoids importing rich, which takes longer than everything else that the short commands do.
    """
    cells = [columns, *rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    if sys.stdout.isatty():
        room = max(shutil.get_terminal_size().columns - len(_GAP) * (len(widths) - 1), len(widths))
        while sum(widths) > room:
            widths[widths.index(max(widths))] -= 1
    lines = []
    for row in cells:
        wrapped = [textwrap.wrap(cell, max(width, 1)) for cell, width in zip(row, widths, strict=True)]
        lines += [map(str.ljust, parts, widths) for parts in zip_longest(*wrapped, fillvalue="")]
    return "\n".join(_GAP.join(line).rstrip() for line in lines)
