"""Turn the streams of a plan into tasks and group those that share a pass."""

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
from bench.planning.board_entry import BoardEntry
from bench.planning.plan import Plan
from bench.training.job_cache import job_key
from methods import PLAIN


def groups_of(plan: Plan, tasks: Sequence[Task]) -> list[list[Task]]:
    """Group the tasks: streams of the same images share a pass, every other task is a group of its own."""
    return [[task] for task in tasks] if plan.spec.launch == "slurm" else share_passes(tasks, plan.jobs)


def missing_streams(plan: Plan) -> Iterator[tuple[Task, BoardEntry, tuple[Segment, ...]]]:
    """Yield the streams that a plan still has to run, each with its row and segments."""
    for entry in plan.entries:
        for number, chain in enumerate(chains(entry.segments)):
            if any(entry.keys[c] in plan.missing for segment in chain for c in segment.conditions):
                yield _evaluation_task(plan, entry, chain, number), entry, chain


def stream_name(entry: BoardEntry, number: int) -> str:
    """Return the name of the checkpoint of one stream of a row."""
    return f"{digest_of(list(entry.keys.values()))}-{number}"


def _evaluation_task(plan: Plan, entry: BoardEntry, chain: tuple[Segment, ...], number: int) -> Task:
    weights = job_key(entry.job, entry.trial.draws) if entry.job is not None else None
    evaluation = Evaluation(
        method=entry.trial.method,
        shift=plan.spec.shift,
        reading=plan.reading,
        weights=weights,
        model=plan.model,
        adapter=entry.adapter.path,
        config=entry.config,
        seed=entry.trial.seed,
        segments=chain,
        clean=_clean_after(entry, chain),
        batch_size=entry.trial.batch_size,
        precision=entry.trial.precision,
        device=plan.device,
        beside=entry.given.beside,
        expected=Expected(
            entry.scored,
            entry.digests,
            entry.base_digest if plan.model is not None else None,
            _components(entry, chain),
            identity_of_path(entry.adapter.path),
            entry.given.digest,
        ),
        plain=entry.adapter is PLAIN,
        fresh=plan.spec.rerun,
    )
    name = entry.trial.method if entry.part is None else f"{entry.trial.method} ({entry.part})"
    where = ", ".join(str(c) for segment in chain for c in segment.conditions)
    key = stream_name(entry, number)
    after = frozenset(job_key(job, entry.trial.draws) for job in (entry.job, entry.report) if job is not None)
    measure_again = plan.spec.rerun or plan.spec.only_failed
    keys = None if measure_again else [entry.keys[c] for segment in chain for c in segment.conditions]
    label = f"{name} seed {entry.trial.seed}"
    return Task(key, measure, (evaluation, plan.out.absolute(), key, keys, label), after, f"{label}: {where}")


def _components(entry: BoardEntry, chain: tuple[Segment, ...]) -> dict[str, str]:
    found: dict[str, str] = {}
    for condition in (condition for segment in chain for condition in segment.conditions):
        found |= entry.identities[condition]["components"]
    return found


def _clean_after(entry: BoardEntry, chain: tuple[Segment, ...]) -> Segment | None:
    """Return the clean segment that measures forgetting after a chain; None for a chain of one condition."""
    if sum(len(segment.conditions) for segment in chain) < 2 and not chain[0].blends:
        return None
    clean = next((segment for segment in entry.segments if segment.conditions == (CLEAN,)), None)
    return clean and replace(clean, reset=False)
