"""Make the paths in settings absolute, so that a run file works from any folder. Does not import torch."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_NAMES = ("shift", "model", "stock", "classes", "init_from")
_LISTS = ("method", "corruption")


def with_absolute_paths(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a run with every path that exists from here made absolute; names stay as they are."""
    found = dict(settings)
    for name in _NAMES:
        if isinstance(found.get(name), str):
            found[name] = _absolute(found[name], is_path=name in ("stock", "classes", "init_from"))
    for name in _LISTS:
        if found.get(name) is not None:
            found[name] = ["+".join(_absolute(part) for part in text.split("+")) for text in found[name]]
    if found.get("data_root") is not None:
        found["data_root"] = _of(str(found["data_root"]))
    return found


def _absolute(text: str, *, is_path: bool = False) -> str:
    """Return a name with its path absolute: FILE.py:NAME, folder:PATH, NAME@FILE#KEY, RUN:METHOD or a plain path."""
    place, colon, name = text.rpartition(":")
    if place.endswith(".py"):
        return f"{_of(place)}:{name}" if Path(place).expanduser().exists() else text
    before, at, file = text.partition("@")
    if at:
        return f"{before}@{_existing(file)}"
    if match := re.match(r"(folder|hf|openclip|timm:local-dir):(.+)", text):
        return f"{match[1]}:{_existing(match[2])}"
    if not is_path:
        return text
    if colon and os.sep in text and not Path(text).expanduser().exists():
        return f"{_existing(place)}:{name}"
    return _existing(text) if Path(text).suffix or os.sep in text or Path(text, "records").exists() else text


def _existing(text: str) -> str:
    """Return the absolute path if the file exists, of FILE#KEY that of the file; else the text."""
    file, mark, key = text.partition("#")
    return f"{_of(file)}{mark}{key}" if file and Path(file).expanduser().exists() else text


def _of(text: str) -> str:
    return str(Path(text).expanduser().absolute())
