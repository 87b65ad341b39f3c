"""Make records from the results of streams. Records are made nowhere else."""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Mapping
from typing import Any

from bench.core.conditions import Condition
from bench.core.environment import environment
from bench.evaluation.protocols import Segment
from bench.evaluation.stream_results import ConditionResult
from bench.execution.task_pool import Finished
from bench.planning.board_entry import BoardEntry
from bench.planning.plan import Plan
from bench.training.job_cache import connectivity_of, fit_seconds, mixture_of
from leaderboards.metrics import diagnose, score
from leaderboards.record import SCHEMA, Record


def records_of(
    plan: Plan, entry: BoardEntry, chain: tuple[Segment, ...], finished: Finished
) -> Iterator[tuple[Record, Any]]:
    """Yield the records of a finished chain with their predictions, or a failed record for each of its conditions."""
    if finished.error is not None:
        message = str(finished.error) or type(finished.error).__name__
        for segment in chain:
            for condition in segment.conditions:
                yield (
                    _record(
                        plan,
                        entry,
                        condition,
                        int((segment.which == segment.conditions.index(condition)).sum()),
                        error=message,
                    ),
                    None,
                )
        return
    seconds = fit_seconds(entry.job, entry.trial.draws) if entry.job is not None else 0.0
    lines = connectivity_of(entry.report, entry.trial.draws) if entry.report is not None else None
    mixture = mixture_of(entry.job, entry.trial.draws) if entry.job is not None else None
    extra = {"connectivity": lines, "mixture": mixture}
    measured: ConditionResult
    for measured in finished.value or ():
        n = len(measured.predictions.id)
        record = _record(plan, entry, measured.condition, n, measured=measured, fit=seconds, extra=extra)
        yield record, measured.predictions


def _record(
    plan: Plan,
    entry: BoardEntry,
    condition: Condition,
    n: int,
    measured: ConditionResult | None = None,
    fit: float = 0.0,
    extra: Mapping[str, Any] | None = None,
    error: str | None = None,
) -> Record:
    """Return the record of one condition, measured or failed."""
    key = entry.keys[condition]
    identified = entry.identities[condition]
    cost: dict[str, Any] = {"fit_seconds": fit, "device_name": measured.device_name if measured else plan.device}
    for name in ("predict_seconds", "forwards", "backwards"):
        cost[name] = getattr(measured, name) if measured else 0
    cost["peak_memory_mb"] = (
        measured.peak_memory_mb
        if measured and (plan.jobs == 1 or plan.spec.launch == "slurm" or plan.device == "cuda")
        else None
    )
    return Record.model_validate(
        {
            **identified,
            "schema": SCHEMA,
            "key": key,
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "status": "failed" if error else "done",
            "access": {name: getattr(entry.access, name) for name in ("source", "test", "state", "backprop")},
            "track": entry.access.track,
            "n": n,
            "metrics": score(measured.predictions) if measured else None,
            "diagnostics": diagnose(measured.predictions, measured.clean_accuracy_after) if measured else None,
            "cost": cost,
            **(extra or {}),
            "data": {
                **identified["data"],
                "history": tuple(identified["data"]["history"]),
                "skipped": plan.shift.skipped,
                **plan.reading.user_settings,
            },
            "env": {
                **(measured.env if measured else environment()),
                **({"suite": plan.spec.of_suite} if plan.spec.of_suite else {}),
            },
            "predictions": f"predictions/{key}.npz" if measured else None,
            "error": error,
        }
    )
