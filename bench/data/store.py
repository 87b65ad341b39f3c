"""Decoded pixels, kept once: a file of uint8 rows that every method, corruption and severity reads."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from bench.cache import cache_dir, write_bytes
from bench.data.decode import Pixels, Preprocessing
from bench.data.sources import ImageSet
from bench.errors import BenchError
from bench.trial import digest_of

_DIGEST_BYTES = 16
_ROWS_AT_ONCE = 64


def pixels_dir() -> Path:
    """Where decoded pixels are kept."""
    return cache_dir() / "pixels"


class PixelStore:
    """Rows of decoded images in a file that is filled when they are first asked for.

    Three files: `.u8` (rows, sparse until filled), `.rows` (a digest of each row, zeros where it is not decoded yet)
    and `.json` (what it is). A row's digest is written after its pixels are on disk, so that a row that was
    half written is decoded again. A lock lets one process at a time fill; readers never wait. `workers` threads
    decode (0: the calling one); they change nothing but the time.
    """

    def __init__(self, images: ImageSet, preprocessing: Preprocessing, workers: int = 0) -> None:
        self.images = images
        self.preprocessing = preprocessing
        self.workers = workers
        self.shape = (len(images), 3, preprocessing.size, preprocessing.size)
        self.key = digest_of([images.key, asdict(preprocessing)])
        self._row_bytes = 3 * preprocessing.size**2
        self._pixels: np.memmap[Any, Any] | None = None
        self._digests: np.memmap[Any, Any] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_pixels": None, "_digests": None}

    def path(self, suffix: str) -> Path:
        return pixels_dir() / f"{self.key}{suffix}"

    def read(self, rows: Sequence[int] | np.ndarray) -> Pixels:
        """Pixels uint8 [n, 3, size, size] of those rows, a copy. Raises UsageError for an image that cannot be read."""
        chosen = np.asarray(rows, dtype=np.int64)
        self.fill(chosen)
        assert self._pixels is not None
        found: Pixels = self._pixels[chosen]
        return found

    def digest(self, rows: np.ndarray) -> str:
        """A hash of the pixels of those rows, which are decoded for it if they are not yet."""
        self.fill(rows)
        assert self._digests is not None
        return hashlib.sha256(self._digests[rows].tobytes()).hexdigest()

    def fill(self, rows: np.ndarray) -> None:
        """Decode those of the rows that are not there yet."""
        self._open()
        assert self._digests is not None
        missing = np.unique(rows[~self._digests[rows].any(axis=1)])
        for low in range(0, len(missing), _ROWS_AT_ONCE):
            self._decode(missing[low : low + _ROWS_AT_ONCE])

    def damaged(self) -> list[int]:
        """Rows whose pixels are not what was decoded."""
        self._open()
        assert self._digests is not None
        assert self._pixels is not None
        there = np.flatnonzero(self._digests.any(axis=1))
        return [int(row) for row in there if _hash(self._pixels[row]) != self._digests[row].tobytes()]

    def _open(self) -> None:
        if self._pixels is not None:
            return
        sizes = {".u8": len(self.images) * self._row_bytes, ".rows": len(self.images) * _DIGEST_BYTES}
        if any(
            not self.path(suffix).is_file() or self.path(suffix).stat().st_size != size
            for suffix, size in sizes.items()
        ):
            self._make(sizes)
        self._pixels = np.memmap(self.path(".u8"), np.uint8, "r", shape=self.shape)
        self._digests = np.memmap(self.path(".rows"), np.uint8, "r", shape=(len(self.images), _DIGEST_BYTES))

    def _make(self, sizes: dict[str, int]) -> None:
        with self._lock():
            if all(self.path(s).is_file() and self.path(s).stat().st_size == size for s, size in sizes.items()):
                return
            self.path(".rows").unlink(missing_ok=True)
            for suffix, size in sizes.items():
                try:
                    with self.path(suffix).open("wb") as file:
                        file.truncate(size)
                except OSError as error:
                    raise _full(self.path(suffix), error) from None
            about = {"source": self.images.name(0) if len(self.images) else "", "images": len(self.images)}
            write_bytes(self.path(".json"), json.dumps(about | asdict(self.preprocessing)).encode())

    def _lock(self) -> FileLock:
        try:
            pixels_dir().mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _full(pixels_dir(), error) from None
        return FileLock(self.path(".lock"))

    def _decode(self, rows: np.ndarray) -> None:
        with self._lock():
            assert self._digests is not None
            rows = rows[~self._digests[rows].any(axis=1)]
            if self.workers:
                with ThreadPoolExecutor(self.workers) as pool:
                    decoded = list(pool.map(self._decode_one, rows.tolist()))
            else:
                decoded = [self._decode_one(row) for row in rows.tolist()]
            digests = [_hash(pixels) for pixels in decoded]
            self._write(".u8", rows, [pixels.tobytes() for pixels in decoded], self._row_bytes)
            self._write(".rows", rows, digests, _DIGEST_BYTES)

    def _decode_one(self, row: int) -> Pixels:
        return self.preprocessing(self.images.read(row), self.images.name(row))

    def _write(self, suffix: str, rows: np.ndarray, values: list[bytes], size: int) -> None:
        # Written with pwrite, not through the map: a full disk is then an error and not a signal that ends the process.
        try:
            handle = os.open(self.path(suffix), os.O_WRONLY)
            try:
                for row, value in zip(rows.tolist(), values, strict=True):
                    view = memoryview(value)
                    offset = row * size
                    while view:
                        written = os.pwrite(handle, view, offset)
                        view, offset = view[written:], offset + written
                os.fsync(handle)
            finally:
                os.close(handle)
        except OSError as error:
            raise _full(self.path(suffix), error) from None


def _hash(pixels: np.ndarray) -> bytes:
    return hashlib.blake2b(np.ascontiguousarray(pixels).data, digest_size=_DIGEST_BYTES).digest()


def _full(path: Path, error: OSError) -> BenchError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return BenchError(
            f"the disk of {path.parent} is full; free it with `bench data clean`, or point SOUPBENCH_CACHE elsewhere"
        )
    return BenchError(f"cannot write {path} ({error.strerror}); set SOUPBENCH_CACHE to a folder that can be written")


def stored() -> list[dict[str, Any]]:
    """What is kept: key, source, images, size in pixels, and bytes on disk, for each file of pixels."""
    found = []
    for about in sorted(pixels_dir().glob("*.json")):
        pixels = about.with_suffix(".u8")
        if pixels.is_file():
            used = pixels.stat().st_blocks * 512
            found.append({"key": about.stem, **json.loads(about.read_text()), "bytes": used})
    return found


def clean() -> int:
    """Remove all decoded pixels; gives the bytes that were freed. They are decoded again when next asked for."""
    freed = 0
    for path in pixels_dir().glob("*"):
        if path.suffix in (".u8", ".rows", ".json", ".lock"):
            freed += path.stat().st_blocks * 512
            path.unlink(missing_ok=True)
    return freed
