"""FILE.py:NAME as a corruption: user functions added to the corruptions of a shift with generated images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from bench.core.conditions import Condition, digest_of, stream_rng
from bench.core.errors import UsageError
from bench.core.import_object import code_of, load_object
from bench.shifts.shift import Shift

Added = tuple[tuple[str, str], ...]
"""Paths "FILE.py:NAME" of functions, each with the key of its code when it was first loaded."""


def code_key(path: str) -> str:
    """Return the identity of the code of a user corruption, which is part of the digest of a condition."""
    return code_of(path)


def is_own(name: str) -> bool:
    """Whether a corruption name is FILE.py:NAME."""
    return name.rpartition(":")[0].endswith(".py")


def shown(path: str) -> str:
    """Return the name in records: FILE.py:NAME without folders."""
    file, _, name = path.rpartition(":")
    return f"{Path(file).name}:{name}"


def added(names: Sequence[str] | None) -> Added:
    """Return the user corruptions among names. Raises UsageError if two have the same file name and function name."""
    paths = [name for name in names or () if is_own(name)]
    if len({shown(path) for path in paths}) < len(paths):
        raise UsageError(f"two of {', '.join(paths)} have the same name; rename one of the functions")
    for path in paths:
        _function(path)
    return tuple((path, code_key(path)) for path in paths)


def with_added(shift: Shift, own: Added) -> Shift:
    """Return the shift with these corruptions added. Raises UsageError if its images are published, not generated."""
    if not own:
        return shift
    if not shift.made_here:
        raise UsageError(f"{shift.name} has published images, so it takes no user corruption; choose a generated shift")
    return cast("Shift", _Extended(shift, own))


def without_added(shift: Shift) -> Shift:
    """Return the shift itself, without user corruptions."""
    return shift.shift if isinstance(shift, _Extended) else shift


def codes_of(shift: Shift) -> dict[str, str]:
    """Return the key of the code of each user corruption of a shift, by its name in records."""
    return {shown(path): key for path, key in shift.own} if isinstance(shift, _Extended) else {}


def apply_own(path: str, images: Tensor, severity: float, ids: Sequence[int]) -> Tensor:
    """Apply the function FILE.py:NAME to images uint8 [n, 3, h, w]; the id of an image seeds its random numbers.

    Raises UsageError if the object is not callable, or its result has another shape or type.
    """
    function = _function(path)
    draws = [stream_rng(0, shown(path), str(number)) for number in ids]
    made = function(images.clone(), severity, draws)
    if not isinstance(made, Tensor) or made.shape != images.shape or made.dtype != torch.uint8:
        what = f"{made.dtype} {list(made.shape)}" if isinstance(made, Tensor) else type(made).__name__
        raise UsageError(f"{shown(path)} gave {what} at severity {severity:g}; return uint8 {list(images.shape)}")
    return made


def _function(path: str) -> Any:
    found = load_object(path)
    if not callable(found):
        raise UsageError(f"{path} is not a function; write one, see `bench new corruption`")
    return found


class _Extended:
    """A shift with user corruptions; every other attribute is delegated to the shift."""

    def __init__(self, shift: Shift, own: Added) -> None:
        self.shift, self.own = shift, own
        self.corruptions = (*shift.corruptions, *(shown(path) for path, _ in own))

    def __reduce__(self) -> tuple[Any, ...]:
        return _Extended, (self.shift, self.own)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.shift, name)

    def images(self, ids: np.ndarray, condition: Condition, device: str = "cpu") -> Tensor:
        path = self._path(condition)
        if path is None:
            return self.shift.images(ids, condition, device)
        return apply_own(path, self.shift.images(ids, Condition(None, 0), device), condition.severity, ids.tolist())

    def digest(self, ids: np.ndarray, condition: Condition) -> str:
        path = self._path(condition)
        if path is None:
            return self.shift.digest(ids, condition)
        clean = self.shift.digest(ids, Condition(None, 0))
        return "sha256:" + digest_of([clean, str(condition), dict(self.own)[path]])

    def _path(self, condition: Condition) -> str | None:
        for path, key in self.own:
            if shown(path) == condition.corruption:
                if code_key(path) != key:
                    raise UsageError(f"{path} has changed since the run was planned; start the run again")
                return path
        return None
