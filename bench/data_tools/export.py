"""Export a corrupted copy of a data set in a published layout; an interrupted export can be continued.

    imagenet-c   CORRUPTION/SEVERITY/CLASS/NAME.JPEG                   JPEG of quality 85, 4:2:0, as ImageNet-C
    laion-c      CORRUPTION/intensity_level_SEVERITY/CLASS/NAME.JPEG   JPEG of quality 100, 4:4:4, as LAION-C
    cifar-c      CORRUPTION.npy uint8 [5 n, h, w, 3] (all images at severity 1, then 2, …) and labels.npy [5 n]

It adds `manifest.json` (what the pixels depend on) and `SHA256SUMS`, for `sha256sum -c` and `bench data verify`.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from PIL import Image
from tqdm import tqdm

from bench.core.cache_dir import write_bytes
from bench.core.conditions import CLEAN, Condition, digest_of
from bench.core.environment import environment
from bench.core.errors import BenchError, MissingDataError, UsageError
from bench.core.file_names import are_portable, portable_name
from bench.data.decode import Pixels
from bench.data.folders import FolderSet
from bench.data_tools.locate import SUMS
from bench.data_tools.verify import file_digest
from bench.shifts.image_shift import ImageShift
from bench.shifts.imagenet import SUPERCLASSES
from bench.shifts.shift import NATURAL, Shift, limit_ids
from bench.shifts.user_corruption import codes_of, without_added
from corruptions import profile_for
from corruptions.rng import VERSION

MANIFEST = "manifest.json"
_HIDDEN = ".export"
_CODES = "user_corruptions"
_SEVERITIES = (1, 2, 3, 4, 5)
_BYTES_AT_ONCE = 1 << 25


@dataclass(frozen=True)
class ExportLayout:
    """A published layout. `level` is the folder of a severity, `jpeg` Pillow's options, empty for `.npy` files."""

    name: str
    level: str = ""
    jpeg: tuple[tuple[str, Any], ...] = ()


LAYOUTS = {
    layout.name: layout
    for layout in (
        ExportLayout("imagenet-c", "{}", (("quality", 85), ("optimize", True))),
        ExportLayout("laion-c", "intensity_level_{}", (("quality", 100), ("subsampling", 0))),
        ExportLayout("cifar-c"),
    )
}


@dataclass(frozen=True)
class Exported:
    """The result of an export: its folder and layout, the images in the copy, and how many this call made."""

    out: Path
    layout: str
    images: int
    made: int


def usual_layout(shift: Shift) -> ExportLayout:
    """Return the published layout for sets like this one."""
    if shift.family != "imagenet":
        return LAYOUTS["cifar-c"]
    return LAYOUTS["laion-c" if shift.members == tuple(SUPERCLASSES.values()) else "imagenet-c"]


def export(
    shift: Shift,
    out: Path,
    corruptions: Sequence[str],
    severities: Sequence[float],
    layout: ExportLayout,
    limit: int | None = None,
    device: str = "cpu",
    workers: int = 1,
) -> Exported:
    """Write the test images of a shift (at most `limit`) under each corruption and severity; finished files are kept.

    Files are written atomically. A later call may add corruptions to the same folder, with otherwise equal settings.
    Raises UsageError for a shift with published images, another export in `out`, or severities that the layout cannot
    hold; MissingDataError if a corruption lacks its files; BenchError for a full disk.
    """
    levels = _whole(severities, layout)
    wanted = [name for name in corruptions if name != NATURAL]
    if not wanted:
        raise UsageError(
            f"{shift.name} has nothing to corrupt in this choice; name corruptions, as in --corruption fog"
        )
    plain = without_added(shift)
    if isinstance(plain, ImageShift) and not plain.made_here:
        raise UsageError(f"{shift.name} consists of published files; copy them, or export {shift.name}-gen")
    ids = limit_ids(shift.ids("test"), limit)
    with _alone(out):
        for name in wanted:  # report missing files now, not after hours
            shift.images(ids[:1], Condition(name, levels[0]), device)
        codes = codes_of(shift)
        _claim(out, _settings(shift, layout, ids), {name: codes[name] for name in wanted if name in codes})
        copy = (_Trees if layout.jpeg else _Arrays)(shift, out, layout, ids, device, workers)
        made = sum(copy.write(name, levels) for name in wanted)
        copy.finish()
    return Exported(out, layout.name, len(ids) * len(levels) * len(wanted), made)


def _whole(severities: Sequence[float], layout: ExportLayout) -> tuple[int, ...]:
    if not set(severities) <= set(_SEVERITIES):
        raise UsageError("the published layouts have only the severities 1 to 5; choose from those")
    if not layout.jpeg and len(set(severities)) < len(_SEVERITIES):
        raise UsageError("a .npy file of the cifar-c layout holds all five severities; leave --severity out")
    return tuple(sorted({int(level) for level in severities}))


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Hold the lock of the export folder, and convert OSError to BenchError."""
    try:
        (out / _HIDDEN).mkdir(parents=True, exist_ok=True)
        with FileLock(out / _HIDDEN / "lock", timeout=0):
            yield
    except Timeout:
        raise UsageError(f"another export is writing to {out}; wait for it or choose another folder") from None
    except OSError as error:
        if error.errno is None:  # missing photographs of a corruption
            raise MissingDataError(str(error)) from None
        raise BenchError(
            f"cannot write to {out} ({error.strerror or error}); free space or choose another folder, "
            "then run the same command again to continue"
        ) from None


def _settings(shift: Shift, layout: ExportLayout, ids: np.ndarray) -> dict[str, Any]:
    """Return everything that the pixels depend on, except the versions of libraries."""
    side = int(shift.images(ids[:1], CLEAN).shape[-1])
    return {
        "schema": 1,
        "shift": shift.name,
        "digest": shift.digest(ids, CLEAN),
        "ids": digest_of(ids.tolist()),
        "images": len(ids),
        "side": side,
        "seed": shift.data_seed,
        "random_numbers": VERSION,
        "tiles": shift.tiles,
        "profile": profile_for(side, side) if shift.profile == "auto" else shift.profile,
        "layout": layout.name,
        "storage": {"jpeg": dict(layout.jpeg)} if layout.jpeg else "uint8",
        "classes": list(_class_names(shift)),
    }


def _claim(out: Path, settings: dict[str, Any], codes: dict[str, str]) -> None:
    """Write the manifest of this export, with the code of user corruptions.

    Raises UsageError if the folder holds anything else, or images made by other code of the same name.
    """
    path = out / MANIFEST
    if path.is_file():
        try:
            held = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            held = {}
        differs = sorted(key for key, value in settings.items() if not isinstance(held, dict) or held.get(key) != value)
        if differs:
            raise UsageError(f"{out} holds another export (other {', '.join(differs)}); choose another folder")
        known = held.get(_CODES)
        known = known if isinstance(known, dict) else {}
        if changed := sorted(name for name, code in codes.items() if known.get(name, code) != code):
            raise UsageError(f"{changed[0]} has changed since {out} was begun; choose another folder")
        if not codes.keys() <= known.keys():
            write_bytes(path, json.dumps(held | {_CODES: known | codes}, indent=2).encode() + b"\n")
        return
    foreign = [entry.name for entry in out.iterdir() if entry.name != _HIDDEN]
    if foreign:
        raise UsageError(f"{out} is not empty ({foreign[0]}, …) and not an export; choose another folder")
    settings = settings | ({_CODES: codes} if codes else {}) | {"made_with": environment()}
    write_bytes(path, json.dumps(settings, indent=2).encode() + b"\n")


def _folder(corruption: str) -> str:
    """Return the name of a corruption in paths, where not all systems take colons: FILE.py-NAME for a user's."""
    return portable_name(corruption.replace(":", "-"))


def _class_names(shift: Shift) -> tuple[str, ...]:
    """Return the names of the class folders; numbers if some system does not accept a class name for a folder."""
    shift = without_added(shift)
    names = tuple(str(label) for label in range(shift.classes))
    if shift.members == tuple(SUPERCLASSES.values()):
        names = tuple(SUPERCLASSES)
    elif isinstance(shift, ImageShift) and shift.members is None:
        names = shift.open_test().images.classes
    safe = are_portable(names) and not any(name.startswith(".") for name in names)
    return names if safe else tuple(str(label) for label in range(len(names)))


def _file_names(shift: Shift, ids: np.ndarray) -> list[str]:
    """Return CLASS/NAME.JPEG of each image, with the name of its source file, else with its id."""
    shift = without_added(shift)
    classes, labels = _class_names(shift), shift.labels(ids)
    names = [f"{number:08d}" for number in ids.tolist()]
    images = shift.open_test().images if isinstance(shift, ImageShift) else None
    if isinstance(shift, ImageShift) and isinstance(images, FolderSet):
        files = [Path(images.files[row]) for row in shift.open_test().at(ids).tolist()]
        stems = {(file.parent, file.stem) for file in files}
        names = [file.stem if len(stems) == len(files) else file.name for file in files]
    made = [f"{classes[label]}/{name}.JPEG" for label, name in zip(labels, names, strict=True)]
    if len(set(made)) < len(made):  # merged classes may hold files of the same name
        made = [f"{classes[label]}/{number:08d}.JPEG" for label, number in zip(labels, ids.tolist(), strict=True)]
    return made


@dataclass
class _Copy(ABC):
    """The common base of both kinds of copy: batches, and journals of the images on disk.

    A journal line is written after the images it describes. On the next start these images are hashed again, and a line
    counts only if its digest matches. Finished files have their checksums in `.export/NAME.sums`.
    """

    shift: Shift
    out: Path
    layout: ExportLayout
    ids: np.ndarray
    device: str
    workers: int

    @abstractmethod
    def write(self, corruption: str, severities: Sequence[int]) -> int:
        """Write the missing images of a corruption and return their number."""

    def finish(self) -> None:
        """Write SHA256SUMS, the list of all checksums."""
        parts = sorted((self.out / _HIDDEN).glob("*.sums"))
        write_bytes(
            self.out / SUMS,
            "".join(sorted("".join(p.read_text(encoding="utf-8") for p in parts).splitlines(True))).encode(),
        )

    def batches(self, condition: Condition, places: Sequence[int]) -> Iterator[tuple[list[int], Pixels]]:
        """Yield positions and their images under a condition, uint8 [n, h, w, 3], in batches of limited memory."""
        if not places:
            return
        row_bytes = self.shift.images(self.ids[:1], CLEAN).numel()
        step = max(1, _BYTES_AT_ONCE // row_bytes)
        with tqdm(total=len(places), desc=str(condition), unit=" images", leave=False, disable=None) as bar:
            for start in range(0, len(places), step):
                chosen = list(places[start : start + step])
                pixels = self.shift.images(self.ids[chosen], condition, self.device)
                yield chosen, pixels.permute(0, 2, 3, 1).contiguous().cpu().numpy()
                bar.update(len(chosen))

    def sums(self, name: str) -> Path:
        return self.out / _HIDDEN / f"{name}.sums"

    def journal(self, name: str) -> Path:
        return self.out / _HIDDEN / f"{name}.journal"


def _lines(journal: Path) -> list[list[str]]:
    """Return the complete lines of a journal, each split into digest and rest; a truncated last line is dropped."""
    if not journal.is_file():
        return []
    text = journal.read_text(encoding="utf-8", errors="replace")
    return [line[:-1].split("  ", 1) for line in text.splitlines(True) if line.endswith("\n")]


class _Trees(_Copy):
    """A copy in a JPEG layout."""

    def write(self, corruption: str, severities: Sequence[int]) -> int:
        return sum(self._condition(Condition(corruption, severity)) for severity in severities)

    def _condition(self, condition: Condition) -> int:
        corruption = _folder(str(condition.corruption))
        name = f"{corruption}-{condition.severity:g}"
        if self.sums(name).is_file():
            return 0
        folder = f"{corruption}/{self.layout.level.format(int(condition.severity))}"
        files = [f"{folder}/{file}" for file in _file_names(self.shift, self.ids)]
        known = set(files)
        written = {line[1]: line[0] for line in _lines(self.journal(name)) if len(line) == 2 and line[1] in known}
        with ThreadPoolExecutor(self.workers) as pool:
            digests = pool.map(self._digest_of_file, written)
            written = {file: digest for file, digest in zip(written, digests, strict=True) if written[file] == digest}
            missing = [place for place, file in enumerate(files) if file not in written]
            for parent in {Path(file).parent for file in files}:
                (self.out / parent).mkdir(parents=True, exist_ok=True)
            with self.journal(name).open("a", encoding="utf-8") as journal:
                journal.write("\n")  # ends a truncated line
                for places, pixels in self.batches(condition, missing):
                    chosen = [files[place] for place in places]
                    for file, digest in zip(chosen, pool.map(self._save, chosen, pixels), strict=True):
                        written[file] = digest
                        journal.write(f"{digest}  {file}\n")
                    journal.flush()
        if sys.platform != "win32":
            os.sync()
        write_bytes(self.sums(name), "".join(f"{written[file]}  {file}\n" for file in files).encode())
        self.journal(name).unlink()
        return len(missing)

    def _save(self, file: str, pixels: Pixels) -> str:
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "JPEG", **dict(self.layout.jpeg))
        path = self.out / file
        unfinished = path.with_name(f".{path.name}.part")
        with unfinished.open("wb") as half:
            half.write(buffer.getvalue())
            if sys.platform == "win32":  # which cannot wait for all files at once
                half.flush()
                os.fsync(half.fileno())
        unfinished.replace(path)
        return hashlib.sha256(buffer.getvalue()).hexdigest()

    def _digest_of_file(self, file: str) -> str:
        return file_digest(self.out / file) if (self.out / file).is_file() else ""


class _Arrays(_Copy):
    """A copy in the layout of CIFAR-10-C."""

    def write(self, corruption: str, severities: Sequence[int]) -> int:
        name = _folder(corruption)
        if self.sums(name).is_file():
            return 0
        n, side = len(self.ids), int(self.shift.images(self.ids[:1], CLEAN).shape[-1])
        unfinished, journal = self.out / _HIDDEN / f"{name}.npy", self.journal(name)
        start = _open_rows(unfinished, (len(severities) * n, side, side, 3))
        made = 0
        # Written as a file, not through a memory map, which would crash the process on a full disk.
        done = _done(unfinished, journal)
        with journal.open("a", encoding="utf-8") as notes, unfinished.open("r+b") as file:
            notes.write("\n")  # ends a truncated line
            for number, severity in enumerate(severities):
                missing = [place for place in range(n) if number * n + place not in done]
                for places, pixels in self.batches(Condition(corruption, severity), missing):
                    here = [number * n + place for place in places]
                    for row, image in zip(here, pixels, strict=True):
                        file.seek(start + row * image.nbytes)
                        file.write(image.data)
                    file.flush()
                    notes.write(f"{hashlib.sha256(pixels.tobytes()).hexdigest()}  {','.join(map(str, here))}\n")
                    notes.flush()
                    made += len(places)
            os.fsync(file.fileno())
        final = self.out / f"{name}.npy"
        digest = file_digest(unfinished)
        unfinished.replace(final)
        write_bytes(self.sums(name), f"{digest}  {final.name}\n".encode())
        journal.unlink()
        return made

    def finish(self) -> None:
        buffer = io.BytesIO()
        np.save(buffer, np.tile(self.shift.labels(self.ids), len(_SEVERITIES)), allow_pickle=False)
        write_bytes(self.out / "labels.npy", buffer.getvalue())
        digest = hashlib.sha256(buffer.getvalue()).hexdigest()
        write_bytes(self.sums("labels"), f"{digest}  labels.npy\n".encode())
        super().finish()


def _open_rows(path: Path, shape: tuple[int, ...]) -> int:
    """Return the offset of the rows in an unfinished `.npy` file, which is created if it does not have this shape."""
    header = io.BytesIO()
    facts = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(header, facts)
    start, size = header.tell(), header.tell() + math.prod(shape)
    if not path.is_file() or path.stat().st_size != size:
        with path.open("wb") as file:
            file.write(header.getvalue())
            file.truncate(size)
    return start


def _done(unfinished: Path, journal: Path) -> set[int]:
    """Return the rows of an unfinished `.npy` file that its journal proves; the file is closed again."""
    rows = np.load(unfinished, mmap_mode="r", allow_pickle=False)
    return {row for line in _lines(journal) for row in _kept(rows, line)}


def _kept(rows: np.ndarray, line: Sequence[str]) -> list[int]:
    """Return the rows that a journal line names if their digest matches, else none."""
    if len(line) != 2 or not all(number.isdigit() for number in line[1].split(",")):
        return []
    numbers = [int(number) for number in line[1].split(",")]
    if max(numbers) >= len(rows):
        return []
    return numbers if hashlib.sha256(rows[numbers].tobytes()).hexdigest() == line[0] else []
