"""A disk cache of computed pixels: sparse files by content key, whose rows are verified on first read."""

from __future__ import annotations

import hashlib
import io
import logging
import os
import shutil
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench.core.cache_dir import cache_dir
from bench.data.decode import Pixels

log = logging.getLogger(__name__)

DIGEST_BYTES = 16


def pools_dir() -> Path:
    """Return the folder of cached pool pixels."""
    return cache_dir() / "pools"


class CachedRows:
    """Images uint8 [rows, 3, h, w] in a file; the first process that reads a row computes and stores it.

    The key determines the pixels, so no locks are needed: processes that write the same row write the same bytes. After
    the rows the file holds a digest of each, zeros if the row is missing. A partly written or damaged row has another
    digest and is computed again. If the file cannot be opened or the disk is full, missing rows are computed each time.
    `wanted`: the rows that will be read; None for all.
    """

    def __init__(self, key: str, rows: int, shape: tuple[int, ...], wanted: np.ndarray | None = None) -> None:
        self.key, self.rows, self.shape, self.wanted = key, rows, shape, wanted
        self.row_bytes = int(np.prod(shape))
        self._file: OpenFile | None = None
        self._opened = self._ended = False
        self._checked = np.zeros(rows, bool)

    def __getstate__(self) -> dict[str, Any]:
        fresh = {"_file": None, "_opened": False, "_ended": False, "_checked": np.zeros(self.rows, bool)}
        return {**vars(self), **fresh}

    @property
    def path(self) -> Path:
        return pools_dir() / f"{self.key}.u8"

    @property
    def lacking(self) -> int:
        """The number of wanted rows without a digest. Creates no file."""
        wanted = slice(None) if self.wanted is None else np.unique(self.wanted)
        count = self.rows if isinstance(wanted, slice) else len(wanted)
        if self._file is None and not self.path.is_file():
            return count
        self._open()
        if self._file is None:
            return count
        found = self._file.read(self.rows * DIGEST_BYTES, self.rows * self.row_bytes)
        whole = np.frombuffer(found.ljust(self.rows * DIGEST_BYTES, b"\0"), np.uint8)
        return int((~whole.reshape(-1, DIGEST_BYTES)[wanted].any(axis=1)).sum())

    def take(self, rows: np.ndarray, make: Callable[[np.ndarray], Pixels]) -> Pixels:
        """Return rows [n] as pixels [n, 3, h, w]; `make` computes missing ones from their row numbers."""
        self._open()
        if self._file is None:
            return make(rows)
        file = self._file
        out = np.empty((len(rows), *self.shape), np.uint8)
        lacking = np.array([not self._read(file, int(row), into) for row, into in zip(rows, out, strict=True)])
        if lacking.any():
            out[lacking] = made = make(rows[lacking])
            self._write(file, rows[lacking], made)
        return out

    def _open(self) -> None:
        if self._opened:
            return
        self._opened = True
        size = self.rows * (self.row_bytes + DIGEST_BYTES)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = OpenFile(self.path, create=True)
            self._ended = not self._file.writable
            if self._file.size < size and self._file.writable:
                self._file.lengthen(size)
        except OSError as error:
            log.warning("images are not cached: %s", error)

    def _read(self, file: OpenFile, row: int, into: Pixels) -> bool:
        if not self._checked[row]:
            digest = file.read(DIGEST_BYTES, self.rows * self.row_bytes + row * DIGEST_BYTES)
            if not any(digest):
                return False
        if file.read_into(into.data.cast("B"), row * self.row_bytes) != self.row_bytes:
            return False
        if not self._checked[row]:
            self._checked[row] = row_digest(into) == digest
        return bool(self._checked[row])

    def _write(self, file: OpenFile, rows: np.ndarray, made: Pixels) -> None:
        if self._ended:
            return
        try:
            for row, pixels in zip(rows.tolist(), made, strict=True):
                file.write(np.ascontiguousarray(pixels).data, row * self.row_bytes)
                file.write(row_digest(pixels), self.rows * self.row_bytes + row * DIGEST_BYTES)
                self._checked[row] = True
        except OSError as error:
            self._ended = True
            log.warning("no more images are cached: %s", error)


class OpenFile:
    """A file that stays open as long as this object exists, for reading and writing, or read-only if not permitted.

    Every read and write names its offset, and threads may share the file. Unlike a memory map, which would crash the
    process, writing raises OSError on a full disk.
    """

    def __init__(self, path: Path, *, create: bool = False) -> None:
        def opened(name: str, flags: int) -> int:
            return os.open(name, flags | (os.O_CREAT if create else 0), 0o666)

        try:
            self._file = io.FileIO(path, "r+", opener=opened)
        except PermissionError:
            self._file = io.FileIO(path, "r")
        self.writable = self._file.writable()
        self._lock = threading.Lock()

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            self._file.close()

    @property
    def size(self) -> int:
        return os.fstat(self._file.fileno()).st_size

    def lengthen(self, size: int) -> None:
        self._file.truncate(size)

    def read(self, count: int, offset: int) -> bytes:
        """Return `count` bytes, fewer at the end of the file."""
        buffer = bytearray(count)
        return bytes(buffer[: self.read_into(memoryview(buffer), offset)])

    def read_into(self, view: memoryview, offset: int) -> int:
        """Fill a view of bytes and return how many were read, fewer at the end of the file."""
        done = 0
        with self._lock:
            self._file.seek(offset)
            while done < len(view) and (count := self._file.readinto(view[done:])):
                done += count
        return done

    def write(self, content: bytes | memoryview, offset: int) -> None:
        view = memoryview(content).cast("B")
        with self._lock:
            self._file.seek(offset)
            while view:
                view = view[self._file.write(view) :]

    def sync(self) -> None:
        """Wait until all that was written is on the disk."""
        os.fsync(self._file.fileno())

    def mapped(self, size: int) -> np.ndarray:
        """Return the first `size` bytes as an array, uint8 [size], that shows later writes."""
        if not size:
            return np.empty(0, np.uint8)
        with self._lock:
            return np.memmap(self._file, np.uint8, "r", shape=(size,)).view(np.ndarray)


def room_for(kept: Sequence[CachedRows]) -> bool:
    """Whether the missing rows of these caches take at most half of the free disk space."""
    folder = next(path for path in (pools_dir(), *pools_dir().parents) if path.exists())
    return sum(rows.lacking * rows.row_bytes for rows in kept) <= shutil.disk_usage(folder).free // 2


def row_digest(pixels: np.ndarray) -> bytes:
    """Return a hash of one image."""
    return hashlib.blake2b(np.ascontiguousarray(pixels).data, digest_size=DIGEST_BYTES).digest()
