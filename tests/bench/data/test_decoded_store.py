"""The pixel store with concurrent, killed and cleaned runs and with full disks."""

from __future__ import annotations

import gc
import os
import pickle
import shutil
import signal
import subprocess
import time
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import quick_processes
from PIL import Image

from bench.core.errors import BenchError
from bench.data import decoded_store as storing
from bench.data.decode import Preprocessing
from bench.data.decoded_store import PixelStore, clean, pixels_dir, stored
from bench.data.folders import FolderSet, read_folder

from .conftest import picture, save

SIZE = 24
SMALL = Preprocessing(SIZE, SIZE)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    root = tmp_path / "photos"
    for number in range(12):
        save(root / f"{number % 3}" / f"{number:02d}.png", picture(number, (40, 30)))
    return root


def expected(root: Path, images: FolderSet) -> np.ndarray:
    """By Pillow alone: shorter side 30 to 24, then the middle."""
    made = []
    for file in images.files:
        image = Image.open(root / file).convert("RGB").resize((32, 24), Image.Resampling.BILINEAR)
        made.append(np.asarray(image.crop((4, 0, 28, 24))).transpose(2, 0, 1))
    return np.stack(made)


class Counting:
    """Images that count how often each is decoded."""

    def __init__(self, images: FolderSet) -> None:
        self.images = images
        self.read_rows: list[int] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.images, name)

    def __len__(self) -> int:
        return len(self.images)

    def read(self, row: int) -> Image.Image:
        self.read_rows.append(row)
        return self.images.read(row)


def test_pixels_are_decoded_once_and_read_from_the_file(photos: Path) -> None:
    images: Any = Counting(read_folder(photos))
    store = PixelStore(images, SMALL)
    rows = np.array([5, 0, 5, 11])
    assert np.array_equal(store.read(rows), expected(photos, images)[rows])
    assert sorted(images.read_rows) == [0, 5, 11]
    again = PixelStore(images, SMALL)
    assert np.array_equal(again.read(np.arange(12)), expected(photos, images))
    assert len(images.read_rows) == 12
    assert isinstance(again._pixels.base.base, np.memmap)
    assert pickle.loads(pickle.dumps(PixelStore(images.images, SMALL))).key == store.key


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs /proc")
def test_files_are_closed_with_their_stores_without_a_word(photos: Path) -> None:
    def opened() -> int:
        return sum(os.path.realpath(entry) == file for entry in Path("/proc/self/fd").iterdir())

    store: Any = PixelStore(read_folder(photos), SMALL)
    store.ring = [store]  # as a shift whose parts know one another
    file = str(store.path().resolve())
    pixels = store.read(np.arange(12))
    assert opened() > 0
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        del store
        gc.collect()
    assert not [warning for warning in said if file in str(warning.message)]
    assert opened() == 0
    assert pixels.shape == (12, 3, SIZE, SIZE)


@pytest.mark.parametrize("workers", [0, 1, 4])
def test_workers_change_nothing(workers: int, photos: Path) -> None:
    images = read_folder(photos)
    store = PixelStore(images, SMALL, workers)
    assert np.array_equal(store.read(np.arange(12)), expected(photos, images))
    assert store.digest(np.arange(12)) == PixelStore(images, SMALL).digest(np.arange(12))


def test_content_and_preprocessing_make_the_key(photos: Path) -> None:
    images = read_folder(photos)
    keys = {PixelStore(images, how).key for how in (SMALL, Preprocessing(24, 30), Preprocessing(24, 24, "bicubic"))}
    assert len(keys) == 3
    before = PixelStore(images, SMALL).digest(np.arange(12))
    save(photos / "0" / "00.png", picture(99, (40, 30)))
    changed = read_folder(photos)
    assert PixelStore(changed, SMALL).key not in keys
    assert PixelStore(changed, SMALL).digest(np.arange(12)) != before
    assert PixelStore(changed, SMALL).digest(np.arange(1, 12)) == PixelStore(images, SMALL).digest(np.arange(1, 12))


def test_a_row_that_was_half_written_is_decoded_again(photos: Path) -> None:
    images = read_folder(photos)
    store = PixelStore(images, SMALL)
    store.read(np.arange(6))
    with store.path().open("r+b") as file:  # as if killed between pixels and digest
        file.seek(8 * 3 * SIZE * SIZE)
        file.write(b"\7" * 1000)
    assert np.array_equal(PixelStore(images, SMALL).read(np.arange(12)), expected(photos, images))


@pytest.mark.parametrize("damage", ["shorter", "longer", "empty", "gone"])
def test_a_file_of_the_wrong_size_is_made_anew(damage: str, photos: Path) -> None:
    images = read_folder(photos)
    store = PixelStore(images, SMALL)
    store.read(np.arange(12))
    size = store.path().stat().st_size
    if damage == "gone":
        store.path().unlink()
    else:
        os.truncate(store.path(), {"shorter": size - 1, "longer": size + 1, "empty": 0}[damage])
    assert np.array_equal(PixelStore(images, SMALL).read(np.arange(12)), expected(photos, images))


def test_pixels_that_changed_on_the_disk_are_found_and_dropped(photos: Path) -> None:
    images = read_folder(photos)
    store = PixelStore(images, SMALL)
    store.read(np.arange(12))
    with store.path().open("r+b") as file:
        file.seek(7 * 3 * SIZE * SIZE + 5)
        file.write(b"\0\1\2")
    assert store.drop_damaged() == [images.name(7)]
    assert np.array_equal(store.read(np.arange(12)), expected(photos, images))
    assert store.drop_damaged() == []


def test_cleaning_frees_and_leaves_a_running_reader_whole(photos: Path) -> None:
    images = read_folder(photos)
    store = PixelStore(images, SMALL)
    store.read(np.arange(6))
    (facts,) = stored()
    assert facts["source"].endswith("photos/0/00.png")
    assert facts["images"] == 12
    assert stored("/somewhere/else") == []
    assert clean("/somewhere/else") == 0
    assert clean(f"{photos}/") >= facts["bytes"] > 0
    assert not list(pixels_dir().iterdir())
    other = PixelStore(images, SMALL)
    other.read(np.arange(3))  # makes a new file under the same name
    assert np.array_equal(store.read(np.arange(12)), expected(photos, images))
    assert np.array_equal(other.read(np.arange(12)), expected(photos, images))


WORKER = """
import os, sys, time
import numpy as np
from pathlib import Path
from bench.data.decode import Preprocessing
from bench.data.folders import FolderSet, read_folder
from bench.data import decoded_store as storing

root, log, order, pause = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
plain = FolderSet.read
def counted(self, row):
    with open(log, "a") as file:
        file.write(f"{row}\\n")
    time.sleep(pause)
    return plain(self, row)
FolderSet.read = counted
storing._LEAST_AT_ONCE, storing._BYTES_AT_ONCE = 2, 1
images = read_folder(root)
rows = np.random.default_rng(order).permutation(len(images))
pixels = storing.PixelStore(images, Preprocessing(24, 24), order % 3).read(rows)
np.save(log + f".{order}.npy", pixels[np.argsort(rows)])
"""


def _worker(photos: Path, log: Path, order: int, pause: float) -> quick_processes.Process:
    return quick_processes.Process(["-c", WORKER, photos, log, str(order), str(pause)])


def test_processes_that_fill_together_decode_each_image_once(photos: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    processes = [_worker(photos, log, order, 0.02) for order in range(4)]
    assert [process.wait(60) for process in processes] == [0] * 4
    images = read_folder(photos)
    for order in range(4):
        assert np.array_equal(np.load(f"{log}.{order}.npy"), expected(photos, images))
    assert sorted(map(int, log.read_text().split())) == list(range(12))


def test_a_killed_filler_leaves_nothing_wrong(photos: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    process = _worker(photos, log, 0, 0.2)
    deadline = time.monotonic() + 60
    while not log.is_file() or len(log.read_text().split()) < 5:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait(60)
    images: Any = Counting(read_folder(photos))
    assert np.array_equal(PixelStore(images, SMALL).read(np.arange(12)), expected(photos, images))
    assert 0 < len(images.read_rows) < 12


@pytest.fixture
def tiny_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A disk of 64 KiB for the cache."""
    place = tmp_path / "tiny"
    place.mkdir()
    if shutil.which("mount") is None or os.geteuid() != 0:
        pytest.skip("mounting a small disk needs root")
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", place], capture_output=True).returncode:
        pytest.skip("this machine lets nobody mount a small disk")
    monkeypatch.setenv("SOUPBENCH_CACHE", str(place))
    yield place
    subprocess.run(["umount", place], check=True)


def test_a_disk_that_is_too_small_is_seen_before_anything_is_decoded(photos: Path, tiny_disk: Path) -> None:
    images: Any = Counting(read_folder(photos))
    with pytest.raises(BenchError, match=r"12 decoded images need .* GB but .* `bench data clean`.*SOUPBENCH_CACHE"):
        PixelStore(images, Preprocessing(64, 64)).read(np.arange(12))
    assert images.read_rows == []


def test_a_disk_that_fills_up_is_one_clear_error_and_mends(
    photos: Path, tiny_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = read_folder(photos)
    store = PixelStore(images, Preprocessing(64, 64))
    monkeypatch.setattr(storing, "_LEAST_AT_ONCE", 2)
    monkeypatch.setattr(storing, "_BYTES_AT_ONCE", 1)
    with monkeypatch.context() as blind:
        blind.setattr(storing.shutil, "disk_usage", lambda _: SimpleNamespace(free=1 << 60))
        with pytest.raises(BenchError, match=r"the disk of .* is full; free it with `bench data clean`"):
            store.read(np.arange(12))
    subprocess.run(["mount", "-o", "remount,size=1m", tiny_disk], check=True)
    whole = PixelStore(images, Preprocessing(64, 64)).read(np.arange(12))
    monkeypatch.setenv("SOUPBENCH_CACHE", str(photos.parent / "large"))
    assert np.array_equal(whole, PixelStore(images, Preprocessing(64, 64)).read(np.arange(12)))


def test_a_cache_that_cannot_be_written_says_so(photos: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    monkeypatch.setenv("SOUPBENCH_CACHE", str(tmp_path / "file"))
    with pytest.raises(BenchError, match=r"cannot write .* set SOUPBENCH_CACHE"):
        PixelStore(read_folder(photos), SMALL).read(np.arange(2))


def test_a_system_that_does_not_tell_blocks_gives_the_size() -> None:
    from types import SimpleNamespace

    from bench.data.imageset import bytes_on_disk

    windows: Any = SimpleNamespace(st_size=700)
    sparse: Any = SimpleNamespace(st_size=700, st_blocks=1)
    assert bytes_on_disk(windows) == 700
    assert bytes_on_disk(sparse) == 512
