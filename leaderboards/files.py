"""Atomic files: each is complete or absent, and one error names the file that is wrong."""

from __future__ import annotations

import os
import stat
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

MAX_LINE = 8 << 20  # bytes of one record: a thousand times the usual size


class StoreError(ValueError):
    """Raised where a stored file is missing, broken or contradicts another; the message names it and the fix."""


def check_plain(path: Path, most: int) -> None:
    """Raise StoreError unless a path leads to a plain file of at most `most` bytes; the file is not opened."""
    try:
        status = path.stat()
    except OSError:
        raise StoreError(f"{path} is missing; restore the file or run the trial again with --rerun") from None
    if not stat.S_ISREG(status.st_mode):
        raise StoreError(f"{path} is no plain file; remove it and run the trial again with --rerun")
    if status.st_size > most:
        raise StoreError(f"{path} has more than {most >> 20} MiB; remove it and run the trial again with --rerun")


def lines_of(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield numbers and lines of a plain file, without ever holding the whole file.

    Raises StoreError for a line that is longer than any record.
    """
    check_plain(path, 1 << 62)
    with path.open("rb") as file:
        number = 0
        while line := file.readline(MAX_LINE + 1):
            number += 1
            if len(line) > MAX_LINE:
                raise StoreError(
                    f"{path}, line {number} has more than {MAX_LINE >> 20} MiB; compile it again from records/"
                )
            yield number, line


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file completely or not at all, also through a power cut; creates the folder if needed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        _replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if sys.platform != "win32":  # where a folder cannot be opened
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


_SECONDS_OPEN = 2.0 if sys.platform == "win32" else 0.0
"""For how long a file that is to be replaced may be open: Windows refuses that while another process reads it."""


def _replace(source: Path, target: Path) -> None:
    until = time.monotonic() + _SECONDS_OPEN
    while True:
        try:
            source.replace(target)
            return
        except PermissionError:
            if time.monotonic() >= until:
                raise
            time.sleep(0.01)
