"""The images that recipes may see, and the shifted conditions in the pool behind each scored condition."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bench.core.conditions import CLEAN, Condition
from bench.shifts.shift import Shift, adapt_pool, clean_labelled, clean_pool, trained_on
from corruptions.catalog import ROWS
from methods.base import Labelled, Unlabelled

# The four extra corruptions are assigned to the families they resemble (Hendrycks and Dietterich 2019, appendix B).
_FAMILIES = {row.name: row.group for row in ROWS if row.group != "extra"} | {
    "speckle_noise": "noise",
    "gaussian_blur": "blur",
    "spatter": "weather",
    "saturate": "digital",
}


@dataclass(frozen=True)
class PoolGroup:
    """The conditions that one classifier is scored on, and those whose images it may see before."""

    scored: tuple[Condition, ...]
    pooled: tuple[Condition, ...]


def family_of(corruption: str) -> str:
    """Return the family of a corruption in the catalogue (noise, blur, …); any other corruption is its own family."""
    return _FAMILIES.get(corruption, corruption)


def groups(conditions: Sequence[Condition], shift_pool: str) -> list[PoolGroup]:
    """Return one group for each classifier that a kind of pool requires.

    With "per_corruption" the clean condition has a group of its own, like every corruption. With
    "leave_one_family_out" clean images, which belong to no family, are scored by the classifier of the whole pool.
    Raises ValueError if there is only one family, because leaving it out leaves nothing.
    """
    shifted = [condition for condition in conditions if condition != CLEAN]
    clean = [condition for condition in conditions if condition == CLEAN]
    if shift_pool == "mixed":
        return [PoolGroup(tuple(conditions), tuple(shifted))]
    names = {c: family_of(str(c.corruption)) if shift_pool == "leave_one_family_out" else c.corruption for c in shifted}
    found = []
    for name in dict.fromkeys(names.values()):
        inside = tuple(condition for condition in shifted if names[condition] == name)
        outside = tuple(condition for condition in shifted if names[condition] != name)
        found.append(PoolGroup(inside, inside if shift_pool == "per_corruption" else outside))
    if not all(group.pooled for group in found):
        raise ValueError("leaving out a family needs corruptions of at least two families; add some with --corruption")
    whole = (CLEAN,) if shift_pool == "per_corruption" else tuple(shifted)
    return [*([PoolGroup((CLEAN,), whole)] if clean else []), *found]


class AdaptationPools:
    """The images that recipes may request, made on first use: unlabelled pools and clean labelled test images."""

    def __init__(self, shift: Shift, adapt: np.ndarray, split: str) -> None:
        self._shift, self._adapt, self._split = shift, adapt, split
        self._pools: dict[tuple[Condition, ...], Unlabelled] = {}
        self._clean: Unlabelled | None = None
        self._val: Labelled | None = None

    def shifted(self, group: PoolGroup) -> Unlabelled:
        """Return the images of the adapt half under the conditions that a group may see."""
        if group.pooled not in self._pools:
            self._pools[group.pooled] = adapt_pool(self._shift, self._adapt, group.pooled)
        return self._pools[group.pooled]

    def clean(self) -> Unlabelled:
        """Return all clean train images."""
        self._clean = self._clean or clean_pool(trained_on(self._shift))
        return self._clean

    def val(self) -> Labelled | None:
        """Return clean labelled images of the adapt half, None if they are also scored or do not exist.

        There are none of a shift that has other classes than its recipes learn.
        """
        own = trained_on(self._shift) is self._shift
        if self._split in ("disjoint", "dev") and self._shift.has_clean and own:
            self._val = self._val or clean_labelled(self._shift, self._adapt)
        return self._val
