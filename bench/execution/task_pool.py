"""Run tasks with dependencies in this process or in several, and yield each result as its task ends."""

from __future__ import annotations

import logging
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from graphlib import TopologicalSorter
from heapq import heappop, heappush
from multiprocessing.context import BaseContext
from typing import Any, Protocol

import bench.core.import_object  # noqa: F401 - lets worker processes unpickle objects that a plug-in's file defines
from bench.core.child_processes import without_script
from bench.core.devices import visible_gpus
from bench.core.offline import go_offline, is_offline
from bench.core.private_apis import end_forkserver, processes_of, start_forkserver

log = logging.getLogger(__name__)

_SECONDS_TO_CLEAN_UP = 2.0

_FORKS = sys.platform == "linux"  # macOS has libraries that do not survive a fork, Windows has no forks


@dataclass(frozen=True)
class Task:
    """A call `function(*arguments)` that may start once all tasks named in `after` are done; it must pickle.

    `label` is shown to users. Of several tasks that may start, the one listed first starts first. `devices` is the
    number of devices that the task computes on.
    """

    key: str
    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    after: frozenset[str]
    label: str
    devices: int = 1


@dataclass(frozen=True)
class Finished:
    """A task's result, or the error that ended it or a task that it depends on."""

    task: Task
    value: Any
    error: Exception | None


class Executor(Protocol):
    """A backend that starts tasks and returns them as they end."""

    room: int
    """How many tasks it can run at the same time."""

    def submit(self, tasks: Sequence[Task]) -> None:
        """Start tasks, at most as many as `room` allows."""

    def wait(self) -> list[Finished]:
        """Wait until at least one started task has ended, and return the ended tasks."""
        ...

    def close(self) -> None:
        """Stop the tasks that are still running."""


def run_tasks(
    tasks: Sequence[Task],
    jobs: int,
    threads: int,
    on_start: Callable[[Task], None] = lambda _: None,
    executor: Executor | None = None,
) -> Iterator[Finished]:
    """Run tasks in `jobs` processes of `threads` threads each (one job: in this process) and yield each as it ends.

    A failed task fails only the tasks that depend on it. Tasks named in `after` but not listed count as done.
    `executor` overrides where the tasks run.
    """
    executor = executor or (Here(threads) if jobs == 1 else Processes(jobs, threads))
    try:
        yield from _schedule(tasks, executor, on_start)
    finally:
        executor.close()


def _schedule(tasks: Sequence[Task], executor: Executor, on_start: Callable[[Task], None]) -> Iterator[Finished]:
    place = {task.key: number for number, task in enumerate(tasks)}
    order = TopologicalSorter({task.key: task.after & place.keys() for task in tasks})
    order.prepare()
    ready = sorted(place[key] for key in order.get_ready())
    errors: dict[str, Exception] = {}
    running = 0

    def release(done: Finished) -> None:
        if done.error is not None:
            errors[done.task.key] = done.error
        order.done(done.task.key)
        for key in order.get_ready():
            heappush(ready, place[key])

    while ready or running:
        starting: list[Task] = []
        while ready and running + len(starting) < executor.room:
            task = tasks[heappop(ready)]
            error = next((errors[key] for key in task.after if key in errors), None)
            if error is None:
                starting.append(task)
                continue
            failed = Finished(task, None, error)
            release(failed)
            yield failed
        if starting:
            for task in starting:
                on_start(task)
            executor.submit(starting)
            running += len(starting)
        for done in executor.wait() if running else ():
            running -= 1
            release(done)
            yield done


class Here:
    """Runs one task at a time in this process."""

    room = 1

    def __init__(self, threads: int) -> None:
        set_threads(threads)
        self._task: Task | None = None

    def submit(self, tasks: Sequence[Task]) -> None:
        (self._task,) = tasks

    def wait(self) -> list[Finished]:
        task = self._task
        assert task is not None
        try:
            return [Finished(task, task.function(*task.arguments), None)]
        except Exception as caught:  # noqa: BLE001 - a failed task must not stop the others
            return [Finished(task, None, caught)]

    def close(self) -> None:
        """Do nothing, because no task runs outside `wait`."""


class Processes:
    """Runs tasks in worker processes on this machine, each with one task at a time and its own share of the GPUs.

    In a task, "cuda" is the first GPU of its worker. A worker that dies is replaced, and its task runs once more, from
    its checkpoint if it has one.
    """

    def __init__(self, jobs: int, threads: int) -> None:
        self.room = jobs
        self._threads = threads
        gpus = visible_gpus()
        each = len(gpus) // jobs
        self._shares = [gpus[number * each : (number + 1) * each] for number in range(jobs)]
        self._idle: list[ProcessPoolExecutor] = []
        self._running: dict[Future[Any], tuple[Task, ProcessPoolExecutor]] = {}
        self._died: set[str] = set()
        self._shares_of: dict[ProcessPoolExecutor, list[str]] = {}

    def submit(self, tasks: Sequence[Task]) -> None:
        for task in tasks:
            worker = self._idle.pop() if self._idle else self._new_worker()
            with without_script():
                self._running[worker.submit(task.function, *task.arguments)] = (task, worker)

    def _new_worker(self) -> ProcessPoolExecutor:
        share = self._shares.pop(0)
        settings = (self._threads, share, dict(os.environ))
        # A forked worker may have found all GPUs already, but a worker must see only its share.
        context = multiprocessing.get_context("spawn") if share else _context()
        worker = ProcessPoolExecutor(1, mp_context=context, initializer=begin, initargs=settings)
        self._shares_of[worker] = share
        return worker

    def wait(self) -> list[Finished]:
        ended: list[Finished] = []
        while not ended:
            for future in wait(self._running, return_when=FIRST_COMPLETED).done:
                task, worker = self._running.pop(future)
                try:
                    ended.append(Finished(task, future.result(), None))
                except BrokenProcessPool:
                    worker.shutdown(wait=False)
                    self._shares.append(self._shares_of.pop(worker))
                    if task.key in self._died:
                        error = RuntimeError("its process died twice (out of memory?); try again with fewer --jobs")
                        ended.append(Finished(task, None, error))
                    else:
                        log.warning("the process of %s died; running it again", task.label)
                        self._died.add(task.key)
                        self.submit([task])
                    continue
                except Exception as caught:  # noqa: BLE001 - a failed task must not stop the others
                    ended.append(Finished(task, None, caught))
                self._idle.append(worker)
        return ended

    def close(self) -> None:
        """Terminate busy workers immediately, and idle ones after up to two seconds in which they may clean up."""
        computing = [worker for _, worker in self._running.values()]
        processes = {worker: processes_of(worker) for worker in (*self._idle, *computing)}
        for worker in processes:
            worker.shutdown(wait=False, cancel_futures=True)
        until = time.monotonic() + _SECONDS_TO_CLEAN_UP
        for process in (process for worker in self._idle for process in processes[worker]):
            multiprocessing.connection.wait([process.sentinel], max(0.0, until - time.monotonic()))
        for process in (process for each in processes.values() for process in each):
            process.terminate()


def get_ready() -> None:
    """Start loading the workers' libraries in a background process, so that workers start faster later."""
    if _FORKS:
        _context()
        with without_script():
            start_forkserver()


def leave_none() -> None:
    """End the background process that forks workers, which would hold the output of this one open."""
    if _FORKS:
        end_forkserver()


def _context() -> BaseContext:
    """Return how workers start: on Linux as forks of a process that has loaded their libraries and computed nothing."""
    if not _FORKS:
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["bench.training.job_cache", "bench.evaluation.shared_pass"])
    return context


def begin(threads: int, gpus: Sequence[str] = (), environment: Mapping[str, str] | None = None) -> None:
    """Set up a worker process: it ignores interrupts, which its parent handles, and ends with its parent.

    `environment` replaces the worker's environment variables if it did not inherit those of its parent.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if environment is not None:
        os.environ.clear()
        os.environ.update(environment)
        if is_offline():
            go_offline()  # also for libraries that were loaded before
    if gpus:
        # Set before torch looks for GPUs.
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
    set_threads(threads)


def _end_with_parent() -> None:
    """End this process when its parent ends, also if the parent was killed."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)


def set_threads(threads: int) -> None:
    """Set the number of compute threads, on which the last bits of results depend."""
    os.environ["OMP_NUM_THREADS"] = str(threads)
    import torch

    torch.set_num_threads(threads)
