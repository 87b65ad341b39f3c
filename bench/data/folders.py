"""Read class folders: a tree CLASS/IMAGE."""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from bench.core.errors import MissingDataError, UsageError
from bench.data.classes import KnownClasses, in_order, match, places_of
from bench.data.content_hash import Files, open_tree, stamps_of
from bench.data.decode import decode
from bench.data.imageset import Labels
from bench.data.lists import read_lines

EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm"})
SKIP_LIST = "skipped.txt"


@dataclass(frozen=True, eq=False)
class FolderSet:
    """Images of a tree CLASS/IMAGE, created by `read_folder`. `files` are paths below `root`, `contents` their bytes.

    `notes` are sentences for the user on how it was read, `passed_over` the ignored entries with the reason.
    """

    root: Path
    files: tuple[str, ...]
    contents: Files
    classes: tuple[str, ...]
    labels: Labels
    key: str
    skipped: int
    skip_list: Path
    as_published: bool
    notes: tuple[str, ...] = ()
    passed_over: tuple[str, ...] = ()

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
        """Do nothing: `read` compares each file with its content when it was opened."""


def _skip_it(skip_list: Path) -> str:
    return f"replace it, or list it in {skip_list} to leave it out (the record counts it)"


def is_no_class(name: str) -> bool:
    """Whether a name is hidden or one that operating systems create, not a class or an image."""
    return name.startswith(".") or name.lower() in _LEFTOVERS


_LEFTOVERS = frozenset(
    {"__macosx", "@eadir", "lost+found", "#recycle", "$recycle.bin", "system volume information", "__pycache__"}
    | {"thumbs.db", "desktop.ini"}
)


@dataclass(frozen=True)
class Listing:
    """The entries of a folder: sub-folders and files in sorted order, and ignored entries with the reason."""

    folders: tuple[Path, ...]
    files: tuple[Path, ...]
    skipped: tuple[str, ...]

    @property
    def images(self) -> tuple[Path, ...]:
        """The files with the extension of an image."""
        return tuple(file for file in self.files if file.suffix.lower() in EXTENSIONS)


def list_folder(root: Path) -> Listing:
    """List a folder. Raises MissingDataError if there is none, UsageError for a broken link or a name not in UTF-8."""
    if not root.is_dir():
        raise MissingDataError(f"no folder {root}; give the folder that holds one folder for each class")
    folders, files, skipped = [], [], []
    for entry in sorted(root.iterdir(), key=lambda entry: entry.name):
        readable(entry)
        if is_no_class(entry.name):
            if not entry.name.startswith("."):
                skipped.append(f"{entry.name}: created by the system")
            elif entry.is_dir():
                skipped.append(f"{entry.name}: hidden")
        elif entry.is_symlink() and not entry.exists():
            raise UsageError(f"{entry} is a broken link; fix or remove it")
        elif entry.is_dir():
            folders.append(entry)
        else:
            files.append(entry)
    return Listing(tuple(folders), tuple(files), tuple(skipped))


def readable(path: Path) -> None:
    """Raise UsageError for a path that is not valid UTF-8, because records and messages cannot hold it."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        shown = os.fsencode(path).decode(errors="backslashreplace")
        raise UsageError(f"{shown} is not named in UTF-8; rename it") from None


def read_folder(
    root: Path,
    classes: Sequence[str] | KnownClasses | None = None,
    *,
    as_published: bool = False,
    skip_list: Path | None = None,
    inner: str | None = None,
    ignored_classes: Collection[str] = (),
) -> FolderSet:
    """Read images of a tree CLASS/IMAGE, sorted by class, then by file.

    `classes` determines the labels: a folder may be missing (a subset), but there must be no others. Folders are
    matched by name (`bench.data.classes.places_of`). Without `classes` the folders are the classes; names that are all
    numbers are sorted as numbers. Hidden files and files that operating systems create are ignored; everything else in
    a class folder must be an image. Links are followed. Files in `skip_list` (one CLASS/IMAGE per line; default
    `skipped.txt` in `root`) are left out and counted. Images may also be in a folder `inner` of their class folder,
    which may then hold other files as well. Folders in `ignored_classes` that are not in `classes` are not read. Raises
    MissingDataError if there is no folder, UsageError for another layout.
    """
    listing = list_folder(root)
    if listing.images:
        raise UsageError(
            f"{listing.images[0]} is outside of a class folder; sort the images of {root} into a folder for each class"
        )
    known = KnownClasses.of(classes)
    folders = listing.folders
    notes: list[str] = []
    if ignored_classes:
        wanted = set(known.classes) if known is not None else set()
        left = [folder.name for folder in folders if folder.name in ignored_classes and folder.name not in wanted]
        folders = tuple(folder for folder in folders if folder.name not in left)
        notes += [f"{root} has {len(left)} folders of other classes ({left[0]}, …), which are not read"] if left else []
    if not folders:
        raise UsageError(f"{root} has no class folders; put the images into one folder for each class")
    names, places = _labelled(folders, known, root)
    files: list[str] = []
    labels: list[int] = []
    empty: list[str] = []
    for place, folder in sorted(zip(places, folders, strict=True), key=lambda each: (each[0], each[1].name)):
        below = f"{folder.name}/{inner}" if inner is not None and (folder / inner).is_dir() else folder.name
        found = sorted(entry.name for entry in (root / below).iterdir() if not is_no_class(entry.name))
        for name in found:
            if not name.isascii():
                readable(root / below / name)
        files += [f"{below}/{name}" for name in found]
        labels += [place] * len(found)
        empty += [] if found else [folder.name]
    if not files:
        raise UsageError(f"{root} has class folders but no images in them; copy the images there")
    if empty:
        notes.append(f"{len(empty)} class folders of {root} are empty: {', '.join(empty[:5])}")
    made = listed_folder(root, files, names, labels, as_published=as_published, skip_list=skip_list)
    return replace(made, notes=tuple(notes), passed_over=listing.skipped)


def _labelled(
    folders: Sequence[Path], known: KnownClasses | None, root: Path
) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Return the classes, and the position of each class folder among them."""
    found = [folder.name for folder in folders]
    if known is None or known.unlabelled or not known.classes:
        classes = in_order(found, known.order if known is not None else None, str(root))
        return classes, places_of(found, classes, str(root))
    wanted = known.classes
    extra = next(
        (n for n, place in zip(found, match(found, wanted, published=known.published), strict=True) if place is None),
        None,
    )
    if extra is not None:
        raise UsageError(
            f"{root / extra} is not one of the {len(wanted)} classes ({wanted[0]}, {wanted[1 % len(wanted)]}, …); "
            "move that folder elsewhere, or rename it if it is one of them"
        )
    return wanted, places_of(found, wanted, str(root), published=known.published)


def unsorted_folder(root: Path) -> FolderSet:
    """Read the images directly in a folder, sorted and without labels: all have the single class "image"."""
    files = [file.name for file in list_folder(root).images]
    return listed_folder(root, files, ("image",), [0] * len(files))


def listed_folder(
    root: Path,
    files: Sequence[str],
    classes: tuple[str, ...],
    labels: Sequence[int],
    *,
    as_published: bool = False,
    skip_list: Path | None = None,
) -> FolderSet:
    """Read images at these paths below a folder, except those in the skip list.

    Raises UsageError for a file that is not an image, and for a listed one that does not exist.
    """
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


def _lines(path: Path) -> set[str]:
    return set(read_lines(path)) if path.is_file() else set()


def _image_file(path: str, skip_list: Path) -> os.stat_result:
    try:
        facts = os.stat(path)  # noqa: PTH116 - one call a file, of which there are millions
    except OSError as error:
        what = "is a broken link" if Path(path).is_symlink() else f"cannot be read ({error.strerror})"
        raise UsageError(f"{path} {what}; fix or remove it") from None
    if stat.S_ISDIR(facts.st_mode):
        raise UsageError(f"{path} is a folder inside a class folder; move its images one level up")
    if not stat.S_ISREG(facts.st_mode) or os.path.splitext(path)[1].lower() not in EXTENSIONS:  # noqa: PTH122
        raise UsageError(f"{path} is not an image file; move it out of the class folders")
    if facts.st_size == 0:
        raise UsageError(f"{path} is an empty file of 0 bytes; {_skip_it(skip_list)}")
    return facts
