"""The jobs that the recipes of a run plan: one classifier for each part and pool."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bench.core.conditions import Condition
from bench.core.errors import UsageError
from bench.core.import_object import load_object
from bench.evaluation.protocols import Segment, chains
from bench.planning.context import PlanContext
from bench.planning.starting_weights import Base
from bench.settings.method_options import MethodOptions
from bench.settings.methods import Method
from bench.shifts.adaptation_pools import AdaptationPools, PoolGroup, groups
from methods import METHODS, PLAIN
from methods.base import Job, Labelled, Recipe, Unlabelled
from methods.nets.weights import Weights
from methods.selfsoup.recipe import SelfSoup


def recipe_of(method: Method, options: MethodOptions, *, from_stock: bool) -> Recipe | None:
    """The recipe with its options; None for a ready classifier."""
    if not from_stock:
        if method.recipe.name != "source" and not method.implied:
            raise UsageError(
                f"{method.recipe.name} starts from a stock, not from a ready classifier; give --stock instead"
            )
        return None
    adapter = method.adapter or PLAIN
    if adapter.needs not in (None, method.recipe.name) and METHODS.get(method.recipe.name) is method.recipe:
        raise UsageError(
            f"{method.text}: {method.recipe.name} does not train what {adapter.name} needs; "
            f"use {adapter.needs}+{adapter.name}"
        )
    recipe: Recipe = load_object(method.recipe.path)(options.config(method.recipe))
    return recipe


def pool_groups(
    recipe: Recipe | None, conditions: tuple[Condition, ...], segments: Sequence[Segment]
) -> Sequence[PoolGroup | None]:
    """The pools that a recipe trains one classifier on each; [None] for a recipe without a shifted pool.

    Raises UsageError if the stream would carry an adapter from the conditions of one classifier to those of another.
    """
    if recipe is None or recipe.pool != "shifted":
        return [None]
    how = getattr(recipe.config, "shift_pool", "mixed")
    try:
        found = groups(conditions, how)
    except ValueError as error:
        raise UsageError(f"shift_pool = {how}: {error}") from None
    if len(found) > 1 and len(chains(segments)) < len(conditions):
        raise UsageError(
            f"shift_pool = {how} has a classifier for each part of the conditions, so the stream must start anew in "
            "each; use --protocol reset_each_shift or episodic"
        )
    return found


def segments_of_group(segments: tuple[Segment, ...], group: PoolGroup) -> tuple[Segment, ...]:
    scored = set(group.scored)
    return tuple(segment for segment in segments if segment.blends or scored.issuperset(segment.conditions))


def other_pools(recipe: Recipe | None, context: PlanContext) -> dict[str, Unlabelled]:
    """The pools of the other shifts on which a Self-Soup has ingredients, by name. Raises UsageError."""
    if not isinstance(recipe, SelfSoup) or not recipe.config.also_on:
        return {}
    if context.shift.name in recipe.config.also_on:
        raise UsageError(f"selfsoup.also_on names {context.shift.name}, the shift of the run; name others")
    return {name: context.pool_of(name) for name in recipe.config.also_on}


def parts_of(
    method: Method,
    recipe: Recipe | None,
    base: Base,
    source: Labelled | None,
    pools: AdaptationPools,
    group: PoolGroup | None,
    others: Mapping[str, Unlabelled],
) -> dict[str, Job | None]:
    """The jobs that a recipe plans, by part. Raises UsageError for options that exclude each other."""
    if recipe is None or source is None or not isinstance(base, Weights):
        return {"": None}
    pool = pools.shifted(group) if group is not None else pools.clean() if recipe.pool == "clean" else None
    more: dict[str, Any] = {"val": pools.val()} if getattr(recipe.config, "select_on", "") == "val" else {}
    more |= {"others": others} if others else {}
    try:
        return dict(recipe.plan(base, source, pool, **more))
    except ValueError as error:
        raise UsageError(f"{method.text}: {error}") from None


def named_parts(parts: Mapping[str, Job | None], method: Method) -> Mapping[str, Job | None]:
    """The jobs by part name ("" for a method of one row); an adapter runs on the first part only."""
    if method.adapter or len(parts) == 1:
        return {"": next(iter(parts.values()))}
    return parts
