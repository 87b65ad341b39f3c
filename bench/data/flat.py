"""Read ImageNet's validation images in one flat folder, with the labels that were published separately."""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from bench.core.errors import UsageError
from bench.data.classes import places_of, synsets
from bench.data.folders import FolderSet, Listing, list_folder, listed_folder
from bench.data.hf_tables import UnlabelledError
from bench.data.lists import read_lines

_NAME = re.compile(r"ILSVRC2012_(?:val|test)_(\d{8})", re.IGNORECASE)
_SYNSET = re.compile(r"n\d{8}")
_LISTS = (
    "ILSVRC2012_validation_ground_truth.txt",
    "imagenet_2012_validation_synset_labels.txt",
    "LOC_val_solution.csv",
    "val.txt",
)
_DEVKITS = ("ILSVRC2012_devkit_t12/data", "data")
_ANNOTATIONS = ("Annotations/CLS-LOC/val", "Annotations/val", "val_annotations", "annotations")
_LEVELS = 3  # parent folders that are searched for labels


def is_flat(root: Path) -> bool:
    """Whether a folder directly holds images of ImageNet's validation or test set."""
    return root.is_dir() and any(_NAME.match(file.name) for file in list_folder(root).images[:1])


def read_flat(root: Path, *, as_published: bool = False) -> FolderSet:
    """Read a flat folder in the order of the standard class indices, then of file names, as from class folders.

    Labels come from a file in the folder or one of its three parents: the devkit's ground truth (whose numbers its
    meta.mat maps to synsets), a list of synsets in the order of the images, lines IMAGE LABEL or IMAGE,LABEL (a synset,
    or an index from 0), or the XML annotations. Raises UnlabelledError if there is none, UsageError if they do not fit.
    """
    listing = list_folder(root)
    numbered = {file.name: _number(file) for file in listing.images}
    labels = _labels(root, listing, numbered)
    order = sorted((labels[name], name) for name in numbered)
    return listed_folder(
        root, [name for _, name in order], synsets(), [label for label, _ in order], as_published=as_published
    )


def _number(file: Path) -> int:
    found = _NAME.match(file.name)
    if found is None:
        raise UsageError(f"{file} is not named like ILSVRC2012_val_00000293.JPEG; move it out of {file.parent}")
    return int(found[1])


def _labels(root: Path, listing: Listing, numbers: Mapping[str, int]) -> dict[str, int]:
    above = [root, *root.absolute().parents[:_LEVELS]]
    for place in above:
        for name in (*_LISTS, *(f"{kit}/{_LISTS[0]}" for kit in _DEVKITS)):
            if (place / name).is_file():
                return _from_list(place / name, numbers)
    for place in above:
        for name in _ANNOTATIONS:
            if (place / name).is_dir() and any((place / name).glob("ILSVRC2012_val_*.xml")):
                return {image: _from_xml(place / name / f"{Path(image).stem}.xml") for image in numbers}
    if any(file.suffix == ".xml" for file in listing.files):
        return {image: _from_xml(root / f"{Path(image).stem}.xml") for image in numbers}
    raise UnlabelledError(
        f"{root} holds {len(numbers)} images of ImageNet without class folders or labels; put {_LISTS[0]} with "
        f"meta.mat, {_LISTS[2]} or the folder {_ANNOTATIONS[0]} beside it"
    )


def _from_xml(path: Path) -> int:
    try:
        names = {str(node.text) for node in ElementTree.parse(path).getroot().iterfind("object/name")}
    except (OSError, ElementTree.ParseError) as error:
        raise UsageError(f"{path} cannot be read as an annotation ({error}); get it again") from None
    if len(names) != 1:
        raise UsageError(f"{path} names {len(names)} classes; get it again")
    return places_of(list(names), synsets(), str(path))[0]


def _from_list(path: Path, numbers: Mapping[str, int]) -> dict[str, int]:
    lines = read_lines(path)
    if _NAME.match(lines[0]) or lines[0].lower().startswith("imageid"):
        return _by_name(path, lines, numbers)
    if max(numbers.values()) > len(lines):
        raise UsageError(f"{path} has {len(lines)} labels, but there is an image {max(numbers.values())}; get it again")
    if all(_SYNSET.fullmatch(line) for line in lines):
        index = {name: place for place, name in enumerate(synsets())}
        return {image: index[lines[number - 1]] for image, number in numbers.items()}
    return _by_devkit(path, lines, numbers)


def _by_name(path: Path, lines: Sequence[str], numbers: Mapping[str, int]) -> dict[str, int]:
    """Parse lines IMAGE LABEL or IMAGE,LABEL …, where the label is a synset or an index from 0."""
    found: dict[int, str] = {}
    for line in lines:
        name, *rest = re.split(r"[\s,]+", line)
        match = _NAME.match(name)
        if match is not None and rest:
            found[int(match[1])] = rest[0]
    lacking = next((image for image, number in numbers.items() if number not in found), None)
    if lacking is not None:
        raise UsageError(f"{path} does not list {lacking}; get it again")
    used = {image: found[number] for image, number in numbers.items()}
    values = sorted(set(found.values()))
    if all(value.isdigit() for value in values) and "0" not in values and "1000" in values:
        raise UsageError(f"{path} counts classes from 1 to 1000, in an unknown order; write synsets there")
    places = dict(zip(values, places_of(values, synsets(), str(path), published=True), strict=True))
    return {image: places[value] for image, value in used.items()}


def _by_devkit(path: Path, lines: Sequence[str], numbers: Mapping[str, int]) -> dict[str, int]:
    """Convert the devkit's numbers from 1 to 1000 to class indices by its meta.mat."""
    meta = path.with_name("meta.mat")
    if not meta.is_file():
        raise UsageError(f"{path} has numbers that need the devkit's meta.mat, and there is no {meta}; copy it there")
    synset_of = _meta(meta)
    index = {name: place for place, name in enumerate(synsets())}
    try:
        return {image: index[synset_of[int(lines[number - 1])]] for image, number in numbers.items()}
    except (KeyError, ValueError):
        raise UsageError(f"{path} and {meta} do not fit together; get both from one devkit") from None


def _meta(path: Path) -> dict[int, str]:
    """Return ILSVRC2012_ID to synset from the devkit's table."""
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    try:
        rows = loadmat(path, squeeze_me=True)["synsets"]
        return {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in np.atleast_1d(rows)}
    except (
        MatReadError,
        OSError,
        KeyError,
        ValueError,
        TypeError,
        IndexError,
        NotImplementedError,
        zlib.error,
    ) as error:
        raise UsageError(f"{path} is not the devkit's meta.mat ({error}); get it again") from None
