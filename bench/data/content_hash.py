"""Identify files by a hash of their content, which is cached while their file-system metadata stay the same.

A set of more than `MOST_READ` bytes is not hashed, because that would take longer than a limited run. Its files are
identified by path and metadata, so a copy in another place is decoded again.
"""

from __future__ import annotations

import hashlib
import logging
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from bench.core.cache_dir import cache_dir, write_bytes
from bench.core.errors import BenchError, MissingDataError, UsageError

log = logging.getLogger(__name__)

MOST_READ = 2 << 30
"""The size in bytes up to which a set of files is hashed."""

UNSETTLED_NS = 2_000_000_000
"""A file that changed less than this before it was hashed (nanoseconds) may change again with equal timestamps."""

_SILENT_SECONDS = 3.0
_FILES_AT_ONCE = 64
_READ_WHOLE = 1 << 20
_DIGEST_BYTES = 32
_FACTS = 5
_63_BITS = (1 << 63) - 1

Stamp = tuple[int, int, int, int, int]
"""The metadata of a file: device, inode, size, and times of its last content and inode change (nanoseconds).

On Windows the last one is the time of its creation.
"""

Stamps = NDArray[np.int64]
Marks = NDArray[np.uint8]


def stamp_of(facts: os.stat_result) -> Stamp:
    """Return the stamp in a result of `os.stat` or `os.fstat`."""
    return facts.st_dev & _63_BITS, facts.st_ino & _63_BITS, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns


def stamps_of(facts: Iterable[os.stat_result]) -> Stamps:
    """Return the stamps of many files, int64 [n, 5], from an iterable: a list of millions of results would be large."""
    return np.fromiter((value for each in facts for value in stamp_of(each)), np.int64).reshape(-1, _FACTS)


def is_settled(stamp: Stamp, when: int) -> bool:
    """Whether any change of a file with this stamp after `when` (nanoseconds since 1970) would change its stamp.

    Timestamps have a coarse resolution, so a second change soon after a first one may leave them equal.
    """
    changed = stamp[3] if sys.platform == "win32" else stamp[4]
    return changed <= when - UNSETTLED_NS


def identities_dir() -> Path:
    """Return the folder of cached file hashes."""
    return cache_dir() / "identities"


class Files:
    """The state of files when they were opened; created by `open_files` and `open_tree`.

    `digest` (32 hexadecimal digits) identifies them: with `marks`, by their contents in order and the names given to
    `open_tree`; otherwise by their resolved paths and stamps.
    """

    def __init__(self, root: str, names: Sequence[str], stamps: Stamps, marks: Marks | None, digest: str) -> None:
        self._root, self._names, self._stamps, self._marks = root, names, stamps, marks
        self.digest = digest

    def read(self, number: int) -> bytes:
        """Return the bytes of a file. Raises UsageError if they changed since it was opened, OSError as `open` does."""
        path = _join(self._root, self._names[number])
        with open(path, "rb", buffering=0) as file:  # noqa: PTH123 - one call a file, of which there are millions
            content = file.read()
            stamp = stamp_of(os.fstat(file.fileno()))
        if self._marks is None:
            same = stamp == tuple(self._stamps[number].tolist())
        else:
            same = hashlib.sha256(content).digest() == self._marks[number].tobytes()
        if not same:
            raise _changed(path)
        return content

    def check(self) -> None:
        """Raise UsageError if a file changed since it was opened."""
        for number, name in enumerate(self._names):
            path = _join(self._root, name)
            try:
                stamp = stamp_of(os.stat(path))  # noqa: PTH116
            except OSError:
                raise _changed(path) from None
            if stamp == tuple(self._stamps[number].tolist()):
                continue
            if self._marks is None or content_digest(Path(path)) != self._marks[number].tobytes():
                raise _changed(path)
            self._stamps[number] = stamp  # another copy of the same content


def _join(root: str, name: str) -> str:
    return os.path.join(root, name)  # noqa: PTH118 - one call a file, of which there are millions


def _changed(path: str) -> UsageError:
    return UsageError(f"{path} has changed since it was opened; start the run again")


def open_files(paths: Sequence[Path], missing: str = "") -> Files:
    """Open table or array files in this order.

    Raises MissingDataError that ends with `missing` if one does not exist, UsageError if one cannot be read.
    """
    names = [str(path) for path in paths]
    try:
        stamps = stamps_of(path.stat() for path in paths)
    except FileNotFoundError as error:
        raise MissingDataError(f"no file {error.filename}; {missing}") from None
    if _too_large(stamps):
        return Files("", names, stamps, None, _digest_of_stamps((os.path.realpath(name) for name in names), stamps))
    marks = [content_digest(path) for path in paths]
    return Files("", names, stamps, _marks_of(marks), _digest(marks))


def open_tree(root: Path, names: Sequence[str], stamps: Stamps) -> Files:
    """Open image files at these paths below a folder that have these stamps.

    Raises UsageError if one cannot be read or changes meanwhile.
    """
    place = os.path.realpath(root)
    if _too_large(stamps):
        return Files(str(root), names, stamps, None, _digest_of_stamps((_join(place, name) for name in names), stamps))
    marks, _ = _contents(place, str(root), names, stamps)
    named = (part for name, mark in zip(names, marks, strict=True) for part in (os.fsencode(name), mark.tobytes()))
    return Files(str(root), names, stamps, marks, _digest(named))


def content_digest(path: Path) -> bytes:
    """Return the SHA-256 of a file's content, which is read only if its hash is not cached.

    Raises UsageError if the file cannot be read or changes meanwhile.
    """
    place = os.path.realpath(path)
    try:
        stamp = stamp_of(os.stat(place))  # noqa: PTH116
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror}); mend the link or the rights") from None
    if _hashed.get(place, (None, b""))[0] == stamp:
        return _hashed[place][1]
    (found,), settled = _contents(place, *_split(place), np.array([stamp], np.int64))
    mark: bytes = found.tobytes()
    if settled:
        _hashed[place] = stamp, mark
    return mark


def _split(path: str) -> tuple[str, list[str]]:
    root, name = os.path.split(path)
    return root, [name]


_hashed: dict[str, tuple[Stamp, bytes]] = {}


def _too_large(stamps: Stamps) -> bool:
    return int(stamps[:, 2].sum()) > MOST_READ


def _marks_of(marks: Sequence[bytes]) -> Marks:
    return np.frombuffer(b"".join(marks), np.uint8).reshape(-1, _DIGEST_BYTES)


def _digest(parts: Iterable[bytes]) -> str:
    """Return a hash of byte strings in order, each prefixed by its length so that boundaries count."""
    sha = hashlib.sha256()
    for part in parts:
        sha.update(len(part).to_bytes(8, "little") + part)
    return sha.hexdigest()[:32]


def _digest_of_stamps(paths: Iterable[str], stamps: Stamps) -> str:
    return _digest(os.fsencode(f"{path}|{stamp.tolist()}") for path, stamp in zip(paths, stamps, strict=True))


def _contents(place: str, root: str, names: Sequence[str], stamps: Stamps) -> tuple[Marks, bool]:
    """Return the SHA-256 of files below `root`, using the hashes cached for `place`, and whether all are settled."""
    now = time.time_ns()
    marks = _cached_marks(place, names, stamps)
    lacking = np.flatnonzero(~marks.any(axis=1))
    if not len(lacking):
        return marks, True
    with (
        ThreadPoolExecutor() as pool,
        tqdm(
            total=int(stamps[lacking, 2].sum()),
            desc="hashing",
            unit="B",
            unit_scale=True,
            delay=_SILENT_SECONDS,
            leave=False,
            disable=None,
        ) as bar,
    ):

        def hashed(rows: NDArray[np.int64]) -> list[bytes]:
            return [_hash(_join(root, names[row]), tuple(stamps[row].tolist()), bar.update) for row in rows.tolist()]

        parts = [lacking[low : low + _FILES_AT_ONCE] for low in range(0, len(lacking), _FILES_AT_ONCE)]
        for rows, found in zip(parts, pool.map(hashed, parts), strict=True):
            marks[rows] = _marks_of(found)
    settled = np.array([is_settled(tuple(stamp.tolist()), now) for stamp in stamps])
    kept = np.where(settled[:, None], marks, 0).astype(np.uint8)
    if kept[lacking].any():
        _store_marks(place, names, stamps, kept)
    return marks, bool(settled.all())


def _hash(path: str, stamp: Stamp, report: Callable[[int], object]) -> bytes:
    try:
        with open(path, "rb", buffering=0) as file:  # noqa: PTH123 - one call a file, of which there are millions
            if stamp[2] <= _READ_WHOLE:
                content = file.read()
                report(len(content))
                sha = hashlib.sha256(content)
            else:
                sha = hashlib.sha256()
                buffer = memoryview(bytearray(_READ_WHOLE))
                while size := file.readinto(buffer):
                    sha.update(buffer[:size])
                    report(size)
            now = stamp_of(os.fstat(file.fileno()))
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror}); mend the link or the rights") from None
    if now != stamp:
        raise UsageError(f"{path} changes while it is read; wait until it is whole and start again")
    return sha.digest()


def _cache_file(place: str) -> Path:
    return identities_dir() / hashlib.sha256(os.fsencode(place)).hexdigest()[:32]


def _cached_marks(place: str, names: Sequence[str], stamps: Stamps) -> Marks:
    """Return cached SHA-256 hashes, uint8 [n, 32], of files with unchanged stamps; zeros for all others."""
    marks = np.zeros((len(names), _DIGEST_BYTES), np.uint8)
    try:
        content = memoryview(_cache_file(place).read_bytes())
    except OSError:
        return marks
    body = content[_DIGEST_BYTES:]
    # A damaged cache file is ignored, because parts of it could be mistaken for hashes.
    if hashlib.sha256(body).digest() != content[:_DIGEST_BYTES] or len(body) < 8:
        return marks
    count = int.from_bytes(body[:8], "little")
    middle = 8 + count * _FACTS * 8
    end = middle + count * _DIGEST_BYTES
    old_stamps = np.frombuffer(body[8:middle], "<i8").reshape(count, _FACTS)
    old_marks = np.frombuffer(body[middle:end], np.uint8).reshape(count, _DIGEST_BYTES)
    text = bytes(body[end:])
    if text == _joined(place, names):
        same = (old_stamps == stamps).all(axis=1)
        marks[same] = old_marks[same]
        return marks
    places = {name: row for row, name in enumerate(text.split(b"\0")[1:])}
    if len(places) != count:
        return marks
    for row, name in enumerate(names):
        old = places.get(os.fsencode(name))
        if old is not None and (old_stamps[old] == stamps[row]).all():
            marks[row] = old_marks[old]
    return marks


def _store_marks(place: str, names: Sequence[str], stamps: Stamps, marks: Marks) -> None:
    body = b"".join(
        [
            len(names).to_bytes(8, "little"),
            stamps.astype("<i8").tobytes(),
            marks.tobytes(),
            _joined(place, names),
        ]
    )
    try:
        write_bytes(_cache_file(place), hashlib.sha256(body).digest() + body)
    except BenchError as error:
        log.info("file hashes are not cached: %s", error)


def _joined(place: str, names: Sequence[str]) -> bytes:
    return os.fsencode("\0".join([place, *names]))
