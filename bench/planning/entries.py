"""The rows of a plan: each method and seed, with its streams, its classifier and the keys of its records."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np

from bench.core.components import corruption_marks
from bench.core.conditions import CLEAN, Trial, digest_of
from bench.core.devices import pick_precision
from bench.evaluation.protocols import Segment, chains, plan_stream
from bench.models.weights_io import shown_name
from bench.planning.board_entry import BoardEntry
from bench.planning.context import PlanContext
from bench.planning.init_from import Inherited
from bench.planning.other_pool import RecipeData, access_with, check_pool, recipe_data, seen_from
from bench.planning.recipe_jobs import named_parts, other_pools, parts_of, pool_groups, recipe_of, segments_of_group
from bench.planning.record_identity import (
    LabelDigests,
    RowIdentity,
    code_behind,
    ingredient_seed,
    record_identities,
    rows_behind,
    training_data_digest,
)
from bench.settings.methods import Method, plain_values
from bench.shifts.adaptation_pools import AdaptationPools
from leaderboards.identity import key_of
from methods import PLAIN
from methods.base import Unlabelled
from methods.selfsoup.mixing_options import CONNECTIVITY


def board_entries(context: PlanContext) -> Iterator[BoardEntry]:
    shift = context.shift
    pools = AdaptationPools(shift, context.adapt, context.spec.split)
    own = recipe_data(shift, pools, context.options, context.labels, None)
    if context.pool is not None:
        check_pool(context.pool, shift, context.takers, from_stock=context.from_stock)
    for seed in context.spec.seed_list:
        labels = LabelDigests(shift)
        for method in context.methods:
            data = context.pool if context.pool is not None and method.text in context.takers else own
            yield from _entries_of(context, method, seed, data, pools, labels)


def _entries_of(
    context: PlanContext,
    method: Method,
    seed: int,
    data: RecipeData,
    pools: AdaptationPools,
    labels: Callable[[np.ndarray], str],
) -> Iterator[BoardEntry]:
    """The board entries of one method and seed: one for each part of what its recipe makes, for each of its pools."""
    base, conditions = context.base, context.conditions
    trial = _trial(context, method, seed, data)
    segments = _segments(context, seed)
    adapter = method.adapter or PLAIN
    recipe = recipe_of(method, data.options, from_stock=context.from_stock)
    pooled = method.recipe.access.test == "pool"
    components = code_behind(context, method)
    given = pools.given_to(adapter.access)
    shifted = tuple(str(condition) for condition in conditions if condition.corruption is not None)
    others = other_pools(recipe, context, data)
    before = _met(context, data if pooled and recipe is not None else None, others.values())
    met = tuple(dict.fromkeys((*before, *(shifted if len(chains(segments)) < len(conditions) else ()))))
    access = access_with(base.access if isinstance(base, Inherited) else method.recipe.access, before)
    for group in pool_groups(recipe, conditions, segments, data.pooled):
        own = segments if group is None else segments_of_group(segments, group)
        parts = parts_of(method, recipe, base, data, group, others, seed)
        report = parts.pop(CONNECTIVITY, None)
        if isinstance(base, Inherited):
            parts = {"": base.jobs[seed]}
        pool = _pool_digest(data.pools.shifted(group), others) if pooled and group is not None else None
        for number, (part, job) in enumerate(named_parts(parts, method).items()):
            learnt = training_data_digest((context.shift, data.shift), job, given.digest)
            row = RowIdentity(trial, part, components, met, pool, learnt, ingredient_seed(trial, job))
            identities = record_identities(context, row, own, labels)
            yield BoardEntry(
                trial=trial,
                part=part or None,
                job=job,
                report=report if number == 0 else None,
                adapter=adapter,
                config=context.options.config(adapter),
                access=access | adapter.access,
                segments=own,
                keys={condition: key_of(content) for condition, content in identities.items()},
                identities=identities,
                digests=context.digests,
                scored=context.scored,
                base_digest=context.base_digest,
                history=met,
                given=given,
            )


def _met(context: PlanContext, data: RecipeData | None, others: Iterable[RecipeData]) -> tuple[str, ...]:
    """The conditions of which a classifier saw images before the stream, in a pool (`data`) or in another run."""
    name = context.shift.name
    if isinstance(context.base, Inherited):
        return seen_from(name, context.base.shift, context.base.met)
    return tuple(entry for each in (data, *others) if each is not None for entry in each.seen(name, context.conditions))


def _pool_digest(pool: Unlabelled, others: Mapping[str, RecipeData]) -> str:
    return digest_of([pool.digest, *(other.pool.digest for other in others.values())]) if others else pool.digest


def _trial(context: PlanContext, method: Method, seed: int, data: RecipeData) -> Trial:
    spec = context.spec
    rows = rows_behind(context, method)
    chosen = {row: (data if row is method.recipe else context).options.config(row) for row in rows}
    return Trial(
        method=method.text,
        recipe=method.recipe.name,
        adapter=method.adapter.name if method.adapter else None,
        options={row.options_of or row.name: plain_values(config) for row, config in chosen.items()},
        shift=context.shift.name,
        conditions=context.conditions,
        model=context.name if isinstance(context.base, Inherited) else shown_name(context.name, context.base),
        protocol=str(context.protocol),
        split=spec.split,
        draws=context.base.draws[seed] if isinstance(context.base, Inherited) else spec.draws(seed),
        batch_size=spec.batch_size,
        precision=pick_precision(spec.precision, context.device),
        labels_per_class=context.labels,
        limit=spec.limit,
    )


def _segments(context: PlanContext, seed: int) -> tuple[Segment, ...]:
    """The stream of a seed. A segment that blends corruptions is one cell, whose digest is added to the others."""
    shift, scored, conditions = context.shift, context.scored, context.conditions
    segments = tuple(plan_stream(context.protocol, conditions, scored, shift.labels(scored), seed))
    for segment in segments:
        if segment.blends:
            # The identity of the whole stream: its clean images, and every corruption that may be applied to them.
            content = [shift.digest(scored, CLEAN), *map(str, conditions), shift.profile, shift.storage]
            content += [mark for condition in conditions for mark in corruption_marks(condition.corruption)]
            context.digests[segment.conditions[0]] = "sha256:" + digest_of([*content, shift.data_seed])
    return segments
