"""Where learned weights live, by content key; a half-written or damaged file is never read as a result."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.core.errors import BenchError
from leaderboards.files import write_atomically


def cache_dir() -> Path:
    """The folder of everything that can be made again: $SOUPBENCH_CACHE, else the platform's cache folder."""
    if chosen := os.environ.get("SOUPBENCH_CACHE"):
        return Path(chosen).expanduser()
    from platformdirs import user_cache_path

    return user_cache_path("soupbench")


def weights_path(key: str) -> Path:
    """Where the weights of a job live."""
    return cache_dir() / "weights" / f"{key}.safetensors"


def answers_dir() -> Path:
    """Where answers of classifiers that do not adapt live."""
    return cache_dir() / "answers"


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file whole or not at all. Raises BenchError where the disk is full or the folder cannot be written."""
    try:
        write_atomically(path, content)
    except OSError as error:
        raise BenchError(
            f"cannot write {path}: {error.strerror or error}; free space or choose another folder"
        ) from error


@contextmanager
def lock(path: Path) -> Iterator[None]:
    """Wait until nobody else holds this file, in any process or machine that sees it, and hold it.

    Raises BenchError where the file cannot be made.
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
