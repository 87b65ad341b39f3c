"""Say in this project's words what pydantic found wrong with an input; its own sentences never reach a user."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from bench.core.errors import closest

_MUST_BE = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "string": "text",
    "tuple": "a list",
    "list": "a list",
    "set": "a list",
    "dict": "a table",
    "model": "a table",
    "dataclass": "a table",
    "path": "a path",
}
_LIMITS = {
    "greater_than": ("gt", "above {}"),
    "greater_than_equal": ("ge", "{} or more"),
    "less_than": ("lt", "below {}"),
    "less_than_equal": ("le", "{} or less"),
    "finite_number": ("", "a finite number"),
    "none_required": ("", "left out"),
}


def in_words(error: Mapping[str, Any]) -> str:
    """Return what one of pydantic's errors says, as the end of a sentence about a setting: "must be ..., not 'x'"."""
    kind, given = str(error["type"]), error["input"]
    context: Mapping[str, Any] = error.get("ctx", {})
    match kind:
        case "value_error" | "assertion_error":
            return str(context["error"])
        case "missing":
            return "is missing"
        case "extra_forbidden" | "unexpected_keyword_argument":
            return "is unknown"
        case "literal_error" | "enum":
            expected = str(context["expected"])
            close = closest(str(given), re.findall(r"'([^']*)'", expected))
            return f"must be {expected}, not {given!r}" + (f"; did you mean '{close}'?" if close else "")
    if kind in _LIMITS:
        limit, words = _LIMITS[kind]
        return f"must be {words.format(context.get(limit))}, not {given!r}"
    wanted = _MUST_BE.get(kind.partition("_")[0])
    return f"must be {wanted}, not {given!r}" if wanted else f"cannot be {given!r}"
