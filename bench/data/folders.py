"""Class folders: a tree CLASS/IMAGE."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from bench.data.decode import decode
from bench.data.identity import Files, open_tree, stamps_of
from bench.data.imageset import Labels
from bench.errors import MissingDataError, UsageError

EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm"})
SKIP_LIST = "skipped.txt"


@dataclass(frozen=True, eq=False)
class FolderSet:
    """A tree CLASS/IMAGE; made by `read_folder`. `files` are paths below `root`, `contents` what was in them then."""

    root: Path
    files: tuple[str, ...]
    contents: Files
    classes: tuple[str, ...]
    labels: Labels
    key: str
    skipped: int
    skip_list: Path
    as_published: bool

    def __len__(self) -> int:
        return len(self.files)

    def name(self, row: int) -> str:
        return str(self.root / self.files[row])

    def read(self, row: int) -> Image.Image:
        path = self.root / self.files[row]
        try:
            content = self.contents.read(row)
        except OSError as error:
            raise UsageError(f"{path} cannot be read ({error.strerror}); mend the link or the rights") from None
        return decode(content, str(path), _skip_it(self.skip_list), as_published=self.as_published)

    def check(self) -> None:
        """Nothing is left to check: `read` compares each file with what was opened."""


def _skip_it(skip_list: Path) -> str:
    return f"replace it, or list it in {skip_list} to leave it out (the record counts it)"


def read_folder(
    root: Path,
    classes: Sequence[str] | None = None,
    *,
    as_published: bool = False,
    skip_list: Path | None = None,
    inner: str | None = None,
) -> FolderSet:
    """Images of a tree CLASS/IMAGE in the order of sorted class, then sorted file.

    `classes` fixes the labels: a folder may be missing (a subset), but not be one too many. Without it the class
    folders themselves are the classes; folders named by numbers only are sorted as numbers. Hidden files are no
    images; everything else inside a class folder must be one. Links are followed. Files that `skip_list` names (one
    CLASS/IMAGE a line; by default `skipped.txt` in `root`) are left out and counted. Images may also lie in a folder
    `inner` of their class folder, beside which other files are then allowed.
    Raises MissingDataError without the folder, UsageError for a layout that is not this one.
    """
    if not root.is_dir():
        raise MissingDataError(f"no folder {root}; give the folder that holds one folder for each class")
    entries = sorted(entry for entry in root.iterdir() if not entry.name.startswith("."))
    folders = [entry for entry in entries if entry.is_dir()]
    loose = next((entry for entry in entries if entry.is_file() and entry.suffix.lower() in EXTENSIONS), None)
    if loose is not None:
        raise UsageError(f"{loose} lies outside of a class folder; sort the images of {root} into one folder a class")
    if not folders:
        raise UsageError(f"{root} has no class folders; put the images into one folder for each class")
    names = tuple(classes) if classes is not None else _class_order([folder.name for folder in folders])
    places = {name: place for place, name in enumerate(names)}
    extra = next((folder for folder in folders if folder.name not in places), None)
    if extra is not None:
        raise UsageError(
            f"{extra} is not one of the {len(names)} classes ({names[0]}, {names[1 % len(names)]}, …); "
            "move that folder elsewhere"
        )
    files: list[str] = []
    labels: list[int] = []
    for folder in sorted(folders, key=lambda entry: places[entry.name]):
        below = f"{folder.name}/{inner}" if inner is not None and (folder / inner).is_dir() else folder.name
        found = sorted(entry.name for entry in (root / below).iterdir() if not entry.name.startswith("."))
        files += [f"{below}/{name}" for name in found]
        labels += [places[folder.name]] * len(found)
    if not files:
        raise UsageError(f"{root} has class folders but no images in them; copy the images there")
    return listed_folder(root, files, names, labels, as_published=as_published, skip_list=skip_list)


def listed_folder(
    root: Path,
    files: Sequence[str],
    classes: tuple[str, ...],
    labels: Sequence[int],
    *,
    as_published: bool = False,
    skip_list: Path | None = None,
) -> FolderSet:
    """Images at these paths below a folder, without those of the skip list. Raises UsageError for one that is none."""
    skip_list = skip_list or root / SKIP_LIST
    left_out = _lines(skip_list)
    unknown = next(iter(left_out - set(files)), None)
    if unknown is not None:
        raise UsageError(f"{skip_list} lists {unknown}, which is not in {root}; take that line out")
    kept = [place for place, file in enumerate(files) if file not in left_out]
    names = tuple(files[place] for place in kept)
    contents = open_tree(root, names, stamps_of(_image_file(f"{root}/{name}", skip_list) for name in names))
    return FolderSet(
        root,
        names,
        contents,
        classes,
        np.array([labels[place] for place in kept], dtype=np.int64),
        f"folder:{contents.digest}:{as_published:d}",
        len(left_out),
        skip_list,
        as_published,
    )


def _class_order(names: list[str]) -> tuple[str, ...]:
    if all(re.fullmatch(r"\d+", name) for name in names):
        return tuple(sorted(names, key=int))
    return tuple(sorted(names))


def _lines(path: Path) -> set[str]:
    return {line.strip() for line in path.read_text().splitlines() if line.strip()} if path.is_file() else set()


def _image_file(path: str, skip_list: Path) -> os.stat_result:
    try:
        facts = os.stat(path)  # noqa: PTH116 - one call a file, of which there are millions
    except OSError as error:
        what = "is a link to nothing" if Path(path).is_symlink() else f"cannot be read ({error.strerror})"
        raise UsageError(f"{path} {what}; mend or remove it") from None
    if stat.S_ISDIR(facts.st_mode):
        raise UsageError(f"{path} is a folder inside a class folder; move its images one level up")
    if not stat.S_ISREG(facts.st_mode) or os.path.splitext(path)[1].lower() not in EXTENSIONS:  # noqa: PTH122
        raise UsageError(f"{path} is not an image file; move it out of the class folders")
    if facts.st_size == 0:
        raise UsageError(f"{path} is an empty file of 0 bytes; {_skip_it(skip_list)}")
    return facts
