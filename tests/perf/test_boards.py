"""Boards of many records: time and memory that grow as the records do, a page that stays small."""

from __future__ import annotations

import json
import subprocess
import sys
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

import leaderboards
from leaderboards.record import Access

pytestmark = pytest.mark.slow
ROOT = Path(leaderboards.__file__).parents[1]
CORRUPTIONS = 15
SEVERITIES = 5
SEEDS = 7
IMAGES = 40
ACCESS = (
    Access(source="none", test="stream", state="online", backprop="norm"),
    Access(source="statistics", test="stream", state="online", backprop="norm"),
    Access(source="labelled", test="pool", state="offline", backprop="full"),
)

# A process of its own, so that its peak of memory and its seconds (of the processor) are those of the boards. The first
# board compares and remembers, the second one has all comparisons from there: it may not read any outcome.
SCRIPT = """
import json, resource, sys, time
from pathlib import Path
import numpy as np
from leaderboards import Memory, make_board
from leaderboards.bundle import Bits
from leaderboards.page import to_page
from leaderboards.store import read

def outcomes(record):
    shuffled = np.random.default_rng(int(record.key, 16)).permutation(record.n)
    return Bits(np.arange(record.n), shuffled < round(record.metrics.accuracy * record.n))

def refuse(record):
    raise AssertionError("outcomes were read although all comparisons are known")

folder, warm = Path(sys.argv[1]), sys.argv[2] == "warm"
memory = Memory(folder / "memory", lambda record: "")
times = [time.process_time()]
records = read([folder])
times.append(time.process_time())
board = make_board(records, refuse if warm else outcomes, memory=memory)
times.append(time.process_time())
page = to_page([board]) if warm else ""
times.append(time.process_time())
load, aggregate, render = np.diff(times).round(2).tolist()
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(json.dumps({"records": len(records), "load s": load, "aggregate s": aggregate, "render s": render,
                  "peak MB": round(peak), "page MB": round(len(page.encode()) / 1e6, 2)}))
"""


def write_records(folder: Path, methods: int) -> None:
    """records.jsonl of methods on 15 corruptions at 5 severities with 7 seeds, as a run leaves it."""
    folder.mkdir()
    with (folder / "records.jsonl").open("w") as file:
        number = 0
        for method in range(methods):
            access = ACCESS[method % len(ACCESS)]
            for seed in range(SEEDS):
                for condition in range(CORRUPTIONS * SEVERITIES):
                    number += 1
                    file.write(json.dumps(record_of(number, method, access, seed, condition)) + "\n")


def record_of(number: int, method: int, access: Access, seed: int, condition: int) -> dict[str, Any]:
    corruption, severity = divmod(condition, SEVERITIES)
    key = sha256(str(number).encode()).hexdigest()[:32]
    accuracy = (number * 7 + method) % IMAGES / IMAGES
    return {
        "schema": 3,
        "key": key,
        "created": "2026-11-22T20:00:00Z",
        "status": "done",
        "method": f"method{method:03}",
        "part": None,
        "access": access.model_dump(),
        "track": access.track,
        "shift": "imagenet-c",
        "corruption": f"corruption{corruption:02}",
        "severity": severity + 1,
        "model": "resnet50",
        "protocol": "reset_each_shift",
        "split": "disjoint",
        "seed": seed,
        "batch_size": 64,
        "precision": "fp32",
        "options": {f"method{method:03}": {"lr": 0.00025, "steps": 1}},
        "components": {"harness": "1"},
        "limit": None,
        "n": IMAGES,
        "metrics": {"accuracy": accuracy, "nll": 2.5, "ece": 0.1, "brier": 0.8},
        "cost": {
            "fit_seconds": 0.0,
            "predict_seconds": 7.5,
            "forwards": float(IMAGES * (1 + method % 9)),
            "backwards": float(IMAGES * (method % 3)),
            "peak_memory_mb": None,
            "device_name": "cpu",
        },
        "data": {"digest": f"sha256:{condition:04}", "seed": 0, "storage": "uint8", "profile": "imagenet224"},
        "weights": {"digest": "sha256:bb"},
        "env": {"torch": "2.14.1", "git": "0123456789ab", "dirty": False},
        "predictions": f"predictions/{key}.npz",
        "error": None,
    }


def measured(folder: Path, how: str) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(folder), how], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return dict(json.loads(done.stdout))


def test_a_hundred_thousand_records(tmp_path: Path, benchmark: BenchmarkFixture) -> None:
    for name, methods in (("few", 50), ("many", 200)):
        write_records(tmp_path / name, methods)
        measured(tmp_path / name, "cold")
    few = measured(tmp_path / "few", "warm")
    many = benchmark.pedantic(measured, (tmp_path / "many", "warm"), rounds=1)
    benchmark.extra_info.update(many)
    assert many["records"] == 105_000
    assert many["peak MB"] < 1000
    assert many["page MB"] < 5
    # Four times the records: four times the work, with room for what a busy machine does to single measurements.
    assert many["load s"] + many["aggregate s"] < 8 * (few["load s"] + few["aggregate s"])
    assert many["peak MB"] < 4 * few["peak MB"]
