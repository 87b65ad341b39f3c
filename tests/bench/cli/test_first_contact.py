"""Names are checked before torch is loaded, a typo leaves nothing behind, and a finished run is recalled."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import quick_processes

from bench.core.errors import BenchError, UsageError
from bench.planning import check_names as checks
from bench.planning.check_names import check_names
from bench.runs import finished
from bench.runs.run import run
from bench.settings.absolute_paths import with_absolute_paths
from bench.settings.grid import cells_of
from bench.settings.run_spec import RunSpec
from bench.shifts import SHIFTS, load_shift
from bench.shifts.corruption_sets import corruptions_of

RUN = ["run", "--method", "tent", "--shift", "digits-c"]
TYPOS = {
    "method": ["run", "--method", "tnet", "--shift", "digits-c"],
    "part of a method": ["run", "--method", "selfsoop+tent", "--shift", "digits-c"],
    "shift": ["run", "--method", "tent", "--shift", "digit-c"],
    "task": ["run", "--method", "tent", "--shift", "mini-vtab:pest"],
    "severity": [*RUN, "--severity", "7"],
    "corruption": [*RUN, "--corruption", "foggy"],
    "protocol": [*RUN, "--protocol", "contnual"],
    "parameter": [*RUN, "--protocol", "correlated:delat=1"],
    "split": [*RUN, "--split", "disjont"],
    "device": [*RUN, "--device", "coda"],
    "precision": [*RUN, "--precision", "fp23"],
    "launch": [*RUN, "--launch", "slrum"],
    "slurm": [*RUN, "--launch", "slurm", "--slurm", "partion=x"],
    "option": [*RUN, "--set", "tent.lrr=1"],
    "value": [*RUN, "--set", "tent.lr=abc"],
    "owner": [*RUN, "--set", "tnet.lr=1"],
    "model": [*RUN, "--model", "timm:resnet5O"],
    "kind of model": [*RUN, "--model", "tim:resnet50"],
    "stock": [*RUN, "--stock", "digts"],
    "run": [*RUN, "--init-from", "nowhere"],
    "suite": ["run", "--suite", "digts"],
    "file": ["run", "--method", "nowhere.py:Mine", "--shift", "digits-c"],
    "key": ["run", "keys.toml"],
    "key of runs": ["run", "runs.toml"],
    "class": ["run", "--method", "mine.py:Mime", "--shift", "digits-c"],
    "tuned method": ["tune", "tnet", "--shift", "digits-c"],
    "tuned option": ["tune", "tent", "--shift", "digits-c", "--grid", "lrr=[1]"],
    "way of mixing": ["soup", "mix", "a.pth", "b.pth", "-o", "c.safetensors", "--how", "unifrom"],
    "data": ["stock", "digts"],
    "objective": ["stock", "digits", "--objective", "mea"],
}


def outcome_of(commands: Sequence[Sequence[str]], folder: Path) -> list[tuple[int, str]]:
    """Run commands in one new process and return codes and errors; fail if it loaded torch or has a child left."""
    code = f"""
import contextlib, io, json, sys
from bench.cli.main import start
found = []
for command in {[list(command) for command in commands]!r}:
    sys.argv = ["bench", *command]
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            start()
    except SystemExit as leave:
        found.append((leave.code or 0, said.getvalue()))
heavy = {{"torch", "torchvision", "timm", "sklearn", "pandas"}} & set(sys.modules)
assert not heavy, heavy
print(json.dumps(found))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, cwd=folder)
    assert done.returncode == 0, done.stderr
    return [(code, text) for code, text in json.loads(done.stdout)]


def test_a_typo_costs_no_torch_and_leaves_no_folder(tmp_path: Path) -> None:
    (tmp_path / "keys.toml").write_text('method = "tent"\nshift = "digits-c"\nsevrity = 3\n')
    (tmp_path / "runs.toml").write_text('method = "tent"\n[[runs]]\nshfit = "digits-c"\n')
    (tmp_path / "mine.py").write_text("class Mine: ...\n")
    before = set(tmp_path.iterdir())
    for name, (code, said) in zip(TYPOS, outcome_of(list(TYPOS.values()), tmp_path), strict=True):
        assert code in (2, 3), (name, said)
        assert said.count("\n") == 1, (name, said)
        assert said.startswith("bench: "), (name, said)
        assert "Input should" not in said, (name, said)
        hinted = "did you mean" in said or name in ("severity", "device", "file", "run", "value")
        assert hinted, (name, said)
    assert set(tmp_path.iterdir()) == before


def test_a_failure_after_workers_were_started_leaves_no_process_and_no_folder(tmp_path: Path) -> None:
    """The pipes of a process close when the last of its children has ended."""
    # A limit that only the class of the method knows.
    child = quick_processes.Process(["-m", "bench", *RUN, "--set", "tent.lr=-1", "--jobs", "2"], cwd=tmp_path)
    code = child.wait()
    began = time.monotonic()
    _, said = child.communicate()
    assert code == 2, said
    assert time.monotonic() - began < 5
    assert "tent.lr" in said
    assert not list(tmp_path.iterdir())
    if sys.platform == "linux":
        alive = [entry for entry in Path("/proc").iterdir() if entry.name.isdigit() and _works_in(entry, tmp_path)]
        assert not alive


def _works_in(process: Path, folder: Path) -> bool:
    try:
        return (process / "cwd").readlink() == folder
    except OSError:
        return False


@pytest.mark.parametrize("name", ["digits-c", "cifar10-c-gen"])
def test_the_corruptions_of_a_shift_are_those_that_it_has(name: str) -> None:
    shift = load_shift(name)
    known = corruptions_of(SHIFTS[name])
    assert known is not None
    assert known == (*shift.corruptions, *shift.tuning_corruptions, "natural")


def test_the_closed_sets_are_those_of_the_code() -> None:
    from bench.models.classifiers import _LOADERS
    from bench.models.known_names import KINDS
    from bench.soups.learn_coefficients import _WAYS
    from bench.soups.mix_files import MIXERS
    from bench.training.pretrain_stock import OBJECTIVES, SOURCES

    assert tuple(MIXERS) == checks.WAYS_TO_MIX
    assert tuple(_WAYS) == checks.WAYS_TO_SEASON
    assert tuple(SOURCES) == checks.STOCK_DATA
    assert tuple(OBJECTIVES) == checks.OBJECTIVES
    assert tuple(_LOADERS) == KINDS


def test_every_network_of_timm_and_torchvision_is_known() -> None:
    import timm
    import torchvision

    from bench.models.known_names import check_model, check_stock

    for name in timm.list_models()[::50]:
        check_model(f"timm:{name}")
        check_model(name)
        check_stock(f"timm:{name}:32")
    for name in torchvision.models.list_models(module=torchvision.models):
        check_model(f"torchvision:{name}.DEFAULT")
    for tagged in timm.list_models(pretrained=True)[::100]:
        check_model(f"timm:{tagged}@weights.pth#model")


def test_a_run_of_every_method_passes_the_check() -> None:
    from methods import METHODS

    for name, row in METHODS.items():
        check_names([RunSpec(method=name, shift="digits-c", options={row.options_of or name: {}})])
    check_names([RunSpec(method="tent", shift="digits-c", corruption=["fog", "jpeg"], with_baselines=True)])


def test_a_grid_is_refused_only_if_a_corruption_is_in_none_of_its_runs() -> None:
    cells = cells_of({"method": "tent", "shift": "digits-c,cifar10-c-gen", "corruption": "glass_blur"})
    check_names([cell.spec for cell in cells])
    with pytest.raises(UsageError, match="glass_blur"):
        check_names([cells[0].spec])


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"severity": 9}, r"^--severity takes numbers"),
        ({"seeds": 0}, r"^--seeds must be 1 or more, not 0$"),
        ({"metod": "tent"}, r"^unknown setting 'metod'; did you mean 'method'\?$"),
        ({"batch_size": "many"}, r"^--batch-size must be a whole number, not 'many'$"),
        ({"launch": "slurm", "slurm": {"time": "long"}}, r"^--slurm time must be a whole number, not 'long'$"),
        ({"slurm": {"partion": "x"}}, r"^unknown setting of slurm 'partion'; did you mean 'partition'\?$"),
    ],
)
def test_python_users_get_one_sentence_too(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(BenchError, match=sentence):
        RunSpec(**{"method": "tent", "shift": "digits-c", **settings})


@pytest.fixture
def finished_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[RunSpec, Path]:
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "out"
    spec = RunSpec(method="source", shift="digits-c", corruption="fog", launch="serial", out=out)
    before = finished.state_of_inputs([spec])
    outcome = run(spec)
    assert finished.recall([spec], out) is None
    finished.keep([spec], out, before, [outcome])
    return spec, out


def test_a_finished_run_is_recalled_without_torch(finished_run: tuple[RunSpec, Path], tmp_path: Path) -> None:
    spec, out = finished_run
    found = finished.recall([spec], out)
    assert found is not None
    assert found.outcomes[0].reused == 2
    command = ["run", "--method", "source", "--shift", "digits-c", "--corruption", "fog", "--launch", "serial"]
    ((code, said),) = outcome_of([[*command, "--out", str(out)]], tmp_path)
    assert code == 0
    assert "0 measured, 2 reused" in said


def test_nothing_is_recalled_when_an_input_changed(
    finished_run: tuple[RunSpec, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, out = finished_run
    for changed in ({"seed": 1}, {"rerun": True}, {"severity": (3.0,)}, {"options": {"source": {"lr": 0.1}}}):
        assert finished.recall([spec.model_copy(update=changed)], out) is None
    for name in ("package_digest", "_assets", "_installed", "_devices"):
        with monkeypatch.context() as patch:
            patch.setattr(finished, name, lambda: "other")
            assert finished.recall([spec], out) is None
    with monkeypatch.context() as patch:
        patch.setenv("SOUPBENCH_DATA", "/elsewhere")
        assert finished.recall([spec], out) is None
    assert finished.recall([spec], out) is not None
    next((out / "records").glob("*.json")).unlink()
    assert finished.recall([spec], out) is None


def test_files_and_code_of_the_user_are_inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    images, code = tmp_path / "images" / "a" / "1.png", tmp_path / "mine.py"
    images.parent.mkdir(parents=True)
    images.write_bytes(b"1")
    code.write_text("class Mine: ...\n")
    stock = tmp_path / "stock.pth"
    stock.write_bytes(b"1")
    spec = RunSpec(method="mine.py:Mine", shift="folder:images", stock="stock.pth")
    assert finished.state_of_inputs([spec]) is None  # the files have just changed
    monkeypatch.setattr(finished, "is_settled", lambda *_: True)
    states = [finished.state_of_inputs([spec])]
    for change in (
        lambda: images.write_bytes(b"2"),
        lambda: (images.parent / "2.png").write_bytes(b"1"),
        lambda: code.write_text("class Mine:\n    x = 1\n"),
        lambda: stock.write_bytes(b"2"),
    ):
        time.sleep(0.02)
        change()
        states.append(finished.state_of_inputs([spec]))
    assert None not in states
    assert len(set(states)) == len(states)


@pytest.mark.parametrize(
    "settings",
    [
        {"shift": "hf:some/repo"},
        {"shift": "mini-vtab:pets"},
        {"shift": "digits-c", "model": "timm:resnet18"},
        {"shift": "digits-c", "model": "mine.py:factory"},
        {"shift": "cifar10-c"},
    ],
)
def test_what_cannot_be_listed_has_no_receipt(settings: dict[str, Any], tmp_path: Path) -> None:
    assert finished.state_of_inputs([RunSpec(method="source", data_root=tmp_path, **settings)]) is None


def test_paths_in_a_run_file_work_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("mine.py", "w.pth"):
        (tmp_path / name).touch()
    for name in ("images", "old", "digits"):
        (tmp_path / name).mkdir()
    here = os.fspath(tmp_path)
    found = with_absolute_paths(
        {
            "method": ["source+mine.py:Mine", "tent"],
            "shift": "folder:images",
            "model": "timm:resnet18@w.pth#ema",
            "stock": "digits",
            "corruption": ["fog", "mine.py:blur"],
            "init_from": "./old:selfsoup",
            "data_root": Path("data"),
            "classes": "natural",
        }
    )
    assert found == {
        "method": [f"source+{here}/mine.py:Mine", "tent"],
        "shift": f"folder:{here}/images",
        "model": f"timm:resnet18@{here}/w.pth#ema",
        "stock": "digits",
        "corruption": ["fog", f"{here}/mine.py:blur"],
        "init_from": f"{here}/old:selfsoup",
        "data_root": f"{here}/data",
        "classes": "natural",
    }


def test_small_courtesies(tmp_path: Path) -> None:
    found = outcome_of(
        [
            ["cite", "tent,memo"],
            ["data", "fetch", "digits-c"],
            ["run", "--demo", "--data-root", "x"],
            ["run", "--record", "k", "--from", "d", "--demo"],
            ["leaderboard", "-o", "site", "--matrix"],
            ["results", "x", "--watch", "--json"],
        ],
        tmp_path,
    )
    assert [code for code, _ in found] == [0, 0, 2, 2, 2, 2], found
