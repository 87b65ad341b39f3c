"""The rows of a plan: each method and seed, with its streams, its classifier and the keys of its records."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np

from bench.core.components import corruption_marks
from bench.core.conditions import CLEAN, Trial, digest_of
from bench.core.devices import pick_precision
from bench.evaluation.protocols import Segment, chains, plan_stream
from bench.models.weights_io import shown_name
from bench.planning.board_entry import BoardEntry
from bench.planning.context import PlanContext
from bench.planning.init_from import Inherited
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
from bench.planning.starting_weights import conditions_met
from bench.settings.methods import Method, plain_values
from bench.shifts.adaptation_pools import AdaptationPools
from bench.shifts.shift import labelled_source, trained_on
from leaderboards.identity import key_of
from methods import PLAIN
from methods.base import Labelled, Unlabelled
from methods.selfsoup.mixing_options import CONNECTIVITY


def board_entries(context: PlanContext) -> Iterator[BoardEntry]:
    shift = context.shift
    pools = AdaptationPools(shift, context.adapt, context.spec.split)
    for seed in context.spec.seed_list:
        labels = LabelDigests(shift)
        source = labelled_source(trained_on(shift), context.labels, seed) if context.from_stock else None
        for method in context.methods:
            yield from _entries_of(context, method, seed, source, pools, labels)


def _entries_of(
    context: PlanContext,
    method: Method,
    seed: int,
    source: Labelled | None,
    pools: AdaptationPools,
    labels: Callable[[np.ndarray], str],
) -> Iterator[BoardEntry]:
    """The board entries of one method and seed: one for each part of what its recipe makes, for each of its pools."""
    base, conditions = context.base, context.conditions
    trial = _trial(context, method, seed)
    segments = _segments(context, seed)
    adapter = method.adapter or PLAIN
    recipe = recipe_of(method, context.options, from_stock=context.from_stock)
    pooled = method.recipe.access.test == "pool"
    components = code_behind(context, method)
    given = pools.given_to(adapter.access)
    shifted = tuple(str(condition) for condition in conditions if condition.corruption is not None)
    met = shifted if pooled or len(chains(segments)) < len(conditions) else conditions_met(base)
    for group in pool_groups(recipe, conditions, segments):
        own = segments if group is None else segments_of_group(segments, group)
        others = other_pools(recipe, context)
        parts = parts_of(method, recipe, base, source, pools, group, others)
        report = parts.pop(CONNECTIVITY, None)
        if isinstance(base, Inherited):
            parts = {"": base.jobs[seed]}
        pool = _pool_digest(pools.shifted(group), others) if pooled and group is not None else None
        for number, (part, job) in enumerate(named_parts(parts, method).items()):
            learnt = training_data_digest(context.shift, job, given.digest)
            row = RowIdentity(trial, part, components, met, pool, learnt, ingredient_seed(trial, job))
            identities = record_identities(context, row, own, labels)
            yield BoardEntry(
                trial=trial,
                part=part or None,
                job=job,
                report=report if number == 0 else None,
                adapter=adapter,
                config=context.options.config(adapter),
                access=method.access | base.access if isinstance(base, Inherited) else method.access,
                segments=own,
                keys={condition: key_of(content) for condition, content in identities.items()},
                identities=identities,
                digests=context.digests,
                scored=context.scored,
                base_digest=context.base_digest,
                history=met,
                given=given,
            )


def _pool_digest(pool: Unlabelled, others: Mapping[str, Unlabelled]) -> str:
    return digest_of([pool.digest, *(images.digest for images in others.values())]) if others else pool.digest


def _trial(context: PlanContext, method: Method, seed: int) -> Trial:
    spec = context.spec
    return Trial(
        method=method.text,
        recipe=method.recipe.name,
        adapter=method.adapter.name if method.adapter else None,
        options={
            row.options_of or row.name: plain_values(context.options.config(row))
            for row in rows_behind(context, method)
        },
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
