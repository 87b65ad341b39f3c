"""Runs survive kills at any point, full disks, damaged files, dead workers and a concurrent run."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import quick_processes
import torch

from bench.core.errors import BenchError, ValidationError
from bench.evaluation import evaluate as predict
from bench.evaluation import stream_tasks as measure
from bench.execution import checkpointing as checkpointer
from bench.execution.task_pool import Task
from bench.runs import run as run_module
from bench.runs.callbacks import RunCallback
from bench.runs.open_results import print_results
from bench.runs.run import Outcome
from bench.settings.run_spec import make_spec
from leaderboards.verify import verify

Quick = Callable[..., Outcome]

SOUP = {
    "method": "selfsoup+tent",
    "protocol": "continual",
    "set": {
        "selfsoup": {"epochs": 2, "steps": 4, "batch": 16, "ingredients": ["mae", "mocov3"]},
        "tent": {"steps": 1},
    },
}

# Runs each "name:number" in a fork of one process, which kills itself just before (even) or just after (odd) the
# number-th file is renamed into place, and then once more to the end. 0 is never killed. Checkpoints come every step.
_KILLER = """
import json, os, pathlib, signal, sys
from bench.execution import checkpointing
from bench.runs.run import run
from bench.settings.run_spec import make_spec

checkpointing.SECONDS = 0.0
settings = json.loads(sys.argv[1])
home = pathlib.Path(settings.pop("out")).parent

def attempt(name, last):
    child = os.fork()
    if child == 0:
        count = 0
        replace = pathlib.Path.replace
        def counted(self, target):
            nonlocal count
            count += 1
            if count == last and last % 2 == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            result = replace(self, target)
            if count == last:
                os.kill(os.getpid(), signal.SIGKILL)
            return result
        pathlib.Path.replace = counted
        os.environ["SOUPBENCH_CACHE"] = str(home / name / "cache")
        code = run(make_spec(settings, {"out": home / name / "out"})).exit_code
        (home / name / "count").write_text(str(count))
        os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

for text in sys.argv[2:]:
    name, _, last = text.partition(":")
    if int(last):
        code = attempt(name, int(last))
        assert code == -signal.SIGKILL, (text, code)
    code = attempt(name, 0)
    assert code == 0, (text, code)
"""


def killed(settings: dict[str, Any], *points: str) -> None:
    text = json.dumps({**settings, **SOUP, "out": str(settings["out"])})
    done = quick_processes.run(["-c", _KILLER, text, *points], timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]


def contents(folder: Path) -> dict[str, tuple[Any, ...]]:
    """The parts of a folder's records that must not depend on faults, with the bytes of their predictions."""
    found = {}
    for path in sorted((folder / "records").glob("*.json")):
        record = json.loads(path.read_bytes())
        del record["created"], record["env"]  # time and checkout, which may change during a long test
        passes = (record["cost"]["forwards"], record["cost"]["backwards"])
        del record["cost"]
        found[path.name] = (record, passes, (folder / record["predictions"]).read_bytes())
    return found


def kill_and_compare(settings: dict[str, Any], points: int) -> None:
    home = settings["out"].parent
    killed(settings, "whole:0")
    whole = contents(home / "whole" / "out")
    assert len(whole) == 3
    writes = int((home / "whole" / "count").read_text())
    # Half of them just before a file is renamed into place (even), half just after.
    halves = [random.Random(0).sample(range(first, writes + 1, 2), points // 2) for first in (1, 2)]
    chosen = [number for half in halves for number in half]
    killed(settings, *(f"at-{number}:{number}" for number in chosen))
    for number in chosen:
        assert contents(home / f"at-{number}" / "out") == whole, number
        assert not list((home / f"at-{number}").rglob("*.pt")), number


def test_killed_while_it_writes_and_resumed_is_undisturbed(settings: dict[str, Any]) -> None:
    kill_and_compare(settings, 2)


@pytest.mark.slow
def test_killed_at_twenty_points_and_resumed_is_undisturbed(settings: dict[str, Any]) -> None:
    kill_and_compare({**settings, "limit": 40}, 20)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of two megabytes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    try:
        made = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        pytest.skip(f"a small disk cannot be mounted here: {error}")
    if made.returncode:
        pytest.skip(f"a small disk cannot be mounted here (needs root): {made.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def fill(disk: Path, room: int) -> Path:
    free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
    (disk / "filler").write_bytes(bytes(free - room))
    return disk / "filler"


def test_a_full_disk_is_one_sentence_and_costs_nothing(
    settings: dict[str, Any], run_quick: Quick, small_disk: Path, tmp_path: Path
) -> None:
    whole = run_quick(settings, method="source,tent", out=tmp_path / "whole")
    for room in (0, 4096, 20480):
        filler = fill(small_disk, room)
        out = small_disk / f"out{room}"
        with pytest.raises(BenchError, match=r"No space left on device.*free space"):
            run_quick(settings, method="source,tent", out=out)
        kept = contents(out) if (out / "records").is_dir() else {}
        filler.unlink()
        resumed = run_quick(settings, method="source,tent", out=out)
        assert resumed.reused == len(kept), room
        assert contents(out) == contents(whole.out), room
        assert verify(out).ok, room


def test_a_full_cache_fails_what_needs_it_and_recovers(
    settings: dict[str, Any], run_quick: Quick, small_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run_quick(settings, out=tmp_path / "whole")
    monkeypatch.setenv("SOUPBENCH_CACHE", str(small_disk / "cache"))
    filler = fill(small_disk, 16384)
    full = run_quick(settings)
    assert full.failed == 3
    assert all("No space left on device; free space" in (record.error or "") for record in full.records())
    filler.unlink()
    assert run_quick(settings).exit_code == 0
    assert contents(full.out) == contents(whole.out)


def test_a_full_disk_costs_a_training_its_checkpoint_only(small_disk: Path) -> None:
    fill(small_disk, 0)
    kept = checkpointer.FileCheckpointer(small_disk / "x.pt", seconds=0)
    kept.save({"step": 1, "tensor": torch.zeros(10_000)})
    assert kept.load() is None


def test_a_folder_that_cannot_be_written_is_one_sentence(
    settings: dict[str, Any], run_quick: Quick, small_disk: Path
) -> None:
    run_quick(settings, out=small_disk / "out")
    before = contents(small_disk / "out")
    remount = ["mount", "-o", "remount,{}", str(small_disk)]
    subprocess.run([part.format("ro") for part in remount], check=True)
    with pytest.raises(BenchError, match="Read-only file system"):
        run_quick(settings, out=small_disk / "out", method="source,tent")
    assert contents(small_disk / "out") == before


def test_a_damaged_record_is_set_aside_and_measured_again(settings: dict[str, Any], run_quick: Quick) -> None:
    before = contents(run_quick(settings).out)
    path = next((settings["out"] / "records").glob("*.json"))
    for content in (b"", b"{", b"\xff\xfe", path.read_bytes()[:-200]):
        path.write_bytes(content)
        again = run_quick(settings)
        assert (again.done, again.reused) == (1, 2), content
        assert contents(again.out) == before, content
        broken = path.with_name(f"{path.name}.broken")
        assert broken.read_bytes() == content
        broken.unlink()


def test_a_damaged_line_is_named(settings: dict[str, Any], run_quick: Quick) -> None:
    out = run_quick(settings).out
    for path in (out / "records").iterdir():
        path.unlink()
    (out / "records").rmdir()
    lines = (out / "records.jsonl").read_text().splitlines()
    (out / "records.jsonl").write_text("\n".join([lines[0], lines[1][:-50], lines[2]]))
    with pytest.raises(ValidationError, match=r"records\.jsonl, line 2"):
        run_quick(settings)
    assert (out / "records.jsonl").read_text().splitlines()[2] == lines[2]


def test_predictions_that_are_cut_short_or_gone_are_made_again(settings: dict[str, Any], run_quick: Quick) -> None:
    before = contents(run_quick(settings).out)
    path = next((settings["out"] / "predictions").glob("*.npz"))
    content = path.read_bytes()
    for kept in (0, 100, None):
        path.unlink()
        if kept is not None:
            path.write_bytes(content[:kept])
        again = run_quick(settings)
        assert (again.done, again.reused) == (1, 2), kept
        assert contents(again.out) == before, kept


class Meddler(RunCallback):
    """Runs a function once, when the first stream starts."""

    def __init__(self, act: Callable[[], None]) -> None:
        self.act: Callable[[], None] | None = act

    def started(self, task: Task) -> None:
        if "seed" in task.label and self.act is not None:
            self.act()
            self.act = None


def test_weights_that_vanish_midway_are_one_sentence_and_are_made_again(
    settings: dict[str, Any], run_quick: Quick, own_cache: Path, tmp_path: Path
) -> None:
    whole = run_quick(settings, out=tmp_path / "whole")
    for path in (own_cache / "weights").iterdir():
        path.unlink()
    spec = make_spec(settings, {"set": {"source": {"epochs": 2, "batch_size": 50}}})

    def lose() -> None:
        predict._loaded.cache_clear()
        for path in (own_cache / "weights").iterdir():
            path.unlink()

    outcome = run_module.run(spec, Meddler(lose))
    failed = [record for record in outcome.records() if record.status == "failed"]
    assert failed
    assert all("no weights at" in (record.error or "") for record in failed)
    again = run_module.run(spec)
    assert again.exit_code == 0
    assert contents(again.out) == contents(whole.out)


def test_an_ingredient_that_diverges_takes_the_soup_but_not_the_others(settings: dict[str, Any]) -> None:
    options = {"epochs": 1, "steps": 3, "batch": 16, "ingredients": ["mae", "mocov3:rate=1e30"]}
    outcome = run_module.run(make_spec({**settings, "method": "selfsoup"}, {"set": {"selfsoup": options}}))
    status = {record.part: record.status for record in outcome.records()}
    assert status == {"soup": "failed", "ingredient:mae": "done", "ingredient:mocov3:rate=1e30": "failed"}
    assert all("not finite" in (record.error or "") for record in outcome.records() if record.status == "failed")
    assert verify(outcome.out).ok


def test_a_clock_that_goes_backwards_changes_nothing(
    settings: dict[str, Any], run_quick: Quick, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run_quick(settings, method="tent", out=tmp_path / "whole")
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now - 1e6)
    run_quick(settings, method="tent", corruption="fog")
    monkeypatch.setattr(time, "time", lambda: now - 2e8)
    resumed = run_quick(settings, method="tent")
    assert resumed.reused == 2
    assert contents(resumed.out) == contents(whole.out)


def test_a_damaged_checkpoint_of_a_stream_starts_it_again(
    settings: dict[str, Any], run_quick: Quick, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run_quick(settings, method="tent", protocol="continual", out=tmp_path / "whole")
    monkeypatch.setattr(checkpointer, "SECONDS", 0.0)
    monkeypatch.setattr(measure, "evaluate_together", interrupted(measure.evaluate_together, after=4))
    with pytest.raises(KeyboardInterrupt):
        run_quick(settings, method="tent", protocol="continual")
    monkeypatch.undo()
    monkeypatch.setenv("SOUPBENCH_CACHE", str(tmp_path / "cache"))
    (path,) = (settings["out"] / "state").glob("*.pt")
    path.write_bytes(path.read_bytes()[:500])
    assert contents(run_quick(settings, method="tent", protocol="continual").out) == contents(whole.out)
    assert not list((settings["out"] / "state").glob("*.pt"))


class Dying(checkpointer.FileCheckpointer):
    """A checkpointer that is interrupted after a number of saves."""

    left = 0

    def save(self, state: dict[str, Any]) -> None:
        super().save(state)
        self.left -= 1
        if not self.left:
            raise KeyboardInterrupt


def interrupted(evaluate: Callable[..., Any], after: int) -> Callable[..., Any]:
    def call(jobs: Any) -> Any:
        ((job, keep, _),) = jobs
        if job.clean is None:
            return evaluate([(job, None, None)])
        dying = Dying(keep._path, 0.0, None)
        dying.left = after
        return evaluate([(job, dying, None)])

    return call


DIE_ONCE = '''
import os
from pathlib import Path
import torch
from methods.base import Adapter
from methods.table import Access

class Mortal(Adapter):
    """Plain prediction; the first process that predicts exits."""
    access = Access()

    @torch.no_grad()
    def predict(self, images):
        try:
            Path(os.environ["MORTAL_FLAG"]).touch(exist_ok=False)
        except FileExistsError:
            pass
        else:
            os._exit(9)
        return self.model(images)
'''


@pytest.mark.slow
def test_a_worker_that_dies_once_costs_nothing(
    settings: dict[str, Any], run_quick: Quick, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mortal.py").write_text(DIE_ONCE)
    monkeypatch.setenv("MORTAL_FLAG", str(tmp_path / "flag"))
    outcome = run_quick(settings, method=f"source,{tmp_path / 'mortal.py'}:Mortal", jobs=2)
    assert (tmp_path / "flag").exists()
    assert (outcome.done, outcome.failed) == (6, 0)
    predicted = {(record.method, record.corruption): record.metrics for record in outcome.records()}
    assert predicted["source", "fog"] == predicted["mortal.py:Mortal", "fog"]


def command(settings: dict[str, Any], **changes: Any) -> list[str]:
    merged = {**settings, **changes}
    options = [text for key, value in merged.items() for text in (f"--{key.replace('_', '-')}", str(value))]
    return ["-m", "bench", "run", *options, "--set", "source.epochs=1"]


def test_two_runs_on_one_folder_share_the_work(settings: dict[str, Any], own_cache: Path) -> None:
    both = [quick_processes.Process(command(settings, method="source,tent")) for _ in range(2)]
    errors = [process.communicate()[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], errors
    together = contents(settings["out"])
    assert len(together) == 6
    assert verify(settings["out"]).ok
    alone = run_module.run(
        make_spec(
            {**settings, "method": "source,tent", "out": settings["out"].parent / "alone"},
            {"set": {"source": {"epochs": 1}}},
        )
    )
    assert contents(alone.out) == together
    assert len(list((own_cache / "weights").iterdir())) == 2


def descendants(parent: int) -> set[int]:
    """The descendants of a process; workers may be forks of a server."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    found, new = set[int](), {parent}
    while new:
        new = {process for process, started_by in parents.items() if started_by in new}
        found |= new
    return found


def alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
@pytest.mark.slow  # the pool alone: test_workers_end_with_a_parent_that_was_killed
@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM])
def test_workers_end_with_the_process_that_feeds_them(settings: dict[str, Any], sent: signal.Signals) -> None:
    long = command(settings, jobs=2, severity="1-5", limit=200, method="source,tent,memo")
    process = quick_processes.Process(long)
    deadline = time.monotonic() + 120
    while len(workers := descendants(process.pid)) < 4 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(workers) >= 4  # two workers, their fork server and Python's resource tracker
    process.send_signal(sent)
    _, err = process.communicate(timeout=30)
    if sent == signal.SIGTERM:
        assert process.returncode == 130
        assert "continue with: bench run" in err
    while any(map(alive, workers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(alive, workers))


def test_a_folder_tells_what_is_done_running_failed_and_missing(
    settings: dict[str, Any], run_quick: Quick, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def rows() -> dict[str, tuple[int, ...]]:
        print_results(settings["out"], as_json=True)
        lines = json.loads(capsys.readouterr().out)
        return {
            line["method"]: tuple(line[name] for name in ("done", "running", "failed", "missing")) for line in lines
        }

    seen = []

    class Looker(RunCallback):
        def finished(self, task: Task, error: Exception | None) -> None:
            seen.append(rows())

    evaluate = measure.evaluate_together

    def watched(jobs: Any) -> Any:
        seen.append(rows())
        return [ValueError("burnt") if job[0].method == "tent" else evaluate([job])[0] for job in jobs]

    monkeypatch.setattr(measure, "evaluate_together", watched)
    run_module.run(make_spec({**settings, "method": "source,tent"}, {"set": {"source": {"epochs": 1}}}), Looker())
    nothing, first = {"source": (0, 0, 0, 3), "tent": (0, 0, 0, 3)}, {"source": (0, 1, 0, 2), "tent": (0, 1, 0, 2)}
    assert seen[0] == nothing
    assert first in seen
    assert {"source": (3, 0, 0, 0), "tent": (0, 1, 1, 1)} in seen
    assert rows() == {"source": (3, 0, 0, 0), "tent": (0, 0, 3, 0)}
    print_results(settings["out"], as_json=False, watch=True)  # nothing is missing, so it prints once
    assert "burnt" in capsys.readouterr().out
