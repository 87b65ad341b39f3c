"""The published form of results: one text file with records, packed per-image outcomes and digests of the predictions.

Every line is a JSON object. The first describes the file: format, version, number of records, model card, the settings
that repeat the run, and sets of image ids. Each other line holds one record, the name of its set of images, whether
each of these was classified correctly (bits, most significant first, in base64), and the SHA-256 of the full
predictions (`Predictions.digest`). A reader unpacks and executes nothing, and every size is declared before it is used.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from leaderboards.files import MAX_LINE, StoreError, write_atomically
from leaderboards.predictions import Predictions
from leaderboards.record import Record, RecordError, strict_json

FORMAT = "soupbench-results"
VERSION = 1
MAX_FILE = 64 << 20
MAX_RECORDS = 20_000
MAX_IMAGES = 20_000_000
MAX_CARD = 20_000
_RUN = tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=0)], Annotated[int, Field(ge=1)]]


class BundleError(StoreError):
    """Raised where a file is no bundle of results; the message is one sentence that ends with what to do."""


@dataclass(frozen=True, eq=False, slots=True)
class Bits:
    """Ascending image ids (int64 [n]) and whether each was classified right (bool [n]); repeated ids stay repeated."""

    id: NDArray[np.int64]
    hits: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.id)


@dataclass(frozen=True, eq=False, slots=True)
class Bundle:
    """Published results: `bits` and `digests` (SHA-256 of the full predictions) by record key.

    `card` is a plain text about the results. `settings` are those of a run file that repeats them.
    """

    card: str
    settings: Mapping[str, JsonValue]
    records: tuple[Record, ...]
    bits: Mapping[str, Bits]
    digests: Mapping[str, str]


class _Line(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class _Head(_Line):
    format: Literal["soupbench-results"]
    version: Annotated[int, Field(ge=VERSION, le=VERSION)]
    records: Annotated[int, Field(ge=1, le=MAX_RECORDS)]
    card: Annotated[str, Field(max_length=MAX_CARD)]
    settings: dict[str, JsonValue]
    images: Annotated[dict[str, list[_RUN]], Field(max_length=MAX_RECORDS)]


class _Entry(_Line):
    record: dict[str, JsonValue]
    images: str
    hits: str
    predictions_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


def pack(predictions: Predictions) -> Bits:
    """Pack which images were classified correctly, by ascending id; images shown several times stay in stream order."""
    order = np.argsort(predictions.id, kind="stable")
    return Bits(predictions.id[order], predictions.hits[order])


def write_bundle(path: Path, bundle: Bundle) -> None:
    """Write the file atomically; equal bundles give equal bytes."""
    names: dict[bytes, str] = {}
    sets: dict[str, list[list[int]]] = {}
    lines = []
    for record in sorted(bundle.records, key=lambda record: record.key):
        bits = bundle.bits[record.key]
        content = bits.id.tobytes()
        if content not in names:
            names[content] = f"images{len(names)}"
            sets[names[content]] = runs_of(bits.id)
        lines.append(
            {
                "record": json.loads(record.to_json()),
                "images": names[content],
                "hits": base64.b64encode(np.packbits(bits.hits).tobytes()).decode(),
                "predictions_sha256": bundle.digests[record.key],
            }
        )
    head = {
        "format": FORMAT,
        "version": VERSION,
        "records": len(lines),
        "card": bundle.card,
        "settings": dict(bundle.settings),
        "images": sets,
    }
    text = "".join(json.dumps(line, separators=(",", ":"), allow_nan=False) + "\n" for line in [head, *lines])
    write_atomically(path, text.encode())


def read_bundle(path: Path) -> Bundle:
    """Read what `write_bundle` wrote, without trusting the file.

    Sizes are checked before anything is read or allocated. Raises BundleError for a file that is no bundle, is larger
    than 64 MiB, repeats a key, or declares a number that differs from its content.
    """
    lines = _lines(path)
    try:
        head = _Head.model_validate_json(json.dumps(strict_json(next(lines))))
    except (ValueError, StopIteration) as error:
        raise BundleError(f"{path.name}, line 1: {_said(error)}; make the file with `bench publish bundle`") from None
    images = _images(path, head.images)
    records: dict[str, Record] = {}
    bits: dict[str, Bits] = {}
    digests: dict[str, str] = {}
    for number, line in enumerate(lines, start=2):
        if len(records) == head.records:
            raise BundleError(f"{path.name} has more than the {head.records} records it declares; bundle the run again")
        try:
            entry = _Entry.model_validate_json(json.dumps(strict_json(line)))
            record = Record.from_json(json.dumps(entry.record))
            if record.key in records:
                raise ValueError(f"the key {record.key} occurs twice")
            if entry.images not in images:
                raise ValueError(f"the set of images {entry.images[:50]!r} is not declared")
            bits[record.key] = Bits(images[entry.images], _unpack(entry.hits, len(images[entry.images])))
        except (RecordError, ValueError) as error:
            reason = _said(error)
            raise BundleError(f"{path.name}, line {number}: {reason}; bundle the run again") from None
        records[record.key] = record
        digests[record.key] = entry.predictions_sha256
    if len(records) != head.records:
        raise BundleError(
            f"{path.name} declares {head.records} records and has {len(records)}; bundle the run again, it was cut off"
        )
    return Bundle(head.card, head.settings, tuple(records.values()), bits, digests)


def runs_of(ids: NDArray[np.int64]) -> list[list[int]]:
    """Return ascending ids, at least one, as runs [first, step, count] of equal steps."""
    steps = np.diff(ids)
    changes = np.flatnonzero(np.diff(steps)) + 1  # steps[changes] differ from the step before them
    runs: list[list[int]] = []
    start = 0
    while start < len(ids):
        if start == len(ids) - 1:
            runs.append([int(ids[start]), 0, 1])
            break
        following = int(np.searchsorted(changes, start, side="right"))
        last = int(changes[following]) if following < len(changes) else len(steps)
        runs.append([int(ids[start]), int(steps[start]), last - start + 1])
        start = last + 1
    return runs


def ids_of(runs: Sequence[Sequence[int]]) -> NDArray[np.int64]:
    """Return the ids of runs [first, step, count]. Raises ValueError if they do not ascend, or are too many or big."""
    if sum(count for _, _, count in runs) > MAX_IMAGES:
        raise ValueError(f"it declares more than {MAX_IMAGES} images")
    if any(first + step * (count - 1) >= 1 << 62 for first, step, count in runs):
        raise ValueError("it declares image ids that no shift has")
    parts = [first + step * np.arange(count, dtype=np.int64) for first, step, count in runs]
    ids = np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)
    if len(ids) == 0 or np.any(np.diff(ids) < 0):
        raise ValueError("image ids must ascend, at least one")
    return ids


def _lines(path: Path) -> Iterator[bytes]:
    try:
        status = path.lstat()
    except OSError:
        raise BundleError(f"{path.name} is missing; give a file made by `bench publish bundle`") from None
    if not stat.S_ISREG(status.st_mode):
        raise BundleError(f"{path.name} is no plain file; give the file itself, not a link, folder or device")
    if status.st_size > MAX_FILE:
        raise BundleError(
            f"{path.name} has {status.st_size >> 20} MiB, more than {MAX_FILE >> 20}; bundle fewer records a file"
        )
    left = MAX_FILE
    with path.open("rb") as file:
        while line := file.readline(MAX_LINE + 1):
            left -= len(line)
            if len(line) > MAX_LINE or left < 0:
                raise BundleError(f"{path.name} has a line of more than {MAX_LINE >> 20} MiB; bundle the run again")
            yield line


def _images(path: Path, sets: Mapping[str, Sequence[Sequence[int]]]) -> dict[str, NDArray[np.int64]]:
    if sum(count for runs in sets.values() for _, _, count in runs) > MAX_IMAGES:
        raise BundleError(f"{path.name} declares more than {MAX_IMAGES} images; bundle fewer records a file")
    try:
        return {name: ids_of(runs) for name, runs in sets.items()}
    except ValueError as error:
        raise BundleError(f"{path.name}, line 1: {error}; bundle the run again") from None


def _unpack(text: str, n: int) -> NDArray[np.bool_]:
    size = -(-n // 8)
    if len(text) != 4 * -(-size // 3):
        raise ValueError(f"hits have {len(text)} characters, which is not what {n} images take")
    try:
        content = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("hits are not base64") from None
    if len(content) != size:
        raise ValueError(f"hits have {len(content)} bytes, which is not what {n} images take")
    bits = np.unpackbits(np.frombuffer(content, np.uint8))
    if bits[n:].any():
        raise ValueError("hits have bits beyond the last image")
    return bits[:n].astype(np.bool_)


def _said(error: Exception) -> str:
    """Return a message as one line of plain characters, whatever the file contains."""
    if isinstance(error, StopIteration):
        return "the file is empty"
    text = str(error)
    if isinstance(error, ValidationError):
        first: Any = error.errors(include_url=False, include_context=False, include_input=False)[0]
        text = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    text = text.partition("; ")[0]
    return re.sub(r"[^ -~]", "?", text)[:300]
