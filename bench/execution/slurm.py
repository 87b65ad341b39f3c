"""Run tasks as jobs of a SLURM cluster through submitit; the run's folder and the cache must be on a shared disk.

The scheduling process stays on the submitting machine. A job that is preempted or runs out of time is queued again,
and its training continues from the last checkpoint.
"""

from __future__ import annotations

import logging
import subprocess
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import submitit
from submitit.core.utils import FailedJobError, pickle_load

from bench.core.errors import BenchError, UsageError
from bench.execution.task_pool import Finished, Task, set_threads
from bench.settings.run_spec import Slurm

log = logging.getLogger(__name__)

_SECONDS_BETWEEN_CHECKS = 2.0
_CHECKS_BEFORE_LOST = 5
"""Checks without a result until a job counts as lost; shared disks show results seconds after the job has ended."""


_PAUSES = (5.0, 15.0, 45.0, 120.0, 300.0)
"""Seconds between tries to submit jobs while the controller is away, as during a restart or a failover."""

_AWAY = (
    "unable to contact",
    "socket timed out",
    "connection refused",
    "connection timed out",
    "zero bytes were transmitted",
    "temporarily unable to accept",
    "resource temporarily unavailable",
)
"""What sbatch says, in lower case, when the controller and not the request is the reason."""


class Requeued:
    """A callable job that submitit calls again with the same arguments after a preemption or a timeout."""

    def __init__(self, threads: int) -> None:
        self._threads = threads

    def __call__(self, function: Callable[..., Any], *arguments: Any) -> Any:
        set_threads(self._threads)
        return function(*arguments)

    def checkpoint(self, function: Callable[..., Any], *arguments: Any) -> submitit.helpers.DelayedSubmission:
        """Return the call to queue again: the same one, which resumes from its checkpoint."""
        return submitit.helpers.DelayedSubmission(self, function, *arguments)


class SlurmJobs:
    """Runs every task as its own job, and submits tasks that can start together as one array.

    Raises UsageError if sbatch is missing.
    """

    def __init__(self, settings: Slurm, folder: Path, room: int, threads: int) -> None:
        self.room = room
        self._settings = settings
        self._call = Requeued(threads)
        self._running: dict[str, tuple[Any, Task]] = {}
        self._missed: dict[str, int] = {}
        self._doubtful: set[str] = set()
        folder.mkdir(parents=True, exist_ok=True)
        try:
            self._executor = submitit.SlurmExecutor(folder=folder.absolute(), max_num_timeout=settings.requeues)
        except RuntimeError as error:
            raise UsageError(
                f"--launch slurm needs sbatch on this machine ({error}); run it on a login node, or use --launch local"
            ) from None
        wanted = {
            "partition": settings.partition,
            "account": settings.account,
            "qos": settings.qos,
            "constraint": settings.constraint,
            "time": settings.time,
            "mem": None if settings.mem is None else f"{settings.mem:g}G",
            "array_parallelism": room,
            "additional_parameters": settings.other or None,
        }
        self._executor.update_parameters(**{key: value for key, value in wanted.items() if value is not None})

    def submit(self, tasks: Sequence[Task]) -> None:
        """Queue the tasks, with one array for each number of devices.

        Raises UsageError with sbatch's message if it refuses the jobs.
        """
        for devices in sorted({task.devices for task in tasks}):
            # A task requests only as many of the GPUs in the settings as it has devices.
            gpus = min(self._settings.gpus, devices)
            gpus_if_any = {"gpus_per_node": gpus} if gpus else {}
            self._executor.update_parameters(cpus_per_task=max(self._settings.cpus, devices), **gpus_if_any)
            self._queue([task for task in tasks if task.devices == devices])

    def _queue(self, tasks: Sequence[Task]) -> None:
        for job, task in zip(self._submitted(tasks), tasks, strict=True):
            log.info("%s is job %s", task.label, job.job_id)
            self._running[job.job_id] = (job, task)

    def _submitted(self, tasks: Sequence[Task]) -> list[Any]:
        """Return the jobs of tasks. While the controller is away this waits and tries again, under another name.

        A submission that timed out may have been accepted, so jobs of its name are cancelled: a task never runs twice.
        """
        for pause in (*_PAUSES, None):
            name = f"soupbench-{uuid.uuid4().hex[:8]}"
            self._executor.update_parameters(job_name=name)
            try:
                with self._executor.batch():
                    return [self._executor.submit(self._call, task.function, *task.arguments) for task in tasks]
            except FailedJobError as error:
                reason = (str(error).strip().splitlines() or ["no reason given"])[0].removeprefix("sbatch: error: ")
                if not any(sign in str(error).lower() for sign in _AWAY):
                    advice = "correct --slurm KEY=VALUE, or use --launch local"
                    raise UsageError(f"sbatch refused the jobs ({reason}); {advice}") from None
            self._doubtful.add(name)
            if pause is not None:
                log.warning("sbatch: %s; trying again in %g seconds", reason, pause)
                time.sleep(pause)
            self._cancel_doubtful()
        raise BenchError(
            f"the controller of SLURM does not answer ({reason}); run the same command again later: finished work is "
            "kept" + (f", and cancel jobs named {', '.join(sorted(self._doubtful))}" if self._doubtful else "")
        )

    def _cancel_doubtful(self) -> None:
        """Cancel jobs of submissions that may have been accepted although sbatch failed."""
        for name in sorted(self._doubtful):
            if _answers("scancel", "--me", f"--name={name}") is not None:
                self._doubtful.discard(name)

    def wait(self) -> list[Finished]:
        while True:
            # Read the queue before the results: a job writes its result before it leaves the queue.
            queued = _queued()
            ended = [key for key in self._running if self._has_ended(key, queued)]
            if ended:
                return [self._collect(key) for key in ended]
            time.sleep(_SECONDS_BETWEEN_CHECKS)

    def _has_ended(self, key: str, queued: frozenset[str] | None) -> bool:
        job, _ = self._running[key]
        if job.paths.result_pickle.exists():
            return True
        if queued is None or key in queued:
            self._missed.pop(key, None)
            return False
        self._missed[key] = self._missed.get(key, 0) + 1
        return self._missed[key] >= _CHECKS_BEFORE_LOST

    def _collect(self, key: str) -> Finished:
        job, task = self._running.pop(key)
        self._missed.pop(key, None)
        if not job.paths.result_pickle.exists():
            message = f"job {key} ended without a result (cancelled, out of memory or time); see {job.paths.stderr}"
            return Finished(task, None, RuntimeError(message))
        kind, value = pickle_load(job.paths.result_pickle)
        if kind == "success":
            return Finished(task, value, None)
        lines = str(value).strip().splitlines() or ["failed"]
        log.error("%s failed in job %s:\n%s", task.label, key, value)
        return Finished(task, None, RuntimeError(lines[-1]))

    def close(self) -> None:
        """Cancel all jobs that are queued or running."""
        for job, _ in self._running.values():
            job.cancel(check=False)
        self._cancel_doubtful()


def _queued() -> frozenset[str] | None:
    """Return this user's waiting and running jobs; None if the scheduler does not answer."""
    said = _answers("squeue", "--me", "--noheader", "--array", "--format=%i")
    return None if said is None else frozenset(said.split())


def _answers(*command: str) -> str | None:
    """Return what a command of SLURM prints; None if the scheduler does not answer."""
    try:
        done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=60, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        log.warning("%s does not answer (%s); waiting for it", command[0], error)
        return None
    return done.stdout
