"""Implement `bench run`: read settings, show progress on stderr, print the board on stdout."""

from __future__ import annotations

import contextlib
import logging
import shlex
import signal
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.core.console import duration, print_json, print_rich, print_text, say
from bench.core.errors import Interrupted, MissingDataError, UsageError, ValidationError
from bench.runs.open_results import open_records
from bench.runs.progress import RunProgress, plural
from bench.settings.methods import parse_setting
from bench.settings.run_spec import RunSpec, make_spec, read_run_file

if TYPE_CHECKING:
    from bench.planning.cost_estimate import CostLine


def run_spec(
    file: Path | None, demo: bool, flags: Mapping[str, Any], settings: Sequence[str], *, dry_run: bool, as_json: bool
) -> int:
    """Merge run file, flags and --set; run, print the board and return the exit code."""
    if file is not None and demo:
        raise UsageError("--demo and a run file exclude each other; leave one out")
    base: Mapping[str, Any] = {}
    if demo:
        with resources.as_file(resources.files("bench") / "assets" / "demo.toml") as path:
            base = {"out": Path("runs") / "demo", **read_run_file(path)}
    elif file is not None:
        base = read_run_file(file)
    options: dict[str, dict[str, Any]] = {}
    for text in settings:
        name, key, value = parse_setting(text)
        options.setdefault(name, {})[key] = value
    spec = make_spec(base, flags, {"set": options})
    if dry_run:
        return _print_plan(spec, as_json)
    return _run_and_print(spec, demo=demo, as_json=as_json)


def _run_and_print(spec: RunSpec, *, demo: bool, as_json: bool) -> int:
    from bench.core.devices import pick_device, pick_jobs
    from bench.execution.task_pool import get_ready

    device = pick_device(spec.device) if spec.launch == "local" else None
    if device == "cpu" and pick_jobs(spec.jobs, device, spec.devices or 1)[0] > 1:
        get_ready()
    from bench.planning.plan import default_folder
    from bench.runs.run import run
    from bench.runs.sanity_checks import warnings_of
    from leaderboards.store import Store
    from leaderboards.tables import to_json, to_terminal

    spec = spec if spec.out else spec.model_copy(update={"out": default_folder(spec)})
    assert spec.out is not None
    # SIGTERM, which schedulers send first, is handled like an interrupt.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with _logged_in(spec.out), RunProgress(spec.out) as progress:
            outcome = run(spec, progress)
    except KeyboardInterrupt:
        again = shlex.join(["bench", "run", str(spec.out / "run.toml"), "--out", str(spec.out)])
        raise Interrupted(f"interrupted; finished work is kept, continue with: {again}") from None
    finally:
        signal.signal(signal.SIGTERM, before)
    for error in outcome.errors[:5]:
        say(f"failed: {error}")
    for warning in warnings_of(outcome.records(), Store(outcome.out).predictions):
        say(f"warning: {warning}; these results cannot be published")
    board = outcome.board()
    if as_json:
        print_text(to_json(board))
    else:
        print_rich(to_terminal(board))
        if demo:
            from bench.cli.demo_summary import summarise

            print_text("\n" + summarise(board, outcome))
    say(f"{outcome.done} measured, {outcome.reused} reused, {outcome.failed} failed; records in {outcome.out}")
    return outcome.exit_code


def _print_plan(spec: RunSpec, as_json: bool) -> int:
    from bench.core.console import table
    from bench.planning.cost_estimate import estimate
    from bench.planning.plan import make_plan

    plan = make_plan(spec)
    for note in plan.notes:
        say(note)
    cost = estimate(plan)
    rows = []
    for entry in plan.entries:
        missing = sum(key in plan.missing for key in entry.keys.values())
        rows.append(
            {
                "method": entry.trial.method,
                "part": entry.part or "",
                "seed": entry.trial.seed,
                "conditions": len(entry.keys),
                "done": len(entry.keys) - missing,
                "missing": missing,
            }
        )
    if as_json:
        total: dict[str, float | None] = {
            "seconds": cost.seconds,
            "flops": cost.flops,
            "disk_bytes": cost.disk,
            "processes": cost.jobs,
        }
        total |= {"forwards": cost.samples[0], "backwards": cost.samples[1], "memory_mb_per_process": cost.memory_mb}
        total |= {"passes": cost.passes, "cached_trainings": cost.cached, "answered_streams": cost.answered}
        costs = [asdict(line) for line in cost.costs]
        trainings = [task.label for task in plan.cooking]
        bill = {**asdict(plan.bill), "hours": plan.bill.hours}
        told = {"out": str(plan.out), "bill": bill, "trainings": trainings, "trials": rows, "costs": costs}
        print_json({**told, "total": total})
        return 0
    print_text(table(list(rows[0]), [[str(value) for value in row.values()] for row in rows]))
    if cost.costs:
        print_text("")
        print_text(
            table(
                ["to do", "seed", "", "TFLOP", "forwards", "backwards", "disk MB", "time"], map(_cost_cells, cost.costs)
            )
        )
        print_text("")
    trained = plural(len(plan.cooking), "training") + (f" ({cost.cached} more are cached)" if cost.cached else "")
    streams = sum(line.count for line in cost.costs if line.kind == "stream")
    shared = (
        f" from {plural(streams, 'stream')} in {plural(cost.passes, 'pass', 'passes')} over images"
        if cost.passes < streams
        else ""
    )
    kept = f"; predictions of {plural(cost.answered, 'stream')} are cached" if cost.answered else ""
    print_text(f"{trained}, {len(plan.missing)} of {len(plan.keys)} records to make{shared}{kept} in {plan.out}")
    if cost.costs:
        print_text(
            f"about {duration(cost.seconds)} on {plan.device} "
            f"in {plural(cost.jobs, 'process', 'processes')}, "
            f"{cost.flops / 1e12:.3g} TFLOP, "
            f"{cost.samples[0]:,} forwards and {cost.samples[1]:,} backwards in streams, "
            f"{cost.disk / 1e9:.2g} GB of disk"
            + ("" if cost.memory_mb is None else f", {cost.memory_mb / 1024:.2g} GB of memory per process")
            + "; estimated from earlier work on this machine and short probes"
        )
    return 0


def _cost_cells(cost: CostLine) -> list[str]:
    what = "training" if cost.kind == "training" else plural(cost.count, "stream")
    passes = [f"{count:,}" if cost.kind == "stream" else "" for count in (cost.forwards, cost.backwards)]
    flops = "" if cost.flops is None else f"{cost.flops / 1e12:.3g}"
    disk = f"{cost.disk / 1e6:.3g}"
    return [cost.label, str(cost.seed), what, flops, *passes, disk, duration(cost.seconds)]


def repeat_record(key: str, folder: Path, flags: Mapping[str, Any], *, as_json: bool) -> int:
    """Run one published record again and compare its metrics; return 0 if they agree, 4 if they differ."""
    from bench.runs.repeat import repeat

    allowed = {"data_root", "device", "devices", "jobs", "out", "model", "stock", "init_from"}
    extra = [name for name, value in flags.items() if value is not None and name not in allowed]
    if extra:
        raise UsageError(f"--record uses the settings of the record; leave --{extra[0].replace('_', '-')} out")
    records = [record for record in open_records([folder]) if record.key == key]
    if not records:
        raise MissingDataError(f"no record {key} in {folder}; see the keys in {folder}/records.jsonl")
    result = repeat(records[0], {name: value for name, value in flags.items() if value is not None})
    if as_json:
        print_json(result)
    else:
        for name, (published, now) in result["metrics"].items():
            print_text(f"{name}: published {published:.6f}, now {now:.6f}")
        print_text("same" if result["same"] else "different; compare `env` of both records")
    if not result["same_identity"]:
        raise ValidationError(
            "the repeated run has another key: its data, weights or options differ from the published ones; "
            "compare both records"
        )
    return 0 if result["same"] else 4


@contextlib.contextmanager
def _logged_in(folder: Path) -> Iterator[None]:
    """Log to run.log in the folder; remove a new folder in the end if nothing was written."""
    new = not folder.exists()
    file = folder / "run.log"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handler = logging.FileHandler(file)
    except OSError as error:
        raise UsageError(f"cannot write in {folder}: {error.strerror}; choose another folder with --out") from None
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.getLogger().addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(handler)
        handler.close()
        if new and list(folder.iterdir()) == [file] and not file.stat().st_size:
            file.unlink()
            folder.rmdir()
