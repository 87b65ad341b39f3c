"""Several methods over one stream in one pass: streams of the same images become one task, and its results theirs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from bench.evaluation.evaluate import Evaluation
from bench.evaluation.protocols import Segment
from bench.evaluation.stream_tasks import measure, measure_together
from bench.execution.task_pool import Executor, Finished, Task, run_tasks

SHARED_AT_MOST = 8
"""How many adapters share a pass at most, as each has a model of its own in memory."""

_ROUNDS = 4


def run_streams(
    grouped: Sequence[Sequence[Task]],
    jobs: int,
    threads: int,
    on_start: Callable[[Task], None] = lambda _: None,
    executor: Executor | None = None,
) -> Iterator[Finished]:
    """`run_tasks`, with each of the groups as one task: streams of the same images side by side in one pass.

    What fails in company is tried once more alone, so that no stream fails because of another one, be it for memory.
    """
    groups = {group[0].key: group for group in grouped}
    failed: set[str] = set()
    again: list[Task] = []

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
            again += group
        else:
            for member, outcome in zip(group, finished.value, strict=True):
                if isinstance(outcome, Exception):
                    again.append(member)
                else:
                    yield Finished(member, outcome, None)
    if again:
        yield from run_tasks(again, jobs, threads)


def _joined(group: Sequence[Task]) -> Task:
    first = group[0]
    if len(group) == 1:
        return first
    return Task(first.key, measure_together, tuple(task.arguments for task in group), first.after, first.label)


def share_passes(tasks: Sequence[Task], jobs: int) -> list[list[Task]]:
    """Tasks in order, with streams that may share a pass in one group at the place of the first of them.

    With several processes there are at least four rounds of tasks for each, or nobody shares.
    """
    streams = sum(task.function is measure for task in tasks)
    room = SHARED_AT_MOST if jobs == 1 else max(1, min(SHARED_AT_MOST, streams // (_ROUNDS * jobs)))
    groups: list[list[Task]] = []
    open_groups: dict[object, list[Task]] = {}
    for task in tasks:
        pass_of = _pass(task) if task.function is measure else task.key
        group = open_groups.get(pass_of)
        if group is None or len(group) == room:
            group = open_groups[pass_of] = []
            groups.append(group)
        group.append(task)
    return groups


def _pass(task: Task) -> object:
    """What streams must have in common to meet the same batches at the same time."""
    job: Evaluation = task.arguments[0]
    return (
        task.after,
        job.shift,
        job.reading,
        job.batch_size,
        job.device,
        tuple(_content(part) for part in job.all_segments),
    )


def _content(segment: Segment) -> object:
    return tuple(value.tobytes() if hasattr(value, "tobytes") else value for value in vars(segment).values())
