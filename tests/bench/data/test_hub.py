"""hf:REPO[:CONFIG] with a local hub, and without a network."""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import quick_processes

from .conftest import Hub, picture, table

NAMES = ["ant", "bee", "cow", "dog"]
FACTORY = """
import torch
def factory():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(4), torch.nn.Flatten(), torch.nn.Linear(48, 4))
"""


@pytest.fixture
def bench(hub: Hub, tmp_path: Path) -> Any:
    """Run the command line against the hub, with caches of its own."""
    test = table([picture(number, (40, 36)) for number in range(8)], [0, 1, 2, 3] * 2, NAMES)
    train = table([picture(100 + number, (40, 36)) for number in range(12)], [3, 2, 1] * 4, NAMES)
    hub.repos["me/photos"] = {"test-00000-of-00001.parquet": test, "train-00000-of-00001.parquet": train}
    hub.repos["me/one"] = {"train.parquet": train}
    (tmp_path / "model.py").write_text(FACTORY)

    def run(*arguments: str, up: bool = True) -> subprocess.CompletedProcess[str]:
        online = {name: value for name, value in os.environ.items() if not name.endswith("_OFFLINE")}
        environment = {**online, "HF_HOME": str(tmp_path / "hf"), "HF_ENDPOINT": hub.url if up else "http://127.0.0.1:9",
                       "HF_HUB_DISABLE_TELEMETRY": "1"}  # fmt: skip
        return quick_processes.run(["-m", "bench", *arguments], cwd=tmp_path, env=environment)

    return run


RUN = ("run", "--method", "source", "--shift", "hf:me/photos", "--model", "model.py:factory", "--corruption", "fog",
       "--split", "transductive", "--jobs", "1")  # fmt: skip


def test_fetched_once_though_it_broke_off(bench: Any, hub: Hub) -> None:
    hub.break_after = 9000
    fetched = bench("data", "fetch", "hf:me/photos")
    assert fetched.returncode == 0, fetched.stderr
    assert "test: 8 images, train: 12 images" in fetched.stdout
    gets = [path for path, _ in hub.asked if path.startswith("GET") and path.endswith(".parquet")]
    assert len(gets) >= 3, "one of the two files is asked for again"


@pytest.mark.slow
def test_runs_without_a_network_after_the_one_command_that_was_named(bench: Any, hub: Hub, tmp_path: Path) -> None:
    missing = bench(*RUN, "--offline")
    assert missing.returncode == 3, missing.stderr
    assert not hub.asked
    assert "Traceback" not in missing.stderr
    command = missing.stderr.strip().rpartition("run: ")[2]
    assert command == "bench data fetch hf:me/photos"
    assert bench(*command.split()[1:]).returncode == 0
    before = len(hub.asked)
    done = bench(*RUN, "--offline", "--out", "out", up=False)
    assert done.returncode == 0, done.stderr
    assert len(hub.asked) == before
    records = [json.loads(line) for line in (tmp_path / "out/records.jsonl").read_text().splitlines()]
    assert {(record["shift"], record["corruption"], record["n"]) for record in records} == {
        ("hf:me/photos", None, 8),
        ("hf:me/photos", "fog", 8),
    }
    assert "hub cache (me/photos)" in bench("data", "status", "hf:me/photos").stdout
    verified = bench("data", "verify", "hf:me/photos", "--offline", up=False)
    assert verified.returncode == 0, verified.stderr
    assert "8 images read: no problems" in verified.stdout


@pytest.mark.slow
def test_a_set_of_one_part_has_no_train_images(bench: Any) -> None:
    done = bench(*("hf:me/one" if word == "hf:me/photos" else word for word in RUN), "--stock", "digits")
    assert done.returncode == 2
    asked = ["run", "--method", "source", "--shift", "hf:me/one", "--stock", "digits", "--corruption", "fog"]
    done = bench(*asked)
    assert done.returncode == 3
    assert "hf:me/one has no train images" in done.stderr
    made = bench("stock", "hf:me/one", "--arch", "vit_micro_patch8_32", "--steps", "1", "--device", "cpu", "-o",
                 "s.safetensors")  # fmt: skip
    assert made.returncode == 0, made.stderr
    assert "10 clean train images of hf:me/one" in made.stderr


@pytest.mark.slow
def test_no_login_is_ever_asked_for(bench: Any, hub: Hub) -> None:
    hub.private.add("me/photos")
    for command in (("data", "fetch", "hf:me/photos"), RUN):
        done = bench(*command)
        assert done.returncode == 3, done.stderr
        assert "bench data fetch hf:me/photos" in done.stderr
        assert "Traceback" not in done.stderr


def test_a_name_that_is_not_there(bench: Any) -> None:
    done = bench("data", "fetch", "hf:me/nothing")
    assert done.returncode == 3
    assert len(done.stderr.strip().splitlines()[-1]) < 400
    assert "Traceback" not in done.stderr


def test_a_test_split_without_labels(bench: Any, hub: Hub) -> None:
    """As ImageNet has it on the hub; and a column that must be named."""
    kind = {"fine": (datasets.ClassLabel(names=NAMES), [1, 2, 3, 0])}
    blind, seen = ([picture(number, (40, 36)) for number in range(4)] for _ in range(2))
    hub.repos["me/blind"] = {
        "test-00000-of-00001.parquet": table(blind, [-1] * 4, NAMES),
        "validation-00000-of-00001.parquet": table(seen, [3, 2, 1, 0], NAMES),
    }
    hub.repos["me/two"] = {"test.parquet": table(seen, [0, 1, 2, 3], NAMES, kind)}
    told = bench("data", "explain", "hf:me/blind")
    assert told.returncode == 0, told.stderr
    assert "scored part: validation" in told.stdout
    assert "has no labels in its split test, which is not scored; its split validation is" in told.stdout
    asked = bench("data", "explain", "hf:me/two")
    assert asked.returncode == 2
    assert "(found: label, fine); name one with --label COLUMN" in asked.stderr
    assert "label column: fine" in bench("data", "explain", "hf:me/two", "--label", "fine").stdout


def test_no_network_is_said_at_once(bench: Any) -> None:
    started = time.monotonic()
    done = bench("data", "fetch", "hf:me/photos", up=False)
    assert done.returncode == 3, done.stderr
    assert "the hub does not answer" in done.stderr
    assert "Retrying" not in done.stderr
    assert time.monotonic() - started < 30


def test_the_pixels_are_those_of_the_files(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder in the layout of the hub, read by the same code."""
    from bench.core.conditions import CLEAN
    from bench.data.decode import Preprocessing
    from bench.shifts import load_shift
    from bench.shifts.data_root import Reading

    place = tmp_path / "clone" / "data"
    place.mkdir(parents=True)
    shards = [table([picture(number, (32, 32))], [number % 2], NAMES[:2]) for number in range(3)]
    for number, content in enumerate(shards):
        (place / f"test-{number:05d}-of-00003.parquet").write_bytes(content)
    shift = load_shift(f"folder:{tmp_path / 'clone'}", reading=Reading(preprocessing=Preprocessing(32, 32)))
    ids = shift.ids("test")
    assert shift.labels(ids).tolist() == [0, 1, 0]
    for number in range(3):
        assert np.array_equal(shift.images(ids, CLEAN)[number].numpy(), picture(number, (32, 32)).transpose(2, 0, 1))
