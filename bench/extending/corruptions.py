"""Write a starter file for a user-defined corruption."""

from __future__ import annotations

from pathlib import Path

import corruptions
from bench.extending.methods import write_first

_NEXT = """wrote {file} and {test}
test it:     python -m pytest {test}
see it:      bench gallery --corruption {file}:{name},fog -o {name}.png
run it:      bench run --method source,tent --shift digits-c --corruption {file}:{name},fog
"""


def write_corruption(name: str, folder: Path) -> None:
    """Write NAME.py and test_NAME.py into a folder. Raises UsageError for a name or file that exists."""
    write_first("corruption", name, corruptions.names(), folder, _NEXT, "grain")
