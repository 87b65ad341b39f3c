"""The streams of a plan as tasks: what each needs to run, and which of them share a pass."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from bench.core.components import identity_of_path
from bench.core.conditions import CLEAN, digest_of
from bench.evaluation.evaluate import Evaluation, Expected
from bench.evaluation.protocols import Segment, chains
from bench.evaluation.shared_pass import share_passes
from bench.evaluation.stream_tasks import measure
from bench.execution.task_pool import Task
from bench.planning.plan import Lane, Plan
from bench.training.job_cache import job_key
from methods import PLAIN


def groups_of(plan: Plan, tasks: Sequence[Task]) -> list[list[Task]]:
    """What runs as one: streams of the same images where they share a pass, and everything else alone."""
    return [[task] for task in tasks] if plan.spec.launch == "slurm" else share_passes(tasks, plan.jobs)


def missing_streams(plan: Plan) -> Iterator[tuple[Task, Lane, tuple[Segment, ...]]]:
    """The streams that a plan has still to run, each with its row and its segments."""
    for lane in plan.lanes:
        for number, chain in enumerate(chains(lane.segments)):
            if any(lane.keys[c] in plan.missing for segment in chain for c in segment.conditions):
                yield _evaluation_task(plan, lane, chain, number), lane, chain


def stream_name(lane: Lane, number: int) -> str:
    """The name of the checkpoint of one stream of a row."""
    return f"{digest_of(list(lane.keys.values()))}-{number}"


def _evaluation_task(plan: Plan, lane: Lane, chain: tuple[Segment, ...], number: int) -> Task:
    weights = job_key(lane.job, lane.trial.seed) if lane.job is not None else None
    evaluation = Evaluation(
        method=lane.trial.method,
        shift=plan.spec.shift,
        reading=plan.reading,
        weights=weights,
        model=plan.model,
        adapter=lane.adapter.path,
        config=lane.config,
        seed=lane.trial.seed,
        segments=chain,
        clean=_clean_after(lane, chain),
        batch_size=lane.trial.batch_size,
        precision=lane.trial.precision,
        device=plan.device,
        expected=Expected(
            lane.scored,
            lane.digests,
            lane.base_digest if plan.model is not None else None,
            _components(lane, chain),
            identity_of_path(lane.adapter.path),
        ),
        plain=lane.adapter is PLAIN,
        fresh=plan.spec.rerun,
    )
    name = lane.trial.method if lane.part is None else f"{lane.trial.method} ({lane.part})"
    where = ", ".join(str(c) for segment in chain for c in segment.conditions)
    key = stream_name(lane, number)
    after = frozenset(job_key(job, lane.trial.seed) for job in (lane.job, lane.report) if job is not None)
    again = plan.spec.rerun or plan.spec.only_failed
    keys = None if again else [lane.keys[c] for segment in chain for c in segment.conditions]
    label = f"{name} seed {lane.trial.seed}"
    return Task(key, measure, (evaluation, plan.out.absolute(), key, keys, label), after, f"{label}: {where}")


def _components(lane: Lane, chain: tuple[Segment, ...]) -> dict[str, str]:
    found: dict[str, str] = {}
    for condition in (condition for segment in chain for condition in segment.conditions):
        found |= lane.identities[condition]["components"]
    return found


def _clean_after(lane: Lane, chain: tuple[Segment, ...]) -> Segment | None:
    """The clean stream that shows what a chain made the adapter forget; None where it met one condition only."""
    if sum(len(segment.conditions) for segment in chain) < 2 and not chain[0].blends:
        return None
    clean = next((segment for segment in lane.segments if segment.conditions == (CLEAN,)), None)
    return clean and replace(clean, reset=False)
