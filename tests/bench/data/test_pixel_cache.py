"""The cache of computed rows with concurrent processes, damaged files and full disks."""

from __future__ import annotations

import os
import pickle
import resource
from pathlib import Path

import numpy as np
import pytest
import quick_processes

from bench.data.imageset import clean_folder
from bench.data.pixel_cache import CachedRows, pools_dir

SHAPE = (3, 5, 7)
ROWS = 40


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOUPBENCH_CACHE", str(tmp_path / "cache"))


WHOLE = np.random.default_rng(0).integers(0, 256, (ROWS, *SHAPE), dtype=np.uint8)


class Maker:
    """Gives rows of what there is, and remembers which."""

    def __init__(self) -> None:
        self.rows: list[int] = []

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        self.rows += rows.tolist()
        return WHOLE[rows]


def opened(key: str = "a") -> CachedRows:
    return CachedRows(key, ROWS, SHAPE)


def test_each_row_is_made_once_whoever_asks() -> None:
    make, rows = Maker(), np.array([7, 0, 39, 7])
    first = opened()
    assert first.lacking == ROWS
    assert not pools_dir().exists()
    assert np.array_equal(first.take(rows, make), WHOLE[rows])
    assert sorted(set(make.rows)) == [0, 7, 39]
    make.rows.clear()
    for reader in (first, opened(), pickle.loads(pickle.dumps(first))):
        assert np.array_equal(reader.take(rows, make), WHOLE[rows])
        assert reader.lacking == ROWS - 3
    assert make.rows == []
    assert np.array_equal(opened().take(np.arange(ROWS), make), WHOLE)
    assert len(make.rows) == ROWS - 3
    assert opened("b").lacking == ROWS


def test_another_process_checks_what_one_has_checked() -> None:
    reader = opened()
    for _ in range(2):
        reader.take(np.arange(ROWS), Maker())
    sent = pickle.dumps(reader)
    _damage(reader.path, "a pixel")
    assert np.array_equal(pickle.loads(sent).take(np.arange(ROWS), Maker()), WHOLE)


def _damage(path: Path, how: str) -> None:
    content = bytearray(path.read_bytes())
    row = int(np.prod(SHAPE))
    match how:
        case "a pixel":
            content[3 * row + 5] ^= 1
        case "a digest":
            content[ROWS * row + 3 * 16 + 2] ^= 1
        case "pixels never written":
            content[3 * row : 4 * row] = bytes(row)
        case "cut off":
            del content[2 * row :]
        case "empty":
            content.clear()
    path.write_bytes(content)


@pytest.mark.parametrize("how", ["a pixel", "a digest", "pixels never written", "cut off", "empty"])
def test_damaged_rows_are_made_again(how: str) -> None:
    opened().take(np.arange(ROWS), Maker())
    _damage(opened().path, how)
    make = Maker()
    assert np.array_equal(opened().take(np.arange(ROWS), make), WHOLE)
    assert make.rows == {"cut off": list(range(ROWS)), "empty": list(range(ROWS))}.get(how, [3])
    again = Maker()
    assert np.array_equal(opened().take(np.arange(ROWS), again), WHOLE)
    assert again.rows == []
    assert opened().lacking == 0


def test_cut_off_under_a_reader_it_is_made_again() -> None:
    reader = opened()
    reader.take(np.arange(ROWS), Maker())
    reader.take(np.arange(ROWS), Maker())
    os.truncate(reader.path, 10 * reader.row_bytes)
    make = Maker()
    assert np.array_equal(reader.take(np.arange(ROWS), make), WHOLE)
    assert make.rows == list(range(10, ROWS))


def test_removed_under_a_reader_it_goes_on() -> None:
    reader = opened()
    reader.take(np.arange(ROWS), Maker())
    clean_folder(pools_dir())
    make = Maker()
    assert np.array_equal(reader.take(np.arange(ROWS), make), WHOLE)
    assert make.rows == []
    assert np.array_equal(opened().take(np.arange(ROWS), make), WHOLE)
    assert len(make.rows) == ROWS


def test_what_others_filled_is_read_though_nothing_can_be_added() -> None:
    opened().take(np.arange(10), Maker())
    code = (
        "import os, sys, numpy as np; from bench.data.pixel_cache import CachedRows; os.setuid(65534);"
        f"rows = CachedRows('a', {ROWS}, {SHAPE});"
        "made = []; make = lambda rows: (made.extend(rows.tolist()), np.ones((len(rows), 3, 5, 7), np.uint8))[1];"
        "rows.take(np.arange(12), make); rows.take(np.arange(12), make); print(made, rows.lacking)"
    )
    if os.geteuid() != 0:
        pytest.skip("needs root, to become somebody else")
    for folder in (pools_dir(), *pools_dir().parents):
        if folder.owner() == "root" and folder != Path("/"):
            folder.chmod(folder.stat().st_mode | 0o555)
    done = quick_processes.run(["-c", code])
    assert done.stdout.strip() == f"[10, 11, 10, 11] {ROWS - 10}", done.stderr


def test_a_full_disk_costs_no_pixel(caplog: pytest.LogCaptureFixture) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    make = Maker()
    rows = opened()
    rows.take(np.arange(1), make)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20 * rows.row_bytes, limits[1]))
    try:
        for _ in range(2):
            assert np.array_equal(rows.take(np.arange(ROWS), make), WHOLE)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caplog.text.count("no more images are cached") == 1
    assert np.array_equal(opened().take(np.arange(ROWS), make), WHOLE)


def test_a_folder_in_the_way_costs_no_pixel(caplog: pytest.LogCaptureFixture) -> None:
    pools_dir().parent.mkdir()
    pools_dir().write_text("")
    make = Maker()
    assert np.array_equal(opened().take(np.arange(ROWS), make), WHOLE)
    assert "not cached" in caplog.text
    assert opened().lacking == ROWS


def test_processes_that_fill_one_file_at_once_all_read_the_same() -> None:
    code = (
        "import sys, numpy as np; from bench.data.pixel_cache import CachedRows;"
        "whole = np.random.default_rng(0).integers(0, 256, (40, 3, 5, 7), dtype=np.uint8);"
        "rows = CachedRows('a', 40, (3, 5, 7)); rng = np.random.default_rng(int(sys.argv[1]));\n"
        "for _ in range(300):\n    some = rng.integers(0, 40, 8)\n"
        "    assert (rows.take(some, whole.__getitem__) == whole[some]).all()\n"
    )
    running = [quick_processes.Process(["-c", code, str(number)]) for number in range(4)]
    assert [process.wait() for process in running] == [0] * 4
    make = Maker()
    assert np.array_equal(opened().take(np.arange(ROWS), make), WHOLE)
    assert make.rows == []
