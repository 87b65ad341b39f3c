"""Real CIFAR-10 from the hub, read by `datasets`: from parquet files to a board, and repeated from its records."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from leaderboards.store import Store

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def data() -> Path:
    place = os.environ.get("SOUPBENCH_TEST_DATA")
    if not place or not (Path(place) / "cifar10" / "test.parquet").is_file():
        pytest.skip("SOUPBENCH_TEST_DATA names no folder with cifar10/test.parquet")
    return Path(place)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Any:
    cache = tmp_path_factory.mktemp("cache")

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-m", "bench", *map(str, arguments)], capture_output=True, text=True,
                              timeout=900, env={**os.environ, "SOUPBENCH_CACHE": str(cache)})  # fmt: skip

    return run


def test_cifar_10_from_parquet_to_a_board(bench: Any, data: Path, tmp_path: Path) -> None:
    out, stock = tmp_path / "out", tmp_path / "cifar10.safetensors"
    made = bench("stock", "--data", "cifar10", "--data-root", data, "--arch", "vit_micro_patch4_32", "--steps", 150,
                 "--limit", 2000, "--offline", "-o", stock)  # fmt: skip
    assert made.returncode == 0, made.stderr
    asked = ("run", "--method", "source,tent", "--shift", "cifar10-c-gen", "--data-root", data, "--stock", stock,
             "--labels", 30, "--limit", 300, "--corruption", "gaussian_noise,contrast", "--severity", "1,5",
             "--out", out, "--jobs", 1, "--offline")  # fmt: skip
    done = bench(*asked)
    assert done.returncode == 0, done.stderr
    records = Store(out).records()
    assert {record.status for record in records} == {"done"}
    assert {record.n for record in records} == {300}
    assert {record.data.storage for record in records} == {"uint8"}
    assert {record.data.profile for record in records} == {"cifar32"}
    source = {(record.corruption, record.severity): record.metrics.accuracy for record in records
              if record.method == "source" and record.metrics}  # fmt: skip
    assert source[None, 0] > 0.2, "chance is 0.1"
    assert source["contrast", 1] > source["contrast", 5]
    predictions = Store(out).predictions(next(record for record in records if record.clean))
    import pyarrow.parquet

    labels = np.array(pyarrow.parquet.read_table(data / "cifar10" / "test.parquet", columns=["label"])["label"])
    assert np.array_equal(predictions.label, labels[predictions.id])
    assert np.array_equal(np.unique(predictions.id % 2), [1]), "images at even places are for adapting"
    again = bench(*asked)
    assert again.returncode == 0
    assert "0 measured, 10 reused, 0 failed" in again.stderr
    assert bench("verify", out).returncode == 0
    status = json.loads(bench("data", "status", "cifar10-c-gen", "--data-root", data, "--json").stdout)
    assert status["shifts"][0]["decoded"] >= 300 * 3 * 32 * 32
