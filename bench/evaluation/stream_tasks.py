"""Run streams as tasks: under a lock, from the last checkpoint, skipping streams whose records exist."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from bench.core.cache_dir import lock, remove
from bench.evaluation.evaluate import Evaluation, evaluate_together
from bench.evaluation.stream_results import ConditionResult
from bench.execution.checkpointing import FileCheckpointer
from bench.execution.progress_files import ProgressWriter, stream_file
from leaderboards.store import Store

StreamArguments = tuple[Evaluation, Path, str, Sequence[str] | None, str]
"""The arguments of `measure`: an evaluation, its run's folder, its name there, its record keys and its label."""


def measure(
    job: Evaluation, out: Path, name: str, keys: Sequence[str] | None, label: str
) -> list[ConditionResult] | None:
    """Evaluate with a checkpoint in the run's folder, which stays there until `forget`.

    Return None if another run of the folder has measured all of `keys` meanwhile (`keys` is None: measure in any case).
    `label` names the stream in progress reports. An error removes the checkpoint, so a retry starts from the beginning.
    """
    (outcome,) = measure_together((job, out, name, keys, label))
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


def measure_together(*streams: StreamArguments) -> list[list[ConditionResult] | Exception | None]:
    """Evaluate several adapters on the same stream; an error is the outcome of the adapter that raised it."""
    with ExitStack() as locks:
        # All processes take locks in the same order, so that no two wait for each other.
        for path in sorted({out / "state" / f"{name}.lock" for _, out, name, _, _ in streams}):
            locks.enter_context(lock(path))
        outcomes: list[list[ConditionResult] | Exception | None] = [None] * len(streams)
        todo = [
            (
                place,
                job,
                FileCheckpointer(checkpoint(out, name), place=None),
                ProgressWriter(stream_file(out, name), label),
            )
            for place, (job, out, name, keys, label) in enumerate(streams)
            if keys is None or not Store(out).has_done(keys)
        ]
        try:
            measured = evaluate_together([(job, checkpointer, writer) for _, job, checkpointer, writer in todo])
        finally:
            for *_, writer in todo:
                writer.end()
        for (place, _, checkpointer, _), outcome in zip(todo, measured, strict=True):
            outcomes[place] = outcome
            if isinstance(outcome, Exception):
                checkpointer.forget()
        return outcomes


def checkpoint(out: Path, name: str) -> Path:
    """Return the path of a stream's checkpoint."""
    return out / "state" / f"{name}.pt"


def forget(out: Path, name: str) -> None:
    """Remove the checkpoint and lock of a stream whose records are written."""
    remove(checkpoint(out, name))
    remove(out / "state" / f"{name}.lock")
