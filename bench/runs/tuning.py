"""Implement `bench tune`: choose options on dev images and tuning corruptions, with equal trials for all methods."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w

from bench.core.console import print_json, print_text, table
from bench.core.errors import UsageError
from bench.core.file_names import command_line
from bench.core.import_object import load_object
from bench.runs.outcome import Outcome
from bench.runs.progress import RunProgress
from bench.runs.run import run_all
from bench.settings.methods import parse_method
from bench.settings.run_spec import RunSpec
from bench.settings.tuning import Tuning
from bench.shifts import SHIFTS, load_shift
from bench.shifts.data_root import Reading
from bench.shifts.shift import Shift, pick_corruptions, stream_rng
from bench.shifts.user_corruption import added, is_own, shown
from leaderboards.record import Record


def candidates(space: Mapping[str, Sequence[Any]], trials: int) -> list[dict[str, Any]]:
    """Return `trials` different option sets: the defaults, then random ones from the grid without replacement."""
    grid = every_set(space)
    order = stream_rng(0, "tune", *space).permutation(len(grid))
    return [{}, *(grid[i] for i in order[: trials - 1])]


def every_set(space: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Return all option sets of a grid."""
    return [dict(zip(space, values, strict=True)) for values in product(*space.values())]


def tune(asked: Tuning, *, as_json: bool) -> None:
    """Try option sets and print them from best to worst by mean dev accuracy, with the flags that set the best.

    Raises UsageError for reported corruptions: tuning on them would bias the reported numbers.
    """
    run = asked.run
    loaded = load_shift(run.shift, run.data_root)
    names = _chosen(run, loaded)
    parsed = parse_method(run.method[0])
    row = parsed.adapter or parsed.recipe
    name = row.options_of or row.name
    space: Mapping[str, Sequence[Any]] = load_object(row.path).search
    if not space and not asked.grid:
        raise UsageError(f"{row.name} has no option to tune; choose another method")
    fixed = run.options.get(name, {})
    free = {key: values for key, values in space.items() if key not in fixed}
    tried = every_set(asked.grid) if asked.grid else candidates(free, asked.trials)
    folder = run.out or Path("runs") / f"tune-{loaded.name}-{row.name}".replace("/", "_").replace(":", "_")
    options = [run.options | {name: each | fixed} for each in tried]
    specs = [run.model_copy(update={"corruption": names, "out": folder, "options": each}) for each in options]
    with RunProgress(folder) as progress:
        outcomes = run_all(specs, progress)
    rows = sorted(zip(tried, map(_summary, outcomes), strict=True), key=lambda row: -row[1]["accuracy"])
    if as_json:
        print_json([{"options": options, **summary} for options, summary in rows])
        return
    shown = [
        [*(f"{100 * summary[column]:.2f}" for column in ("accuracy", "spread", "clean")), str(options or "defaults")]
        for options, summary in rows
    ]
    print_text(table(["dev accuracy", "sd of seeds", "clean", "options"], shown))
    if not rows[0][0]:
        print_text("\nthe defaults are best")
        return
    # JSON of numbers, strings and lists is also TOML, on one line.
    flags = [word for key, value in rows[0][0].items() for word in ("--set", f"{name}.{key}={json.dumps(value)}")]
    print_text(f"\nto run with the best options: {command_line(flags)}")
    if run.shift in SHIFTS:
        print_text(
            f"to make them the default, add to bench/assets/{run.shift}.toml:\n{tomli_w.dumps({name: rows[0][0]})}"
        )


def _chosen(run: RunSpec, shift: Shift) -> tuple[str, ...]:
    """Return the corruptions to tune on: the tuning ones of the shift, or the named ones of them and of the user.

    Raises UsageError for reported corruptions.
    """
    names = run.corruption
    if names is None:
        return shift.tuning_corruptions
    reading = Reading(run.data_root, added=added(names))
    picked = pick_corruptions(load_shift(shift.name, reading=reading), names, "dev")
    if reported := [name for name in picked if name in shift.corruptions]:
        raise UsageError(
            f"{reported[0]} is reported on {shift.name}, so it cannot choose options; "
            f"use {', '.join(shift.tuning_corruptions)}"
        )
    if own := [name for name in names if is_own(name)]:
        sys.stderr.write(f"{shown(own[0])} chooses options here: report no numbers on it with them\n")
    return names


def _summary(outcome: Outcome) -> dict[str, float]:
    """Return mean accuracy over tuning conditions of the method's row, its spread over seeds and clean accuracy."""
    records = [r for r in outcome.records() if r.part in (None, "soup")]
    if any(record.metrics is None for record in records):
        return {"accuracy": 0.0, "spread": 0.0, "clean": 0.0}
    seeds = sorted({record.seed for record in records})
    per_seed = [_mean([r for r in records if r.seed == seed and r.corruption is not None]) for seed in seeds]
    return {
        "accuracy": float(np.mean(per_seed)),
        "spread": float(np.std(per_seed, ddof=1)) if len(seeds) > 1 else 0.0,
        "clean": _mean([record for record in records if record.corruption is None]),
    }


def _mean(records: Sequence[Record]) -> float:
    return float(np.mean([record.metrics.accuracy for record in records if record.metrics is not None]))
