"""Turn the tasks of a run into work items of known size, to estimate the time left."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from bench.core.conditions import digest_of
from bench.execution.task_pool import Task
from bench.planning.board_entry import BoardEntry
from bench.planning.plan import Plan
from bench.planning.time_left import WorkItem
from bench.training.job_cache import all_jobs, job_key, kind_of, stock_of
from methods.base import Job
from methods.nets import flops
from methods.soups.soup import ensemble

_WITH_GRADIENT = 3.0


def work_items_of(
    plans: Iterable[Plan], groups: Sequence[Sequence[Task]], entries: Mapping[str, BoardEntry]
) -> list[WorkItem]:
    """Return a work item for each group of tasks that share a pass; `entries` holds the streams' rows, by task key.

    The work of a stream is one forward pass per image, plus a backward pass if the method uses gradients. This guess
    only counts until streams of the same kind have run.
    """
    jobs = {key: job for plan in plans for key, job, _ in jobs_of(plan.entries)}
    work_items = []
    for group in groups:
        members = tuple(task.key for task in group)
        if (job := jobs.get(members[0])) is not None:
            work = job.work.flops if job.work is not None else 0.0
            work_items.append(WorkItem(members, kind_of(job), work, group[0].after, training=True))
            continue
        kinds, amounts = zip(*(_stream(task, entries[task.key]) for task in group), strict=True)
        work_items.append(WorkItem(members, digest_of(sorted(kinds)), sum(amounts), group[0].after))
    return work_items


def jobs_of(entries: Iterable[BoardEntry]) -> Iterator[tuple[str, Job, int]]:
    """Yield all trainings that rows depend on, each with its key and the seed of the row."""
    for entry in entries:
        for job in all_jobs([job for job in (entry.job, entry.report) if job is not None]):
            yield job_key(job, entry.trial.draws), job, entry.trial.seed


def kind_of_stream(evaluation: Any, entry: BoardEntry) -> str:
    """Return a digest that is equal for streams that take the same time per image."""
    facts = [evaluation.adapter, repr(evaluation.config), evaluation.model, evaluation.batch_size, networks_of(entry)]
    return digest_of(facts)


def networks_of(entry: BoardEntry) -> int:
    """Return the number of networks that predict for a row."""
    return len(entry.job.inputs) if entry.job is not None and entry.job.function is ensemble else 1


def _stream(task: Task, entry: BoardEntry) -> tuple[str, float]:
    evaluation = task.arguments[0]
    images = sum(len(segment.ids) for segment in evaluation.all_segments)
    # All streams of a ready model use the same model, so only the number of images counts.
    forward = flops.forward(stock_of(entry.job).architecture) if entry.job is not None else 1.0
    passes = _WITH_GRADIENT if entry.adapter.access.backprop != "none" else 1.0
    return kind_of_stream(evaluation, entry), images * forward * passes * networks_of(entry)
