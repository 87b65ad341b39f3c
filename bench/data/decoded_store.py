"""A disk cache of decoded pixels: files of uint8 rows, shared by all methods, corruptions and severities."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray
from tqdm import tqdm

from bench.core.cache_dir import cache_dir, remove, write_bytes
from bench.core.components import DECODER, identity
from bench.core.conditions import digest_of
from bench.core.errors import BenchError
from bench.data.decode import Pixels, Preprocessing
from bench.data.imageset import ImageSet, bytes_on_disk
from bench.data.pixel_cache import DIGEST_BYTES, OpenFile, row_digest

_PAGE = 4096
_BYTES_AT_ONCE = 16 << 20
_LEAST_AT_ONCE = 64
_SILENT_SECONDS = 3.0


def pixels_dir() -> Path:
    """Return the folder of decoded pixels."""
    return cache_dir() / "pixels"


class PixelStore:
    """Rows of decoded images in a file; a row is decoded when it is first read.

    The file `.u8` holds the rows (sparse until filled), followed by a digest of each row, zeros if it is not decoded
    yet; `.json` describes it. A row's digest is written after its pixels are on disk, so that a partly written row is
    decoded again. A lock keeps processes from decoding the same rows at once; readers never wait. The file stays open,
    so removing it during a run does not affect that run. `workers` threads decode (0: the calling thread), with
    identical results.
    """

    def __init__(self, images: ImageSet, preprocessing: Preprocessing, workers: int = 0) -> None:
        self.images = images
        self.preprocessing = preprocessing
        self.workers = workers
        self.key = digest_of([images.key, asdict(preprocessing), identity(DECODER)])
        self._shape = (len(images), 3, preprocessing.size, preprocessing.size)
        self._row_bytes = 3 * preprocessing.size**2
        # Digests start at a page boundary, so that no digest spans two pages.
        self._digests_at = -(-len(images) * self._row_bytes // _PAGE) * _PAGE
        self._file: OpenFile | None = None
        self._pixels: Pixels = np.empty(0, np.uint8)
        self._digests: NDArray[np.uint8] = np.empty(0, np.uint8)

    def __getstate__(self) -> dict[str, Any]:
        empty = np.empty(0, np.uint8)
        return {**vars(self), "_file": None, "_pixels": empty, "_digests": empty}

    def path(self, suffix: str = ".u8") -> Path:
        return pixels_dir() / f"{self.key}{suffix}"

    def read(self, rows: Sequence[int] | np.ndarray) -> Pixels:
        """Return a copy of rows as pixels uint8 [n, 3, size, size]. Raises UsageError for an unreadable image."""
        chosen = np.asarray(rows, dtype=np.int64)
        self.fill(chosen)
        found: Pixels = self._pixels.take(chosen, axis=0)
        return found

    def digest(self, rows: np.ndarray) -> str:
        """Return a hash of the pixels of rows, which are decoded first if necessary."""
        self.fill(rows)
        return hashlib.sha256(self._digests[rows].tobytes()).hexdigest()

    def fill(self, rows: np.ndarray) -> None:
        """Decode the rows that are missing. Raises BenchError if they do not fit on the disk."""
        self._open()
        missing = np.unique(rows[~self._digests[rows].any(axis=1)])
        if not len(missing):
            return
        self._need_room(len(missing))
        at_once = max(_LEAST_AT_ONCE, _BYTES_AT_ONCE // self._row_bytes)
        with (
            ThreadPoolExecutor(max(self.workers, 1)) as pool,
            tqdm(
                total=len(missing), desc="decoding", unit=" images", delay=_SILENT_SECONDS, leave=False, disable=None
            ) as bar,
        ):
            for low in range(0, len(missing), at_once):
                part = missing[low : low + at_once]
                self._decode(part, pool)
                bar.update(len(part))

    def drop_damaged(self) -> list[str]:
        """Drop stored rows that changed, to be decoded again on next use; return the names of their images."""
        self._open()
        there = np.flatnonzero(self._digests.any(axis=1))
        bad = np.array([r for r in there if row_digest(self._pixels[r]) != self._digests[r].tobytes()], dtype=np.int64)
        with self._lock():
            self._write(self._digests_at, DIGEST_BYTES, bad, [bytes(DIGEST_BYTES)] * len(bad))
        return [self.images.name(int(row)) for row in bad]

    def _open(self) -> None:
        if self._file is not None:
            return
        size = self._digests_at + len(self.images) * DIGEST_BYTES
        for _ in range(3):  # the file may be removed between making and opening it
            if not self.path().is_file() or self.path().stat().st_size != size:
                self._make(size)
            try:
                file = OpenFile(self.path())
                break
            except FileNotFoundError:
                continue
        else:
            raise BenchError(f"{self.path()} is removed again and again; stop what removes it and start again")
        whole = file.mapped(size)
        self._pixels = whole[: len(self.images) * self._row_bytes].reshape(self._shape)
        self._digests = whole[self._digests_at :].reshape(-1, DIGEST_BYTES)
        self._file = file

    def _make(self, size: int) -> None:
        with self._lock():
            if self.path().is_file() and self.path().stat().st_size == size:
                return
            about = {"source": self.images.name(0) if len(self.images) else "", "images": len(self.images)}
            write_bytes(self.path(".json"), json.dumps(about | asdict(self.preprocessing)).encode())
            # Made under another name and renamed: another process may have mapped a file of the wrong size.
            unfinished = self.path(f".{os.getpid()}.new")
            try:
                with unfinished.open("wb") as file:
                    file.truncate(size)
                unfinished.replace(self.path())
            except OSError as error:
                raise _full(self.path(), error) from None

    @contextmanager
    def _lock(self) -> Iterator[None]:
        try:
            pixels_dir().mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.path(".lock"))
            lock.acquire()
        except OSError as error:
            raise _full(pixels_dir(), error) from None
        try:
            yield
        finally:
            lock.release()

    def _need_room(self, rows: int) -> None:
        free = shutil.disk_usage(pixels_dir()).free
        if rows * self._row_bytes > free:
            raise BenchError(
                f"{rows:,} decoded images need {rows * self._row_bytes / 1e9:.3g} GB but {free / 1e9:.3g} GB are "
                f"left at {pixels_dir()}; free some with `bench data clean`, point SOUPBENCH_CACHE elsewhere, or "
                "take fewer with --limit"
            )

    def _decode(self, rows: np.ndarray, pool: ThreadPoolExecutor) -> None:
        with self._lock():
            rows = rows[~self._digests[rows].any(axis=1)]
            one_by_one = map if self.workers == 0 else pool.map
            # Checked first, because reading the map of a truncated file kills the process.
            self.images.check()
            decoded = list(one_by_one(self._decode_one, rows.tolist()))
            self.images.check()
            self._write(0, self._row_bytes, rows, [pixels.data for pixels in decoded])
            self._write(self._digests_at, DIGEST_BYTES, rows, [row_digest(pixels) for pixels in decoded])

    def _decode_one(self, row: int) -> Pixels:
        return self.preprocessing(self.images.read(row), self.images.name(row))

    def _write(self, start: int, size: int, rows: np.ndarray, values: Sequence[bytes | memoryview]) -> None:
        assert self._file is not None
        try:
            for row, value in zip(rows.tolist(), values, strict=True):
                self._file.write(value, start + row * size)
            self._file.sync()
        except OSError as error:
            raise _full(self.path(), error) from None


def _full(path: Path, error: OSError) -> BenchError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return BenchError(
            f"the disk of {path.parent} is full; free it with `bench data clean`, or point SOUPBENCH_CACHE elsewhere"
        )
    return BenchError(f"cannot write {path} ({error.strerror or error}); set SOUPBENCH_CACHE to a writable folder")


def stored(source: str = "") -> list[dict[str, Any]]:
    """List the pixel files of images whose name begins with `source`: key, source, images, preprocessing and bytes."""
    found = []
    for about in sorted(pixels_dir().glob("*.json")):
        pixels = about.with_suffix(".u8")
        facts = json.loads(about.read_text(encoding="utf-8"))
        if pixels.is_file() and facts["source"].startswith(source):
            found.append({"key": about.stem, **facts, "bytes": bytes_on_disk(pixels.stat())})
    return found


def clean(source: str = "") -> int:
    """Remove decoded pixels of images whose name begins with `source`, and return the number of freed bytes.

    The images are decoded again on next use. A running process keeps its open files until it ends; Windows does not
    remove these.
    """
    freed = 0
    keys = {facts["key"] for facts in stored(source)}
    for path in pixels_dir().glob("*"):
        if path.name.partition(".")[0] in keys or not source:
            size = bytes_on_disk(path.stat())
            freed += size if remove(path) else 0
    return freed
