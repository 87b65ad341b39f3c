"""Repeat one published record from the record alone."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.core.conditions import NATURAL
from bench.data.classes import ORDERS
from bench.runs.run import run
from bench.settings.run_spec import make_spec
from leaderboards.record import Record, condition_met
from leaderboards.store import Store


def spec_of(record: Record) -> dict[str, Any]:
    """Return the settings that made a record: its own condition, or all conditions of its history."""
    settings: dict[str, Any] = {
        "method": record.method,
        "shift": record.shift,
        "protocol": record.protocol,
        "split": record.split,
        "seed": record.seed,
        "ingredient_seed": record.data.ingredients,
        "batch_size": record.batch_size,
        "precision": record.precision,
        "limit": record.limit,
        "labels": record.data.labels_per_class or 0,
        "set": {name: dict(values) for name, values in record.options.items()},
    }
    settings |= _conditions(record)
    if (pool := _pool(record)) is not None:
        settings["pool"] = pool
    settings |= {name: value for name in ("label", "part") if (value := getattr(record.data, name))}
    if record.data.classes in ORDERS:  # a file of classes must be given again
        settings["classes"] = record.data.classes
    settings["model" if record.weights.ready else "stock"] = record.model
    return settings


def _conditions(record: Record) -> dict[str, Any]:
    """Return corruptions and severities: those of the history on the record's shift, else its own condition.

    The severities are also those of a pool on another shift, unless its images are as collected.
    """
    met = [condition_met(entry) for entry in record.data.history]
    here = [condition.rpartition("@") for condition, shift in met if shift is None]
    if not here and record.corruption is not None:
        here = [(record.corruption, "@", str(record.severity))]
    there = [condition.rpartition("@") for condition, shift in met if shift is not None and shift == _pool(record)]
    found: dict[str, Any] = {"corruption": list(dict.fromkeys(name for name, _, _ in here))} if here else {}
    levels = [float(level) for name, _, level in (*there, *here) if name != NATURAL]
    return found | ({"severity": list(dict.fromkeys(levels))} if levels else {})


def _pool(record: Record) -> str | None:
    """Return the shift whose pool a recipe learnt from, None for the record's own."""
    lists = (values.get("also_on") for values in record.options.values())
    beside = {shift for names in lists if isinstance(names, list) for shift in names}
    others = [shift for shift in record.other_shifts if shift not in beside]
    return others[0] if others and not record.weights.ready else None


def repeat(record: Record, flags: Mapping[str, Any]) -> dict[str, Any]:
    """Run a record again and compare: {"metrics": {name: (published, now)}, "same": …, "same_identity": …}.

    Existing predictions are not reused.
    """
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(flags.get("out") or scratch)
        settings = {**spec_of(record), "rerun": not flags.get("only_failed"), **flags, "out": out}
        if base := {"model", "stock", "init_from"} & flags.keys():
            settings = {key: value for key, value in settings.items() if key not in {"model", "stock"} - base}
        run(make_spec(settings))
        records = {r.key: r for r in Store(out).records()}
    repeated = records.get(record.key)
    if repeated is None:
        same_place = (record.method, record.part, record.corruption, record.severity)
        repeated = next(r for r in records.values() if (r.method, r.part, r.corruption, r.severity) == same_place)
    if repeated.metrics is None or record.metrics is None:
        return {"metrics": {}, "same": repeated.error == record.error, "same_identity": repeated.key == record.key}
    published, now = record.metrics.model_dump(), repeated.metrics.model_dump()
    metrics = {name: (published[name], now[name]) for name in published}
    same = all(abs(a - b) <= 1e-6 for a, b in metrics.values())
    return {"metrics": metrics, "same": same, "same_identity": repeated.key == record.key}
