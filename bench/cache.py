"""Where learned weights live, by content key; a half-written or damaged file is never read as a result."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from bench.errors import BenchError


def cache_dir() -> Path:
    """The folder of everything that can be made again: $SOUPBENCH_CACHE, else the platform's cache folder."""
    if chosen := os.environ.get("SOUPBENCH_CACHE"):
        return Path(chosen).expanduser()
    from platformdirs import user_cache_path

    return user_cache_path("soupbench")


def weights_path(key: str) -> Path:
    """Where the weights of a job live."""
    return cache_dir() / "weights" / f"{key}.safetensors"


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path in the same folder that takes the place of `path` at the end, or is removed on an error.

    Raises BenchError where the disk is full or the folder cannot be written.
    """
    handle = temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
        temporary = Path(name)
        yield temporary
        os.fsync(handle)
        with temporary.open("rb+") as written:
            os.fsync(written.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    except OSError as error:
        raise BenchError(
            f"cannot write {path}: {error.strerror or error}; free space or choose another folder"
        ) from error
    finally:
        if handle is not None:
            os.close(handle)
        if temporary is not None:
            with suppress(FileNotFoundError):
                temporary.unlink()


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(text)
