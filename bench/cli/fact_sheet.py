"""Write what `bench show` knows as text for a reader. Imports nothing heavy."""

from __future__ import annotations

import ast
import re
import shutil
import sys
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.settings.published import InForce

_UNBOUND = 120
"""The columns of what is always wrapped, where the output is not a terminal."""
_NAMED = r"[\w, ]+: "


@dataclass(frozen=True)
class Place:
    """Where options are in force: on a shift with one of its budgets, or on data with one kind of norms."""

    name: str
    budget: str = ""

    def __str__(self) -> str:
        return f"{self.name}, budget {self.budget}" if self.budget else self.name


def as_json_values(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return facts as JSON takes them: places and options in force as text, in the parts of a method too."""
    found = dict(facts)
    if "in_force" in facts:
        found["in_force"] = {
            str(place): {option: str(value) for option, value in values.items()}
            for place, values in facts["in_force"].items()
        }
    if "parts" in facts:
        found["parts"] = [as_json_values(part) for part in facts["parts"]]
    return found


def as_text(facts: Mapping[str, Any]) -> str:
    """Return facts as lines, which wrap on a terminal: one for each fact, nested ones for tables and sentences."""
    lines: list[str] = []
    for key, value in facts.items():
        if key == "options":
            lines.append("options (name: type = default):")
            lines += [_wrapped(f"  {each['name']}: {each['type']} = {each['default']}") for each in value] or ["  none"]
        elif key in ("description", "about_options"):
            lines += ["", *_paragraphs(value)] if value else []
        elif key == "in_force":
            lines += _in_force(value, {option["name"]: option["default"] for option in facts["options"]})
        elif key not in ("presets", "rate_rules"):  # both are in `in_force`
            lines += _fact(key.replace("_", " "), value)
    return "\n".join(lines)


def in_words(value: Any) -> str:
    """Return a value as a reader writes it: yes and no, lists with commas."""
    match value:
        case bool():
            return "yes" if value else "no"
        case dict():
            return ", ".join(f"{name} = {option_in_words(item)}" for name, item in value.items())
        case list() | tuple():
            return ", ".join(f"({in_words(item)})" if isinstance(item, tuple) else in_words(item) for item in value)
    return str(value)


def option_in_words(value: Any) -> str:
    """Return a value as it stands among others: a list in brackets."""
    return f"[{in_words(value)}]" if isinstance(value, list | tuple) else in_words(value)


def _fact(key: str, value: Any) -> list[str]:
    match value:
        case dict():
            return [
                f"{key}:",
                *([_wrapped(f"  {name}: {in_words(item)}") for name, item in value.items()] or ["  none"]),
            ]
        case list() | tuple() if any(isinstance(item, str) and " " in item for item in value):  # sentences
            return [f"{key}:", *(_wrapped(f"  {item}") for item in value)]
    known = value is False or value not in ("", None, (), [], 0)
    return [_wrapped(f"{key}: {in_words(value)}")] if known else []


def _columns() -> int | None:
    return max(shutil.get_terminal_size().columns, 20) if sys.stdout.isatty() else None


def _wrapped(line: str, otherwise: int | None = None) -> str:
    """Wrap a line to the terminal, its continuation indented by four more; without one to `otherwise` columns."""
    width = _columns() or otherwise
    if width is None or len(line) <= width:
        return line
    indent = " " * (len(line) - len(line.lstrip()) + 4)
    return textwrap.fill(line, width, subsequent_indent=indent, break_on_hyphens=False, break_long_words=False)


def _paragraphs(text: str) -> Iterator[str]:
    """Yield the lines of a docstring, filled anew if the terminal is too narrow for them."""
    width = _columns()
    if width is None or max(map(len, text.splitlines())) <= width:
        yield text
        return
    for number, paragraph in enumerate(text.split("\n\n")):
        if number:
            yield ""
        # A line that begins with names and a colon, as those about options do, begins anew; others continue.
        for item in re.split(rf"\n(?={_NAMED})", paragraph):
            indent = "    " if re.match(_NAMED, item) else ""
            yield textwrap.fill(
                " ".join(item.split()), width, subsequent_indent=indent, break_on_hyphens=False, break_long_words=False
            )


def _in_force(table: Mapping[Place, Mapping[str, InForce]], defaults: Mapping[str, str]) -> Iterator[str]:
    """Yield the options in force that are not the default; shifts, budgets and norms that share them stand together."""
    changed = {place: _changed(values, defaults) for place, values in table.items()}
    if any(place.budget for place in changed):
        yield "options in force, by shift and budget (all others: default):"
        by_shift: dict[str, dict[str, Any]] = {}
        for place, words in changed.items():
            by_shift.setdefault(place.name, {})[f"budget {place.budget}"] = words
        for shifts, budgets in _alike(by_shift):
            yield _wrapped(f"  {', '.join(shifts)}:", _UNBOUND)
            for names, words in _alike(budgets):
                yield from _lines(f"    {', '.join(names)}:", words)
        return
    yield "options in force (all others: default):"
    for places, words in _alike({str(place): words for place, words in changed.items()}):
        yield from _lines(f"  {', '.join(places)}:", words)
    if not changed:
        yield "  none"


def _changed(values: Mapping[str, InForce], defaults: Mapping[str, str]) -> dict[str, list[str]]:
    """Return "option = value" of what differs from the default, by where it comes from; "" is the budget."""
    found: dict[str, list[str]] = {}
    for option, each in values.items():
        if each.note:  # of the size of the stock, which is not known here
            found.setdefault("", []).append(f"{option} = {each}")
        elif each.rule or each.value not in _spellings(defaults[option]):
            found.setdefault(each.where, []).append(f"{option} = {each.value}")
    return found


def _spellings(default: str) -> tuple[str, ...]:
    try:
        value = ast.literal_eval(default)
    except ValueError:
        return (default,)
    return default, str(value), option_in_words(value)


def _alike(table: Mapping[str, Any]) -> Iterator[tuple[list[str], Any]]:
    """Yield the names that share a value, and the value, in the order of the first name."""
    groups: list[tuple[list[str], Any]] = []
    for name, value in table.items():
        names = next((names for names, each in groups if each == value), None)
        if names is None:
            groups.append(([name], value))
        else:
            names.append(name)
    yield from groups


def _lines(heading: str, words: Mapping[str, Sequence[str]]) -> Iterable[str]:
    """Return options behind a heading, those of each origin together."""
    texts = [", ".join(values) + (f" ({origin})" if origin else "") for origin, values in words.items()]
    return [_wrapped(f"{heading} {'; '.join(texts) or 'the defaults'}", _UNBOUND)]
