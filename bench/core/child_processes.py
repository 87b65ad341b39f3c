"""Worker processes that load this project only, and never run the script again that started them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType


@contextmanager
def without_script() -> Iterator[None]:
    """Start processes inside this block that do not run the caller's script again.

    A process that is not forked first runs the module `__main__` of its parent; a script without the guard
    `if __name__ == "__main__"` would start its run once more there. Workers need nothing of it.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
