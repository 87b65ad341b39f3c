"""The command line as a user sees it: exit codes, messages, output streams and lazy imports."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import quick_processes

from bench import __version__
from bench.cli import main as cli
from bench.cli import run as bench_run
from bench.settings.grid import default_folder
from bench.settings.run_spec import make_spec
from bench.shifts import SHIFTS
from bench.shifts.corruption_sets import sets_of
from methods import METHODS

Bench = Callable[..., "Done"]

HOME = Path(__file__).resolve().parents[3]


class Done:
    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Bench:
    def call(*arguments: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["bench", *map(str, arguments)])
        with pytest.raises(SystemExit) as leave:
            cli.start()
        out, err = capsys.readouterr()
        return Done(int(leave.value.code or 0), out, err)

    return call


def flags(settings: dict[str, Any]) -> list[str]:
    return [text for key, value in settings.items() for text in (f"--{key.replace('_', '-')}", str(value))]


FAST = ["--set", "source.epochs=1"]


# Those that list and show come first, because they load less than the others.
LIGHT = [
    ["list", "methods"],
    ["list", "shifts"],
    ["list", "corruptions"],
    ["list", "models"],
    ["list", "protocols"],
    ["list", "boards"],
    ["show", "method", "selfsoup"],
    ["show", "method", "tent", "--json"],
    ["show", "shift", "digits-c"],
    ["show", "corruption", "fog"],
    ["cite", "selfsoup+tent"],
    ["run", "--help"],
    ["--help"],
]


def test_help_list_and_show_load_nothing_heavy() -> None:
    """One new process runs all commands; after each, nothing heavy is loaded."""
    code = f"""
import contextlib, io, sys
from bench.__main__ import main
for command in {LIGHT!r}:
    sys.argv, said = ["bench", *command], io.StringIO()
    try:
        with contextlib.redirect_stdout(said):
            main()
    except SystemExit as leave:
        assert not leave.code, (command, leave.code)
    assert said.getvalue(), command
    heavy = {{"torch", "torchvision", "timm", "pandas", "datasets", "scipy", "sklearn"}} & set(sys.modules)
    assert not heavy, (command, heavy)
    slow = {{"numpy", "pydantic", "rich.console"}} & set(sys.modules)
    assert not slow or command[0] not in ("list", "show"), (command, slow)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_protocols_are_listed_as_their_classes_are(bench: Bench) -> None:
    from dataclasses import fields

    from bench.evaluation.protocols import PROTOCOLS

    assert json.loads(bench("list", "protocols", "--json").out) == [
        {
            "name": name,
            "parameters": ", ".join(f"{field.name}={field.default}" for field in fields(kind)),
            "summary": kind.summary,
        }
        for name, kind in PROTOCOLS.items()
    ]


@pytest.mark.parametrize("name", SHIFTS)
def test_a_shift_is_shown_in_words(bench: Bench, name: str) -> None:
    lines, _, budgets = bench("show", "shift", name).out.partition("budgets:\n")
    assert all(line.startswith("  ") for line in budgets.splitlines())
    facts = dict(line.split(": ", 1) for line in lines.splitlines())
    assert facts["name"] == name
    found = sets_of(SHIFTS[name])
    if found is not None:
        assert facts.get("corruptions", "") == ", ".join(found[0])
    for key, value in facts.items():
        assert value.strip()
        assert value not in ("None", "False", "True")
        assert not value.startswith(("(", "[", "{")), key


def test_tables_are_shown_in_words(bench: Bench) -> None:
    assert "  imagenet224: (1.5, 2, 256), (2, 2, 256)," in bench("show", "corruption", "fog").out
    assert "  digits-c: rate = 3e-05, passes = 3" in bench("show", "method", "tent_pool").out


@pytest.mark.parametrize("name", METHODS)
def test_every_method_can_be_shown(bench: Bench, name: str) -> None:
    done = bench("show", "method", name, "--json")
    facts = json.loads(done.out)
    assert facts["name"] == name
    assert facts["track"] == METHODS[name].access.track
    assert facts["citation"]
    assert facts["options"] or name == "bn"


@pytest.mark.parametrize(
    ("asked", "code"),
    [
        (["--shift", "cifar10-c", "--data-root", "nowhere"], 3),
        (["--shift", "digits-c", "--set", "tent.lr=1"], 2),
    ],
)
def test_a_run_that_cannot_be_planned_leaves_no_folder(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: list[str], code: int
) -> None:
    monkeypatch.chdir(tmp_path)
    mine = tmp_path / "mine"
    mine.mkdir()
    assert bench("run", "--method", "source", *asked).code == code
    assert not list(tmp_path.glob("runs/*"))
    assert bench("run", "--method", "source", *asked, "--out", mine).code == code
    assert mine.is_dir()


def test_the_same_command_means_the_same_folder(
    bench: Bench, settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also on another day: the clock of the second run is a day ahead."""
    monkeypatch.chdir(tmp_path)
    del settings["out"]
    assert bench("run", *flags(settings), *FAST).code == 0
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + 86_400)
    again = bench("run", *flags(settings), *FAST)
    assert "3 reused" in again.err
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["digits-c-source"]


def test_no_folder_is_named_after_a_day(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = make_spec({"method": "source,sel/f.py:Own", "shift": "folder:my/photos"})
    assert default_folder(spec) == Path("runs/folder_my_photos-source-sel_f.py_Own")
    for name in ("cli/run", "planning/plan"):
        assert "datetime" not in (HOME / "bench" / f"{name}.py").read_text()


def test_runs_are_left_out_of_the_repository_and_run_files_are_not() -> None:
    home = HOME
    if not (home / ".git").exists():
        pytest.skip("no checkout")
    paths = ["runs/demo/run.toml", "runs/digits-c-tent/records.jsonl", "runs/new.toml", "runs/tuning/x/tent.jsonl"]
    done = subprocess.run(["git", "check-ignore", *paths], cwd=home, capture_output=True, text=True, timeout=20)
    assert done.stdout.split() == paths[:2]


def test_rows_of_the_table_agree_with_their_classes() -> None:
    from dataclasses import fields

    from bench.core.import_object import load_object
    from bench.settings.methods import build_config, options_of

    for row in METHODS.values():
        cls = load_object(row.path)
        assert cls.access == row.access, row.name
        assert (cls.__doc__ or "").strip()
        config = build_config(row, {})
        options = options_of(row)
        assert [option.name for option in options] == [field.name for field in fields(config)], row.name
        assert set(cls.search) <= {field.name for field in fields(config)}


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["show", "method", "tnet"], 2, "did you mean 'tent'"),
        (["list", "method"], 2, "did you mean 'methods'"),
        (["list"], 2, "Missing argument 'methods|shifts"),
        (["list", "--json"], 2, "Missing argument 'methods|shifts"),
        (["list", "methods", "shifts"], 2, "unexpected extra argument(s) (shifts)"),
        (["list", "methods", "--jsn"], 2, "--json"),
        (["show", "method"], 2, "Missing argument 'name'"),
        (["show", "method", "tent", "bn"], 2, "unknown shift 'bn'"),
        (["run"], 2, "bench run --demo"),
        (["run", "--method", "tent"], 2, "--shift NAME"),
        (["run", "nothing.toml"], 2, "no run file nothing.toml"),
        (["run", "--method", "tent", "--shift", "digits-c", "--severity", "9"], 2, "5"),
        (["run", "--method", "tent", "--shift", "digits-c", "--set", "lr=1"], 2, "NAME.key=value"),
        (["run", "--method", "tent", "--shift", "digits-c", "--set", "tent.lr=-1"], 2, "bench: tent.lr must be"),
        (
            ["run", "--method", "selfsoup", "--shift", "digits-c", "--set", "selfsoup.mixes=[uniform,best]"],
            2,
            "bench: selfsoup.mixes takes a list in quotes",
        ),
        (
            ["run", "--method", "come_tent", "--shift", "digits-c", "--set", "come_tent.lr=-1"],
            2,
            "bench: come_tent.lr must be",
        ),
        (
            ["run", "--method", "tent", "--shift", "digits-c", "--tracker", "paper"],
            2,
            "--tracker must be 'tensorboard'",
        ),
        (
            ["run", "--method", "tent", "--shift", "digits-c", "--track", "paper"],
            2,
            "--tracker must be 'tensorboard'",
        ),
        (
            ["run", "--method", "tent", "--shift", "digits-c", "--devices", "0"],
            2,
            "--devices must be 1 or more",
        ),
        (["run", "--record", "abc"], 2, "--from DIR"),
        (["run", "--methd", "tent"], 2, "--method"),
        (["frobnicate"], 2, "No such command"),
        (["results", "nowhere"], 3, "bench run --out DIR"),
        (["verify", "nowhere"], 3, "bench run --out DIR"),
        (["leaderboard"], 2, "--from DIR"),
        (["leaderboard", "--from", "nowhere"], 3, "nowhere"),
        (["compare", "tent", "source"], 2, "--from DIR"),
        (["tune", "tent", "--shift", "digits-c", "--split", "disjoint"], 2, "use --split dev"),
        (["tune", "tent", "--shift", "digits-c", "--corruption", "fog"], 2, "speckle_noise, gaussian_blur"),
        (["tune", "bn", "--shift", "digits-c"], 2, "no option to tune"),
        (["tune", "tent", "--shift", "digits-c", "--grid", "lr=1e-3"], 2, "--grid takes key=[values]"),
        (["tune", "tent", "--shift", "digits-c", "--grid", "rate=[1e-3]"], 2, "option of tent"),
        (["stock", "digit", "-o", "x"], 2, "did you mean 'digits'"),
    ],
)
def test_what_goes_wrong_is_one_sentence_and_an_exit_code(
    bench: Bench, arguments: Sequence[str], code: int, sentence: str
) -> None:
    done = bench(*arguments)
    assert done.code == code
    assert sentence in done.err
    assert not done.out
    assert done.err.strip() == done.err.rstrip("\n"), "blank lines around it"
    assert "Traceback" not in done.err


def test_track_is_another_name_of_tracker(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[dict[str, Any]] = []
    monkeypatch.setattr(bench_run, "run_spec", lambda _file, _demo, _suite, flags, *_, **__: given.append(flags) or 0)
    for option in ("--tracker", "--track"):
        assert bench("run", option, "mlflow").code == 0
    assert given[0] == given[1]
    assert given[0]["tracker"] == "mlflow"
    assert "--tracker, --track" in bench("run", "--help").out


def test_the_headline_command_says_what_is_missing_what_it_costs_and_what_to_run(bench: Bench) -> None:
    done = bench("run", "--method", "selfsoup", "--shift", "imagenet-c")
    assert done.code == 3
    lines = done.err.strip().splitlines()
    assert len(lines) == 4
    for needed in ("ImageNet-C tree", "clean ImageNet", "MAE"):
        assert needed in lines[0]
    assert "hours" in lines[1]
    assert lines[2].startswith("cheaper: --budget short")
    assert "bench run --method selfsoup --shift digits-c" in lines[3]


def test_a_run_prints_the_board_alone_on_stdout(bench: Bench, settings: dict[str, Any]) -> None:
    done = bench("run", *flags(settings), *FAST, "--json")
    assert done.code == 0
    board = json.loads(done.out)
    assert [row["method"] for row in board["rows"]] == ["source"]
    assert "3 measured" in done.err
    again = bench("run", *flags(settings), *FAST)
    assert "0 measured, 3 reused" in again.err
    assert "source" in again.out


def test_a_dry_run_plans_and_writes_nothing(bench: Bench, settings: dict[str, Any], own_cache: Path) -> None:
    done = bench("run", *flags(settings), *FAST, "--dry-run", "--json")
    plan = json.loads(done.out)
    assert plan["trials"] == [{"method": "source", "part": "", "seed": 0, "conditions": 3, "done": 0, "missing": 3}]
    assert len(plan["trainings"]) == 2
    assert not settings["out"].exists()
    assert not [path for path in own_cache.rglob("*") if path.is_file()]


def test_papers_are_cited_once_each(bench: Bench) -> None:
    lines = bench("cite", "tent", "selfsoup+tent", "sar").out.splitlines()
    assert lines == [*(METHODS[name].citation for name in ("tent", "selfsoup", "sar")), lines[-1]]
    assert "soupbench" in lines[-1]
    assert bench("cite", "tnet").code == 2


def test_reading_commands_agree_with_the_records(bench: Bench, settings: dict[str, Any], tmp_path: Path) -> None:
    bench("run", *flags(settings), *FAST)
    folder = settings["out"]
    assert bench("verify", folder).code == 0
    (line,) = json.loads(bench("results", folder, "--json").out)
    assert (line["method"], line["done"], line["failed"]) == ("source", 3, 0)
    board = json.loads(bench("leaderboard", "--from", folder, "--format", "json").out)
    accuracy = board["rows"][0]["accuracy"]
    records = [json.loads(text) for text in (folder / "records.jsonl").read_text().splitlines()]
    mean = sum(r["metrics"]["accuracy"] for r in records if r["corruption"]) / 2
    assert accuracy == pytest.approx(mean)
    assert f"{100 * accuracy:.1f}" in (table := bench("leaderboard", "--from", folder, "--format", "md").out)
    assert bench("leaderboard", "--from", folder, "--format", "markdown").out == table
    assert "did you mean 'latex'?" in bench("leaderboard", "--from", folder, "--format", "LaTex").err
    for columns in ("method,forwards", "method,fwd"):
        assert bench("leaderboard", "--from", folder, "--format", "md", "--columns", columns, "--sort", "fwd").code == 0
    assert "\\columnwidth" in bench("leaderboard", "--from", folder, "--format", "tex", "--columns", "paper").out
    assert "did you mean 'paper'?" in bench("leaderboard", "--from", folder, "--columns", "papr").err
    assert "takes 'paper' alone" in bench("leaderboard", "--from", folder, "--columns", "paper,clean").err
    assert bench("leaderboard", "--from", folder, "--columns", "full", "--format", "csv").code == 0
    assert bench("leaderboard", "--from", folder, "--columns", "paper", "--format", "csv").code == 2
    target = tmp_path / "board.csv"
    assert bench("leaderboard", "--from", folder, "--format", "csv", "-o", target).out == ""
    assert "source" in target.read_text()
    assert bench("leaderboard", "--from", folder, "--format", "html").out.startswith("<!doctype html>")
    same = bench("compare", "source", "source", "--from", folder, "--format", "json")
    assert json.loads(same.out)["overall"]["difference"] == 0
    assert bench("compare", "source", "tent", "--from", folder).code == 2
    wanted = ("compare", "source", "source", "--from", folder, "--design", "--n", "50,100")
    assert [line["n"] for line in json.loads(bench(*wanted, "--format", "json").out)["sizes"]] == [50, 100]
    assert bench(*wanted, "--format", "csv", "-o", tmp_path / "design.csv").out == ""
    titles = "n,conditions,seeds,ingredient_draws,stocks,difference,a,b"
    assert (tmp_path / "design.csv").read_text().startswith(f"{titles}\n50,")
    assert "--seeds 1" in bench(*wanted, "--seeds", "3").err
    assert "add --design" in bench(*(part for part in wanted if part != "--design")).err
    assert "two of them at least" in bench("compare", "source", "source", "--from", folder, "--across-stocks").err
    assert "leave --across-stocks out" in bench(*wanted, "--across-stocks").err
    spread = ("compare", "soup", "source", "--design", "--spread", "images=40,label-draws=.5,ingredient_draws=1")
    draws = ("--n", "5000", "--label-draws", "12,24", "--ingredient-draws", "3,6")
    sizes = json.loads(bench(*spread, *draws, "--format", "json").out)["sizes"]
    assert [(size["seeds"], size["ingredient_draws"]) for size in sizes] == [(12, 3), (12, 6), (24, 3), (24, 6)]
    assert "label draws" in bench(*spread, *draws).out
    for more, reason in {
        ("--from", str(folder)): "leave --from",
        ("--conditions", "3"): "leave --conditions out",
        ("--n", ""): "add --n",
        ("--spread", "images"): "names and points",
        ("--spread", "images=x"): "names and points",
        ("--spread", "label_draws=1"): "over images is missing",
        ("--ingredient-draws", "5"): "cannot be divided",
    }.items():
        assert (refused := bench(*spread, *draws, *more)).code == 2, more
        assert reason in refused.err
    for text in ("0", "1.5", "-2", "x", "1" * 20):
        assert (refused := bench("compare", "a", "b", "--from", folder, "--design", f"--n={text}")).code == 2, text
        assert "whole numbers above 0" in refused.err
    assert "no record has seed=7" in bench("leaderboard", "--from", folder, "--where", "seed=7").err


def test_a_tampered_folder_is_caught_with_exit_4(bench: Bench, settings: dict[str, Any]) -> None:
    bench("run", *flags(settings), *FAST)
    path = next((settings["out"] / "records").glob("*.json"))
    record = json.loads(path.read_text())
    record["metrics"]["accuracy"] = 0.999
    path.write_text(json.dumps(record))
    done = bench("verify", settings["out"])
    assert done.code == 4
    assert path.name in done.out or record["key"] in done.out
    path.write_text("{")
    assert bench("leaderboard", "--from", settings["out"]).code == 4


def test_a_published_record_can_be_repeated(bench: Bench, settings: dict[str, Any]) -> None:
    settings["method"] = "tent"
    bench("run", *flags(settings), *FAST)
    record = next(
        json.loads(text)
        for text in (settings["out"] / "records.jsonl").read_text().splitlines()
        if json.loads(text)["corruption"] == "fog"
    )
    again = ("run", "--record", record["key"], "--from", settings["out"], "--stock", settings["stock"], "--jobs", 1)
    done = bench(*again)
    assert done.code == 0, done.err
    assert "same" in done.out
    assert bench("run", "--record", "0" * 32, "--from", settings["out"]).code == 3
    assert "leave --seed out" in bench(*again, "--seed", 3).err


def test_an_unwritable_folder_is_one_sentence(bench: Bench, settings: dict[str, Any], tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    settings["out"] = blocked / "out"
    done = bench("run", *flags(settings), *FAST)
    assert done.code in (1, 2)
    assert "choose another folder" in done.err
    assert "Traceback" not in done.err


def test_tuning_prints_option_sets_from_best_to_worst(bench: Bench, settings: dict[str, Any], tmp_path: Path) -> None:
    done = bench(
        "tune", "tent", "--shift", "digits-c", "--trials", 2, "--seeds", 1, "--stock", settings["stock"],
        "--jobs", 1, "--out", tmp_path / "tuning", *FAST, "--json",
    )  # fmt: skip
    assert done.code == 0, done.err
    rows = json.loads(done.out)
    assert len(rows) == 2
    assert {} in [row["options"] for row in rows]
    assert rows[0]["accuracy"] >= rows[1]["accuracy"]
    records = [json.loads(text) for text in (tmp_path / "tuning" / "records.jsonl").read_text().splitlines()]
    assert {r["split"] for r in records} == {"dev"}
    assert {r["corruption"] for r in records} == {None, "speckle_noise", "gaussian_blur"}


def test_tuning_tries_every_set_of_a_grid_that_is_given(bench: Bench, settings: dict[str, Any], tmp_path: Path) -> None:
    done = bench(
        "tune", "tent", "--shift", "digits-c", "--seeds", 1, "--stock", settings["stock"], "--jobs", 1,
        "--out", tmp_path / "tuning", *FAST, "--grid", "lr=[1e-4, 1e-3]",
        "--grid", 'optimizer=["sgd", "adam"]', "--json",
    )  # fmt: skip
    assert done.code == 0, done.err
    tried = [(row["options"]["lr"], row["options"]["optimizer"]) for row in json.loads(done.out)]
    assert sorted(tried) == [(1e-4, "adam"), (1e-4, "sgd"), (1e-3, "adam"), (1e-3, "sgd")]


def test_doctor_describes_the_installation(bench: Bench, own_cache: Path) -> None:
    report = json.loads(bench("doctor", "--json").out)
    assert report["cache"] == str(own_cache)
    assert report["torch"]
    assert "digits-c" in report["shifts"]
    assert "digits-c" in report["data_found"]
    assert "bench" in report["bench_on_path"]


def test_the_module_runs_like_the_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bench", "--version"], capture_output=True, text=True, timeout=60, env={**os.environ}
    )
    assert done.stdout.strip() == __version__


def test_an_interrupted_run_says_how_to_continue_and_continues(settings: dict[str, Any], own_cache: Path) -> None:
    settings |= {"jobs": 2, "method": "source,tent", "severity": "1-3", "seeds": 2}
    records = settings["out"] / "records"
    process = quick_processes.Process(["-m", "bench", "run", *flags(settings), *FAST])
    deadline = time.monotonic() + 600
    while not any(records.glob("*.json")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate()
    assert process.returncode == 130, err
    assert "Traceback" not in err
    kept = {path.name: path.read_bytes() for path in records.glob("*.json")}
    assert 0 < len(kept) < 28
    again = shlex.split(err.strip().splitlines()[-1].partition("continue with: ")[2])
    assert again[:2] == ["bench", "run"]
    done = quick_processes.run(["-m", *again, "--jobs", "1"])
    assert done.returncode == 0, done.stderr
    assert f"{len(kept)} reused" in done.stderr
    assert {path.name: path.read_bytes() for path in records.glob("*.json")}.items() >= kept.items()
    assert len(list(records.glob("*.json"))) == 28
