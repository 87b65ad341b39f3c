"""How the data of each standard shift are defined, and the digests of those on this machine: for `publish known`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bench.shifts.catalog import SHIFTS, TASKS, ShiftRow
from bench.shifts.corruption_sets import BAR, COMMON, LAION
from bench.shifts.digits import Digits
from bench.shifts.imagenet import SUPERCLASSES
from bench.shifts.shift import NATURAL
from leaderboards.bundle import runs_of
from leaderboards.identity import labels_digest
from leaderboards.known import SPLITS, Definition, Known, KnownSplit

_LEVELS = [1.0, 2.0, 3.0, 4.0, 5.0]
_GENERATED = "-gen"
_FACTS: dict[str, tuple[Sequence[str], int | None, int | None, int | None]] = {
    "imagenet-c": (COMMON, 1000, 50_000, 50),
    "imagenet-c-gen": (COMMON, 1000, 50_000, None),
    "imagenet-c-5k": (COMMON, 1000, 5_000, None),
    "imagenet-c-bar": (BAR, 1000, 50_000, 50),
    "imagenet-c-bar-gen": (BAR, 1000, 50_000, None),
    "laion-c": (LAION, len(SUPERCLASSES), None, None),
    "laion-c-gen": (LAION, len(SUPERCLASSES), 50 * sum(map(len, SUPERCLASSES.values())), None),
    "ccc": (COMMON, 1000, 50_000, None),
    "imagenet-r": ((NATURAL,), 200, 30_000, None),
    "imagenet-a": ((NATURAL,), 200, 7_500, None),
    "imagenet-v2": ((NATURAL,), 1000, 10_000, None),
    "imagenet-sketch": ((NATURAL,), 1000, 50_889, None),
    "imagenet-hr": ((NATURAL,), 1000, 5_000, None),
    "imagenet-real": ((NATURAL,), 1000, 46_837, None),
    "tiny-imagenet-c": (COMMON, 200, 10_000, 50),
    "cifar10-c": (COMMON, 10, 10_000, None),
    "cifar100-c": (COMMON, 100, 10_000, None),
    "cifar10-c-gen": (COMMON, 10, 10_000, None),
    "cifar100-c-gen": (COMMON, 100, 10_000, None),
    "fashion-c": (Digits.corruptions, 10, 10_000, None),
    "digits-c": (Digits.corruptions, 10, None, None),
}
"""Corruptions, classes, test images, and images of each class where these follow one another in published trees."""
_MADE_HERE = ("ccc", "digits-c", "fashion-c")


def definitions() -> dict[str, Definition]:
    """Return how the data of each standard shift are defined: all but a user's own folders, hub sets and files."""
    found = {name: _defined(SHIFTS[name], name, *facts) for name, facts in _FACTS.items()}
    for task in TASKS:
        found[f"mini-vtab:{task}"] = _defined(SHIFTS["mini-vtab"], "mini-vtab", (NATURAL,), None, None, None)
        found[f"mini-vtab-c:{task}"] = _defined(SHIFTS["mini-vtab-c"], "mini-vtab-c", COMMON, None, None, None)
    return found


def _defined(
    row: ShiftRow, name: str, names: Sequence[str], classes: int | None, images: int | None, per_class: int | None
) -> Definition:
    natural = tuple(names) == (NATURAL,)
    here = name.endswith(_GENERATED) or name in _MADE_HERE or name == "mini-vtab-c"
    return Definition(
        classes=classes,
        images=images,
        per_class=per_class,
        corruptions=list(names),
        severities=[1.0] if natural else _LEVELS,
        clean="never" if natural else "always" if here else "optional",
        storage=row.storage,
        profile=row.profile,
        made_here=here,
        tiles=name == "laion-c-gen",
        protocol=row.protocol,
    )


def pinned(known: Known, name: str, data_root: Path | None) -> Known:
    """Return a table with the ids and digests of a shift on this machine, and the digest of its default stock.

    The stock is left out where it is not here. Raises MissingDataError if the data are not found.
    """
    from bench.core.conditions import CLEAN, Condition
    from bench.core.errors import MissingDataError
    from bench.models.weights_io import load_stock
    from bench.shifts import load_shift
    from bench.shifts.shift import split_ids

    shift, stock = load_shift(name, data_root), SHIFTS[name.partition(":")[0]].default_stock
    levels = shift.severities or _LEVELS
    conditions = [Condition(each, level) for each in shift.corruptions for level in levels]
    splits = {}
    for split in SPLITS:
        _, scored = split_ids(shift.ids("test"), split)
        splits[split] = KnownSplit(
            ids=[(first, step, count) for first, step, count in runs_of(scored)],
            conditions={
                str(each): shift.digest(scored, each) for each in [*([CLEAN] if shift.has_clean else []), *conditions]
            },
            labels=labels_digest(scored, shift.labels(scored)),
        )
    try:
        models = dict(known.models) | {stock: load_stock(stock).digest}
    except MissingDataError:
        models = dict(known.models)
    return Known(
        shifts=dict(known.shifts) | {name: splits},
        models=models,
        releases=dict(known.releases),
        definitions=definitions(),
    )
