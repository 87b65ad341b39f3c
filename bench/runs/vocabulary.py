"""The words that published records may use, from the tables of methods, protocols and corruptions. No torch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache, lru_cache
from typing import Literal, cast

from bench.core.components import harness_version, method_name
from bench.core.errors import UsageError
from bench.evaluation.protocols import parse_protocol
from bench.settings.methods import Option, choices_of, options_of, parse_method
from corruptions import catalog
from leaderboards.record import Access
from leaderboards.vocabulary import Half, Kind, MethodWords, Vocabulary
from methods import METHODS
from methods.table import MethodRow

_PLAIN: Mapping[str, Literal["int", "float", "bool", "word", "words", "numbers"]] = {
    "int": "int",
    "float": "float",
    "bool": "bool",
    "tuple[str, ...]": "words",
    "tuple[float, ...]": "numbers",
}


def vocabulary() -> Vocabulary:
    """Return the words of the tables of this version."""
    return Vocabulary(method_of, protocol_of, {row.name: row.version for row in catalog.ROWS}, harness_version())


@lru_cache(maxsize=4096)
def method_of(text: str) -> MethodWords | None:
    """Return the words of a method, None if it is not in the table. Never loads code that the name refers to."""
    if any(part not in METHODS for part in text.split("+")):
        return None
    try:
        parsed = parse_method(text)
    except UsageError:
        return None
    adapter = None if parsed.adapter is None else _half(parsed.adapter)
    needed = (parsed.adapter.needs or "source") if parsed.adapter else None
    names = [row.name for row in (parsed.recipe, parsed.adapter) if row is not None]
    name = names[-1] if needed == parsed.recipe.name else "+".join(names)
    access, elsewhere = map(Access.model_validate, (parsed.access, parsed.elsewhere))
    return MethodWords(name, access, _half(parsed.recipe), adapter, elsewhere)


@lru_cache(maxsize=4096)
def protocol_of(text: str) -> str | None:
    """Return the one spelling of a protocol, None for a text that is none."""
    try:
        return str(parse_protocol(text))
    except UsageError:
        return None


@cache
def _half(row: MethodRow) -> Half:
    options = {option.name: _kind(row, option) for option in options_of(row)}
    return Half(method_name(row), row.version, row.options_of or row.name, options)


def _kind(row: MethodRow, option: Option) -> Kind:
    """Return the values that an option takes, from its annotation."""
    text, _, rest = option.type.partition(" | ")
    optional = rest == "None"
    if text in _PLAIN:
        return Kind(_PLAIN[text], optional)
    literal = re.fullmatch(r"Literal\[(.*)\]", choices_of(row, text))
    if literal is None:
        raise ValueError(f"{row.name}.{option.name} has the type {option.type}, which published results cannot hold")
    return Kind("word", optional, tuple(cast("str", word).strip(" '\"") for word in literal[1].split(",")))
