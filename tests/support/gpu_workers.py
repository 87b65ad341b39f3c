"""Tasks that say which GPUs their worker sees, in a module that a new process imports at once."""

from __future__ import annotations

import os
from pathlib import Path


def place(_: int) -> str | None:
    """Return the GPUs of this process."""
    return os.environ.get("CUDA_VISIBLE_DEVICES")


def die_once(flag: str) -> str | None:
    """End this process if no file is there, which it makes; else return the GPUs of this process."""
    if not Path(flag).exists():
        Path(flag).touch()
        os._exit(3)
    return place(0)
