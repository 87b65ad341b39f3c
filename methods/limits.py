"""Types of options that say what a number must be; `methods.base.Options` checks it and names the option at fault."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from inspect import get_annotations
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints


@dataclass(frozen=True)
class Limit:
    """What a value must be, in words, and whether it is."""

    words: str
    holds: Callable[[Any], bool]


def at_least(least: int) -> Limit:
    """Return the limit of a number of which fewer than `least` make no sense, as in Annotated[int, at_least(2)]."""
    return Limit(f"at least {least}", lambda value: value >= least)


Count = Annotated[int, at_least(1)]
Whole = Annotated[int, at_least(0)]
NotNegative = Annotated[float, at_least(0)]
Positive = Annotated[float, Limit("above 0", lambda value: value > 0)]
Finite = Annotated[float, Limit("a finite number", math.isfinite)]
FiniteNotNegative = Annotated[float, Limit("a finite number of at least 0", lambda value: 0 <= value < math.inf)]
FinitePositive = Annotated[float, Limit("a finite number above 0", lambda value: 0 < value < math.inf)]
Fraction = Annotated[float, Limit("in [0, 1]", lambda value: 0 <= value <= 1)]
FractionAboveZero = Annotated[float, Limit("in (0, 1]", lambda value: 0 < value <= 1)]
FractionBelowOne = Annotated[float, Limit("in [0, 1)", lambda value: 0 <= value < 1)]
ProperFraction = Annotated[float, Limit("in (0, 1)", lambda value: 0 < value < 1)]


@cache
def limits_of(options: type) -> tuple[tuple[str, Limit], ...]:
    """Return the limits that the annotations of a class of options and of its bases state, each with the option.

    Words, a Literal, are a limit too.
    """
    found: list[tuple[str, Limit]] = []
    for kind in reversed(options.__mro__):
        hints = get_type_hints(kind, include_extras=True)
        for option in get_annotations(kind):
            optional = NoneType in get_args(hints[option])
            parts = get_args(hints[option]) if optional else (hints[option],)
            limits = [each for part in parts for each in getattr(part, "__metadata__", ()) if isinstance(each, Limit)]
            limits += [_one_of(get_args(part)) for part in parts if get_origin(part) is Literal]
            found += [(option, _or_none(limit) if optional else limit) for limit in limits]
    return tuple(found)


def _one_of(words: tuple[str, ...]) -> Limit:
    return Limit(" or ".join(f'"{word}"' for word in words), lambda value: value in words)


def _or_none(limit: Limit) -> Limit:
    return Limit(f"None or {limit.words}", lambda value: value is None or limit.holds(value))
