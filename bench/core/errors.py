"""Errors that a user can act on, each with the exit code of the command line."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from textwrap import shorten


class BenchError(Exception):
    """An error whose message is one sentence that ends with what to do."""

    exit_code = 1


class UsageError(BenchError):
    """The request is invalid or inconsistent."""

    exit_code = 2


class MissingDataError(BenchError):
    """Data or weights are missing; the message names the command that fetches them."""

    exit_code = 3


class ValidationError(BenchError):
    """Stored results contradict what they claim."""

    exit_code = 4


class Interrupted(BenchError):
    """The user stopped the run; the message says how to continue it."""

    exit_code = 130


def closest(name: str, known: Iterable[str]) -> str | None:
    """Return the known name that a misspelt one most likely means; None if none is similar."""
    by_lower = {each.lower(): each for each in known}
    found = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.5)
    return by_lower[found[0]] if found else None


def nearest(name: str, known: Iterable[str], what: str) -> str:
    """Return `name` if it is known. Raises UsageError with the nearest known name otherwise."""
    names = list(known)
    if name in names:
        return name
    if not names:
        raise UsageError(f"unknown {what} '{name}'; there is none, so leave it out")
    close = closest(name, names)
    hint = f"did you mean '{close}'?" if close else f"known: {', '.join(names)}"
    raise UsageError(f"unknown {what} '{name}'; {hint}")


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, at most 160 characters, or the name of its class if it has none."""
    return shorten((str(error).strip() or type(error).__name__).splitlines()[0], 160, placeholder=" …")
