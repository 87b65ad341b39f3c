"""Read options tuned on the dev images of a shift, which replace a method's defaults on that shift."""

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
    """Return the tuned options of a method on a shift from `bench/assets/<shift>.toml`; empty if there are none."""
    return dict(_table(shift).get(method, {}))
