"""`--pool SHIFT`: recipes that learn from a pool see another shift than the scored one, or all of it.

Such a recipe is planned as in a run on SHIFT, with its source images, pool and options, so that its classifier is
trained once, whatever it is scored on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import TYPE_CHECKING

from bench.core.conditions import Condition
from bench.core.errors import UsageError
from bench.settings.method_options import MethodOptions
from bench.settings.run_spec import RunSpec
from bench.shifts.adaptation_pools import AdaptationPools, PoolGroup, groups
from bench.shifts.class_match import class_names, fitted
from bench.shifts.data_root import Reading
from bench.shifts.shift import (
    Shift,
    labelled_source,
    limit_ids,
    pick_conditions,
    pick_corruptions,
    split_ids,
    trained_on,
)
from leaderboards.record import condition_met
from methods.base import Labelled, Unlabelled
from methods.nets.weights import Weights
from methods.table import Access

if TYPE_CHECKING:
    from torch import nn

    from bench.planning.init_from import Inherited


@dataclass(frozen=True)
class RecipeData:
    """What recipes learn from: a shift, its images, and how options are chosen for it.

    `pooled`: the conditions of the pool; None: those of the run, as the recipe's options group them. `source` returns
    the clean labelled images of a seed.
    """

    shift: Shift
    pools: AdaptationPools
    options: MethodOptions
    source: Callable[[int], Labelled]
    pooled: tuple[Condition, ...] | None = None

    @property
    def pool(self) -> Unlabelled:
        """The images of the adapt half under `pooled`."""
        return self.pools.shifted(PoolGroup((), self.pooled or ()))

    def seen(self, scored: str, conditions: Iterable[Condition]) -> tuple[str, ...]:
        """Return the history of a classifier that is scored on the shift of this name."""
        pooled = conditions if self.pooled is None else self.pooled
        return seen_from(scored, self.shift.name, (str(c) for c in pooled if c.corruption is not None))


def recipe_data(
    shift: Shift, pools: AdaptationPools, options: MethodOptions, labels: int | None, pooled: Iterable[Condition] | None
) -> RecipeData:
    """Return what recipes learn from a shift with `labels` labelled images a class (None: all)."""
    source = cache(partial(labelled_source, trained_on(shift), labels))
    return RecipeData(shift, pools, options, source, None if pooled is None else tuple(pooled))


def data_of(
    spec: RunSpec,
    base: nn.Module | Weights | Inherited,
    reading: Reading,
    options: MethodOptions,
    labels: int | None,
    name: str,
) -> RecipeData:
    """Return what recipes learn from a shift under all of its corruptions, read and limited as that of the run."""
    there = reading if name == spec.shift else replace(reading, classes=None, label=None, part=None)
    shift, _ = fitted(name, base, replace(there, added=()))
    conditions = pick_conditions(shift, spec.conditions(pick_corruptions(shift, None, spec.split)))
    adapt, _ = split_ids(shift.ids("dev" if spec.split == "dev" else "test"), spec.split)
    (group,) = groups(conditions, "mixed")
    pools = AdaptationPools(shift, limit_ids(adapt, spec.limit), spec.split)
    return recipe_data(shift, pools, replace(options, shift=shift), labels, group.pooled)


def check_pool(data: RecipeData, scored: Shift, takers: Iterable[str], *, from_stock: bool) -> None:
    """Raise UsageError unless some method learns from a pool and its classifier fits the scored shift."""
    name = data.shift.name
    if not from_stock:
        raise UsageError(f"--pool {name}: a ready classifier learns from no pool; leave it out, or give a --stock")
    if not list(takers):
        raise UsageError(f"--pool {name}: no method of this run learns from a pool; leave it out, or add selfsoup")
    learnt = trained_on(data.shift)
    some = scored.members is not None and (learnt.family, learnt.classes) == (scored.family, scored.source_classes)
    if not some and _names(learnt) != _names(trained_on(scored)):
        raise UsageError(
            f"--pool {name}: its classes are not those of {scored.name} in the same order; name a shift that has them"
        )


def _names(shift: Shift) -> tuple[str, ...]:
    return class_names(shift) or tuple(map(str, range(shift.classes)))


def pool_note(data: RecipeData, scored: str, takers: Iterable[str]) -> str:
    """Say what methods with a pool see where the run names a shift for it."""
    where = "all of" if data.shift.name == scored else "other shift seen:"
    conditions = f"{len(data.pooled or ())} condition{'s' * (len(data.pooled or ()) != 1)}"
    return f"{', '.join(takers)}: {where} {data.shift.name} ({conditions}, its adapt half) and scored on {scored}"


def seen_from(scored: str, shift: str, met: Iterable[str]) -> tuple[str, ...]:
    """Return the history of a classifier of one shift as it reads on another: "fog@5" becomes "fog@5 of SHIFT"."""
    found = []
    for entry in met:
        condition, other = condition_met(entry)
        where = other or shift
        found.append(condition if where == scored else f"{condition} of {where}")
    return tuple(found)


def access_with(access: Access, met: Iterable[str]) -> Access:
    """Return the access of a recipe that saw a pool: that of another shift if no condition met is of the scored one."""
    if access.test not in ("pool", "other"):
        return access
    here = any(shift is None for _, shift in map(condition_met, met))
    return replace(access, test="pool" if here else "other")
