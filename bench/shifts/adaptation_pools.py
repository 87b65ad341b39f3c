"""The images that recipes may see, and the shifted conditions in the pool behind each scored condition."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bench.core.conditions import CLEAN, Condition
from bench.core.errors import MissingDataError
from bench.shifts.shift import Shift, adapt_pool, clean_labelled, clean_pool, limit_ids, source_digest, trained_on
from corruptions.catalog import ROWS
from methods.base import Labelled, Unlabelled
from methods.table import Access

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


@dataclass(frozen=True)
class CleanImages:
    """Clean images that an adapter gets besides the stream.

    beside: ids of clean test images, int64 [n]; None: all train images, or none. digest: identifies them; None if there
    are none or they are bundled.
    """

    beside: np.ndarray | None = None
    digest: str | None = None


class AdaptationPools:
    """The images that methods may request besides the stream, made on first use."""

    def __init__(self, shift: Shift, adapt: np.ndarray, split: str) -> None:
        self._shift, self._adapt, self._split = shift, adapt, split
        self._pools: dict[tuple[Condition, ...], Unlabelled] = {}
        self._clean: Unlabelled | None = None
        self._val: Labelled | None = None
        self._unseen: dict[int, Labelled | None] = {}
        self._given: dict[str, CleanImages] = {}

    def shifted(self, group: PoolGroup) -> Unlabelled:
        """Return the images of the adapt half under the conditions that a group may see."""
        if group.pooled not in self._pools:
            self._pools[group.pooled] = adapt_pool(self._shift, self._adapt, group.pooled)
        return self._pools[group.pooled]

    def given_to(self, adapter: Access) -> CleanImages:
        """Return the clean images that an adapter gets besides the stream.

        They are all train images, or for an adapter with a pool the adapt half of the test images. Where the shift has
        none, the result is empty: the stream of this adapter fails with a sentence, and those of others run.
        """
        if adapter.source == "none":
            return CleanImages()
        which = "adapt" if adapter.test == "pool" else "train"
        if which not in self._given:
            self._given[which] = self._given_now(self._adapt if which == "adapt" else None)
        return self._given[which]

    def _given_now(self, beside: np.ndarray | None) -> CleanImages:
        try:
            ids = self._shift.ids("train") if beside is None else beside
        except MissingDataError:
            return CleanImages(beside)
        known = beside is None or self._shift.has_clean
        return CleanImages(beside, source_digest(self._shift, ids) if known else None)

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

    def unseen(self, most: int) -> Labelled | None:
        """Return at most `most` clean dev images, on which a run neither trains nor chooses nor is scored.

        None where a run is scored on them, or the shift has none.
        """
        if self._split == "dev":
            return None
        if most not in self._unseen:
            self._unseen[most] = self._unseen_now(most)
        return self._unseen[most]

    def _unseen_now(self, most: int) -> Labelled | None:
        shift = trained_on(self._shift)
        try:
            ids = limit_ids(shift.ids("dev"), most)
        except MissingDataError:
            return None
        return clean_labelled(shift, ids) if len(ids) else None
