"""The folder that holds results: one record and one predictions file per key, written once and atomically.

    DIR/records/<key>.json   DIR/records.jsonl (compiled from them)   DIR/predictions/<key>.npz

Processes and machines share results only through this folder, so every write is complete or absent.
"""

from __future__ import annotations

import uuid
import zipfile
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from pathlib import Path

from leaderboards.bundle import Bundle, read_bundle
from leaderboards.files import MAX_LINE, check_plain, lines_of, write_atomically
from leaderboards.files import StoreError as StoreError
from leaderboards.predictions import Predictions as Predictions
from leaderboards.predictions import Scored
from leaderboards.record import Record, RecordError


class Store:
    """Reads and writes one results folder, which need not exist before the first write."""

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)

    def write(self, record: Record, predictions: Predictions | None = None, *, replace: bool = False) -> bool:
        """Store a record and its predictions; return True if written, False if the existing record was kept.

        Any record replaces a failed one on disk. A done record is never replaced by a failed one; another done one
        replaces it if `replace` is set, and it stays if the new one has the same metrics.

        Raises ValueError if record and predictions do not belong together, StoreError if a done record with other
        metrics exists and `replace` is False.
        """
        from filelock import FileLock

        if (record.predictions is None) != (predictions is None):
            raise ValueError("a done record is written with its predictions, a failed one without")
        if predictions is not None and len(predictions) != record.n:
            raise ValueError(
                f"the record says n = {record.n}, the predictions have {len(predictions)} rows; give both alike"
            )
        path = self._record_path(record.key)
        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self.folder / ".lock"):
            self._unpack()
            keeps = path.exists() and not _gives_way(path, record, replace)
            if keeps and (record.status == "failed" or _is_whole(self._predictions_path(record.key))):
                return False
            if predictions is not None:
                # A predictions file without its record is no result, so a crash in between leaves nothing false.
                path.unlink(missing_ok=True)
                predictions.save(self._predictions_path(record.key))
            write_atomically(path, record.to_json().encode() + b"\n")
        return True

    def records(self) -> list[Record]:
        """Return all records by key: of records/*.json, or of records.jsonl without records/; [] for an empty folder.

        Raises StoreError naming the first file that is broken or not named after its key.
        """
        if self._only_lines():
            return sorted(read_lines(self.jsonl), key=lambda record: record.key)
        return [read_record(path) for path in sorted((self.folder / "records").glob("*.json"))]

    def done(self) -> set[str]:
        """Return keys of records that are done and have complete predictions: those that a resumed run skips."""
        return {record.key for record in self.records() if record.status == "done" and self._has_whole(record.key)}

    def has_done(self, keys: Iterable[str]) -> bool:
        """Return whether each of these records is done and has complete predictions."""
        return all(
            (path := self._record_path(key)).exists()
            and read_record(path).status == "done"
            and _is_whole(self._predictions_path(key))
            for key in keys
        )

    def set_aside_broken(self) -> list[Path]:
        """Rename every unreadable record to <name>.broken, which is never read; return the new names."""
        moved = []
        for path in sorted((self.folder / "records").glob("*.json")):
            try:
                read_record(path)
            except StoreError:
                moved.append(path.replace(path.with_name(f"{path.name}.broken")))
        return moved

    def failed(self) -> set[str]:
        """Return keys of failed records: those that `--only-failed` runs again."""
        return {record.key for record in self.records() if record.status == "failed"}

    def compile(self) -> Path:
        """Write records.jsonl, one record on each line, sorted by key, and return its path."""
        lines = "".join(f"{record.to_json()}\n" for record in self.records())
        self.folder.mkdir(parents=True, exist_ok=True)
        write_atomically(self.jsonl, lines.encode())
        return self.jsonl

    def predictions(self, record: Record) -> Predictions:
        """Read the predictions of a done record. Raises StoreError if it failed or the file is missing or broken."""
        if record.predictions is None:
            raise StoreError(f"record {record.key} failed and has no predictions; run it again with --only-failed")
        return Predictions.load(self._predictions_path(record.key))

    def has_predictions(self, record: Record) -> bool:
        """Return whether a predictions file of this record exists; the file may still be broken."""
        return record.predictions is not None and self._predictions_path(record.key).exists()

    @property
    def jsonl(self) -> Path:
        """The path that `compile` writes."""
        return self.folder / "records.jsonl"

    def _only_lines(self) -> bool:
        return self.jsonl.exists() and not (self.folder / "records").is_dir()

    def _unpack(self) -> None:
        """Split records.jsonl into files, because a new records/ would hide its lines and `compile` would drop them."""
        if not self._only_lines():
            return
        temporary = self.folder / f".records.{uuid.uuid4().hex}.tmp"
        temporary.mkdir()
        for record in read_lines(self.jsonl):
            write_atomically(temporary / f"{record.key}.json", record.to_json().encode() + b"\n")
        temporary.rename(self.folder / "records")

    def _has_whole(self, key: str) -> bool:
        return self._only_lines() or _is_whole(self._predictions_path(key))

    def _record_path(self, key: str) -> Path:
        return self.folder / "records" / f"{key}.json"

    def _predictions_path(self, key: str) -> Path:
        return self.folder / "predictions" / f"{key}.npz"


Folders = Path | str | Sequence[Path | str]
"""One results folder or bundle, or several."""


def _each(folders: Folders) -> Sequence[Path | str]:
    return [folders] if isinstance(folders, Path | str) else folders


def read(folders: Folders) -> list[Record]:
    """Read the records of several results folders, or files made by `bench publish bundle`, sorted by key.

    The same key may occur in several folders: a done record wins over a failed one, equal metrics are one record.
    Raises StoreError if a folder is no results folder, or if two done records of one key have different metrics.
    """
    merged: dict[str, tuple[Record, Path | str]] = {}
    for folder in _each(folders):
        store = Store(folder)
        if store.folder.is_file():
            found = list(_bundle(store.folder).records)
        elif not (store.folder / "records").is_dir() and not store.jsonl.exists():
            raise StoreError(f"{folder} holds no records; give a folder that `bench run --out` wrote")
        else:
            found = store.records()
        for record in found:
            other, home = merged.get(record.key, (record, folder))
            if record.metrics and other.metrics and record.metrics != other.metrics:
                raise StoreError(
                    f"record {record.key} has different metrics in {home} and {folder}; leave one folder out"
                )
            if record.key not in merged or other.status == "failed":
                merged[record.key] = (record, folder)
    return [merged[key][0] for key in sorted(merged)]


def find_scored(folders: Folders, record: Record) -> Scored:
    """Return which images of a record from `read(folders)` were classified correctly, from folders and bundles alike.

    Raises StoreError if no folder or bundle has them or the file is broken.
    """
    for path in map(Path, _each(folders)):
        if path.is_file() and record.key in (bits := _bundle(path).bits):
            return bits[record.key]
    return find_predictions(folders, record)


def state_of(folders: Folders, record: Record) -> str:
    """Return a text that changes when the result of `find_scored` does; empty if that has no result."""
    for path in map(Path, _each(folders)):
        if path.is_file():
            if record.key in (digests := _bundle(path).digests):
                return digests[record.key]
        elif Store(path).has_predictions(record):
            status = (path / "predictions" / f"{record.key}.npz").stat()
            return f"{status.st_mtime_ns} {status.st_size}"
    return ""


def _bundle(path: Path) -> Bundle:
    status = path.stat()
    return _read_once(path, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=8)
def _read_once(path: Path, changed: int, size: int) -> Bundle:
    """Read a bundle through a cache, because it holds all its records and each of them asks for it."""
    return read_bundle(path)


def find_predictions(folders: Folders, record: Record) -> Predictions:
    """Return the predictions of a record from `read(folders)`, from the first folder that has them.

    Raises StoreError if no folder has them or the file is broken.
    """
    for store in map(Store, _each(folders)):
        if store.has_predictions(record):
            return store.predictions(record)
    raise StoreError(
        f"no folder holds the predictions of record {record.key}; copy {record.predictions} beside the records"
    )


def read_record(path: Path, parse: Callable[[bytes], Record] = Record.from_json) -> Record:
    """Read one records/<key>.json. Raises StoreError if it is broken or not named after its key."""
    check_plain(path, MAX_LINE)
    try:
        record = parse(path.read_bytes())
    except RecordError as error:
        raise StoreError(f"{path}: {error}") from error
    if path.stem != record.key:
        raise StoreError(f"{path} holds the record {record.key}; rename it to {record.key}.json")
    return record


def read_lines(path: Path) -> list[Record]:
    """Return the records of a records.jsonl in its order.

    Raises StoreError naming the line that is broken or repeats a key.
    """
    records: dict[str, Record] = {}
    for number, line in lines_of(path):
        try:
            record = Record.from_json(line)
        except RecordError as error:
            raise StoreError(f"{path}, line {number}: {error}") from error
        if record.key in records:
            raise StoreError(f"{path}, line {number}: key {record.key} occurs twice; delete one of the two lines")
        records[record.key] = record
    return list(records.values())


def _is_whole(path: Path) -> bool:
    """Return whether a predictions file exists and is complete: a zip file ends with its table of contents."""
    return path.is_file() and zipfile.is_zipfile(path)


def _gives_way(path: Path, record: Record, replace: bool) -> bool:
    try:
        there = read_record(path)
    except StoreError:
        if replace:
            return True
        raise
    if there.status == "failed":
        return True
    if record.status == "failed":
        return False
    if not replace and there.metrics != record.metrics:
        raise StoreError(f"{path} is done with other metrics; use --rerun to replace it or another --out")
    return replace
