"""Implement `bench run`: read settings, show progress on stderr, print the board on stdout."""

from __future__ import annotations

import contextlib
import json
import logging
import signal
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.core.cache_dir import need_cache, write_bytes
from bench.core.console import duration, plural, print_json, print_rich, print_text, say
from bench.core.errors import Interrupted, MissingDataError, UsageError, ValidationError, closest
from bench.core.file_names import command_line
from bench.planning.check_names import check_names
from bench.settings.grid import GridCell, cells_of, folder_of
from bench.settings.methods import options_by_method
from bench.settings.run_spec import RunSpec, read_run_file
from bench.settings.suites import find_suite

if TYPE_CHECKING:
    from bench.planning.board_entry import BoardEntry
    from bench.planning.cost_estimate import CostEstimate, CostLine
    from bench.planning.plan import Plan
    from bench.runs.outcome import Outcome
    from bench.runs.progress import RunProgress


_NOT_IN_THE_DEMO = ("data_root", "classes", "label", "part", "workers", "budget")
"""Settings of images on disk and of shifts with budgets; the demonstration has neither."""


def run_spec(
    file: Path | None,
    demo: bool,
    suite: str | None,
    flags: Mapping[str, Any],
    settings: Sequence[str],
    *,
    dry_run: bool,
    as_json: bool,
) -> int:
    """Merge run file, demonstration or suite with flags and --set; run, print boards and return the exit code."""
    if sum((file is not None, demo, suite is not None)) > 1:
        raise UsageError("--demo, --suite and a run file exclude each other; give one")
    base: Mapping[str, Any] = {}
    if suite is not None:
        chosen = find_suite(suite)
        base = {"out": Path("runs") / chosen.folder, "of_suite": chosen.told(flags), **chosen.settings}
    if demo:
        if ignored := next((name for name in _NOT_IN_THE_DEMO if flags.get(name) not in (None, False)), None):
            flag = f"--{ignored.replace('_', '-')}"
            raise UsageError(f"--demo has its images and its stock with it, so {flag} would do nothing; leave it out")
        with resources.as_file(resources.files("bench") / "assets" / "demo.toml") as path:
            base = {"out": Path("runs") / "demo", **read_run_file(path)}
    elif file is not None:
        base = read_run_file(file)
    cells: Sequence[GridCell] = cells_of(base, flags, {"set": options_by_method(settings)})
    check_names([cell.spec for cell in cells])
    if dry_run:
        need_cache()
        return _print_grid(cells, as_json) if len(cells) > 1 else print_plan(cells[0].spec, as_json)
    out = folder_of(cells)
    cells = [replace(cell, spec=cell.spec.model_copy(update={"out": out})) for cell in cells]
    outcomes = _outcomes(cells, out)
    if len(outcomes) > 1 or len(cells) > 1:
        return _print_boards(outcomes, out, as_json=as_json)
    return _print_board(outcomes[0][1], demo=demo, as_json=as_json)


def _outcomes(cells: Sequence[GridCell], out: Path) -> list[tuple[GridCell, Outcome]]:
    """Run what is missing and return the outcome of each run; where nothing is, say so without loading torch."""
    from bench.runs.finished import keep, recall, state_of_inputs

    specs = [cell.spec for cell in cells]
    finished = recall(specs, out)
    if finished is not None:
        for note in finished.notes:
            say(note)
        write_bytes(out / "run.toml", finished.settings.encode())
        return list(zip(cells, finished.outcomes, strict=True))
    need_cache()
    before = state_of_inputs(specs)
    try:
        with _running(out) as progress:
            start_workers(specs[0])
            from bench.runs.grid import plan_grid, run_grid
            from bench.runs.run import run

            if len(cells) > 1:
                found = run_grid(plan_grid(cells, progress), progress)
            else:
                found = [(cells[0], run(specs[0], progress))]
    finally:
        from bench.execution.task_pool import leave_none

        leave_none()
    keep(specs, out, before, [outcome for _, outcome in found])
    return found


def _print_boards(outcomes: Sequence[tuple[GridCell, Outcome]], out: Path, *, as_json: bool) -> int:
    from leaderboards import matrix_tables
    from leaderboards.matrix import matrix
    from leaderboards.tables import to_json, to_terminal

    boards = [(cell, outcome.board()) for cell, outcome in outcomes]
    for _, outcome in outcomes:
        _say_problems(outcome)
    if as_json:
        print_json([{"run": cell.name, "board": json.loads(to_json(board))} for cell, board in boards])
    else:
        for cell, board in boards:
            print_text(f"\n{cell.name}")
            print_rich(to_terminal(board))
        print_text("")
        made = matrix([board for _, board in boards], [cell.name for cell, _ in boards])
        print_rich(matrix_tables.to_terminal(made))
    done, reused, failed = (
        sum(getattr(outcome, name) for _, outcome in outcomes) for name in ("done", "reused", "failed")
    )
    say(f"{done} measured, {reused} reused, {failed} failed in {plural(len(boards), 'run')}; records in {out}")
    return max(outcome.exit_code for _, outcome in outcomes)


def start_workers(spec: RunSpec) -> None:
    """Start the worker processes while this one loads its modules."""
    from bench.core.devices import pick_device, pick_jobs
    from bench.execution.task_pool import get_ready

    device = pick_device(spec.device) if spec.launch == "local" else None
    if device == "cpu" and pick_jobs(spec.jobs, device, spec.devices or 1)[0] > 1:
        get_ready()


@contextlib.contextmanager
def _running(out: Path) -> Iterator[RunProgress]:
    """Show progress and log into the folder; an interrupt, also the SIGTERM of schedulers, says how to continue."""
    from bench.runs.progress import RunProgress

    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with _logged_in(out), RunProgress(out) as progress:
            yield progress
    except KeyboardInterrupt:
        again = command_line(["bench", "run", str(out / "run.toml"), "--out", str(out)])
        raise Interrupted(f"interrupted; finished work is kept, continue with: {again}") from None
    finally:
        signal.signal(signal.SIGTERM, before)


def _say_problems(outcome: Outcome) -> None:
    from bench.runs.sanity_checks import warnings_of
    from leaderboards.store import Store

    for error in outcome.errors[:5]:
        say(f"failed: {error}")
    for warning in warnings_of(outcome.records(), Store(outcome.out).predictions):
        say(f"warning: {warning}; these results cannot be published")


def carry_out(spec: RunSpec) -> Outcome:
    """Run a spec with progress on stderr, and say there what failed or looks wrong."""
    out = folder_of([GridCell("", spec)])
    outcome = _outcomes([GridCell("", spec.model_copy(update={"out": out}))], out)[0][1]
    _say_problems(outcome)
    return outcome


def say_counts(outcome: Outcome) -> None:
    """Say on stderr what was measured, reused and failed, and where the records are."""
    say(f"{outcome.done} measured, {outcome.reused} reused, {outcome.failed} failed; records in {outcome.out}")


def _print_board(outcome: Outcome, *, demo: bool, as_json: bool) -> int:
    from leaderboards.tables import to_json, to_terminal

    _say_problems(outcome)
    board = outcome.board()
    if as_json:
        print_text(to_json(board))
    else:
        print_rich(to_terminal(board))
        if demo:
            from bench.cli.demo_summary import summarise

            print_text("\n" + summarise(board, outcome))
    say_counts(outcome)
    return outcome.exit_code


def _print_grid(cells: Sequence[GridCell], as_json: bool) -> int:
    """Print the runs of a grid with their cost, and those that cannot be."""
    from bench.core.console import table
    from bench.planning.cost_estimate import estimate
    from bench.runs.callbacks import RunCallback
    from bench.runs.grid import plan_grid

    grid = plan_grid(cells, RunCallback())
    costs = [(cell, plan, estimate(plan, say)) for cell, plan in grid.plans]
    rows = [
        {
            "run": cell.name,
            "methods": len({entry.trial.method for entry in plan.entries}),
            "records": len(plan.keys),
            "missing": len(plan.missing),
            "trainings": len(plan.trainings),
            "flops": cost.flops,
            "seconds": cost.seconds,
        }
        for cell, plan, cost in costs
    ]
    refused = [{"run": cell.name, "reason": reason} for cell, reason in grid.refused]
    out = folder_of(cells)
    if as_json:
        print_json({"out": str(out), "runs": rows, "left_out": refused})
        return 0
    cells_of_rows = [
        [*map(str, list(row.values())[:-2]), f"{cost.flops / 1e12:.3g}", duration(cost.seconds)]
        for row, (_, _, cost) in zip(rows, costs, strict=True)
    ]
    print_text(table(["run", "methods", "records", "missing", "trainings", "TFLOP", "time alone"], cells_of_rows))
    for each in refused:
        print_text(f"left out: {each['run']}: {each['reason']}")
    trainings = {task.key for _, plan, _ in costs for task in plan.trainings}
    missing, records = (sum(int(str(row[name])) for row in rows) for name in ("missing", "records"))
    print_text(
        f"\n{plural(len(trainings), 'training')} in all, {missing} of {records} records to make in {out}; "
        f"at most {duration(sum(cost.seconds for _, _, cost in costs))}, less what the runs share"
    )
    return 0


def print_plan(spec: RunSpec, as_json: bool) -> int:
    """Print what a run would do and cost; return 0."""
    from bench.core.console import table
    from bench.planning.cost_estimate import estimate
    from bench.planning.plan import make_plan

    plan = make_plan(spec)
    for note in plan.notes:
        say(note)
    cost = estimate(plan, say)
    rows = [_progress_of(entry, plan) for entry in plan.entries]
    if as_json:
        print_json(_plan_as_json(plan, cost, rows))
        return 0
    print_text(table(list(rows[0]), [[str(value) for value in row.values()] for row in rows]))
    if cost.costs:
        titles = ["to do", "seed", "", "TFLOP", "forwards", "backwards", "disk MB", "time"]
        print_text(f"\n{table(titles, map(_cost_cells, cost.costs))}\n")
    print_text(_work_in_words(plan, cost))
    if cost.costs:
        print_text(_cost_in_words(plan, cost))
    return 0


def _progress_of(entry: BoardEntry, plan: Plan) -> dict[str, str | int]:
    missing = sum(key in plan.missing for key in entry.keys.values())
    return {
        "method": entry.trial.method,
        "part": entry.part or "",
        "seed": entry.trial.seed,
        "conditions": len(entry.keys),
        "done": len(entry.keys) - missing,
        "missing": missing,
    }


def _plan_as_json(plan: Plan, cost: CostEstimate, rows: Sequence[Mapping[str, str | int]]) -> dict[str, Any]:
    return {
        "out": str(plan.out),
        "training_cost": {**asdict(plan.training_cost), "hours": plan.training_cost.hours},
        "trainings": [task.label for task in plan.trainings],
        "trials": rows,
        "costs": [asdict(line) for line in cost.costs],
        "total": {
            "seconds": cost.seconds,
            "flops": cost.flops,
            "disk_bytes": cost.disk,
            "processes": cost.jobs,
            "forwards": cost.samples[0],
            "backwards": cost.samples[1],
            "memory_mb_per_process": cost.memory_mb,
            "passes": cost.passes,
            "cached_trainings": cost.cached,
            "answered_streams": cost.answered,
        },
    }


def _work_in_words(plan: Plan, cost: CostEstimate) -> str:
    trained = plural(len(plan.trainings), "training") + (f" ({cost.cached} more are cached)" if cost.cached else "")
    streams = sum(line.count for line in cost.costs if line.kind == "stream")
    passes = plural(cost.passes, "pass", "passes")
    shared = f" from {plural(streams, 'stream')} in {passes} over images" if cost.passes < streams else ""
    cached = f"; predictions of {plural(cost.answered, 'stream')} are cached" if cost.answered else ""
    return f"{trained}, {len(plan.missing)} of {len(plan.keys)} records to make{shared}{cached} in {plan.out}"


def _cost_in_words(plan: Plan, cost: CostEstimate) -> str:
    memory = "" if cost.memory_mb is None else f", {cost.memory_mb / 1024:.2g} GB of memory per process"
    return (
        f"about {duration(cost.seconds)} on {plan.device} in {plural(cost.jobs, 'process', 'processes')}, "
        f"{cost.flops / 1e12:.3g} TFLOP, {cost.samples[0]:,} forwards and {cost.samples[1]:,} backwards in streams, "
        f"{cost.disk / 1e9:.2g} GB of disk{memory}; estimated from earlier work on this machine and short probes"
    )


def _cost_cells(cost: CostLine) -> list[str]:
    what = "training" if cost.kind == "training" else plural(cost.count, "stream")
    passes = [f"{count:,}" if cost.kind == "stream" else "" for count in (cost.forwards, cost.backwards)]
    flops = "" if cost.flops is None else f"{cost.flops / 1e12:.3g}"
    disk = f"{cost.disk / 1e6:.3g}"
    return [cost.label, str(cost.seed), what, flops, *passes, disk, duration(cost.seconds)]


def repeat_record(key: str, folder: Path, flags: Mapping[str, Any], *, as_json: bool) -> int:
    """Run one published record again and compare its metrics; return 0 if they agree, 4 if they differ."""
    allowed = {"data_root", "device", "devices", "jobs", "out", "model", "stock", "init_from"}
    extra = [name for name, value in flags.items() if value is not None and name not in allowed]
    if extra:
        raise UsageError(f"--record uses the settings of the record; leave --{extra[0].replace('_', '-')} out")
    from bench.runs.read_records import open_records

    every = open_records([folder])
    records = [record for record in every if record.key == key]
    if not records:
        close = closest(key, (record.key for record in every))
        hint = (
            f"did you mean {close}?"
            if close
            else f"its keys are in {folder if folder.is_file() else folder / 'records.jsonl'}"
        )
        raise MissingDataError(f"no record {key} in {folder}; {hint}")
    from bench.runs.repeat import repeat

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
    """Log to run.log in the folder; remove new folders in the end if nothing was written."""
    new = [each for each in (folder, *folder.parents) if not each.exists()]
    file = folder / "run.log"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handler = logging.FileHandler(file, encoding="utf-8")
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
            with contextlib.suppress(OSError):  # another run may have begun beside it
                for each in new:
                    each.rmdir()
