"""`bench reproduce` on small copies of the published layouts, with a tiny network in place of the published weights."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from bench.cli.main import app
from bench.core.errors import MissingDataError, UsageError
from bench.runs.reproduction import compare, exit_code
from bench.settings.reproductions import PublishedNumbers, cards, find_card
from bench.shifts.imagenet import COMMON
from leaderboards.boards import make_board
from leaderboards.store import Store
from leaderboards.uncertainty import Interval

SYNSETS = ("n01440764", "n01443537")
NETWORK = """
import torch
from torch import nn

def tiny(classes):
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 4, 3, 2), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(64, classes)).eval()

def thousand():
    return tiny(1000)

def ten():
    return tiny(10)
"""


def bench(*words: object) -> Any:
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with networks.py, and ImageNet-C at severity 5: two classes with two pictures each."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "networks.py").write_text(NETWORK)
    random = np.random.default_rng(0)
    for corruption in COMMON:
        for place, synset in enumerate(SYNSETS):
            folder = tmp_path / "data" / "imagenet-c" / corruption / "5" / synset
            folder.mkdir(parents=True)
            for number in (1, 2):
                pixels = Image.fromarray(random.integers(0, 256, (7, 7, 3), dtype=np.uint8)).resize((224, 224))
                pixels.save(folder / f"ILSVRC2012_val_{2 * place + number:08d}.JPEG", quality=85)
    return tmp_path


@pytest.fixture
def cifar(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """CIFAR-10-C of eight pictures at each severity, in the published arrays."""
    monkeypatch.setattr("bench.shifts.cifar._IMAGES", 8)
    random, folder = np.random.default_rng(1), home / "data" / "CIFAR-10-C"
    folder.mkdir()
    for corruption in COMMON:
        np.save(folder / f"{corruption}.npy", random.integers(0, 256, (40, 32, 32, 3), dtype=np.uint8))
    np.save(folder / "labels.npy", np.tile(random.integers(0, 10, 8), 5))


HERE = ("--data-root", "data", "--jobs", 1, "--device", "cpu")


def test_a_card_runs_its_settings_and_refuses_a_verdict_on_other_weights(home: Path) -> None:
    done = bench("reproduce", "tent-imagenet-c", "--model", "networks.py:thousand", *HERE, "--json")
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert told["obstacle"] == "the weights are not those of torchvision:resnet50.IMAGENET1K_V1 (--model)"
    assert [(each["row"], each["theirs"], each["verdict"]) for each in told["findings"]] == [
        ("source", 82.0, "not comparable"),
        ("tent", 57.4, "not comparable"),
    ]
    out = home / "runs" / "reproduce-tent-imagenet-c"
    records = Store(out).records()
    assert {record.corruption for record in records} == set(COMMON)
    assert {(record.batch_size, record.protocol, record.split, record.n) for record in records} == {
        (64, "reset_each_shift", "transductive", 4)
    }
    for each in told["findings"]:
        mine = [100 * (1 - record.metrics.accuracy) for record in records if record.method == each["row"]]
        assert each["ours"] == pytest.approx(sum(mine) / 15)
        assert each["difference"] == pytest.approx(each["ours"] - each["theirs"])
        assert (each["n"], each["seeds"], list(each["each"])) == (4, 1, list(COMMON))
        assert [theirs for theirs, _ in each["each"].values()] == list(
            next(number.each for number in cards()["tent-imagenet-c"].published if number.row == each["row"])
        )


def test_records_are_those_of_the_run_without_a_card(home: Path) -> None:
    """The same keys from `bench run` with the settings as flags and the options of TENT left to their defaults."""
    words = ("--model", "networks.py:thousand", *HERE)
    assert bench("reproduce", "tent-imagenet-c", *words, "--out", "card").exit_code == 0
    same = ("--method", "source,tent", "--shift", "imagenet-c", "--split", "transductive", "--batch-size", 64)
    assert bench("run", *same, *words, "--out", "plain").exit_code == 0
    keys = [{record.key for record in Store(home / out).records()} for out in ("card", "plain")]
    assert keys[0] == keys[1]
    assert len(keys[0]) == 30


def test_the_list_of_robustbench_is_needed_and_chooses_the_images(home: Path) -> None:
    words = ("reproduce", "roid-imagenet-c", "--model", "networks.py:thousand", *HERE)
    failed = bench(*words)
    assert isinstance(failed.exception, MissingDataError)
    assert str(failed.exception) == (
        "roid-imagenet-c needs imagenet-c-5k.txt in data; get it from https://github.com/RobustBench/robustbench "
        "(imagenet_test_image_ids.txt)"
    )
    (home / "data" / "imagenet-c-5k.txt").write_text(
        "".join(f"{SYNSETS[(number - 1) // 2]}/ILSVRC2012_val_{number:08d}.JPEG\n" for number in (1, 2, 4))
    )
    done = bench(*words, "--json")
    assert done.exit_code == 0, done.output
    records = Store(home / "runs" / "reproduce-roid-imagenet-c").records()
    assert {(record.n, record.protocol) for record in records} == {(3, "continual")}
    assert len(records) == 15


@pytest.mark.parametrize(("name", "protocol"), [("cotta-cifar10-c", "continual"), ("roid-cifar10-c-mixed", "mixed")])
def test_cards_of_cifar(name: str, protocol: str, cifar: None, home: Path) -> None:
    done = bench("reproduce", name, "--model", "networks.py:ten", *HERE, "--limit", 6)
    assert done.exit_code == 0, done.output
    assert "no verdict: a part of the images was scored (--limit)" in done.stdout
    records = Store(home / "runs" / f"reproduce-{name}").records()
    assert len(records) == 15
    assert all(record.protocol.startswith(protocol) and record.batch_size == 200 for record in records)


MINE = """
summary = "my own numbers"
source = "a table"
url = "https://example.org"
measures = "error"
data = "made here"
weights = "networks.py"
why = "an example"
differs = ["nothing"]
[run]
method = ["source", "bn"]
shift = "imagenet-c"
model = "networks.py:thousand"
split = "transductive"
[[published]]
method = "source"
error = 100.0
tolerance = 0.5
[[published]]
method = "bn"
accuracy = ACCURACY
tolerance = 0.5
"""


@pytest.mark.parametrize(("accuracy", "verdict", "code"), [("0.4", "agrees", 0), ("50", "differs", 4)])
def test_a_card_of_one_s_own_has_a_verdict(accuracy: str, verdict: str, code: int, home: Path) -> None:
    (home / "mine.toml").write_text(MINE.replace("ACCURACY", accuracy))
    done = bench("reproduce", "mine.toml", *HERE, "--json")
    assert done.exit_code == code, done.output
    found = {each["row"]: each for each in json.loads(done.stdout)["findings"]}
    assert found["source"]["verdict"] == "agrees"
    assert (found["bn"]["verdict"], found["bn"]["quantity"]) == (verdict, "accuracy")
    text = bench("reproduce", "mine.toml", *HERE).stdout
    assert verdict in text
    assert all(part in text for part in ("my own numbers", "https://example.org", "an example", "nothing"))


def test_a_dry_run_says_what_a_card_is_and_costs(home: Path) -> None:
    words = ("reproduce", "tent-imagenet-c", "--model", "networks.py:thousand", *HERE, "--dry-run")
    done = bench(*words)
    assert done.exit_code == 0, done.output
    assert "README of mr-eggplant/EATA" in done.stdout
    assert "30 of 30 records to make" in done.stdout
    assert json.loads(bench(*words, "--json").stdout)["total"]["forwards"] >= 2 * 15 * 4
    assert not (home / "runs").exists()


def test_what_is_missing_is_one_sentence_that_says_how_to_get_it(cifar: None, home: Path) -> None:
    """Packages come first, then data, so that nothing is downloaded in vain."""
    nowhere = ("--data-root", "nowhere", "--device", "cpu", "--offline")
    missing = "pip install" if importlib.util.find_spec("robustbench") is None else "bench data fetch cifar10-c"
    for words, message in (
        (("tent-imagenet-c",), "bench data fetch imagenet-c"),
        (("tent-cifar10-c",), missing),
        (("selfsoup-laion-c",), "bench data fetch laion-c"),
    ):
        failed = bench("reproduce", *words, *nowhere)
        assert isinstance(failed.exception, MissingDataError)
        assert message in str(failed.exception).splitlines()[0]
    failed = bench("reproduce", "tent-cifar10-c", *HERE)
    assert isinstance(failed.exception, MissingDataError)  # the package or its file, whichever is not here
    assert "robustbench" in str(failed.exception)


def test_without_a_name_all_cards_are_listed() -> None:
    rows = json.loads(bench("reproduce", "--json").stdout)
    assert [row["name"] for row in rows] == sorted(cards())
    assert rows == json.loads(bench("list", "reproductions", "--json").stdout)
    assert "tent-imagenet-c" in bench("reproduce").stdout
    shown = json.loads(bench("show", "reproduction", "tent-imagenet-c", "--json").stdout)
    assert shown["published"]["tent"]["error"] == 57.4
    assert shown["run"]["set"]["tent"]["lr"] == 0.00025


@pytest.mark.parametrize("flag", ["--method", "--severity", "--set", "--precision", "--batch-size", "--protocol"])
def test_settings_of_the_card_cannot_be_changed(flag: str) -> None:
    assert bench("reproduce", "tent-imagenet-c", flag, "x").exit_code == 2


def test_what_was_not_measured_is_said(home: Path) -> None:
    """A row that is not there, a part that is not there, and a failed trial."""
    assert bench("reproduce", "tent-imagenet-c", "--model", "networks.py:thousand", *HERE, "--out", "o").exit_code == 0
    board = make_board([record for record in Store(home / "o").records() if record.method == "source"])
    source, tent = compare(find_card("tent-imagenet-c"), board)
    assert (source.verdict, tent.verdict, tent.ours, tent.difference) == ("differs", "not measured", None, None)
    (row,) = board.rows
    known = replace(row, accuracy=0.25, interval=Interval(0.25, 0.2, 0.3))
    found = compare(find_card("tent-imagenet-c"), replace(board, rows=(known,)))[0]
    assert (found.ours, found.half_width) == (75.0, pytest.approx(5.0))
    part = PublishedNumbers(method="source", part="best", error=1, tolerance=1)
    card = find_card("tent-imagenet-c").model_copy(update={"published": (part,)})
    assert [(each.row, each.verdict) for each in compare(card, board)] == [("source (best)", "not measured")]
    assert (exit_code([tent], 0), exit_code([source], 0), exit_code([source], 1)) == (0, 4, 1)


def test_the_tolerance_itself_agrees(home: Path) -> None:
    (home / "mine.toml").write_text(MINE.replace("error = 100.0", "error = 99.5").replace("ACCURACY", "0"))
    found = json.loads(bench("reproduce", "mine.toml", *HERE, "--json").stdout)["findings"][0]
    assert (found["ours"], found["difference"], found["verdict"]) == (100.0, 0.5, "agrees")


def test_an_unknown_card_is_refused() -> None:
    assert isinstance(bench("reproduce", "tent-imagenet").exception, UsageError)
