"""Named suites: files of settings with lists, one grid of runs each. Does not import torch."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from bench.core.errors import nearest


@dataclass(frozen=True)
class Suite:
    """A grid of runs under a name. `version` is raised when its runs change, so that results say which they are of."""

    name: str
    version: int
    summary: str
    settings: Mapping[str, Any]

    @property
    def folder(self) -> str:
        """The name of its default folder of records, `suite-NAME-vN`."""
        return f"suite-{self.name}-v{self.version}"


@cache
def suites() -> Mapping[str, Suite]:
    """Return all suites by name."""
    files = (resources.files("bench") / "assets" / "suites").iterdir()
    found = {}
    for name, file in sorted((file.name.removesuffix(".toml"), file) for file in files):
        content = tomllib.loads(file.read_text(encoding="utf-8"))
        found[name] = Suite(name, content.pop("version"), content.pop("summary"), content)
    return found


def find_suite(name: str) -> Suite:
    """Return a suite. Raises UsageError that suggests the nearest name."""
    return suites()[nearest(name, suites(), "suite")]
