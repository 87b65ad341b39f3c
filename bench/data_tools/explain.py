"""Summarise what a shift reads, in words and pictures, so that users can check it before a run."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from bench.core.cache_dir import write_bytes
from bench.core.errors import UsageError
from bench.data.imageset import ImageSet
from bench.shifts import find_row, load_shift
from bench.shifts.data_root import Reading
from bench.shifts.image_shift import ImageShift

_TILE = 96
_CAPTION = 26
_COLUMNS = 8
_PICTURES = 40


@dataclass(frozen=True)
class Explained:
    """A summary of a shift's images. `classes`: name and number of scored images of each class, in label order.

    `part` is the scored part ("" for a single set), `parts` all parts, `column` the label column of a table ("" for
    none). `train` is the number of train images (None: unknown), `left_out` that of test images the user left out.
    `skipped` lists entries that were not read, with the reason; `notes` are further remarks.
    """

    shift: str
    where: str
    part: str
    parts: tuple[str, ...]
    column: str
    images: int
    train: int | None
    classes: tuple[tuple[str, int], ...]
    left_out: int
    skipped: tuple[str, ...]
    notes: tuple[str, ...]


def explain(name: str, reading: Reading, sheet: Path | None = None) -> Explained:
    """Summarise a shift; with `sheet`, also write its first pictures, taken from each class in turn, to that PNG file.

    Raises UsageError and MissingDataError as a run does.
    """
    if sheet is not None and sheet.suffix.lower() != ".png":
        raise UsageError(f"-o {sheet}: the sheet is a PNG file; give it that ending")
    row = find_row(name)
    shift = load_shift(name, reading=reading)
    if not isinstance(shift, ImageShift):
        raise UsageError(f"{name} reads no image files, so there is nothing to explain; view it with: bench gallery")
    test = shift.open_test()
    images, sources = test.images, shift.sources
    labels = test.labels
    counts = np.bincount(labels, minlength=shift.classes)
    names = images.classes if len(images.classes) == shift.classes else tuple(map(str, range(shift.classes)))
    found = sources.parts if sources is not None else None
    if sheet is not None:
        write_bytes(sheet, contact_sheet(images, test.rows, labels, names))
    return Explained(
        shift=shift.name,
        where=images.name(int(test.rows[0])),
        part=(sources.part or "") if sources is not None else "",
        parts=tuple(part.name for part in found.parts) if found is not None else (),
        column=str(getattr(images, "label_column", "")),
        images=len(labels),
        train=None if row.name.startswith("hf:") else _count(shift),
        classes=tuple(zip(names, counts.tolist(), strict=True)),
        left_out=shift.skipped,
        skipped=(*getattr(images, "passed_over", ()), *(found.other if found is not None else ())),
        notes=shift.notes,
    )


def _count(shift: ImageShift) -> int:
    return len(shift.ids("train")) + len(shift.ids("dev")) if shift.has_train else 0


def contact_sheet(
    images: ImageSet, rows: Sequence[int] | np.ndarray, labels: np.ndarray, names: Sequence[str]
) -> bytes:
    """Return a PNG of up to 40 pictures with their class names: the first of every class, then the second, …"""
    chosen = _first_of_each(labels)
    lines = -(-len(chosen) // _COLUMNS)
    width, height = _COLUMNS * (_TILE + 4) + 4, lines * (_TILE + _CAPTION + 4) + 4
    sheet = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(10)
    for number, place in enumerate(chosen):
        left = 4 + number % _COLUMNS * (_TILE + 4)
        top = 4 + number // _COLUMNS * (_TILE + _CAPTION + 4)
        picture = images.read(int(rows[place]))
        picture.thumbnail((_TILE, _TILE))
        sheet.paste(picture, (left, top))
        label = int(labels[place])
        draw.text((left, top + _TILE), _cut(f"{label}: {names[label]}"), "black", font)
        draw.text((left, top + _TILE + 12), _cut(Path(images.name(int(rows[place]))).name), "gray", font)
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    return buffer.getvalue()


def _cut(text: str) -> str:
    return text if len(text) <= 17 else f"{text[:16]}…"


def _first_of_each(labels: np.ndarray) -> list[int]:
    """Return positions of the first image of every class, then of the second, and so on, at most 40."""
    seen: dict[int, int] = {}
    order = []
    for place, label in enumerate(labels.tolist()):
        seen[label] = seen.get(label, -1) + 1
        order.append((seen[label], label, place))
    return [place for _, _, place in sorted(order)[:_PICTURES]]
