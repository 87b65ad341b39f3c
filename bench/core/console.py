"""Print results to stdout and everything else to stderr."""

from __future__ import annotations

import codecs
import io
import os
import shutil
import sys
import textwrap
from collections.abc import Iterable, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

_GAP = "  "
_PLAIN = {
    "–": "-",
    "—": "-",
    "−": "-",
    "─": "-",
    "━": "-",
    "·": "|",
    "…": "...",
    "×": "x",
    "±": "+/-",
    "†": "+",
    "≥": ">=",
}


def _plainer(error: UnicodeError) -> tuple[str, int]:
    """Replace what an encoding lacks: signs by similar ones, letters by the escape that JSON and Python read."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    texts = []
    for character in error.object[error.start : error.end]:
        units = character.encode("utf-16-be", "surrogatepass")
        escape = "".join(f"\\u{units[i : i + 2].hex()}" for i in range(0, len(units), 2))
        texts.append(_PLAIN.get(character, escape))
    return "".join(texts), error.end


codecs.register_error("plainer", _plainer)


def accept_any_text() -> None:
    """Let stdout and stderr write signs and letters that their encoding lacks, as ASCII, instead of failing.

    One that the caller has closed writes nowhere.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="plainer")


def new_console(**options: Any) -> Console:
    """Return a rich console; where NO_COLOR is set it writes no colours and no bold (https://no-color.org)."""
    from rich.console import Console

    return Console(color_system=None if os.environ.get("NO_COLOR") else "auto", **options)


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


def plural(number: int, noun: str, several: str = "") -> str:
    """Return a number and a noun, in the plural unless the number is 1."""
    return f"{number} {noun}" if number == 1 else f"{number} {several or noun + 's'}"


def print_rich(renderable: Any) -> None:
    """Print a rich table or text to stdout, 200 columns wide if it is not a terminal, so that nothing is cut."""
    console = new_console(highlight=False)
    if not console.is_terminal:
        console = new_console(highlight=False, width=200)
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
