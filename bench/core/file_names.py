"""File names that Linux, macOS and Windows all accept, and command lines as the shell at hand reads them."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterable, Sequence

_FORBIDDEN = re.compile(r'[<>:"/\\|?*\x00-\x1f]')
# Names of devices on Windows, with any extension (learn.microsoft.com, "Naming Files, Paths, and Namespaces").
_DEVICE = re.compile(r"(con|prn|aux|nul|com[1-9¹²³]|lpt[1-9¹²³])(\..*)?", re.IGNORECASE)


def portable_name(text: str) -> str:
    """Return a file name made of a text: what some system forbids becomes "_", and a name is never empty."""
    name = re.sub(r"[. ]+$", "", _FORBIDDEN.sub("_", text))
    return f"_{name}" if not name or _DEVICE.fullmatch(name) else name


def are_portable(names: Iterable[str]) -> bool:
    """Whether all names can stand in one folder on any system, also on one that does not tell "a" from "A"."""
    given = list(names)
    return all(name == portable_name(name) for name in given) and len({n.lower() for n in given}) == len(given)


def command_line(words: Sequence[str]) -> str:
    """Return a command that the usual shell of this system splits into these words again."""
    return subprocess.list2cmdline(words) if sys.platform == "win32" else shlex.join(words)
