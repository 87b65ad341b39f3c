"""`bench run`: settings in, progress on stderr, the board on stdout."""

from __future__ import annotations

import contextlib
import datetime
import logging
import shlex
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from bench.errors import Interrupted, MissingDataError, UsageError, ValidationError
from bench.live import running
from bench.output import print_json, print_rich, print_text
from bench.reading import open_records
from bench.registry import parse_setting
from bench.spec import RunSpec, make_spec, read_run_file
from bench.watch import Watcher

if TYPE_CHECKING:
    from bench.costs import Cost

_SECONDS_BETWEEN_LINES = 5.0
_SECONDS_OF_SILENCE = 60.0


def run_spec(
    file: Path | None, demo: bool, flags: Mapping[str, Any], settings: Sequence[str], *, dry_run: bool, as_json: bool
) -> int:
    """Merge run file, flags and --set, run, print the board, and give the exit code."""
    if file is not None and demo:
        raise UsageError("--demo is a run file of its own; leave the other one out")
    base: Mapping[str, Any] = {}
    if demo:
        with resources.as_file(resources.files("bench") / "assets" / "demo.toml") as path:
            base = {"out": Path("runs") / f"{datetime.date.today():%Y-%m-%d}-demo", **read_run_file(path)}
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
    from bench.plan import default_folder
    from bench.plausible import warnings_of
    from bench.run import run
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
        _say(f"failed: {error}")
    for warning in warnings_of(outcome.records(), Store(outcome.out).predictions):
        _say(f"warning: {warning}; this cannot be published")
    board = outcome.board()
    if as_json:
        print_text(to_json(board))
    else:
        print_rich(to_terminal(board))
        if demo:
            from bench.story import tell

            print_text("\n" + tell(board, outcome))
    _say(f"{outcome.done} measured, {outcome.reused} from before, {outcome.failed} failed; records in {outcome.out}")
    return outcome.exit_code


def _print_plan(spec: RunSpec, as_json: bool) -> int:
    from bench.costs import bill
    from bench.output import table
    from bench.plan import make_plan

    plan = make_plan(spec)
    for note in plan.notes:
        _say(note)
    made = bill(plan)
    rows = []
    for lane in plan.lanes:
        missing = sum(key in plan.missing for key in lane.keys.values())
        rows.append(
            {
                "method": lane.trial.method,
                "part": lane.part or "",
                "seed": lane.trial.seed,
                "conditions": len(lane.keys),
                "done": len(lane.keys) - missing,
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
        total |= {"forwards": made.passes[0], "backwards": made.passes[1], "memory_mb_per_process": made.memory_mb}
        costs = [asdict(cost) for cost in made.costs]
        trainings = [task.label for task in plan.cooking]
        print_json({"out": str(plan.out), "trainings": trainings, "trials": rows, "costs": costs, "total": total})
        return 0
    print_text(table(list(rows[0]), [[str(value) for value in row.values()] for row in rows]))
    if made.costs:
        print_text("")
        print_text(table(["to do", "seed", "", "TFLOP", "forwards", "backwards", "time"], map(_cost_cells, made.costs)))
        print_text("")
    print_text(f"{len(plan.cooking)} trainings, {len(plan.missing)} of {len(plan.keys)} records to make in {plan.out}")
    if made.costs:
        print_text(
            f"about {_duration(made.seconds)} on {plan.device} in {made.jobs} process{'es' if made.jobs > 1 else ''}, "
            f"{made.flops / 1e12:.3g} TFLOP, {made.passes[0]:,} forwards and {made.passes[1]:,} backwards in streams, "
            f"{made.disk / 1e9:.2g} GB of disk"
            + ("" if made.memory_mb is None else f", {made.memory_mb / 1024:.2g} GB of memory a process")
            + "; probed with the first steps of each kind"
        )
    return 0


def _cost_cells(cost: Cost) -> list[str]:
    what = "training" if cost.kind == "training" else f"{cost.count} stream{'s' if cost.count > 1 else ''}"
    passes = [f"{count:,}" if cost.kind == "stream" else "" for count in (cost.forwards, cost.backwards)]
    flops = "" if cost.flops is None else f"{cost.flops / 1e12:.3g}"
    return [cost.label, str(cost.seed), what, flops, *passes, "" if cost.seconds is None else _duration(cost.seconds)]


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.2g} s"
    return f"{seconds / 60:.2g} min" if seconds < 6000 else f"{seconds / 3600:.3g} h"


def repeat_record(key: str, folder: Path, flags: Mapping[str, Any], *, as_json: bool) -> int:
    """Run one published record again and compare its metrics. Exit 0 where they agree, 4 where they differ."""
    from bench.repeat import repeat

    allowed = {"data_root", "device", "jobs", "out", "model", "stock", "init_from"}
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


class RunProgress(Watcher):
    """Progress on stderr: bars on a terminal, plain lines elsewhere.

    `out` is the folder whose streams are shown batch by batch, whichever process runs them.
    """

    def __init__(self, out: Path) -> None:
        self._out = out
        self._console = Console(stderr=True)
        self._bar = _Bars(out, self._console)
        self._task: Any = None
        self._total = self._count = 0
        self._spoke = time.monotonic()
        self._over = threading.Event()
        self._speaker = threading.Thread(target=self._speak, daemon=True)

    def __enter__(self) -> RunProgress:
        if self._console.is_terminal:
            self._bar.start()
        else:
            self._speaker.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._console.is_terminal:
            self._bar.stop()  # which ends with a blank line where there is no terminal
        self._over.set()

    def planned(self, trainings: int, streams: int, jobs: int) -> None:
        self._total = trainings + streams
        self._task = self._bar.add_task("starting", total=self._total)
        if self._total:
            self.noted(f"{trainings} trainings and {streams} streams in {jobs} process{'es' if jobs > 1 else ''}")

    def noted(self, text: str) -> None:
        if self._console.is_terminal:
            self._console.print(text, markup=False, highlight=False)
        else:
            _say(text)

    def started(self, label: str) -> None:
        self._bar.update(self._task, description=label[:60].ljust(60))

    def finished(self, label: str, error: Exception | None) -> None:
        self._count += 1
        self._bar.advance(self._task)
        if self._console.is_terminal:
            return
        now = time.monotonic()
        if error or self._count == self._total or now - self._spoke >= _SECONDS_BETWEEN_LINES:
            self._spoke = now
            _say(f"[{self._count}/{self._total}] {label}" + (f" FAILED: {error}" if error else ""))

    def _speak(self) -> None:
        """Say where long streams are when nothing ended for a while."""
        while not self._over.wait(_SECONDS_BETWEEN_LINES):
            if time.monotonic() - self._spoke < _SECONDS_OF_SILENCE:
                continue
            self._spoke = time.monotonic()
            for stream in running(self._out):
                _say(f"[{self._count}/{self._total}] {stream}")


class _Bars(Progress):
    """One bar for all tasks of a run, and one below it for each stream that runs."""

    def __init__(self, out: Path, console: Console) -> None:
        self._out = out
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        left = TextColumn("left")
        super().__init__(
            *columns, TimeElapsedColumn(), TimeRemainingColumn(), left, console=console, refresh_per_second=4
        )

    def get_renderables(self) -> Iterator[RenderableType]:
        yield from super().get_renderables()
        streams = Table.grid(padding=(0, 1))
        for stream in running(self._out):
            streams.add_row(
                Text(f"  {stream.label}, {stream.where}"),
                ProgressBar(total=stream.of, completed=stream.batches, width=20),
                Text(f"batch {stream.batches}/{stream.of}"),
                Text(f"accuracy {stream.accuracy:.1%}"),
            )
        yield streams


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


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
