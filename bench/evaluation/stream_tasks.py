"""Streams as tasks: one process at a time, from its checkpoint on, and not again if its records are there."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from bench.core.cache_dir import lock
from bench.evaluation.evaluate import Evaluation, evaluate_together
from bench.evaluation.stream_results import ConditionResult
from bench.execution.checkpointing import FileCheckpointer
from bench.execution.progress_files import ProgressWriter, stream_file
from leaderboards.store import Store

Asked = tuple[Evaluation, Path, str, Sequence[str] | None, str]
"""What `measure` takes: an evaluation, the folder of its run, its name there, its records' keys, and its label."""


def measure(
    job: Evaluation, out: Path, name: str, keys: Sequence[str] | None, label: str
) -> list[ConditionResult] | None:
    """Evaluate with a checkpoint in the run's folder, which stays there until `forget`.

    None where another run of the folder has measured all of `keys` meanwhile (`keys` is None: measure in any case).
    `label` names the stream for people who watch.
    An error takes the checkpoint away: what is tried again starts anew.
    """
    (outcome,) = measure_together((job, out, name, keys, label))
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


def measure_together(*asked: Asked) -> list[list[ConditionResult] | Exception | None]:
    """`measure` for several adapters on one and the same stream; an error is an outcome of the one that raised it."""
    with ExitStack() as locks:
        # In one order for all processes, so that no two wait for each other.
        for path in sorted({out / "state" / f"{name}.lock" for _, out, name, _, _ in asked}):
            locks.enter_context(lock(path))
        outcomes: list[list[ConditionResult] | Exception | None] = [None] * len(asked)
        todo = [
            (
                place,
                job,
                FileCheckpointer(checkpoint(out, name), place=None),
                ProgressWriter(stream_file(out, name), label),
            )
            for place, (job, out, name, keys, label) in enumerate(asked)
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
    """Where the checkpoint of a stream lies."""
    return out / "state" / f"{name}.pt"


def forget(out: Path, name: str) -> None:
    """Remove what was there to go on: the records are written."""
    checkpoint(out, name).unlink(missing_ok=True)
    (out / "state" / f"{name}.lock").unlink(missing_ok=True)
