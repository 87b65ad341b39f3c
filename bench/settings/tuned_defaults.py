"""Options chosen on the dev images of a shift; they take the place of a method's own defaults there."""

from __future__ import annotations

import tomllib
from functools import cache
from importlib import resources
from typing import Any


@cache
def _table(shift: str) -> dict[str, dict[str, Any]]:
    file = resources.files("bench") / "assets" / f"{shift}.toml"
    return tomllib.loads(file.read_text()) if file.is_file() else {}


def tuned_options(shift: str, method: str) -> dict[str, Any]:
    """Options of a method on a shift, from `bench/assets/<shift>.toml`; empty where nothing was tuned."""
    return dict(_table(shift).get(method, {}))
