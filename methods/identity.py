"""The identity of a part of a method, independent of its file: a permanent name and a version of its results."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

Declared = TypeVar("Declared", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Identity:
    """`name` seeds random numbers, so it survives every move and renaming; `version` grows when numbers change."""

    name: str
    version: int = 1


def component(name: str, version: int = 1) -> Callable[[Declared], Declared]:
    """Declare the identity of a job function (`methods.base.Job`) or of its class of options.

    The random numbers of a training follow from these names, so a name stays when the code moves. Cached results and
    records name the version as well: raise it when the same inputs give other numbers.
    """

    def declare(thing: Declared) -> Declared:
        thing.__component__ = Identity(name, version)  # type: ignore[attr-defined]
        return thing

    return declare


def declared(thing: Any) -> Identity | None:
    """Return the identity that a function or class itself declares, or None; a class inherits none."""
    found = vars(thing).get("__component__") if hasattr(thing, "__dict__") else None
    return found if isinstance(found, Identity) else None
