"""Jobs of a cluster, with submitit's debug executor in place of a scheduler."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from bench.core.errors import BenchError, MissingDataError, UsageError
from bench.execution.slurm import Requeued, SlurmJobs
from bench.execution.task_pool import Task, run_tasks
from bench.planning.plan import make_plan
from bench.runs.run import executor_of
from bench.settings.run_spec import RunSpec, Slurm, make_spec


def square(number: int) -> int:
    return number * number


def test_without_a_scheduler_one_sentence_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match=r"needs sbatch on this machine .* use --launch local"):
        SlurmJobs(Slurm(), tmp_path, 4, 1)


def test_what_the_scheduler_refuses_is_one_sentence_with_its_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("sbatch", "srun"):
        (tmp_path / name).write_text("#!/bin/sh\necho 'sbatch: error: invalid partition specified: gold' >&2\nexit 1\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    jobs = SlurmJobs(Slurm(), tmp_path / "jobs", 4, 1)
    with pytest.raises(UsageError, match=r"invalid partition specified: gold\); correct --slurm"):
        jobs.submit([Task("a", square, (1,), frozenset(), "a")])


def test_without_the_extra_one_sentence_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "submitit", None)
    spec = RunSpec(method="source", shift="digits-c", launch="slurm", limit=8, out=tmp_path)  # type: ignore[arg-type]
    with pytest.raises(MissingDataError, match=r"pip install 'soupbench\[scale\]'"):
        executor_of(make_plan(spec))


def test_the_machine_that_plans_does_not_choose_the_device(tmp_path: Path) -> None:
    spec = {"method": "source", "shift": "digits-c", "launch": "slurm", "limit": 8, "out": tmp_path}
    assert make_plan(make_spec(spec)).device == "cpu"
    assert make_plan(make_spec({**spec, "slurm": {"gpus": "1"}})).device == "cuda"


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"slurm": {"partition": "gpu"}}, "belong to --launch slurm"),
        ({"launch": "slurm", "slurm": {"time": "0"}}, "1 or more"),
        ({"launch": "slurm", "slurm": {"colour": "red"}}, "unknown setting of slurm .colour."),
        ({"launch": "serial", "jobs": 2}, "one process"),
        ({"launch": "kubernetes"}, "'local', 'serial' or 'slurm'"),
    ],
)
def test_settings_that_cannot_work_are_refused(wrong: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        make_spec({"method": "source", "shift": "digits-c"}, wrong)


def test_a_job_that_is_queued_again_makes_the_same_call(tmp_path: Path) -> None:
    call = Requeued(1)
    again = call.checkpoint(square, 3)
    assert again.function(*again.args) == call(square, 3) == 9


def test_tasks_in_the_hundreds_keep_their_order_and_take_linear_time() -> None:
    tasks = [Task(str(i), square, (i,), frozenset({str(i // 2)} if i else ()), str(i)) for i in range(3000)]
    done = [finished.task.key for finished in run_tasks(tasks, 1, 1)]
    place = {key: number for number, key in enumerate(done)}
    assert len(done) == 3000
    assert all(place[str(i // 2)] < place[str(i)] for i in range(1, 3000))


def test_each_job_asks_for_what_its_task_computes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sbatch").write_text(
        f'#!/bin/sh\nfor last; do :; done\ncp "$last" "{tmp_path}/$$.sh"\necho Submitted batch job $$\n'
    )
    (tmp_path / "srun").write_text("#!/bin/sh\n")
    for name in ("sbatch", "srun"):
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    settings = {"method": "source", "shift": "digits-c", "launch": "slurm", "limit": 8, "out": tmp_path / "out"}
    for given in ({"slurm": {"gpus": "4"}}, {"devices": 4, "device": "cuda"}):
        plan = make_plan(make_spec(settings, given))
        assert (plan.device, plan.devices) == ("cuda", 4)
        jobs = executor_of(plan)
        assert jobs is not None
        training = [Task(name, square, (1,), frozenset(), name, 4) for name in ("a", "b")]
        jobs.submit([*training, Task("c", square, (1,), frozenset(), "c")])
        asked = [
            {line.removeprefix("#SBATCH --") for line in script.read_text().splitlines() if line[:7] == "#SBATCH"}
            for script in tmp_path.glob("*.sh")
        ]
        stream, shared = sorted(asked, key=lambda lines: "gpus-per-node=4" in lines)
        assert {"gpus-per-node=1", "cpus-per-task=1"} <= stream
        assert {"gpus-per-node=4", "cpus-per-task=4"} <= shared
        assert any(line.startswith("array=0-1%") for line in shared)
        for script in tmp_path.glob("*.sh"):
            script.unlink()


def test_more_devices_than_gpus_are_refused() -> None:
    with pytest.raises(UsageError, match="--devices 4 needs as many GPUs in a job; leave gpus out of --slurm"):
        make_spec({"method": "source", "shift": "digits-c", "launch": "slurm", "slurm": {"gpus": "2"}, "devices": 4})


def cluster(folder: Path, monkeypatch: pytest.MonkeyPatch, complaint: str, failures: int) -> None:
    """Put a scheduler on the path that complains at first, and logs which names are submitted and cancelled."""
    scripts = {
        "sbatch": f"""
for last; do :; done
grep -o 'job-name=.*' "$last" | sed 's/job-name/submitted/' >> "{folder}/log"
if [ "$(grep -c submitted "{folder}/log")" -le {failures} ]; then
  echo 'sbatch: error: {complaint}' >&2
  exit 1
fi
echo Submitted batch job $$
""",
        "scancel": f'for last; do :; done\necho "$last" | sed "s/--name/cancelled/" >> "{folder}/log"\n',
        "srun": "",
    }
    for name, text in scripts.items():
        (folder / name).write_text(f"#!/bin/sh\n{text}")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
    monkeypatch.setattr("bench.execution.slurm._PAUSES", (0.0, 0.0, 0.0))


@pytest.mark.parametrize(
    "complaint",
    [
        "Batch job submission failed: Unable to contact slurm controller (connect failure)",
        "Batch job submission failed: Socket timed out on send/recv operation",
    ],
)
@pytest.mark.parametrize("number", [1, 3])
def test_jobs_are_sent_again_when_the_controller_was_away_and_never_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, complaint: str, number: int
) -> None:
    cluster(tmp_path, monkeypatch, complaint, 2)
    jobs = SlurmJobs(Slurm(), tmp_path / "jobs", 4, 1)
    jobs.submit([Task(str(each), square, (each,), frozenset(), str(each)) for each in range(number)])
    log = [line.split("=") for line in (tmp_path / "log").read_text().splitlines()]
    assert [verb for verb, _ in log] == ["submitted", "cancelled", "submitted", "cancelled", "submitted"]
    names = [name for _, name in log]
    assert names[0] == names[1]
    assert names[2] == names[3]
    assert len(set(names)) == 3
    assert all(name.startswith("soupbench-") for name in names)
    assert len(jobs._running) == number


def test_a_controller_that_stays_away_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster(tmp_path, monkeypatch, "Unable to contact slurm controller (connect failure)", 99)
    jobs = SlurmJobs(Slurm(), tmp_path / "jobs", 4, 1)
    with pytest.raises(BenchError, match=r"does not answer \(Unable to contact .*\); run the same command again"):
        jobs.submit([Task("a", square, (1,), frozenset(), "a")])
    log = [line.split("=") for line in (tmp_path / "log").read_text().splitlines()]
    assert {name for verb, name in log if verb == "submitted"} == {name for verb, name in log if verb == "cancelled"}
    assert not jobs._running
