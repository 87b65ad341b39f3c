"""Errors a user can act on. Each carries the exit code the command line ends with."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class BenchError(Exception):
    """One clear sentence that ends with what to do."""

    exit_code = 1


class UsageError(BenchError):
    """The request cannot be understood or does not fit together."""

    exit_code = 2


class MissingDataError(BenchError):
    """Data or weights are not here; the message names the command that brings them."""

    exit_code = 3


class ValidationError(BenchError):
    """Stored results do not hold what they claim."""

    exit_code = 4


class Interrupted(BenchError):
    """The user stopped the run; the message says how to continue it."""

    exit_code = 130


def nearest(name: str, known: Iterable[str], what: str) -> str:
    """`name` if it is known; otherwise a UsageError that names the nearest known one."""
    names = list(known)
    if name in names:
        return name
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"did you mean '{close[0]}'?" if close else f"known: {', '.join(names)}"
    raise UsageError(f"unknown {what} '{name}'; {hint}")
