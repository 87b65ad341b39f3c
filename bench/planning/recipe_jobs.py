"""The jobs that the recipes of a run plan: one classifier for each part and pool."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from bench.core.conditions import Condition
from bench.core.errors import UsageError
from bench.core.import_object import load_object
from bench.evaluation.protocols import Segment, chains
from bench.planning.context import PlanContext
from bench.planning.other_pool import RecipeData
from bench.planning.starting_weights import Base
from bench.settings.method_options import MethodOptions
from bench.settings.methods import Method
from bench.shifts.adaptation_pools import PoolGroup, groups
from methods import METHODS, PLAIN
from methods.base import Job, Recipe
from methods.nets.weights import Weights
from methods.selfsoup.mixing_options import CONNECTIVITY
from methods.selfsoup.recipe import SelfSoup

_FEWEST_UNSEEN = 1000


def recipe_of(method: Method, options: MethodOptions, *, from_stock: bool) -> Recipe | None:
    """The recipe with its options; None for a ready classifier."""
    if not from_stock:
        if options.spec.head != "fine-tuned":
            raise UsageError(
                f"--head {options.spec.head}: a ready classifier has a head; leave it out, or give a --stock instead"
            )
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
    if getattr(recipe.config, "head", None) == "knn" and method.adapter is not None:
        raise UsageError(
            f"{method.text}: nearest neighbours have no layer that {adapter.name} could adapt; use --head probe"
        )
    return recipe


def pool_groups(
    recipe: Recipe | None,
    conditions: tuple[Condition, ...],
    segments: Sequence[Segment],
    pooled: tuple[Condition, ...] | None,
) -> Sequence[PoolGroup | None]:
    """The pools that a recipe trains one classifier on each; [None] for a recipe without a shifted pool.

    Raises UsageError if the stream would carry an adapter from the conditions of one classifier to those of another.
    """
    if recipe is None or recipe.pool != "shifted":
        return [None]
    how = getattr(recipe.config, "shift_pool", "mixed")
    if pooled is not None:
        if how != "mixed":
            raise UsageError(f"shift_pool = {how} divides the pool of the scored shift; leave it or --pool out")
        return [PoolGroup(conditions, pooled)]
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


def other_pools(recipe: Recipe | None, context: PlanContext, data: RecipeData) -> dict[str, RecipeData]:
    """The other shifts on which a Self-Soup has ingredients, by name. Raises UsageError."""
    if not isinstance(recipe, SelfSoup) or not recipe.config.also_on:
        return {}
    if data.shift.name in recipe.config.also_on:
        which = "the shift of the run" if data.pooled is None else "the shift of --pool"
        raise UsageError(f"selfsoup.also_on names {data.shift.name}, {which}; name others")
    return {name: context.data_of(name) for name in recipe.config.also_on}


def parts_of(
    method: Method,
    recipe: Recipe | None,
    base: Base,
    data: RecipeData,
    group: PoolGroup | None,
    others: Mapping[str, RecipeData],
    seed: int,
) -> dict[str, Job | None]:
    """The jobs that a recipe plans, by part. Raises UsageError for options that exclude each other."""
    if recipe is None or not isinstance(base, Weights):
        return {"": None}
    source, pools = data.source(seed), data.pools
    pool = pools.shifted(group) if group is not None else pools.clean() if recipe.pool == "clean" else None
    more: dict[str, Any] = {"val": pools.val()} if getattr(recipe.config, "select_on", "") == "val" else {}
    more |= {"others": {name: other.pool for name, other in others.items()}} if others else {}
    try:
        parts = recipe.plan(base, source, pool, **more)
    except ValueError as error:
        raise UsageError(f"{method.text}: {error}") from None
    return dict(_on_unseen_images(parts, data, len(source)))


def _on_unseen_images(parts: Mapping[str, Job], data: RecipeData, labelled: int) -> Iterator[tuple[str, Job]]:
    """Yield the parts, the report on connectivity on images of its own, and not at all where there are none.

    There are as many as there are labelled images, so that it costs little beside the training, but at least 1,000.
    """
    most = min(data.options.spec.limit or sys.maxsize, max(_FEWEST_UNSEEN, labelled))
    for name, job in parts.items():
        if name != CONNECTIVITY:
            yield name, job
        elif images := data.pools.unseen(most) or job.data:
            yield name, replace(job, data=images)


def named_parts(parts: Mapping[str, Job | None], method: Method) -> Mapping[str, Job | None]:
    """The jobs by part name ("" for a method of one row); an adapter runs on the first part only."""
    if method.adapter or len(parts) == 1:
        return {"": next(iter(parts.values()))}
    return parts
