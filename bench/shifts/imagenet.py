"""The shifts of ImageNet: corrupted copies (published or generated), other collections, and other labels."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from functools import cache, partial
from importlib import resources
from pathlib import Path

import numpy as np

from bench.core.conditions import Condition
from bench.core.errors import MissingDataError, UsageError
from bench.data.classes import KnownClasses, synsets
from bench.data.decode import Preprocessing
from bench.data.flat import is_flat, read_flat
from bench.data.folders import SKIP_LIST, list_folder, listed_folder, read_folder
from bench.data.hf_tables import read_hub
from bench.data.imageset import ImageSet
from bench.data.lists import read_lines
from bench.data.sources import find_set
from bench.shifts.catalog import ShiftRow
from bench.shifts.corruption_sets import BAR, COMMON, EXTRA, LAION
from bench.shifts.data_root import Reading
from bench.shifts.image_shift import Facts, ImageShift, OurCorruptions, Part, PublishedFiles, stores_at
from bench.shifts.laion import LaionCorruptions
from bench.shifts.shift import NATURAL, stream_rng
from corruptions.tables import PROFILES
from corruptions.tiles import TilePool, folder_pool, procedural_pool

_TILES = ("laion-c-tiles",)
USUAL = Preprocessing(224, 256, "bilinear")
_SUBSET = 5000


ReadFolder = Callable[..., ImageSet]
"""A function (folder, classes, *, as_published) that returns images."""


Level = Callable[[Path, int], Path]
"""A function (folder of a corruption, severity from 1 to 5) that returns the folder of its images."""


def _plain_level(folder: Path, severity: int) -> Path:
    return folder / str(severity)


def _intensity_level(folder: Path, severity: int) -> Path:
    """Return the folder of a severity in the published LAION-C."""
    return folder / f"intensity_level_{severity}"


def _value_level(folder: Path, severity: int) -> Path:
    """Return the folder of a severity as the official generator of ImageNet-C-bar names it: by the parameter's value
    with two decimals (perlin_noise/4.60), else by the severity. Raises UsageError if both exist.
    """
    plain = folder / str(severity)
    values = PROFILES["imagenet224"].get(folder.name, ())
    named = folder / f"{values[severity - 1]:.2f}" if len(values) == 5 else plain
    if named != plain and named.is_dir():
        if plain.is_dir():
            raise UsageError(f"{named} and {plain} are both severity {severity}; move one of them elsewhere")
        return named
    return plain


def read_tiny(root: Path, classes: Sequence[str], *, as_published: bool = False) -> ImageSet:
    """Read a part of tiny-imagenet-200: class folders, with or without an inner folder `images`, or annotations.

    Raises UsageError for an invalid line of val_annotations.txt.
    """
    listed = root / "val_annotations.txt"
    if not listed.is_file():
        return read_folder(root, classes, as_published=as_published, inner="images")
    places = {name: place for place, name in enumerate(classes)}
    rows = [line.split("\t")[:2] for line in read_lines(listed)]
    unknown = next((row for row in rows if len(row) < 2 or row[1] not in places), None)
    if unknown is not None:
        raise UsageError(f"{listed} has the line '{' '.join(unknown)[:80]}', not IMAGE and synset; get it again")
    found = sorted((places[synset], synset, f"images/{name}") for name, synset in rows)
    return listed_folder(root, [file for _, _, file in found], tuple(classes), [place for place, _, _ in found])


def _span(*ranges: int | tuple[int, int]) -> tuple[int, ...]:
    return tuple(
        number for part in ranges for number in (range(part[0], part[1] + 1) if isinstance(part, tuple) else (part,))
    )


SUPERCLASSES: dict[str, tuple[int, ...]] = {
    "ball": _span((429, 430), 768, 805, 852, 890),
    "bird": _span(8, (10, 16), (18, 20), (22, 24), (80, 83), (87, 96), (98, 100), (127, 133), (135, 145)),
    "boat": _span(472, 510, 554, 576, 625, 814, 914),
    "bottle": _span(440, 720, 737, (898, 899), 901, 907),
    "butterfly": _span((321, 326)),
    "car_truck": _span(436, 511, 555, 569, 656, 675, 717, 734, 817, 864, 867),
    "cat": _span((281, 286)),
    "chair": _span(423, 559, 703, 765, 831, 857),
    "dog": _span((152, 191), (193, 203), (205, 226), (228, 241), (243, 250), (252, 257), 259, (261, 263), (265, 268)),
    "fish": _span((0, 4), (147, 148), (393, 397)),
    "fruit": _span((948, 951), (953, 954)),
    "instruments": _span((401, 402), 420, 432, 546, 558, 566, 579, (593, 594), 776, 881, 889),
    "primate": _span((365, 382)),
    "snakes": _span((52, 55), (57, 68)),
    "timekeeping": _span(409, (530, 531), 826, 835, 892),
    "tools": _span(491, 499, 587, 596, 740, 784, 792),
}
"""LAION-C's 16 superclasses (folder names, sorted) and the ImageNet classes in each: 285 of the 1000."""


def _listed(name: str) -> list[str]:
    return (resources.files("timm.data") / "_info" / name).read_text(encoding="utf-8").split()


def published(row: ShiftRow, reading: Reading) -> ImageShift:
    """Load imagenet-c: the tree CORRUPTION/SEVERITY/SYNSET/*.JPEG, whose images are never resized.

    Clean images and train images come from imagenet/val and imagenet/train if these exist.
    """
    return _published_tree(row, reading, COMMON, EXTRA, synsets(), _headline_missing(row, reading))


def bar(row: ShiftRow, reading: Reading) -> ImageShift:
    """Load imagenet-c-bar: the layout of imagenet-c with ten other corruptions."""
    return _published_tree(row, reading, BAR, (), synsets(), None, _value_level)


def tiny(row: ShiftRow, reading: Reading) -> ImageShift:
    """Load tiny-imagenet-c: 64 px, 200 classes in the sorted order of their synsets.

    Clean and train images come from the published tiny-imagenet-200 if it exists.
    """
    root = reading.need(row, "the tree CORRUPTION/SEVERITY/SYNSET/*.JPEG (2 GB)")
    classes = _most_common_classes(root, row)
    others = frozenset(synsets()) - set(classes)
    return _tree_shift(
        row,
        reading,
        root,
        COMMON,
        EXTRA,
        classes,
        Preprocessing(64, 64),
        read_tiny,
        paired=False,
        ignored_classes=others,
    )


def _most_common_classes(root: Path, row: ShiftRow) -> tuple[str, ...]:
    """Return the class folders that most conditions of a tree have; the published frost has all of ImageNet's."""
    counts: Counter[tuple[str, ...]] = Counter()
    for name in (*COMMON, *EXTRA):
        below = _condition_folder(root, name)
        levels = [below / str(level) for level in range(1, 6) if (below / str(level)).is_dir()]
        counts.update(tuple(folder.name for folder in list_folder(level).folders) for level in levels)
    if not counts:
        raise MissingDataError(f"{root} has none of the folders {COMMON[0]}/1, {COMMON[0]}/2, …; {_again(row)}")
    return min(counts, key=lambda classes: (-counts[classes], len(classes)))


def subset(row: ShiftRow, reading: Reading) -> ImageShift:
    """Load imagenet-c-5k: the images listed in `imagenet-c-5k.txt` in the data root, else 5,000 drawn with seed 0.

    A line of the list ends in the file's name (robustbench's lists SYNSET/FILE).
    """
    shift = _published_tree(row, reading, COMMON, EXTRA, synsets(), _headline_missing(row, reading))
    whole = shift.open_test

    def chosen() -> Part:
        part = whole()
        path = reading.root / f"{row.name}.txt"
        if not path.is_file():
            rows = stream_rng(0, "subset", row.name).permutation(len(part.rows))[:_SUBSET]
            return part.keep(np.sort(rows))
        wanted = [Path(line).name for line in read_lines(path)]
        places = {Path(part.images.name(int(number))).name: place for place, number in enumerate(part.rows)}
        unknown = next((name for name in wanted if name not in places), None)
        if unknown is not None:
            raise UsageError(f"{path} lists {unknown}, which imagenet-c does not have; list its files' names")
        return part.keep(np.array(sorted({places[name] for name in wanted}), dtype=np.int64))

    shift.open_test = cache(chosen)
    return shift


def laion(row: ShiftRow, reading: Reading) -> ImageShift:
    """Load laion-c: the tree DISTORTION/intensity_level_K/SUPERCLASS/*.JPEG, resized to the model's square size."""
    root = reading.need(row, "the tree DISTORTION/intensity_level_K/SUPERCLASS/*.JPEG (2.7 GB)")
    members = tuple(SUPERCLASSES.values())
    return _with_all_classes(
        _tree_shift(
            row,
            reading,
            root,
            LAION,
            (),
            tuple(SUPERCLASSES),
            USUAL,
            level=_intensity_level,
            members=members,
        ),
        row,
        reading,
    )


def whole_train(row: ShiftRow, reading: Reading) -> ImageShift:
    """Load the train images of all 1000 classes, for the recipes of a shift that scores superclasses of them."""
    opened = _train(row, reading, None)
    stores = stores_at(reading.preprocessing or USUAL, reading.workers)

    def test() -> Part:
        if opened is None:
            raise MissingDataError(f"{row.name} has no train images; see bench data status {row.name}")
        return opened()

    facts = Facts("imagenet", len(synsets()), (), (), row.profile, row.storage, row.family)
    return ImageShift(facts, test, opened, None, stores)


def _with_all_classes(shift: ImageShift, row: ShiftRow, reading: Reading) -> ImageShift:
    """Let recipes learn all classes of ImageNet, as the paper of Self-Souping does wherever fewer are scored."""

    @cache
    def whole() -> ImageShift:
        found = whole_train(row, reading)
        found.made_by = (whole_train, row, reading)
        return found

    shift.whole_source = whole
    return shift


def generated(row: ShiftRow, reading: Reading) -> ImageShift:
    """Load imagenet-c-gen: clean validation images under this project's 15 corruptions."""
    return _generated(row, reading, COMMON, EXTRA)


def bar_generated(row: ShiftRow, reading: Reading) -> ImageShift:
    """Load imagenet-c-bar-gen: clean validation images under this project's version of ImageNet-C-bar."""
    return _generated(row, reading, BAR, EXTRA)


def laion_generated(row: ShiftRow, reading: Reading) -> ImageShift:
    """Load laion-c-gen: clean validation images of the superclasses under this project's version of LAION-C.

    Mosaic and stickers use the pictures in the folder laion-c-tiles of the data root, else procedural ones. Mosaic uses
    the published resize and crop if images have 224 pixels.
    """

    @cache
    def pool() -> TilePool:
        folder = reading.find(_TILES)
        try:
            return procedural_pool() if folder is None else folder_pool(folder)
        except ValueError as error:
            raise UsageError(str(error)) from None

    made = _generated(row, reading, LAION, EXTRA, tuple(SUPERCLASSES.values()), pool)
    return _with_all_classes(made, row, reading)


def ccc(row: ShiftRow, reading: Reading) -> ImageShift:
    """Load ccc: clean validation images for the stream of continuously changing corruptions of its protocol."""
    return _generated(row, reading, COMMON, EXTRA)


def natural(row: ShiftRow, reading: Reading) -> ImageShift:
    """Load a collected set (imagenet-r, -a, -v2, -sketch, -hr): one condition, the model's other classes masked.

    Recipes learn all 1000 classes, also where 200 are scored, so one classifier serves all of these sets.
    """
    members = None
    classes: Sequence[str] = synsets()
    masks = {"imagenet-r": "imagenet_r_synsets.txt", "imagenet-a": "imagenet_a_synsets.txt"}
    if row.name in masks:
        classes = sorted(_listed(masks[row.name]))
        places = {name: place for place, name in enumerate(synsets())}
        members = tuple((places[name],) for name in classes)
    root = reading.find(row.places)
    preprocessing = reading.preprocessing or USUAL
    stores = stores_at(preprocessing, reading.workers)

    @cache
    def images() -> ImageSet:
        if root is None:
            known = KnownClasses(tuple(classes), published=True)
            return read_hub(
                row.hub,
                None,
                row.hub_test,
                offline=reading.offline,
                label_column=reading.label,
                as_published=True,
                classes=known,
            )
        return _read_classes(root, classes, reading.label)

    facts = Facts.of(
        row,
        len(classes),
        (NATURAL,),
        (),
        members=members,
        source_classes=len(synsets()),
        severities=(1,),
        has_clean=False,
    )
    shifted = PublishedFiles(stores, lambda condition: images())
    made = ImageShift(facts, lambda: Part.whole(images()), _train(row, reading, members), shifted, stores)
    return made if members is None else _with_all_classes(made, row, reading)


def _read_classes(root: Path, classes: Sequence[str], label: str | None) -> ImageSet:
    """Read class folders named by synset, by words, or by number from 0 as in ImageNetV2, or tables."""
    return find_set(root, KnownClasses(tuple(classes), published=True), as_published=True, label_column=label)


def real(row: ShiftRow, reading: Reading) -> ImageShift:
    """Load imagenet-real: validation images with reassessed labels (timm's copy), without those that have no label."""
    stores = stores_at(reading.preprocessing or USUAL, reading.workers)
    text = (resources.files("timm.data") / "_info" / "imagenet_real_labels.json").read_text(encoding="utf-8")
    labels: list[list[int]] = json.loads(text)

    @cache
    def test() -> Part:
        part = Part.whole(_val(row, reading))
        sets = [labels[_number(part.images.name(int(number))) - 1] for number in part.rows]
        kept = np.array([place for place, answer in enumerate(sets) if answer], dtype=np.int64)
        best = [
            old if old in sets[place] else sets[place][0] for place, old in zip(kept, part.labels[kept], strict=True)
        ]
        return Part(part.images, part.rows[kept], np.array(best, dtype=np.int64))

    def answers(ids: np.ndarray) -> np.ndarray:
        part = test()
        right = np.zeros((len(ids), len(synsets())), dtype=bool)
        for place, number in enumerate(part.at(ids)):
            right[place, labels[_number(part.images.name(int(number))) - 1]] = True
        return right

    facts = Facts.of(
        row,
        len(synsets()),
        (NATURAL,),
        (),
        severities=(1,),
        has_clean=False,
    )
    shifted = PublishedFiles(stores, lambda condition: test().images)
    return ImageShift(facts, test, _train(row, reading, None), shifted, stores, answers)


def _number(name: str) -> int:
    """Return the number in ILSVRC2012_val_00000293.JPEG, which orders the labels."""
    digits = Path(name).stem.rpartition("_")[2]
    if not digits.isdigit() or not 1 <= int(digits) <= 50_000:
        raise UsageError(f"{name} is not named like ILSVRC2012_val_00000293.JPEG; keep the published names for this")
    return int(digits)


def _val(row: ShiftRow, reading: Reading) -> ImageSet:
    root = reading.need(row, "clean ImageNet val as class folders (6.7 GB)")
    return _read_imagenet(root, synsets(), as_published=True, label_column=reading.label)


def _read_imagenet(
    root: Path, classes: Sequence[str], *, as_published: bool = False, label_column: str | None = None
) -> ImageSet:
    """Read a part of ImageNet: class folders, tables, or one flat folder with labels beside it."""
    if is_flat(root):
        return read_flat(root, as_published=as_published)
    return find_set(
        root, KnownClasses(tuple(classes), published=True), as_published=as_published, label_column=label_column
    )


def _train(
    row: ShiftRow,
    reading: Reading,
    members: Sequence[Sequence[int]] | None,
    classes: Sequence[str] | None = None,
    read: ReadFolder = _read_imagenet,
) -> Callable[[], Part] | None:
    root = reading.find(row.train)
    if root is None:
        return None

    def opened() -> Part:
        part = Part.whole(read(root, tuple(classes or synsets()), as_published=True))
        return part if members is None else part.of_classes(members)

    return opened


def _generated(
    row: ShiftRow,
    reading: Reading,
    names: Sequence[str],
    tuning: Sequence[str],
    members: tuple[tuple[int, ...], ...] | None = None,
    pool: Callable[[], TilePool] | None = None,
) -> ImageShift:
    stores = stores_at(reading.preprocessing or USUAL, reading.workers)
    reading.need(row, "clean ImageNet val as class folders (6.7 GB)")

    def test() -> Part:
        part = Part.whole(_val(row, reading))
        return part if members is None else part.of_classes(members)

    facts = Facts.of(
        row,
        len(members) if members is not None else len(synsets()),
        names,
        tuning,
        members=members,
        source_classes=len(synsets()),
    )
    usual = reading.preprocessing in (None, USUAL)
    kind = LaionCorruptions if pool is not None and usual else OurCorruptions
    shifted = kind(stores, row.profile, row.storage, pool=pool)
    return ImageShift(facts, test, _train(row, reading, members), shifted, stores)


def _published_tree(
    row: ShiftRow,
    reading: Reading,
    names: Sequence[str],
    tuning: Sequence[str],
    classes: Sequence[str],
    missing: str | None,
    level: Level | None = None,
) -> ImageShift:
    if reading.find(row.places) is None and missing is not None:
        raise MissingDataError(missing)
    root = reading.need(row, f"the tree CORRUPTION/SEVERITY/SYNSET/*.JPEG ({row.size})")
    return _tree_shift(row, reading, root, names, tuning, classes, USUAL, level=level or _plain_level)


def _tree_shift(
    row: ShiftRow,
    reading: Reading,
    root: Path,
    names: Sequence[str],
    tuning: Sequence[str],
    classes: Sequence[str],
    usual: Preprocessing,
    read: ReadFolder = _read_imagenet,
    level: Level = _plain_level,
    members: tuple[tuple[int, ...], ...] | None = None,
    paired: bool = True,
    ignored_classes: Collection[str] = (),
) -> ImageShift:
    """Load a published tree. `paired`: the clean images are the originals of the corrupted ones, else another set."""
    preprocessing = reading.preprocessing or usual
    stores = stores_at(preprocessing, reading.workers)
    untouched = stores_at(Preprocessing(preprocessing.size), reading.workers)
    open_one = cache(partial(_open_condition, root, tuple(classes), level, ignored_classes))
    clean = reading.find(row.clean)
    notes: list[str] = []

    @cache
    def unshifted() -> ImageSet:
        assert clean is not None
        return read(clean, tuple(classes), as_published=True)

    @cache
    def corrupted() -> ImageSet:
        found = ((name, s) for name in (*names, *tuning) for s in range(1, 6))
        first = next((pair for pair in found if level(_condition_folder(root, pair[0]), pair[1]).is_dir()), None)
        if first is None:
            raise MissingDataError(f"{root} has none of the folders {', '.join(names)}; {_again(row)}")
        return open_one(Condition(*first))

    @cache
    def test() -> Part:
        return Part.whole(unshifted() if clean is not None and paired else corrupted())

    own_clean: Callable[[], ImageSet] | None = None
    has_clean = clean is not None
    if clean is not None and not paired:
        own_clean, has_clean = _own_clean(unshifted(), corrupted(), notes)

    facts = Facts.of(
        row,
        len(classes),
        names,
        tuning,
        members=members,
        source_classes=len(synsets()) if members is not None else None,
        has_clean=has_clean,
    )
    train = _train(row, reading, members, None if members is not None else classes, read)
    shift = ImageShift(facts, test, train, PublishedFiles(untouched, open_one), stores, clean=own_clean)
    shift.loading_notes = (*notes, *_other_classes(root, names, level, classes, ignored_classes))
    return shift


def _own_clean(clean: ImageSet, shifted: ImageSet, notes: list[str]) -> tuple[Callable[[], ImageSet] | None, bool]:
    """Return an opener of clean images that are not the originals of the corrupted ones, and whether they are scored.

    They are scored if both sets have equal labels. A note is added to `notes`.
    """
    if np.array_equal(clean.labels, shifted.labels):
        notes.append(
            f"the clean images ({clean.name(0)}, …) are not those that were corrupted ({shifted.name(0)}, …): clean is "
            "a condition of its own, and no image is seen both ways"
        )
        return (lambda: clean), True
    notes.append(
        f"{clean.name(0)}, …: {len(clean)} clean images, not as many of each class as are corrupted; not scored"
    )
    return None, False


def _other_classes(
    root: Path, names: Sequence[str], level: Level, classes: Sequence[str], ignored_classes: Collection[str]
) -> Sequence[str]:
    """Return a note for each corruption with folders of classes that the shift lacks."""
    notes = []
    for name in names if ignored_classes else ():
        folders = [level(_condition_folder(root, name), s) for s in range(1, 6)]
        found = {entry.name for folder in folders if folder.is_dir() for entry in list_folder(folder).folders}
        if other := sorted(found.intersection(ignored_classes)):
            notes.append(
                f"{root / name} has {len(other)} folders of classes that the other corruptions lack ({other[0]}, …), "
                f"as published; its images of the {len(classes)} classes are read"
            )
    return notes


def _again(row: ShiftRow) -> str:
    how = row.how_to_get
    return f"fetch it again with: {how}" if how.startswith("bench ") else f"get it again from {how}"


def _condition_folder(root: Path, name: str) -> Path:
    """Return the folder of a corruption: below the root, or below its group (noise, blur, …) in some copies.

    Raises UsageError if several groups have it.
    """
    direct = root / name
    if direct.is_dir():
        return direct
    found = sorted(root.glob(f"*/{name}"))
    if len(found) > 1:
        raise UsageError(f"{found[0]} and {found[1]} are both {name}; move one of them elsewhere")
    return found[0] if found else direct


def _open_condition(
    root: Path, classes: tuple[str, ...], level: Level, ignored_classes: Collection[str], condition: Condition
) -> ImageSet:
    assert condition.corruption is not None
    if condition.severity != int(condition.severity):
        raise UsageError(f"published files have the severities 1 to 5, not {condition.severity:g}; choose one of them")
    folder = level(_condition_folder(root, condition.corruption), int(condition.severity))
    if not folder.is_dir():
        there = sorted(entry.name for entry in folder.parent.iterdir()) if folder.parent.is_dir() else []
        has = f"{folder.parent.name} has {', '.join(there)}" if there else f"there is no {folder.parent}"
        raise MissingDataError(f"{folder} is missing ({has}); unpack the published archive of that corruption again")
    return read_folder(folder, classes, as_published=True, skip_list=root / SKIP_LIST, ignored_classes=ignored_classes)


def _headline_missing(row: ShiftRow, reading: Reading) -> str:
    return (
        f"missing for {row.name} (looked in {reading.root}): the ImageNet-C tree CORRUPTION/SEVERITY/SYNSET/*.JPEG "
        "(75 GB), clean ImageNet train and val (150 GB), and for recipes an MAE ViT-B/16 stock with its decoder "
        "(0.4 GB); bring the tree with: bench data fetch imagenet-c"
    )
