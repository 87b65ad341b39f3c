"""Match and order lists of class names, by name and never by position."""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path

from bench.core.errors import UsageError
from bench.data.lists import read_lines

CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CIFAR100 = (
    "apple", "aquarium_fish", "baby", "bear", "beaver", "bed", "bee", "beetle", "bicycle", "bottle", "bowl", "boy",
    "bridge", "bus", "butterfly", "camel", "can", "castle", "caterpillar", "cattle", "chair", "chimpanzee", "clock",
    "cloud", "cockroach", "couch", "crab", "crocodile", "cup", "dinosaur", "dolphin", "elephant", "flatfish",
    "forest", "fox", "girl", "hamster", "house", "kangaroo", "keyboard", "lamp", "lawn_mower", "leopard", "lion",
    "lizard", "lobster", "man", "maple_tree", "motorcycle", "mountain", "mouse", "mushroom", "oak_tree", "orange",
    "orchid", "otter", "palm_tree", "pear", "pickup_truck", "pine_tree", "plain", "plate", "poppy", "porcupine",
    "possum", "rabbit", "raccoon", "ray", "road", "rocket", "rose", "sea", "seal", "shark", "shrew", "skunk",
    "skyscraper", "snail", "snake", "spider", "squirrel", "streetcar", "sunflower", "sweet_pepper", "table", "tank",
    "telephone", "television", "tiger", "tractor", "train", "trout", "tulip", "turtle", "wardrobe", "whale",
    "willow_tree", "wolf", "woman", "worm",
)  # fmt: skip
ORDERS = ("natural", "imagefolder")
"""Orders of class folders: numbers sorted as numbers, or all names as text as in torchvision's ImageFolder."""

_ALIASES = {"plane": "airplane", "aeroplane": "airplane", "car": "automobile", "auto": "automobile"}
_SYNSET = re.compile(r"(n\d{8})(?:\D.*)?")
_ENOUGH = 20  # the length of a list from which on the position may identify the few unmatched names
_MOST = 0.95  # the share of the list that must be matched at equal positions for that


@dataclass(frozen=True)
class KnownClasses:
    """What is known about the labels before images are read: the classes, or the required order.

    `published`: the order of the classes is standard, so that numbers are positions in it. `column` is the label column
    of another part. `unlabelled`: labels are not needed.
    """

    classes: tuple[str, ...] = ()
    published: bool = False
    column: str | None = None
    order: str | None = None
    unlabelled: bool = False

    @staticmethod
    def of(classes: Sequence[str] | KnownClasses | None) -> KnownClasses | None:
        """Return `KnownClasses` with these names; None and `KnownClasses` are returned unchanged."""
        return classes if classes is None or isinstance(classes, KnownClasses) else KnownClasses(tuple(classes))


def natural_order(names: Iterable[str]) -> tuple[str, ...]:
    """Return names sorted as numbers if all are numbers, else as text."""
    found = list(names)
    if found and all(_is_number(name) for name in found):
        return tuple(sorted(found, key=float))
    return tuple(sorted(found))


def _is_number(name: str) -> bool:
    return re.fullmatch(r"[+-]?\d+(?:\.\d+)?", name) is not None and name.isascii()


def in_order(names: Iterable[str], order: str | None, where: str) -> tuple[str, ...]:
    """Return the classes of found names in an order: "natural" (or None), "imagefolder", or a file of class names.

    Raises UsageError if the file lacks one of the names.
    """
    if order in (None, "natural"):
        return natural_order(names)
    if order == "imagefolder":
        return tuple(sorted(names))
    classes = read_classes(Path(str(order)))
    places_of(list(names), classes, where)
    return classes


def read_classes(path: Path) -> tuple[str, ...]:
    """Read class names from a text file, one per line, in the order of a model's outputs.

    Tab-separated names on one line are names of one class. Raises MissingDataError if there is no file, UsageError for
    a class that occurs twice.
    """
    lines = read_lines(path.expanduser())
    if len(lines) < 2:
        raise UsageError(f"{path} lists {len(lines)} classes; write one class a line, two or more")
    names = [name for line in lines for name in line.split("\t")]
    twice = next((name for name in names if names.count(name) > 1), None) if len(set(names)) < len(names) else None
    if twice is not None:
        raise UsageError(f"{path} lists {twice} twice; keep one line for each class")
    return tuple(lines)


def places_of(found: Sequence[str], wanted: Sequence[str], where: str, *, published: bool = False) -> tuple[int, ...]:
    """Return the position in `wanted` of each found class.

    Names match exactly, else without case, spaces and punctuation, else by known synonyms: CIFAR's short names,
    ImageNet's synsets and words. `published`: `wanted` is a standard order, so that numbers from 0 are positions in it.
    Raises UsageError, with `where` and the class, for a class that matches none, several, or occurs twice.
    """
    places = match(found, wanted, published=published)
    lost = next((number for number, place in enumerate(places) if place is None), None)
    if lost is not None:
        raise UsageError(_unknown(found, lost, wanted, where))
    whole = [place for place in places if place is not None]
    twice = next((number for number, place in enumerate(whole) if whole.index(place) < number), None)
    if twice is not None:
        first = found[whole.index(whole[twice])]
        raise UsageError(f"{where} has the classes {first} and {found[twice]}, which are one class; merge them")
    return tuple(whole)


def _unknown(found: Sequence[str], lost: int, wanted: Sequence[str], where: str) -> str:
    name = found[lost]
    shown = ", ".join(wanted[:3]) + (", …" if len(wanted) > 3 else "")
    close = difflib.get_close_matches(name, wanted, n=1, cutoff=0.8)
    hint = f" (similar to {close[0]})" if close else ""
    if all(_is_number(each) for each in found) and not all(_is_number(each) for each in wanted):
        low, high = natural_order(found)[0], natural_order(found)[-1]
        return (
            f"{where} has the numbers {low} to {high} for its classes, which are not positions from 0 among the "
            f"{len(wanted)} classes {shown}; write the names instead"
        )
    return (
        f"{where} has the class {name}{hint}, which is not one of the {len(wanted)} classes {shown}, or could be "
        "several; rename it"
    )


def match(found: Sequence[str], wanted: Sequence[str], *, published: bool = False) -> list[int | None]:
    """Return the same as `places_of`, with None for a class that matches none or several of the wanted ones."""
    exact = {name: place for place, line in enumerate(wanted) for name in line.split("\t")}
    if set(found) <= exact.keys():
        return [exact[name] for name in found]
    if published and all(name.isdigit() for name in found):
        numbers = [int(name) for name in found]
        if max(numbers) < len(wanted):
            return list(numbers)
        return [None] * len(found)
    index = _by_key(wanted)
    options: list[set[int]] = []
    for name in found:
        if name in exact:
            options.append({exact[name]})
        else:
            keys = _keys(name)
            near = [set[int]().union(*(index.get(key, set()) for key in level)) for level in keys]
            options.append(next((places for places in near if places), set()))
    places: list[int | None] = [next(iter(each)) if len(each) == 1 else None for each in options]
    _settle(places, options, len(wanted))
    return places


def _settle(places: list[int | None], options: Sequence[set[int]], count: int) -> None:
    """Resolve ambiguous names in `places`: to the one option left, or in a long list in order to their own position."""
    for number, place in enumerate(places):
        if place is None and len(left := options[number] - {taken for taken in places if taken is not None}) == 1:
            places[number] = next(iter(left))
    settled = [(number, place) for number, place in enumerate(places) if place is not None]
    in_step = sum(number == place for number, place in settled)
    if len(places) != count or count < _ENOUGH or in_step < _MOST * count or in_step < len(settled):
        return
    for number, place in enumerate(places):
        if place is None and (not options[number] or number in options[number]):
            places[number] = number


def joined(test: Sequence[str], train: Sequence[str], test_where: str, train_where: str) -> tuple[str, ...]:
    """Return the classes of both parts of a shift: those of the part that has more.

    Raises UsageError if each part has a class that the other lacks, because these may be the same class.
    """
    beyond = [name for name, place in zip(train, match(train, test), strict=True) if place is None]
    if not beyond:
        places_of(train, test, train_where)
        return tuple(test)
    lacking = [name for name, place in zip(test, match(test, train), strict=True) if place is None]
    if not lacking:
        places_of(test, train, test_where)
        return tuple(train)
    raise UsageError(
        f"{test_where} has the class {lacking[0]}, which {train_where} lacks, while it has {beyond[0]}; name the "
        "classes alike, or list all of them with --classes FILE, the names of one class on one line, separated by tabs"
    )


def _normal(name: str) -> str:
    return re.sub(r"[\W_]+", "", unicodedata.normalize("NFKC", name).casefold())


def _keys(name: str) -> tuple[tuple[str, ...], ...]:
    """Return the lookup keys of a name in groups, the most certain group first."""
    if _is_number(name):
        return ((f"{float(name):g}",),)
    synset = _SYNSET.fullmatch(name)
    if synset is not None:
        words = _words().get(synset[1], ())
        return ((synset[1],), tuple(f"={word}" for word in words), _normals(words))
    whole = name.split("\t")
    plain = _normals(whole)
    known = tuple(_ALIASES[key] for key in plain if key in _ALIASES)
    return (tuple(f"={each}" for each in whole), plain, known, _normals(re.split(r",\s|\t", name)))


def _normals(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(filter(None, map(_normal, names))))


def _by_key(wanted: Sequence[str]) -> dict[str, set[int]]:
    index: dict[str, set[int]] = {}
    for place, name in enumerate(wanted):
        for level in _keys(name):
            for key in level:
                index.setdefault(key, set()).add(place)
    return index


@cache
def synsets() -> tuple[str, ...]:
    """Return the 1000 synsets of ImageNet in the order of the standard class indices."""
    return tuple(_timm_list("imagenet_synsets.txt").split())


def _timm_list(name: str) -> str:
    return (resources.files("timm.data") / "_info" / name).read_text(encoding="utf-8")


@cache
def _words() -> Mapping[str, tuple[str, ...]]:
    """Return the names of each of the 1000 synsets: WordNet's words, jointly and singly, and torchvision's name."""
    from torchvision.models import ResNet18_Weights

    lines = (line.partition("\t") for line in _timm_list("imagenet_synset_to_lemma.txt").splitlines())
    lemmas = {synset: words for synset, _, words in lines}
    short: Sequence[str] = ResNet18_Weights.IMAGENET1K_V1.meta["categories"]
    return {
        synset: tuple(dict.fromkeys((lemmas[synset], short[place], *lemmas[synset].split(", "))))
        for place, synset in enumerate(synsets())
    }
