"""Names are checked before torch is loaded, a typo leaves nothing behind, and a finished run is recalled."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import quick_processes
from typer.testing import CliRunner

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

HOME = Path(__file__).resolve().parents[3]
FIELD = str(HOME / "leaderboards" / "results" / "digits-c-field.jsonl")
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
    "architecture": ["train", "digits-c", "--arch", "restnet20"],
    "size of an architecture": ["stock", "digits", "--arch", "vit_mni_patch4_32"],
    "data to train on": ["train", "cifar1"],
    "shift to explain": ["data", "explain", "digit-c"],
    "shift to verify": ["data", "verify", "digit-c"],
    "shift to export": ["data", "export", "digit-c", "-o", "x"],
    "corruption to export": ["data", "export", "digits-c", "-o", "x", "--corruption", "fogg"],
    "layout": ["data", "export", "digits-c", "-o", "x", "--layout", "cifra-c"],
    "shift to find": ["data", "status", "digit-c"],
    "shift to clean": ["data", "clean", "digit-c"],
    "shift to fetch": ["data", "fetch", "digit-c"],
    "corruption to draw": ["gallery", "-o", "x.png", "--corruption", "fogg"],
    "profile": ["gallery", "-o", "x.png", "--profile", "digit32"],
    "method to check": ["check", "method", "tnet"],
    "class to check": ["check", "method", "mine.py:Mime"],
    "file of a shift": ["check", "shift", "nowhere.py"],
    "name of a shift": ["new", "shift", "3d"],
    "shift to pin": ["publish", "known", "digit-c"],
    "option to tune": ["tune", "tent", "--shift", "digits-c", "--grid", "lrr=[1]"],
    "grid": ["tune", "tent", "--shift", "digits-c", "--grid", "lr"],
    "device to compare": ["doctor", "--gpu", "--device", "coda"],
    "flags of doctor": ["doctor", "--only", "fog"],
    "list": ["list", "metods"],
    "thing": ["show", "metod", "tent"],
    "method to show": ["show", "method", "tnet"],
    "protocol to show": ["show", "protocol", "contnual"],
    "model to show": ["show", "model", "digts"],
    "suite to show": ["show", "suite", "digts"],
    "card": ["reproduce", "tent-cifar10"],
    "method to cite": ["cite", "tent,mmeo"],
    "demonstration": ["run", "demo"],
    "folder of records": ["leaderboard", "--from", "nowhere"],
    "format": ["leaderboard", "--from", FIELD, "--format", "mdd"],
    "axis": ["leaderboard", "--from", FIELD, "--matrix", "--by", "shfit"],
    "column": ["leaderboard", "--from", FIELD, "--columns", "accurcy"],
    "column to sort by": ["leaderboard", "--from", FIELD, "--sort", "accurcy"],
    "field": ["leaderboard", "--from", FIELD, "--where", "metod=tent"],
    "value of a field": ["leaderboard", "--from", FIELD, "--where", "method=tnet"],
    "shift of records": ["leaderboard", "digit-c", "--from", FIELD],
    "row": ["compare", "tnet", "source", "--from", FIELD],
    "record": ["run", "--record", "kkk", "--from", FIELD],
    "tracker": [*RUN, "--tracker", "wandbb"],
    "head": [*RUN, "--head", "knnn"],
    "pool": [*RUN, "--pool", "digit-c"],
}
UNHINTED = ("severity", "device", "file", "run", "value", "file of a shift", "name of a shift", "grid", "record")
UNHINTED += ("device to compare", "flags of doctor", "folder of records")
RUN_FILES = {
    "is not TOML": ('method = "tent\n', "is not a TOML file"),
    "method is a number": ("method = 3\n", "--method must be a name or a list of names, not 3"),
    "corruption is a number": ("corruption = 3\n", "--corruption must be a name or a list of names, not 3"),
    "corruption is a table": ("corruption = {a = 1}\n", "--corruption must be a name or a list of names"),
    "set is a number": ("set = 3\n", "set must hold a table of options for each method"),
    "set of a method is a number": ("set = {tent = 3}\n", "set.tent must be a table of options"),
    "option is text": ('[set.tent]\nlr = "x"\n', "tent.lr must be a number, not 'x'"),
    "option is not a number": ("[set.tent]\nlr = nan\n", "tent.lr must be a number, not nan"),
    "option is a table": ("[set.tent]\nlr = {a = 1}\n", "tent.lr must be a number, not {'a': 1}"),
    "number is text": ('seeds = "one"\n', "--seeds must be a whole number, not 'one'"),
    "number is a fraction": ("seeds = 1.5\n", "--seeds must be a whole number, not 1.5"),
    "number is infinite": ("limit = inf\n", "--limit must be a finite number, not inf"),
    "number is a day": ("seed = 2020-01-01\n", "--seed must be a whole number"),
    "path is a table": ("out = {a = 1}\n", "--out must be a path"),
    "truth is text": ('rerun = "maybe"\n', "--rerun must be true or false, not 'maybe'"),
    "runs are no tables": ("runs = [3]\n", "runs must be tables of settings"),
    "severity is a list of lists": ("severity = [[1]]\n", "--severity takes numbers"),
    "a key twice": ("seed = 1\nseed = 2\n", "is not a TOML file"),
}
PARSED = {
    "whole number": ([*RUN, "--jobs", "many"], "'--jobs': must be a whole number, not 'many'"),
    "number": (["train", "digits-c", "--lr", "x"], "'--lr': must be a number, not 'x'"),
    "limit": (["train", "digits-c", "--epochs", "0"], "'--epochs': must be 1 or more, not '0'"),
    "flag": (["run", "--metod", "tent"], "No such option: --metod"),
    "command": (["shw"], "did you mean 'show'"),
    "command of a group": (["data", "fetc"], "did you mean 'fetch'"),
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
heavy = {{"torch", "torchvision", "timm", "sklearn", "pandas", "matplotlib"}} & set(sys.modules)
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
        assert "did you mean" in said or name in UNHINTED, (name, said)
    assert set(tmp_path.iterdir()) == before


def test_a_run_file_of_any_kind_is_one_sentence(tmp_path: Path) -> None:
    commands = []
    for number, (text, _) in enumerate(RUN_FILES.values()):
        given = text.partition(" ")[0]
        before = "".join(line for line in ('method = "tent"\n', 'shift = "digits-c"\n') if line.split()[0] != given)
        (tmp_path / f"{number}.toml").write_text(before + text)
        commands.append(["run", f"{number}.toml"])
    (tmp_path / "folder.toml").mkdir()
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe\x00")
    sentences = {name: sentence for name, (_, sentence) in RUN_FILES.items()}
    sentences |= {"a folder": "folder.toml cannot be read", "bytes": "bytes.toml is not a TOML file"}
    found = outcome_of([*commands, ["run", "folder.toml"], ["run", "bytes.toml"]], tmp_path)
    for (name, sentence), (code, said) in zip(sentences.items(), found, strict=True):
        assert code == 2, (name, said)
        assert said.startswith("bench: "), (name, said)
        assert said.count("\n") == 1, (name, said)
        assert sentence in said, (name, said)
    assert not (tmp_path / "runs").exists()


def test_the_parser_of_options_speaks_as_the_rest(tmp_path: Path) -> None:
    found = outcome_of([command for command, _ in PARSED.values()], tmp_path)
    for (name, (_, sentence)), (code, said) in zip(PARSED.items(), found, strict=True):
        assert code == 2, (name, said)
        assert sentence.lower() in said.lower(), (name, said)
        assert "Input should" not in said, (name, said)


def test_help_cuts_nothing_in_80_columns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each line of a command in the help of its group is the whole first sentence of its own help."""
    from typer.main import get_command

    from bench.cli.main import app

    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("sys.argv", ["bench"])
    runner = CliRunner()
    groups: dict[str, Any] = {"": get_command(app)}
    groups |= {name: each for name, each in groups[""].commands.items() if hasattr(each, "commands")}
    for name, group in groups.items():
        shown = runner.invoke(app, [*name.split(), "--help"], env={"COLUMNS": "80"}).output
        assert max(map(len, shown.splitlines())) <= 80
        words = " ".join(shown.split())
        for command in group.commands.values():
            sentence = " ".join(command.help.split("\n\n")[0].split()).split(". ")[0].rstrip(".")
            assert sentence in words, (name, command.name)


COMPLETED = {
    "run --method source,te": {"source,tent", "source,tent_pool"},
    "run --method selfsoup+rot": {"selfsoup+rotta"},
    "run --shift digi": {"digits-c"},
    "run --corruption fog,motion": {"fog,motion_blur"},
    "run --protocol cont": {"continual"},
    "run --split d": {"disjoint", "dev"},
    "run --suite vt": {"vtab", "vtab-c"},
    "reproduce tent-cifar10-c-": {"tent-cifar10-c-augmix", "tent-cifar10-c-continual"},
    "show meth": {"method"},
    "show shift digi": {"digits-c"},
    "show method tent digi": {"digits-c"},
    "list mod": {"models"},
    "cite tent,mem": {"tent,memo"},
    "leaderb": {"leaderboard"},
}


def test_the_shell_completes_names_without_torch(tmp_path: Path) -> None:
    code = f"""
import json, os, sys
from bench.cli.main import start
for words in {list(COMPLETED)!r}:
    read, write = os.pipe()
    if os.fork() == 0:
        os.dup2(write, 1)
        sys.stdout = open(1, "w", closefd=False)
        number = len(words.split())
        os.environ |= {{"_BENCH_COMPLETE": "complete_bash", "COMP_WORDS": "bench " + words, "COMP_CWORD": str(number)}}
        sys.argv = ["bench"]
        try:
            start()
        except SystemExit:
            pass
        sys.stdout.flush()
        os._exit(1 if {{"torch", "numpy"}} & set(sys.modules) else 0)
    os.close(write)
    said = os.fdopen(read).read()
    _, status = os.wait()
    assert status == 0, words
    print(json.dumps(said.split()))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for (words, expected), line in zip(COMPLETED.items(), done.stdout.splitlines(), strict=True):
        assert set(json.loads(line)) == expected, words


@pytest.mark.skipif(sys.platform == "win32", reason="closes file descriptors as a shell does")
@pytest.mark.parametrize(
    ("redirected", "code", "sentence"),
    [
        (">&-", 0, ""),
        ("2>&-", 0, ""),
        ("> /dev/full", 1, "bench: cannot write: No space left on device; free some space"),
        ("| true", 0, ""),
        ("| head -1", 0, ""),
    ],
)
@pytest.mark.parametrize("command", ["list methods --json", pytest.param("publish schema", marks=pytest.mark.slow)])
def test_an_output_that_is_closed_full_or_left_is_no_traceback(
    redirected: str, code: int, sentence: str, command: str, tmp_path: Path
) -> None:
    if "/dev/full" in redirected and not Path("/dev/full").is_char_device():
        pytest.skip("this system has no /dev/full")
    line = f"{sys.executable} -u -m bench {command} {redirected}; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=100, cwd=tmp_path)
    assert done.returncode == code, done.stderr
    assert done.stderr.startswith(sentence)
    assert done.stderr.count("\n") == bool(sentence)


def test_a_device_is_written_to_and_stays_a_device(tmp_path: Path) -> None:
    from bench.core.cache_dir import write_bytes

    if not hasattr(os, "mkfifo"):
        pytest.skip("this system has no named pipes")
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    end = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_bytes(pipe, b"text")
    assert os.read(end, 10) == b"text"
    os.close(end)
    assert pipe.is_fifo()
    with pytest.raises(BenchError, match="it is a folder; give the name of a file"):
        write_bytes(tmp_path, b"text")


@pytest.mark.parametrize(
    "encoding", ["ascii", *(pytest.param(wider, marks=pytest.mark.slow) for wider in ("latin-1", "cp1252"))]
)
def test_any_encoding_of_the_output_is_written(encoding: str, tmp_path: Path) -> None:
    commands = [
        *(["list", what] for what in ("methods", "shifts", "models", "suites", "reproductions")),
        ["show", "method", "memo"],
        ["show", "reproduction", "tent-cifar10-c"],
        ["cite", "selfsoup"],
        ["data", "status"],
        ["leaderboard", "--from", FIELD],
        ["leaderboard", "--from", FIELD, "--format", "md"],
    ]
    code = f"""
import sys
from bench.cli.main import start
for command in {commands!r}:
    sys.argv = ["bench", *command]
    try:
        start()
    except SystemExit as leave:
        assert not leave.code, (command, leave.code)
"""
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, env=environment, timeout=300, cwd=tmp_path)
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    assert "source" in done.stdout.decode(encoding)


# Weights, a set of the hub and an archive are asked for in different ways; offline all stop at the same place.
@pytest.mark.parametrize(
    ("command", "offline"),
    [
        ("run --method source --shift digits-c --severity 3 --launch serial --model timm:resnet18.a1_in1k", ""),
        ("data fetch cifar10-c-gen", ""),
        ("data fetch cifar10-c", ""),
        ("data fetch cifar10-c-gen", "1"),
        pytest.param(
            "run --method source --shift digits-c --severity 3 --launch serial --model timm:resnet18.a1_in1k",
            "1",
            marks=pytest.mark.slow,
        ),
        pytest.param("data fetch cifar10-c", "1", marks=pytest.mark.slow),
    ],
)
def test_without_a_network_the_hub_is_asked_once(command: str, offline: str, tmp_path: Path) -> None:
    """Its client would try each file six times, for a minute and more."""
    closed = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    kept = {name: value for name, value in os.environ.items() if name.lower() != "no_proxy"}
    caches = {"HF_HOME": str(tmp_path / "hub"), "SOUPBENCH_CACHE": str(tmp_path / "cache")}
    environment = {**kept, **closed, **caches, "HF_HUB_OFFLINE": offline}
    done = quick_processes.run(["-m", "bench", *command.split()], cwd=tmp_path, env=environment, timeout=120)
    assert done.returncode == 3, done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("bench: "), done.stderr
    assert "network" in last, last
    assert "Retry" not in done.stderr, done.stderr
    assert "Pool" not in last, last


@pytest.mark.skipif(sys.platform != "linux", reason="sends an interrupt to a group of processes")
@pytest.mark.parametrize("wait", [0.05, 0.3, 1.5])
def test_an_interrupt_at_any_moment_is_one_sentence(wait: float, tmp_path: Path) -> None:
    """To all processes at once, as a terminal sends it; also while modules are loaded, here and in the workers."""
    command = [sys.executable, "-m", "bench", *RUN, "--jobs", "2", "--out", "out"]
    child = subprocess.Popen(
        command,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "SOUPBENCH_CACHE": str(tmp_path / "cache")},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    time.sleep(wait)
    os.killpg(child.pid, signal.SIGINT)
    _, said = child.communicate(timeout=60)
    # Python itself ends with 1 where it is interrupted before it runs a line of this package.
    assert child.returncode in (130, -signal.SIGINT) or "bench" not in said, said
    assert "Traceback" not in said or "bench" not in said, said


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
    from bench.models.known_names import KINDS
    from bench.models.load_model import _LOADERS
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
    options = {"source": {"epochs": 1}}
    few = {"corruption": "fog", "limit": 12}
    spec = RunSpec(method="source", shift="digits-c", launch="serial", out=out, options=options, **few)
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
    command += ["--limit", "12", "--set", "source.epochs=1"]
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


@pytest.mark.parametrize("dry", [True, False])
def test_a_cache_that_cannot_be_written_is_told_before_any_work(
    dry: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file in the place of the folder stops root too, whom a read-only folder would not stop."""
    from bench.cli import main as cli

    (tmp_path / "file").touch()
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    for place in ("file", "file/below"):
        monkeypatch.setenv("SOUPBENCH_CACHE", str(tmp_path / place))
        monkeypatch.setattr(sys, "argv", ["bench", *RUN, "--severity", "3", *(["--dry-run"] if dry else [])])
        with pytest.raises(SystemExit) as leave:
            cli.start()
        assert leave.value.code == 2
        said = capsys.readouterr().err
        assert re.fullmatch(r"bench: cannot write in the cache .*; set SOUPBENCH_CACHE to another folder\n", said)
    assert not list(Path.cwd().iterdir())
