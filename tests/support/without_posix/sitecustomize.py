"""Shows this project, and it alone, a system like Windows; `windows.environment` puts this folder on PYTHONPATH.

What POSIX alone has is missing where a module of this project asks for it, `sys.platform` and `os.name` are those of
Windows there, and a pool of processes is spawned. Libraries see the real system. In the whole process no file gets a
name that Windows refuses, and none is removed, renamed or replaced while this process has it open or mapped. Child
processes inherit all of it.
"""

from __future__ import annotations

import builtins
import io
import json
import os
import re
import signal
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

OWN = ("bench", "corruptions", "methods", "leaderboards", "__main__")
KEEP = "SOUPBENCH_WITHOUT_POSIX_LOG"

GIVEN = json.loads(os.environ["WITHOUT_POSIX"])
MISSING: dict[str, list[str]] = GIVEN["names"]
MODULES = set(GIVEN["modules"])
INSTEAD: dict[str, dict[str, Any]] = {"sys": {"platform": "win32"}, "os": {"name": "nt"}}

_BAD = re.compile(r'[<>:"\\|?*\x00-\x1f]|[. ]$')
_DEVICE = re.compile(r"(con|prn|aux|nul|com[1-9]|lpt[1-9])(\..*)?", re.I)


def own(depth: int) -> bool:
    """Whether the frame at this depth runs code of this project."""
    name = str(sys._getframe(depth + 1).f_globals.get("__name__", ""))
    return name.partition(".")[0] in OWN


def complain(what: str) -> None:
    """Note what went wrong, for cases where the caller hides the error."""
    if KEEP in os.environ:
        number = os.open(os.environ[KEEP], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(number, (what + "\n").encode())
        os.close(number)


def hide(module: ModuleType, missing: set[str], instead: dict[str, Any]) -> None:
    class Seen(ModuleType):
        def __getattribute__(self, name: str) -> Any:
            if (name in missing or name in instead) and own(1):
                if name in instead:
                    return instead[name]
                raise AttributeError(f"module has no attribute {name!r} on this system")
            return super().__getattribute__(name)

    module.__class__ = Seen


def hide_all() -> None:
    import multiprocessing.connection
    import multiprocessing.context
    import socket
    import time

    multiprocessing.connection.PipeConnection = multiprocessing.connection.Connection  # type: ignore[attr-defined]
    for each in (os, sys, signal, time, socket, multiprocessing.context):
        hide(each, set(MISSING.get(each.__name__, ())), INSTEAD.get(each.__name__, {}))
    inner = builtins.__import__

    def without(name: str, *rest: Any, **more: Any) -> Any:
        if name.partition(".")[0] in MODULES and own(1):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return inner(name, *rest, **more)

    builtins.__import__ = without


def busy(path: str) -> bool:
    """Whether this process has a file open, or mapped."""
    if not Path(path).is_file():
        return False
    facts = Path(path).stat()
    for number in Path("/proc/self/fd").iterdir():
        try:
            each = number.stat()
        except OSError:
            continue
        if (each.st_dev, each.st_ino) == (facts.st_dev, facts.st_ino):
            return True
    with io.open_code("/proc/self/maps") as maps:
        return any(line.split()[4:5] == [str(facts.st_ino).encode()] for line in maps)


class Watch:
    """An audit hook; it asks the system nothing while it answers."""

    asleep = False

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event not in ("open", "os.mkdir", "os.rename", "os.remove", "shutil.move") or self.asleep:
            return
        self.asleep = True
        try:
            self.look(event, arguments)
        finally:
            self.asleep = False

    def look(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            writes = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            names = [path] if writes else []
        else:
            names = [each for each in arguments if isinstance(each, str | bytes | os.PathLike)]
        for name in names:
            if isinstance(name, int) or name is None:
                continue
            text = os.fsdecode(name)
            if text.startswith(("/dev/", "/proc/")):
                continue
            last = Path(text).name
            if _BAD.search(last) or _DEVICE.fullmatch(last) or len(last) > 240:
                complain(f"{event}: name {text!r}")
                raise OSError(22, "Windows refuses this name", text)
        if event in ("os.rename", "os.remove"):
            for name in names:
                if busy(os.fsdecode(name)):
                    complain(f"{event}: {os.fsdecode(name)} is open")
                    raise PermissionError(13, "it is open", os.fsdecode(name))


hide_all()
sys.addaudithook(Watch())
