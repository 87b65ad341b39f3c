"""Named suites: files of settings with lists, one grid of runs each. Does not import torch."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from bench.core.errors import nearest

OWN = "own"
"""The suite that takes the shift of its user."""
_SCORED = ("shift", "severity", "corruption", "protocol", "split", "limit", "labels", "part")


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

    def told(self, flags: Mapping[str, Any]) -> str:
        """Return its name and version for records and boards, and which settings of what is scored flags change."""
        layers = (self.settings, *self.settings.get("runs", ()))
        changed = [
            name.replace("_", "-")
            for name in _SCORED
            if flags.get(name) is not None and any(_text(layer.get(name)) != _text(flags[name]) for layer in layers)
        ]
        if self.name == OWN:
            changed = [name for name in changed if name != "shift"]
        return f"{self.name} v{self.version}" + (f", changed: {', '.join(changed)}" if changed else "")


def _text(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


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
