"""Texts of records made safe for each format that shows them: nothing hides, turns the line, links or computes."""

from __future__ import annotations

import re
import unicodedata
from typing import Any

_HIDDEN = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")
_NUMBERS = re.compile(r"[\d.,\[\] –−+%†-]*")
_MARKED = re.compile(r"[\\`*\[\]~$|#]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])|[<>&]|:(?=//)|(?<=www)\.|^[+-]")
_ENTITIES = {"<": "&lt;", ">": "&gt;", "&": "&amp;", ":": "&#58;"}
_FORMULA = re.compile(r"(^|[;,|\t])([\s\"]*)(?=[=+\-@\uff1d\uff0b\uff0d\uff20])")


def visible(text: str) -> str:
    r"""Return a text with everything invisible written out, as in \u202e: control characters, marks of direction.

    Line breaks stay.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(_written(c) if unicodedata.category(c) in _HIDDEN and c != "\n" else c for c in text)


def _written(character: str) -> str:
    number = ord(character)
    return f"\\u{number:04x}" if number < 1 << 16 else f"\\U{number:08x}"


def shown(value: Any) -> Any:
    """Return a value for a template of HTML, where texts are escaped besides; trusted parts stay."""
    return visible(value) if type(value) is str else value


def one_line(text: str) -> str:
    """Return a visible text in one line."""
    return visible(" ".join(text.split()))


def markdown(text: str) -> str:
    """Return a text that Markdown shows as it is, in one line: no markup, link, image, table cell or formula.

    Numbers with their intervals in brackets stay as they are.
    """
    text = one_line(text)
    return text if _NUMBERS.fullmatch(text) else _MARKED.sub(_mark, text)


def _mark(found: re.Match[str]) -> str:
    return _ENTITIES.get(found[0], f"\\{found[0]}")


def csv_cell(value: Any) -> Any:
    """Return a value for a cell of CSV: no spreadsheet runs a text as a formula, whatever separates its cells.

    An apostrophe stands before what would be one; numbers stay numbers.
    """
    return _FORMULA.sub(r"\1\2'", visible(value)) if isinstance(value, str) else value


def csv_row(row: dict[str, Any]) -> dict[str, Any]:
    """Return the cells of a row of CSV, titles included."""
    return {csv_cell(title): csv_cell(value) for title, value in row.items()}
