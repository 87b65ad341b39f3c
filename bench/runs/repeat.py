"""Repeat one published record from the record alone."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.data.classes import ORDERS
from bench.runs.run import run
from bench.settings.run_spec import make_spec
from leaderboards.record import Record
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
    if record.data.history:
        seen = [condition.rpartition("@") for condition in record.data.history]
        settings["corruption"] = list(dict.fromkeys(name for name, _, _ in seen))
        settings["severity"] = list(dict.fromkeys(float(level) for _, _, level in seen))
    elif record.corruption is not None:
        settings["corruption"] = [record.corruption]
        settings["severity"] = [record.severity]
    settings |= {name: value for name in ("label", "part") if (value := getattr(record.data, name))}
    if record.data.classes in ORDERS:  # a file of classes must be given again
        settings["classes"] = record.data.classes
    settings["model" if record.weights.ready else "stock"] = record.model
    return settings


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
