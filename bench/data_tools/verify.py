"""Verify the data of a shift: checksums, a trial decoding of every image, and its cached pixels."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from bench.core.conditions import Condition
from bench.core.errors import BenchError, MissingDataError
from bench.data.imageset import ImageSet
from bench.data.lists import read_lines
from bench.data_tools.locate import SUMS, look
from bench.shifts import load_shift
from bench.shifts.data_root import Reading
from bench.shifts.image_shift import ImageShift

_SHOWN = 20


@dataclass(frozen=True)
class DataReport:
    """The number of files that match their checksum, of images that were decoded and skipped; problems as sentences."""

    shift: str
    checked: int
    images: int
    skipped: int
    problems: tuple[str, ...]


def verify(name: str, reading: Reading) -> DataReport:
    """Verify the files of a shift. Problems are reported, not raised.

    Raises UsageError for an unknown name, MissingDataError if no data of the shift is found.
    """
    found = look(name, reading)
    if not found.here and not found.fetch.startswith("bench data fetch"):
        raise MissingDataError(f"{name} is not in {', '.join(found.looked)}; get it from {found.fetch}")
    shift = load_shift(name, reading=reading)
    if not isinstance(shift, ImageShift):
        return DataReport(name, 0, len(shift.ids("test")), 0, ())
    problems: list[str] = []
    checked = 0
    if found.sums:
        checked, wrong = check_sums(Path(found.here))
        problems += wrong
    images = 0
    for part, where in _parts(shift, problems):
        images += len(part)
        problems += _unreadable(part, where, reading.workers)
        problems += [f"cached pixels of {image} had changed and were dropped" for image in shift.drop_damaged(part)]
    return DataReport(name, checked, images, shift.skipped if images else 0, tuple(problems))


def _parts(shift: ImageShift, problems: list[str]) -> Iterator[tuple[ImageSet, str]]:
    """Yield every image set of a shift with a name for messages; a set that cannot be opened is added to `problems`."""
    try:
        yield shift.open_test().images, "test images"
    except BenchError as error:
        problems.append(str(error))
        return
    for name in (*shift.corruptions, *shift.tuning_corruptions):
        for level in shift.severities or (1, 2, 3, 4, 5):
            try:
                found = shift.published(Condition(name, level))
            except BenchError as error:
                # Tuning corruptions are optional.
                if name in shift.corruptions or not isinstance(error, MissingDataError):
                    problems.append(str(error))
            else:
                if found is not None:
                    yield found, f"{name}@{level}"


def _unreadable(images: ImageSet, where: str, workers: int) -> list[str]:
    def problem(row: int) -> str | None:
        try:
            images.read(row)
        except BenchError as error:
            return str(error)
        return None

    with ThreadPoolExecutor(max(workers, 1)) as pool:
        found = pool.map(problem, range(len(images)))
        bad = [text for text in tqdm(found, total=len(images), desc=where, leave=False, disable=None) if text]
    return bad[:_SHOWN] + ([f"and {len(bad) - _SHOWN} more images of {where}"] if len(bad) > _SHOWN else [])


def check_sums(root: Path) -> tuple[int, list[str]]:
    """Return how many files of a folder match its SHA256SUMS, and a sentence for each that differs or is missing."""
    good, problems = 0, []
    for line in tqdm(read_lines(root / SUMS), desc=SUMS, leave=False, disable=None):
        match = re.fullmatch(r"([0-9a-f]{64})[ ][ *](.+)", line)
        if match is None:
            problems.append(
                f"{root / SUMS} has the line '{line[:80]}', which sha256sum does not write; create it again"
            )
            continue
        path = root / match[2]
        if not path.resolve().is_relative_to(root.resolve()) or not path.is_file():
            problems.append(f"{path} is missing; fetch it again")
        elif file_digest(path) != match[1]:
            problems.append(f"{path} does not match {SUMS}; fetch it again")
        else:
            good += 1
    return good, problems


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
