"""The lowest versions that pyproject.toml allows, as constraints for pip: `python tests/lowest.py > FILE`."""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

EXTRAS = ("scale", "lite")
"""Extras that the tests use as users do; the rest of them is tools, of which the newest will do."""


def lowest(pyproject: Path) -> list[str]:
    """One line `name==version` for every requirement. Raises ValueError for one that has no lower bound."""
    project = tomllib.loads(pyproject.read_text())["project"]
    wanted = [*project["dependencies"], *(line for name in EXTRAS for line in project["optional-dependencies"][name])]
    lines = []
    for requirement in wanted:
        found = re.match(r"([A-Za-z0-9._-]+)>=([0-9.]+)", requirement)
        if found is None:
            raise ValueError(f"{requirement} has no lower bound; write one as in numpy>=2.2")
        lines.append(f"{found[1]}=={found[2]}")
    return lines


if __name__ == "__main__":
    sys.stdout.write("\n".join(lowest(Path(__file__).parents[1] / "pyproject.toml")) + "\n")
