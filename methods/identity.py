"""What a part of a method is, wherever its code lies: a name that never changes and a version of its numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

Declared = TypeVar("Declared", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Identity:
    """`name` seeds random numbers and so outlives every move and renaming; `version` is raised when numbers change."""

    name: str
    version: int = 1


def component(name: str, version: int = 1) -> Callable[[Declared], Declared]:
    """Declare what a job function (`methods.base.Job`), or a class of options of one, is called.

    The random numbers of a training follow from these names, so a name stays what it was when the code moves. Results
    in the cache and records name the version as well: raise it when the same inputs give other numbers.
    """

    def declare(thing: Declared) -> Declared:
        thing.__component__ = Identity(name, version)  # type: ignore[attr-defined]
        return thing

    return declare


def declared(thing: Any) -> Identity | None:
    """The identity that a function or class itself declares, None where it does not; a class inherits none."""
    found = vars(thing).get("__component__") if hasattr(thing, "__dict__") else None
    return found if isinstance(found, Identity) else None
