"""`bench run`: settings in, progress on stderr, the board on stdout."""

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
from bench.runs.progress import RunProgress
from bench.settings.methods import parse_setting
from bench.settings.run_spec import RunSpec, make_spec, read_run_file

if TYPE_CHECKING:
    from bench.planning.cost_estimate import CostLine


def run_spec(
    file: Path | None, demo: bool, flags: Mapping[str, Any], settings: Sequence[str], *, dry_run: bool, as_json: bool
) -> int:
    """Merge run file, flags and --set, run, print the board, and give the exit code."""
    if file is not None and demo:
        raise UsageError("--demo is a run file of its own; leave the other one out")
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
    # Schedulers and shells that end a program politely get what an interrupt gets.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with _logged_in(spec.out), RunProgress(spec.out) as progress:
            outcome = run(spec, progress)
    except KeyboardInterrupt:
        again = shlex.join(["bench", "run", str(spec.out / "run.toml"), "--out", str(spec.out)])
        raise Interrupted(f"interrupted; what is finished is kept, continue with: {again}") from None
    finally:
        signal.signal(signal.SIGTERM, before)
    for error in outcome.errors[:5]:
        say(f"failed: {error}")
    for warning in warnings_of(outcome.records(), Store(outcome.out).predictions):
        say(f"warning: {warning}; this cannot be published")
    board = outcome.board()
    if as_json:
        print_text(to_json(board))
    else:
        print_rich(to_terminal(board))
        if demo:
            from bench.cli.demo_summary import tell

            print_text("\n" + tell(board, outcome))
    say(f"{outcome.done} measured, {outcome.reused} from before, {outcome.failed} failed; records in {outcome.out}")
    return outcome.exit_code


def _print_plan(spec: RunSpec, as_json: bool) -> int:
    from bench.core.console import table
    from bench.planning.cost_estimate import estimate
    from bench.planning.plan import make_plan

    plan = make_plan(spec)
    for note in plan.notes:
        say(note)
    made = estimate(plan)
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
            "seconds": made.seconds,
            "flops": made.flops,
            "disk_bytes": made.disk,
            "processes": made.jobs,
        }
        total |= {"forwards": made.samples[0], "backwards": made.samples[1], "memory_mb_per_process": made.memory_mb}
        total |= {"passes": made.passes, "cached_trainings": made.cached, "answered_streams": made.answered}
        costs = [asdict(cost) for cost in made.costs]
        trainings = [task.label for task in plan.cooking]
        print_json({"out": str(plan.out), "trainings": trainings, "trials": rows, "costs": costs, "total": total})
        return 0
    print_text(table(list(rows[0]), [[str(value) for value in row.values()] for row in rows]))
    if made.costs:
        print_text("")
        print_text(
            table(
                ["to do", "seed", "", "TFLOP", "forwards", "backwards", "disk MB", "time"], map(_cost_cells, made.costs)
            )
        )
        print_text("")
    cooked = f"{len(plan.cooking)} trainings" + (f" ({made.cached} more are in the cache)" if made.cached else "")
    streams = sum(cost.count for cost in made.costs if cost.kind == "stream")
    shared = f" from {streams} streams in {made.passes} passes over images" if made.passes < streams else ""
    kept = f"; {made.answered} streams are answered from the cache" if made.answered else ""
    print_text(f"{cooked}, {len(plan.missing)} of {len(plan.keys)} records to make{shared}{kept} in {plan.out}")
    if made.costs:
        print_text(
            f"about {duration(made.seconds)} on {plan.device} in {made.jobs} process{'es' if made.jobs > 1 else ''}, "
            f"{made.flops / 1e12:.3g} TFLOP, "
            f"{made.samples[0]:,} forwards and {made.samples[1]:,} backwards in streams, "
            f"{made.disk / 1e9:.2g} GB of disk"
            + ("" if made.memory_mb is None else f", {made.memory_mb / 1024:.2g} GB of memory a process")
            + "; from what was done here before, and the first steps of what was not"
        )
    return 0


def _cost_cells(cost: CostLine) -> list[str]:
    what = "training" if cost.kind == "training" else f"{cost.count} stream{'s' if cost.count > 1 else ''}"
    passes = [f"{count:,}" if cost.kind == "stream" else "" for count in (cost.forwards, cost.backwards)]
    flops = "" if cost.flops is None else f"{cost.flops / 1e12:.3g}"
    disk = f"{cost.disk / 1e6:.3g}"
    time = "" if cost.seconds is None else duration(cost.seconds)
    return [cost.label, str(cost.seed), what, flops, *passes, disk, time]


def repeat_record(key: str, folder: Path, flags: Mapping[str, Any], *, as_json: bool) -> int:
    """Run one published record again and compare its metrics. Exit 0 where they agree, 4 where they differ."""
    from bench.runs.repeat import repeat

    allowed = {"data_root", "device", "devices", "jobs", "out", "model", "stock", "init_from"}
    extra = [name for name, value in flags.items() if value is not None and name not in allowed]
    if extra:
        raise UsageError(f"--record repeats what the record says; leave --{extra[0].replace('_', '-')} out")
    found = [record for record in open_records([folder]) if record.key == key]
    if not found:
        raise MissingDataError(f"no record {key} in {folder}; see the keys in {folder}/records.jsonl")
    result = repeat(found[0], {name: value for name, value in flags.items() if value is not None})
    if as_json:
        print_json(result)
    else:
        for name, (published, now) in result["metrics"].items():
            print_text(f"{name}: published {published:.6f}, now {now:.6f}")
        print_text("same" if result["same"] else "different: compare `env` of both records")
    if not result["same_identity"]:
        raise ValidationError(
            "the repeated run has another key: data, weights or options differ from the published ones"
        )
    return 0 if result["same"] else 4


@contextlib.contextmanager
def _logged_in(folder: Path) -> Iterator[None]:
    """Log to run.log in the folder, which goes again if it was made for this and nothing came of it."""
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
