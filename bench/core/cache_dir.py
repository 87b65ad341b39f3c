"""Locate the cache folder, and write and lock files in it."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.core.errors import BenchError, UsageError
from leaderboards.files import write_atomically

log = logging.getLogger(__name__)


def cache_dir() -> Path:
    """Return the folder of everything that can be recomputed: $SOUPBENCH_CACHE, else the platform's cache folder."""
    if chosen := os.environ.get("SOUPBENCH_CACHE"):
        return Path(chosen).expanduser()
    from platformdirs import user_cache_path

    return user_cache_path("soupbench")


def need_cache() -> None:
    """Raise UsageError if nothing can be written to the cache, which all work needs. Makes no folder."""
    folder = cache_dir()
    there = next(place for place in (folder, *folder.parents) if os.path.lexists(place))
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise UsageError(
            f"cannot write in the cache {folder}: {error.strerror or error}; set SOUPBENCH_CACHE to another folder"
        ) from None


def weights_path(key: str) -> Path:
    """Return the path of the learned weights of a job."""
    return cache_dir() / "weights" / f"{key}.safetensors"


def answers_dir() -> Path:
    """Return the folder of stored outputs of classifiers that do not adapt."""
    return cache_dir() / "answers"


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically. Raises BenchError if the disk is full or the folder is not writable."""
    if path.is_dir():
        raise BenchError(f"cannot write {path}: it is a folder; give the name of a file")
    try:
        write_atomically(path, content)
    except OSError as error:
        raise BenchError(
            f"cannot write {path}: {error.strerror or error}; free space or choose another folder"
        ) from error


def remove(path: Path) -> bool:
    """Remove a file that is no longer needed, and return whether it is gone.

    It may stay: Windows removes no file that a process has open. What stays costs space and changes no result.
    """
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        log.warning("%s stays (%s); end what uses it, then remove it", path, error.strerror or error)
        return False
    return True


@contextmanager
def lock(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on this file, across all processes and machines that see it; wait for it if necessary.

    Raises BenchError if the file cannot be created.
    """
    from filelock import FileLock

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        held = FileLock(path)
        held.acquire()
    except OSError as error:
        raise BenchError(
            f"cannot write {path}: {error.strerror or error}; free space or choose another folder"
        ) from error
    try:
        yield
    finally:
        held.release()
