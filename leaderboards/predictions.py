"""The predictions, image by image, and their file: all that is needed to recompute every metric of a record."""

from __future__ import annotations

import hashlib
import io
import zipfile
import zlib
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from leaderboards.files import StoreError, check_plain, write_atomically

MAX_BYTES = 1 << 30
_SLACK = 1e-4  # float32 rounding of sums over a thousand classes, with room to spare

_COLUMNS: dict[str, np.dtype[Any]] = {
    "id": np.dtype("<i8"),
    "label": np.dtype("<i8"),
    "predicted": np.dtype("<i8"),
    "confidence": np.dtype("<f4"),
    "p_label": np.dtype("<f4"),
    "sum_p2": np.dtype("<f4"),
    "correct": np.dtype("bool"),
}
_OPTIONAL = "correct"


class Scored(Protocol):
    """Which images of one condition were classified correctly: all that intervals and ranks need."""

    @property
    def id(self) -> NDArray[np.int64]:
        """Image ids [n]."""

    @property
    def hits(self) -> NDArray[np.bool_]:
        """Which predictions are right, bool [n]."""


@dataclass(frozen=True, eq=False)
class Predictions:
    """The predictions for the images of one condition, in stream order; every column has shape [n], n >= 1.

    `id` (int64) is the image's number in the shift, shared by all its conditions, and may repeat if a protocol shows an
    image twice. `label` and `predicted` (int64) are classes. `confidence` is the largest probability, `p_label` that of
    the label, `sum_p2` the sum of the squares of all (float32, in [0, 1]). `correct` (bool) is given only if an image
    has several right answers; otherwise right means predicted == label.

    Raises ValueError for a wrong type or shape, values that are not finite or out of range, or columns that contradict
    one another, which reveals swapped or unnormalised columns.
    """

    id: NDArray[np.int64]
    label: NDArray[np.int64]
    predicted: NDArray[np.int64]
    confidence: NDArray[np.float32]
    p_label: NDArray[np.float32]
    sum_p2: NDArray[np.float32]
    correct: NDArray[np.bool_] | None = None

    def __post_init__(self) -> None:
        for name, column in self._columns().items():
            _check_column(name, column, len(self.id))
        square = self.confidence.astype(np.float64) ** 2
        if np.any(self.sum_p2 > self.confidence + _SLACK) or np.any(self.sum_p2 < square - _SLACK):
            raise ValueError("sum_p2 must lie between confidence squared and confidence; give normalised probabilities")
        if self.correct is None:
            if np.any(self.p_label > self.confidence + _SLACK):
                raise ValueError("p_label is larger than confidence; give the largest probability as confidence")
            if np.any(np.abs(self.p_label - self.confidence)[self.hits] > _SLACK):
                raise ValueError("p_label must equal confidence where the prediction is right; check the two columns")

    def __len__(self) -> int:
        return len(self.id)

    @property
    def hits(self) -> NDArray[np.bool_]:
        """Which predictions are right, bool [n]."""
        if self.correct is not None:
            return self.correct
        hits: NDArray[np.bool_] = self.predicted == self.label
        return hits

    def digest(self) -> str:
        """SHA-256 of the columns, 64 hexadecimal digits: each column's name, number of rows and little-endian bytes.

        It depends only on the values and their order, not on how a file packs them.
        """
        sha = hashlib.sha256()
        for name, column in self._columns().items():
            sha.update(f"{name}:{len(column)}:".encode() + column.astype(_COLUMNS[name]).tobytes())
        return sha.hexdigest()

    def save(self, path: Path | str) -> None:
        """Write the columns as a compressed npz, atomically; equal predictions give equal bytes."""
        buffer = io.BytesIO()
        # Without allow_pickle, which older versions of numpy write as one more column.
        columns: dict[str, Any] = {name: column.astype(_COLUMNS[name]) for name, column in self._columns().items()}
        np.savez_compressed(buffer, **columns)
        write_atomically(Path(path), buffer.getvalue())

    @staticmethod
    def load(path: Path | str) -> Predictions:
        """Read what `save` wrote; never unpickles.

        Raises StoreError if the file is missing, cut off, larger than 1 GiB unpacked, or holds columns, types or values
        that predictions do not have.
        """
        path = Path(path)
        check_plain(path, MAX_BYTES)
        try:
            with zipfile.ZipFile(path) as archive:
                return Predictions(**_read_columns(archive))
        except (OSError, ValueError, zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, SyntaxError) as error:
            raise StoreError(
                f"{path} is not readable as predictions ({error}); delete it and run with --rerun"
            ) from error

    def _columns(self) -> dict[str, NDArray[Any]]:
        columns = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: column for name, column in columns.items() if column is not None}


def _check_column(name: str, column: NDArray[Any], n: int) -> None:
    if not isinstance(column, np.ndarray) or column.dtype != _COLUMNS[name] or column.ndim != 1:
        raise ValueError(f"{name} must be a {_COLUMNS[name].name} array [n]")
    if len(column) != n or n == 0:
        raise ValueError(f"{name} has {len(column)} rows and id {n}; give all columns the same length, at least 1")
    if column.dtype.kind == "f" and not (
        np.isfinite(column).all() and column.min() >= 0 and column.max() <= 1 + _SLACK
    ):
        raise ValueError(f"{name} must be finite and in [0, 1]; report the trial as failed instead")
    if column.dtype.kind == "i" and column.min() < 0:
        raise ValueError(f"{name} must not be negative")


@lru_cache(maxsize=256)
def _header(text: bytes) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Parse the header of a column; files of one run share it, and numpy compiles each as Python."""
    shape, _, dtype = np.lib.format.read_array_header_1_0(io.BytesIO(text))
    return shape, dtype


def _read_columns(archive: zipfile.ZipFile) -> dict[str, NDArray[Any]]:
    members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
    if set(members) | {_OPTIONAL} != set(_COLUMNS) or len(members) != len(archive.infolist()):
        raise ValueError(f"it holds the columns {', '.join(sorted(members)) or 'none'}")
    if sum(info.file_size for info in members.values()) > MAX_BYTES:
        raise ValueError(f"it unpacks to more than {MAX_BYTES >> 20} MiB")
    columns: dict[str, NDArray[Any]] = {}
    for name, info in members.items():
        # Other compression methods unpack everything, whatever the declared size.
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError(f"{name} is packed in a way that numpy does not use")
        with archive.open(info) as file:
            if np.lib.format.read_magic(file) != (1, 0):
                raise ValueError(f"{name} is in an unknown version of the npy format")
            length = file.read(2)
            shape, dtype = _header(length + file.read(int.from_bytes(length, "little")))
            # Checked before any array is made: an object column would need unpickling, a false shape memory.
            if dtype != _COLUMNS[name] or len(shape) != 1:
                raise ValueError(f"{name} has type {dtype} and shape {shape}")
            size = shape[0] * dtype.itemsize
            if not 0 <= size <= info.file_size:
                raise ValueError(f"{name} is cut off")
            content = file.read(size + 1)  # the declared size limits what is unpacked
        if len(content) != size:
            raise ValueError(f"{name} has another length than it declares")
        columns[name] = np.frombuffer(content, dtype)
    return columns
