"""The published form of results: one text file with records, packed per-image outcomes and digests of the predictions.

Every line is a JSON object. The first describes the file: format, version, number of records, model card, the settings
that repeat the run, and sets of image ids. Each other line holds one record, the name of its set of images, whether
each of these was classified correctly (bits, most significant first, in base64), and the SHA-256 of the full
predictions (`Predictions.digest`). A reader unpacks and executes nothing, and every size is declared before it is used.

Version 2 may add: the labels of each set of images (uint16, little-endian, in base64), the probabilities of each record
(`leaderboards.compact`, in base64), who submits, and where the weights are to be had. A file without them is version 1.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, model_validator

from leaderboards.compact import BYTES, Compact
from leaderboards.files import MAX_LINE, StoreError, write_atomically
from leaderboards.predictions import Predictions
from leaderboards.record import Record, RecordError, strict_json

FORMAT = "soupbench-results"
VERSION = 2
MAX_FILE = 64 << 20
MAX_RECORDS = 20_000
MAX_IMAGES = 20_000_000
MAX_CARD = 20_000
_PER_BYTE = 8  # images for each byte of a file, since each has at least one bit
_RUN = tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=0)], Annotated[int, Field(ge=1)]]
Submitter = Annotated[str, Field(pattern=r"^[A-Za-z0-9](?:[A-Za-z0-9-]{0,38})$")]
"""A user name as on GitHub or the hub."""
Link = Annotated[
    str,
    Field(
        max_length=200,
        pattern=r"^(https://[A-Za-z0-9.-]+(/[A-Za-z0-9._~%/-]*)?|hf:[A-Za-z0-9._-]+/[A-Za-z0-9._-]+@[0-9a-f]{40})$",
    ),
]
"""A place of weights: a link, or a hub repository at a revision."""


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

    `card` is a plain text about the results. `settings` are those of a run file that repeats them. By record key too,
    if the file has them: `probabilities`, from which ECE, NLL and Brier score are recomputed, and `labels` (int64 [n],
    in the order of the bits). `submitter` and `weights` (where an own model is to be had) are what the file states.
    No file states `provenance`, which says of each record who has confirmed it, and `notes`, sentences on images,
    weights and numbers of the file; `leaderboards.provenance` makes both.
    """

    card: str
    settings: Mapping[str, JsonValue]
    records: tuple[Record, ...]
    bits: Mapping[str, Bits]
    digests: Mapping[str, str]
    probabilities: Mapping[str, Compact] = field(default_factory=dict)
    labels: Mapping[str, NDArray[np.int64]] = field(default_factory=dict)
    submitter: str | None = None
    weights: str | None = None
    provenance: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def recomputed(self) -> bool:
        """Whether ECE, NLL and Brier score of every record follow from the file; else they are as submitted."""
        return all(record.key in self.probabilities for record in self.records)


class _Line(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class _Head(_Line):
    format: Literal["soupbench-results"]
    version: Annotated[int, Field(ge=1, le=VERSION)]
    records: Annotated[int, Field(ge=1, le=MAX_RECORDS)]
    card: Annotated[str, Field(max_length=MAX_CARD)]
    settings: dict[str, JsonValue]
    images: Annotated[dict[str, list[_RUN]], Field(max_length=MAX_RECORDS)]
    labels: Annotated[dict[str, str], Field(max_length=MAX_RECORDS)] = Field(default_factory=dict)
    submitter: Submitter | None = None
    weights: Link | None = None

    @model_validator(mode="after")
    def _first_version_has_no_more(self) -> Self:
        if self.version == 1 and (self.labels or self.submitter or self.weights):
            raise ValueError("labels, submitter and weights belong to version 2")
        return self


class _Entry(_Line):
    record: dict[str, JsonValue]
    images: str
    hits: str
    predictions_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    probabilities: str | None = None


def pack(predictions: Predictions) -> Bits:
    """Pack which images were classified correctly, by ascending id; images shown several times stay in stream order."""
    order = np.argsort(predictions.id, kind="stable")
    return Bits(predictions.id[order], predictions.hits[order])


def write_bundle(path: Path | str, bundle: Bundle) -> None:
    """Write the file atomically; equal bundles give equal bytes."""
    names: dict[bytes, str] = {}
    sets: dict[str, list[list[int]]] = {}
    labels: dict[str, str] = {}
    lines = []
    for record in sorted(bundle.records, key=lambda record: record.key):
        key, bits = record.key, bundle.bits[record.key]
        content = bits.id.tobytes()
        if content not in names:
            name = names[content] = f"images{len(names)}"
            sets[name] = runs_of(bits.id)
            if key in bundle.labels:
                labels[name] = _text(bundle.labels[key].astype("<u2").tobytes())
        lines.append(
            {
                "record": json.loads(record.to_json()),
                "images": names[content],
                "hits": _text(np.packbits(bits.hits).tobytes()),
                "predictions_sha256": bundle.digests[key],
                **({"probabilities": _text(codes.to_bytes())} if (codes := bundle.probabilities.get(key)) else {}),
            }
        )
    more = {"labels": labels, "submitter": bundle.submitter, "weights": bundle.weights}
    given = {name: value for name, value in more.items() if value}
    head = {
        "format": FORMAT,
        "version": VERSION if given or bundle.probabilities else 1,
        "records": len(lines),
        "card": bundle.card,
        "settings": dict(bundle.settings),
        "images": sets,
        **given,
    }
    text = "".join(json.dumps(line, separators=(",", ":"), allow_nan=False) + "\n" for line in [head, *lines])
    write_atomically(Path(path), text.encode())


def read_bundle(path: Path | str) -> Bundle:
    """Read what `write_bundle` wrote, without trusting the file.

    Sizes are checked before anything is read or allocated. Raises BundleError for a file that is no bundle, is larger
    than 64 MiB, repeats a key, or declares a number that differs from its content.
    """
    path = Path(path)
    lines = _lines(path)
    try:
        head = _Head.model_validate_json(json.dumps(strict_json(next(lines))))
    except (ValueError, StopIteration) as error:
        raise BundleError(f"{path.name}, line 1: {_reason(error)}; make the file with `bench publish bundle`") from None
    images = _images(path, head.images)
    labels = _labels(path, head.labels, images)
    records: dict[str, Record] = {}
    bits: dict[str, Bits] = {}
    digests: dict[str, str] = {}
    probabilities: dict[str, Compact] = {}
    names: dict[str, str] = {}
    for number, line in enumerate(lines, start=2):
        if len(records) == head.records:
            raise BundleError(f"{path.name} has more than the {head.records} records it declares; bundle the run again")
        try:
            entry = _Entry.model_validate(strict_json(line))
            record = Record.from_content(entry.record)
            if record.key in records:
                raise ValueError(f"the key {record.key} occurs twice")
            if entry.images not in images:
                raise ValueError(f"the set of images {entry.images[:50]!r} is not declared")
            n = len(images[entry.images])
            bits[record.key] = Bits(images[entry.images], _unpack(entry.hits, n))
            if entry.probabilities is not None:
                if head.version == 1:
                    raise ValueError("probabilities belong to version 2")
                content = _content("probabilities", entry.probabilities, BYTES * n, n)
                probabilities[record.key] = Compact.of_bytes(content, n)
        except (RecordError, ValueError) as error:
            reason = _reason(error)
            raise BundleError(f"{path.name}, line {number}: {reason}; bundle the run again") from None
        records[record.key] = record
        digests[record.key] = entry.predictions_sha256
        names[record.key] = entry.images
    if len(records) != head.records:
        raise BundleError(
            f"{path.name} declares {head.records} records and has {len(records)}; bundle the run again, it was cut off"
        )
    if unused := head.images.keys() - set(names.values()):
        raise BundleError(
            f"{path.name} declares the set of images {_plain(min(unused))}, which no record has; bundle the run again"
        )
    return Bundle(
        card=head.card,
        settings=head.settings,
        records=tuple(records.values()),
        bits=bits,
        digests=digests,
        probabilities=probabilities,
        labels={key: labels[name] for key, name in names.items() if name in labels},
        submitter=head.submitter,
        weights=head.weights,
    )


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
    most = min(MAX_IMAGES, _PER_BYTE * path.stat().st_size)
    if sum(count for runs in sets.values() for _, _, count in runs) > most:
        raise BundleError(f"{path.name} declares more than {most} images; bundle fewer records a file")
    try:
        return {name: ids_of(runs) for name, runs in sets.items()}
    except ValueError as error:
        raise BundleError(f"{path.name}, line 1: {error}; bundle the run again") from None


def _labels(
    path: Path, texts: Mapping[str, str], images: Mapping[str, NDArray[np.int64]]
) -> dict[str, NDArray[np.int64]]:
    found: dict[str, NDArray[np.int64]] = {}
    for name, text in texts.items():
        try:
            if name not in images:
                raise ValueError(f"labels of {name[:50]!r}, which is no set of images")
            n = len(images[name])
            found[name] = np.frombuffer(_content("labels", text, 2 * n, n), "<u2").astype(np.int64)
        except ValueError as error:
            raise BundleError(f"{path.name}, line 1: {_reason(error)}; bundle the run again") from None
    return found


def _unpack(text: str, n: int) -> NDArray[np.bool_]:
    bits = np.unpackbits(np.frombuffer(_content("hits", text, -(-n // 8), n), np.uint8))
    if bits[n:].any():
        raise ValueError("hits have bits beyond the last image")
    return bits[:n].astype(np.bool_)


def _content(what: str, text: str, size: int, n: int) -> bytes:
    """Return the bytes of a base64 text. Raises ValueError unless it is the one spelling of that many bytes."""
    if len(text) != 4 * -(-size // 3):
        raise ValueError(f"{what} have {len(text)} characters, which is not what {n} images take")
    try:
        content = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise ValueError(f"{what} are not base64") from None
    if len(content) != size or _text(content) != text:
        raise ValueError(f"{what} have {len(content)} bytes or stray bits, which is not what {n} images take")
    return content


def _text(content: bytes) -> str:
    return base64.b64encode(content).decode()


def _plain(text: str) -> str:
    return re.sub(r"[^ -~]", "?", text)[:300]


def _reason(error: Exception) -> str:
    """Return a message as one line of plain characters, whatever the file contains."""
    if isinstance(error, StopIteration):
        return "the file is empty"
    text = str(error)
    if isinstance(error, ValidationError):
        first: Any = error.errors(include_url=False, include_context=False, include_input=False)[0]
        text = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    text = text.partition("; ")[0]
    return _plain(text)
