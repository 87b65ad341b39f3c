"""Run streams of the same images as one task, so that several methods share one pass over the images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from bench.evaluation.evaluate import Evaluation
from bench.evaluation.protocols import Segment
from bench.evaluation.stream_tasks import measure, measure_together
from bench.execution.task_pool import Executor, Finished, Task, run_tasks

SHARED_AT_MOST = 8
"""The most adapters that share a pass; each has its own model in memory."""

_ROUNDS = 4
"""The fewest tasks per process that sharing leaves, so that no process idles at the end."""


def run_streams(
    grouped: Sequence[Sequence[Task]],
    jobs: int,
    threads: int,
    on_start: Callable[[Task], None] = lambda _: None,
    executor: Executor | None = None,
) -> Iterator[Finished]:
    """Run tasks (see `run_tasks`), each group as one task that evaluates its streams in one pass.

    A stream that fails in a group runs once more alone, so that no stream fails because of another, for lack of memory
    for example.
    """
    groups = {group[0].key: group for group in grouped}
    failed: set[str] = set()
    retries: list[Task] = []

    def started(task: Task) -> None:
        for member in groups[task.key]:
            on_start(member)

    for finished in run_tasks([_joined(group) for group in groups.values()], jobs, threads, started, executor):
        group = groups[finished.task.key]
        if len(group) == 1:
            if finished.error is not None:
                failed.add(finished.task.key)
            yield finished
        elif finished.error is not None and not failed.isdisjoint(finished.task.after):
            yield from (Finished(member, None, finished.error) for member in group)
        elif finished.error is not None:
            retries += group
        else:
            for member, outcome in zip(group, finished.value, strict=True):
                if isinstance(outcome, Exception):
                    retries.append(member)
                else:
                    yield Finished(member, outcome, None)
    if retries:
        yield from run_tasks(retries, jobs, threads)


def _joined(group: Sequence[Task]) -> Task:
    first = group[0]
    if len(group) == 1:
        return first
    return Task(first.key, measure_together, tuple(task.arguments for task in group), first.after, first.label)


def share_passes(tasks: Sequence[Task], jobs: int) -> list[list[Task]]:
    """Group tasks in order: streams that can share a pass form one group, at the place of the first of them.

    With several processes, streams share only as long as each process still gets at least four tasks.
    """
    streams = sum(task.function is measure for task in tasks)
    most = SHARED_AT_MOST if jobs == 1 else max(1, min(SHARED_AT_MOST, streams // (_ROUNDS * jobs)))
    groups: list[list[Task]] = []
    open_groups: dict[object, list[Task]] = {}
    for task in tasks:
        pass_key = _pass_key(task) if task.function is measure else task.key
        group = open_groups.get(pass_key)
        if group is None or len(group) == most:
            group = open_groups[pass_key] = []
            groups.append(group)
        group.append(task)
    return groups


def _pass_key(task: Task) -> object:
    """Return a key that is equal for streams that see the same batches."""
    job: Evaluation = task.arguments[0]
    return (
        task.after,
        job.shift,
        job.reading,
        job.batch_size,
        job.device,
        tuple(_segment_key(part) for part in job.all_segments),
    )


def _segment_key(segment: Segment) -> object:
    return tuple(value.tobytes() if hasattr(value, "tobytes") else value for value in vars(segment).values())
