"""Files that are complete or absent, and the one error that says which file is wrong."""

from __future__ import annotations

import os
import uuid
from pathlib import Path


class StoreError(ValueError):
    """A stored file is missing, broken or contradicts another; the message names it and the fix."""


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file that is there completely or not at all, also after a power cut; makes the folder if needed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if os.name == "posix":  # elsewhere a folder cannot be opened, and the rename is durable without it
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
