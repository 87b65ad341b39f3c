"""Tasks with dependencies, run in this process or in several; results come back one by one, in any order."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Task:
    """`function(*arguments)` once all tasks named in `after` are done. Function and arguments must pickle.

    `label` is for people. Tasks listed earlier start earlier when several could.
    """

    key: str
    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    after: frozenset[str]
    label: str


@dataclass(frozen=True)
class Finished:
    """A task's result, or the error that ended it or one of the tasks it waited for."""

    task: Task
    value: Any
    error: Exception | None


def run_tasks(
    tasks: Sequence[Task], jobs: int, threads: int, on_start: Callable[[Task], None] = lambda _: None
) -> Iterator[Finished]:
    """Run tasks in `jobs` processes of `threads` threads each (one job: in this process) and yield each as it ends.

    A failed task fails those that wait for it and no others. Tasks named in `after` but not listed count as done.
    """
    if jobs == 1:
        yield from _run_here(tasks, threads, on_start)
    else:
        yield from _run_apart(tasks, jobs, threads, on_start)


def _run_here(tasks: Sequence[Task], threads: int, on_start: Callable[[Task], None]) -> Iterator[Finished]:
    set_threads(threads)
    errors: dict[str, Exception] = {}
    left = list(tasks)
    while left:
        names = {task.key for task in left}
        task = next(task for task in left if not task.after & names)
        left.remove(task)
        error = next((errors[key] for key in task.after if key in errors), None)
        value = None
        if error is None:
            on_start(task)
            try:
                value = task.function(*task.arguments)
            except Exception as caught:  # noqa: BLE001 - a failed task must not end the others
                error = caught
        if error is not None:
            errors[task.key] = error
        yield Finished(task, value, error)


def _run_apart(tasks: Sequence[Task], jobs: int, threads: int, on_start: Callable[[Task], None]) -> Iterator[Finished]:
    context = multiprocessing.get_context("spawn")
    errors: dict[str, Exception] = {}
    left = list(tasks)
    running: dict[Future[Any], Task] = {}
    pool = ProcessPoolExecutor(jobs, mp_context=context, initializer=_begin, initargs=(threads,))
    try:
        while left or running:
            for task in list(left):
                if len(running) >= jobs:
                    break
                waiting_for = {other.key for other in (*left, *running.values())}
                if task.after & waiting_for:
                    continue
                left.remove(task)
                error = next((errors[key] for key in task.after if key in errors), None)
                if error is not None:
                    errors[task.key] = error
                    yield Finished(task, None, error)
                    continue
                on_start(task)
                running[pool.submit(task.function, *task.arguments)] = task
            if not running:
                continue
            broken = False
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                task = running.pop(future)
                try:
                    yield Finished(task, future.result(), None)
                except BrokenProcessPool:
                    broken = True
                    errors[task.key] = RuntimeError(
                        "a worker process died (out of memory?); try again with fewer --jobs"
                    )
                    yield Finished(task, None, errors[task.key])
                except Exception as caught:  # noqa: BLE001 - a failed task must not end the others
                    errors[task.key] = caught
                    yield Finished(task, None, caught)
            if broken:
                pool.shutdown(wait=False, cancel_futures=True)
                pool = ProcessPoolExecutor(jobs, mp_context=context, initializer=_begin, initargs=(threads,))
    finally:
        _stop(pool)


def _stop(pool: ProcessPoolExecutor) -> None:
    """End workers at once: by now either nothing runs, or the user interrupted and waiting would lose their time."""
    processes = list((pool._processes or {}).values())
    pool.shutdown(wait=False, cancel_futures=True)
    for process in processes:
        process.terminate()


def _begin(threads: int) -> None:
    """Start a worker: an interrupt is for the process that hands out the work, which then ends the workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    set_threads(threads)


def _end_with_parent() -> None:
    """A worker whose parent was killed would compute on for nobody."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)


def set_threads(threads: int) -> None:
    """Fix the number of compute threads, on which the last bits of results depend."""
    os.environ["OMP_NUM_THREADS"] = str(threads)
    import torch

    torch.set_num_threads(threads)
