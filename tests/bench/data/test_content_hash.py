"""Files are identified by their content, not by their path, name or time."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import quick_processes
from PIL import Image

from bench.core.conditions import CLEAN, Condition
from bench.core.errors import UsageError
from bench.data import content_hash as identity
from bench.data.arrays import read_cifar_binary, read_idx, read_npy
from bench.data.decode import Preprocessing
from bench.data.decoded_store import PixelStore
from bench.data.folders import read_folder
from bench.data.hf_tables import read_arrow, read_parquet
from bench.data.imageset import ImageSet
from bench.shifts import load_shift
from bench.shifts.data_root import Reading
from bench.shifts.shift import NATURAL

TEN = [str(number) for number in range(10)]
LABELS = np.arange(10) % 3
LONG_AGO = 1_700_000_000_000_000_000
USUAL = Preprocessing(32, 32)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SOUPBENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def pixels(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (10, 32, 32, 3), dtype=np.uint8)


def write_npy(root: Path, seed: int) -> None:
    np.save(root / "fog.npy", pixels(seed))
    np.save(root / "labels.npy", LABELS)


def write_parquet(root: Path, seed: int) -> None:
    table(seed).to_parquet(root / "test.parquet")


def table(seed: int) -> Any:
    """Pictures as bitmaps, so that tables of equal shape are files of equal size."""
    import datasets

    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=TEN)})
    rows = [{"bytes": encoded(image, "BMP"), "path": None} for image in pixels(seed)]
    return datasets.Dataset.from_dict({"img": rows, "label": LABELS.tolist()}, features=features)


def encoded(image: np.ndarray, kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind)
    return buffer.getvalue()


def write_arrow(root: Path, seed: int) -> None:
    table(seed).save_to_disk(str(root / "saved"))


def write_tree(root: Path, seed: int, kind: str = "bmp") -> None:
    for number, image in enumerate(pixels(seed)):
        place = root / "set" / f"c{LABELS[number]}"
        place.mkdir(parents=True, exist_ok=True)
        content = encoded(image, kind.upper())
        # Pictures of other pixels have other sizes as PNG; what stands after their end is nobody's.
        (place / f"{number}.{kind}").write_bytes(content.ljust(4000, b"\0") if kind == "png" else content)


def write_png(root: Path, seed: int) -> None:
    write_tree(root, seed, "png")


def write_idx(root: Path, seed: int) -> None:
    grey = pixels(seed)[..., 0]
    header = b"\0\0\x08\x03" + b"".join(size.to_bytes(4, "big") for size in grey.shape)
    (root / "images").write_bytes(header + grey.tobytes())
    (root / "labels").write_bytes(b"\0\0\x08\x01" + len(LABELS).to_bytes(4, "big") + LABELS.astype(np.uint8).tobytes())


def write_binary(root: Path, seed: int) -> None:
    planes = pixels(seed).transpose(0, 3, 1, 2).reshape(10, -1)
    (root / "test.bin").write_bytes(np.concatenate([LABELS[:, None].astype(np.uint8), planes], axis=1).tobytes())


def linked(root: Path) -> ImageSet:
    """The tree behind a link to its folder, whose images are links too."""
    link = root / "link"
    for file in sorted((root / "set").rglob("*.bmp")):
        (link / file.parent.name).mkdir(parents=True, exist_ok=True)
        (link / file.parent.name / file.name).unlink(missing_ok=True)
        (link / file.parent.name / file.name).symlink_to(os.path.relpath(file, link / file.parent.name))
    return read_folder(link)


KINDS: dict[str, tuple[Callable[[Path, int], None], Callable[[Path], ImageSet]]] = {
    "npy": (write_npy, lambda root: read_npy(root / "fog.npy", root / "labels.npy", TEN)),
    "parquet": (write_parquet, lambda root: read_parquet([root / "test.parquet"])),
    "arrow": (write_arrow, lambda root: read_arrow(root / "saved")),
    "png": (write_png, lambda root: read_folder(root / "set")),
    "bmp": (write_tree, lambda root: read_folder(root / "set")),
    "links": (write_tree, linked),
    "idx": (write_idx, lambda root: read_idx(root / "images", root / "labels", TEN)),
    "binary": (write_binary, lambda root: read_cifar_binary([root / "test.bin"], TEN)),
}


def make(kind: str, root: Path, seed: int, when: int = LONG_AGO) -> None:
    root.mkdir(parents=True, exist_ok=True)
    KINDS[kind][0](root, seed)
    for path in root.rglob("*"):
        os.utime(path, ns=(when, when))


def sizes(root: Path) -> dict[str, tuple[int, int]]:
    found = {str(path.relative_to(root)): path.stat() for path in root.rglob("*") if path.is_file()}
    return {name: (facts.st_size, facts.st_mtime_ns) for name, facts in found.items() if "state.json" not in name}


def stored(images: ImageSet) -> np.ndarray:
    return PixelStore(images, USUAL).read(np.arange(len(images)))


def settle(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if whatever is there now had been written long ago."""
    monkeypatch.setattr(identity, "UNSETTLED_NS", -3_600_000_000_000)


def no_hashing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*given: object) -> bytes:
        raise AssertionError(f"{given[0]} is read to be hashed")

    monkeypatch.setattr(identity, "_hash", refuse)


@pytest.mark.parametrize("kind", KINDS)
def test_equal_names_sizes_and_times_never_share_pixels(kind: str, tmp_path: Path) -> None:
    for seed in (1, 2):
        make(kind, tmp_path / str(seed), seed)
    assert sizes(tmp_path / "1") == sizes(tmp_path / "2")
    one, other = (KINDS[kind][1](tmp_path / str(seed)) for seed in (1, 2))
    assert one.key != other.key
    first, second = stored(one), stored(other)
    wanted = [np.sort(np.stack([p.transpose(2, 0, 1) for p in pixels(seed)]).reshape(10, -1), 0) for seed in (1, 2)]
    if kind not in ("idx",):
        assert np.array_equal(np.sort(first.reshape(10, -1), 0), wanted[0])
        assert np.array_equal(np.sort(second.reshape(10, -1), 0), wanted[1])
    assert not np.array_equal(first, second)


@pytest.mark.parametrize("kind", KINDS)
def test_a_copy_elsewhere_of_another_time_shares_pixels(kind: str, tmp_path: Path) -> None:
    make(kind, tmp_path / "here", 1)
    shutil.copytree(tmp_path / "here", tmp_path / "far" / "away", symlinks=True)
    for path in (tmp_path / "far").rglob("*"):
        os.utime(path, ns=(LONG_AGO + 10**9, LONG_AGO + 10**9))
    one, other = KINDS[kind][1](tmp_path / "here"), KINDS[kind][1](tmp_path / "far" / "away")
    assert one.key == other.key
    stored(one)
    store: Any = PixelStore(other, USUAL)
    store._decode_one = lambda row: pytest.fail("decoded again")
    store.read(np.arange(10))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("settled", [False, True])
def test_what_was_replaced_in_place_is_opened_anew(
    kind: str, settled: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Same path, size and times. Where time stamps do not move either, it must not be remembered yet."""
    if settled:
        settle(monkeypatch)
    make(kind, tmp_path / "set", 1)
    one = KINDS[kind][1](tmp_path / "set")
    before = stored(one)
    time.sleep(0.02)
    make(kind, tmp_path / "set", 2)
    other = KINDS[kind][1](tmp_path / "set")
    assert one.key != other.key
    assert not np.array_equal(stored(other), before)
    fresh = tmp_path / "fresh"
    make(kind, fresh, 2)
    assert KINDS[kind][1](fresh).key == other.key


@pytest.mark.parametrize("kind", ["npy", "arrow", "png", "links"])
@pytest.mark.parametrize("in_place", [False, True])
def test_a_set_that_changed_after_it_was_opened_gives_no_pixels(kind: str, in_place: bool, tmp_path: Path) -> None:
    root = tmp_path / "set"
    make(kind, root, 1)
    images = KINDS[kind][1](root)
    store = PixelStore(images, USUAL)
    before = store.read(np.arange(3))
    make(kind, tmp_path / "other", 2)
    for path in sorted(path for path in (tmp_path / "other").rglob("*") if path.is_file()):
        target = root / path.relative_to(tmp_path / "other")
        if in_place:
            with target.open("r+b") as file:
                file.write(path.read_bytes())
        else:
            path.replace(target)
        os.utime(target, ns=(LONG_AGO, LONG_AGO))
    assert np.array_equal(store.read(np.arange(3)), before)
    with pytest.raises(UsageError, match=r"has changed since it was opened; start the run again$"):
        store.read(np.arange(5, 10))
    assert not PixelStore(images, USUAL).path(".u8").read_bytes()[5 * 3072 : 10 * 3072].strip(b"\0")


@pytest.mark.parametrize("kind", ["npy", "parquet", "idx", "binary"])
def test_what_is_in_memory_or_in_the_cache_stays_what_it_was(kind: str, tmp_path: Path) -> None:
    """And a file that is written again with the same content is no other one."""
    make(kind, tmp_path / "set", 1)
    images = KINDS[kind][1](tmp_path / "set")
    wanted = [np.asarray(images.read(row)) for row in range(10)]
    make(kind, tmp_path / "set", 1 if kind == "npy" else 2, LONG_AGO + 1)
    found = stored(images)
    assert all(np.array_equal(found[row], np.atleast_3d(wanted[row]).transpose(2, 0, 1)) for row in range(10))


@pytest.mark.parametrize("kind", ["npy", "arrow"])
def test_a_set_that_changes_while_it_is_decoded_gives_no_pixels(kind: str, tmp_path: Path) -> None:
    make(kind, tmp_path / "set", 1)
    store: Any = PixelStore(KINDS[kind][1](tmp_path / "set"), USUAL)
    true = store._decode_one

    def decode_one(row: int) -> np.ndarray:
        if row == 5:
            make(kind, tmp_path / "set", 2, LONG_AGO + 1)
        found: np.ndarray = true(row)
        return found

    store._decode_one = decode_one
    with pytest.raises(UsageError, match="has changed since it was opened"):
        store.read(np.arange(10))
    assert not store.path(".u8").read_bytes().strip(b"\0")


def test_a_file_cut_off_under_a_map_is_a_sentence(tmp_path: Path) -> None:
    make("npy", tmp_path, 1)
    store = PixelStore(KINDS["npy"][1](tmp_path), USUAL)
    os.truncate(tmp_path / "fog.npy", 200)
    with pytest.raises(UsageError, match=r"fog.npy has changed since it was opened"):
        store.read(np.arange(10))


@pytest.mark.parametrize("kind", KINDS)
def test_the_second_opening_reads_nothing(
    kind: str, tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(kind, tmp_path / "set", 1)
    settle(monkeypatch)
    key = KINDS[kind][1](tmp_path / "set").key
    identity._hashed.clear()  # another process
    no_hashing(monkeypatch)
    if kind != "links":  # which makes its links anew
        assert KINDS[kind][1](tmp_path / "set").key == key
        return
    assert read_folder(tmp_path / "set" / "link").key == key


def test_a_file_of_a_moment_ago_is_not_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its times may stay as they are when it changes again: as if they did."""
    make("npy", tmp_path / "set", 1)
    first = KINDS["npy"][1](tmp_path / "set").key
    frozen = {
        (path.stat().st_dev, path.stat().st_ino): identity.stamp_of(path.stat())
        for path in (tmp_path / "set").iterdir()
    }
    with (tmp_path / "set" / "fog.npy").open("r+b") as file:
        file.seek(2000)
        file.write(b"other")
    true = identity.stamp_of
    monkeypatch.setattr(identity, "stamp_of", lambda facts: frozen.get((facts.st_dev, facts.st_ino), true(facts)))
    assert KINDS["npy"][1](tmp_path / "set").key != first


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "swap"])
@pytest.mark.parametrize("kind", ["npy", "png"])
def test_a_damaged_memo_counts_as_none(
    kind: str, damage: str, tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settle(monkeypatch)
    make(kind, tmp_path / "set", 1)
    key = KINDS[kind][1](tmp_path / "set").key
    memos = sorted((own_cache / "identities").iterdir())
    assert memos
    for memo in memos:
        content = bytearray(memo.read_bytes())
        if damage == "flip":
            content[32 + 8 + 40 + 3] ^= 1
        memo.write_bytes({"cut": content[:50], "empty": b"", "swap": content[::-1]}.get(damage, content))
    identity._hashed.clear()
    assert KINDS[kind][1](tmp_path / "set").key == key


def test_a_folder_reads_only_what_is_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settle(monkeypatch)
    make("png", tmp_path, 1)
    read_folder(tmp_path / "set")
    (tmp_path / "set" / "c0" / "a new one.png").write_bytes(encoded(pixels(3)[0], "PNG"))
    hashed: list[str] = []
    true = identity._hash
    monkeypatch.setattr(identity, "_hash", lambda path, *rest: hashed.append(Path(path).name) or true(path, *rest))
    found = read_folder(tmp_path / "set")
    assert hashed == ["a new one.png"]
    (tmp_path / "set" / "c0" / "a third one.png").write_bytes(encoded(pixels(4)[0], "PNG"))
    (tmp_path / "set" / "c0" / "a new one.png").write_bytes(encoded(pixels(5)[0], "PNG"))
    found = read_folder(tmp_path / "set")
    assert hashed[1:] == ["a new one.png", "a third one.png"]
    shutil.copytree(tmp_path / "set", tmp_path / "copy")
    assert read_folder(tmp_path / "copy").key == found.key


def test_a_cache_that_cannot_be_written_costs_only_time(tmp_path: Path, own_cache: Path) -> None:
    make("npy", tmp_path / "set", 1)
    key = KINDS["npy"][1](tmp_path / "set").key
    shutil.rmtree(own_cache, ignore_errors=True)
    own_cache.write_text("a file where the folder should be")
    assert KINDS["npy"][1](tmp_path / "set").key == key


def test_large_sets_are_known_by_place_and_stamp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identity, "MOST_READ", 10_000)
    no_hashing(monkeypatch)
    for kind in ("png", "npy"):
        make(kind, tmp_path / kind, 1)
        shutil.copytree(tmp_path / kind, tmp_path / "copy" / kind)
        found, copied = (KINDS[kind][1](place / kind) for place in (tmp_path, tmp_path / "copy"))
        assert found.key != copied.key
        assert found.key == KINDS[kind][1](tmp_path / kind).key
        (tmp_path / "link").unlink(missing_ok=True)
        (tmp_path / "link").symlink_to(tmp_path / kind)
        assert KINDS[kind][1](tmp_path / "link").key == found.key
        store = PixelStore(found, USUAL)
        store.read(np.arange(2))
        time.sleep(0.02)
        make(kind, tmp_path / kind, 2)
        with pytest.raises(UsageError, match=r"has changed since it was opened; start the run again$"):
            store.read(np.arange(10))
        assert KINDS[kind][1](tmp_path / kind).key != found.key


def test_severities_and_sets_in_one_layout_never_meet(tmp_path: Path) -> None:
    """CIFAR-10-C and CIFAR-100-C, and bitmaps of severity 1 and 5: equal names, sizes and times."""
    for place, seed in (("CIFAR-10-C", 1), ("CIFAR-100-C", 2)):
        make("npy", tmp_path / place, seed)
        np.save(tmp_path / place / "labels.npy", LABELS[:2])
        os.utime(tmp_path / place / "labels.npy", ns=(LONG_AGO, LONG_AGO))
    shifts = [load_shift(name, tmp_path) for name in ("cifar10-c", "cifar100-c")]
    fog = Condition("fog", 3)
    for shift, seed in zip(shifts, (1, 2), strict=True):
        found = shift.images(shift.ids("test"), fog).numpy()
        assert np.array_equal(found, pixels(seed)[4:6].transpose(0, 3, 1, 2)), shift.name
    for severity in (1, 5):
        make("bmp", tmp_path / f"bmp{severity}" / "fog" / str(severity), severity)
    trees = [read_folder(tmp_path / f"bmp{severity}" / "fog" / str(severity) / "set") for severity in (1, 5)]
    assert len({tree.key for tree in trees}) == 2
    np.save(tmp_path / "CIFAR-10-C" / "labels.npy", np.tile(LABELS[:2], 5))
    files = (tmp_path / "CIFAR-10-C" / "fog.npy", tmp_path / "CIFAR-10-C" / "labels.npy", TEN)
    keys = {read_npy(*files, severity).key for severity in (None, 1, 2, 5)}
    assert len(keys) == 4  # severity 1 begins where the whole does, but is shorter


def test_a_reader_of_surprises_gets_no_pixels_of_one_that_takes_them(tmp_path: Path) -> None:
    make("parquet", tmp_path, 1)
    assert len({read_parquet([tmp_path / "test.parquet"], as_published=how).key for how in (False, True)}) == 2


def test_images_that_a_table_only_names_belong_to_it(tmp_path: Path) -> None:
    import datasets
    import pyarrow.parquet

    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=TEN)})
    paths = [str(tmp_path / f"{number}.bmp") for number in range(10)]

    def write(seed: int) -> None:
        for path, image in zip(paths, pixels(seed), strict=True):
            Path(path).write_bytes(encoded(image, "BMP"))
            os.utime(path, ns=(LONG_AGO, LONG_AGO))

    write(1)
    rows = {"img": [{"bytes": None, "path": path} for path in paths], "label": LABELS.tolist()}
    made = datasets.Dataset.from_dict(rows, features=features)
    # Not by `to_parquet`, which puts the images' bytes into the table.
    pyarrow.parquet.write_table(made.data.table, tmp_path / "named.parquet")
    one = read_parquet([tmp_path / "named.parquet"])
    assert one.image_files is not None
    first = stored(one)
    assert np.array_equal(first, pixels(1).transpose(0, 3, 1, 2))
    write(2)
    with pytest.raises(UsageError, match=r"0.bmp has changed since it was opened"):
        one.read(0)
    other = read_parquet([tmp_path / "named.parquet"])
    assert other.key != one.key
    assert np.array_equal(stored(other), pixels(2).transpose(0, 3, 1, 2))
    Path(paths[4]).unlink()
    with pytest.raises(UsageError, match=r"4.bmp cannot be read"):
        read_parquet([tmp_path / "named.parquet"])


@pytest.mark.parametrize("kind", ["png", "npy"])
def test_a_session_sees_what_is_there_when_it_loads_a_shift(kind: str, tmp_path: Path) -> None:
    root = tmp_path / "CIFAR-10-C" if kind == "npy" else tmp_path
    name, condition = ("cifar10-c", Condition("fog", 1)) if kind == "npy" else (f"folder:{root / 'set'}", CLEAN)
    reading = Reading(tmp_path, USUAL)

    def digest(shift: Any) -> str:
        return str(shift.digest(shift.ids("test"), condition))

    def place(seed: int) -> None:
        make(kind, root, seed)
        if kind == "npy":  # ten images are five severities of two
            np.save(root / "labels.npy", LABELS[:2])

    place(1)
    old = load_shift(name, reading=reading)
    first = digest(old)
    time.sleep(0.02)
    place(2)
    assert digest(old) == first  # decoded before
    new = load_shift(name, reading=reading)
    assert digest(new) != first
    if kind == "png":
        ids = old.ids("test")
        assert not np.array_equal(old.images(ids, CLEAN), new.images(ids, Condition(NATURAL, 1)))


_MODEL = """
import torch
from torch import nn

def build():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2), nn.GroupNorm(2, 8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)
    )
"""


def test_two_runs_of_a_session_are_of_what_each_found(tmp_path: Path, run_quick: Callable[..., Any]) -> None:
    """A data set replaced between them gives the numbers that the same set elsewhere gives."""
    (tmp_path / "model.py").write_text(_MODEL)

    def measured(root: Path, out: str) -> dict[str, tuple[str, bytes]]:
        done = run_quick(
            {"method": "source+tent", "model": f"{tmp_path / 'model.py'}:build", "shift": f"folder:{root}"},
            corruption="fog",
            severity=5,
            batch_size=4,
            jobs=1,
            out=tmp_path / out,
        )
        found = {}
        for record in done.records():
            with np.load(done.out / "predictions" / f"{record.key}.npz") as columns:
                found[str(record.corruption)] = (record.key, columns["confidence"].tobytes())
        return found

    make("png", tmp_path, 1)
    first = measured(tmp_path / "set", "first")
    time.sleep(0.02)
    make("png", tmp_path, 2)
    second = measured(tmp_path / "set", "second")
    make("png", tmp_path / "elsewhere", 2)
    assert second == measured(tmp_path / "elsewhere" / "set", "third")
    assert second.keys() == first.keys()
    assert all(second[name][0] != first[name][0] and second[name][1] != first[name][1] for name in first)


_OPEN = """
import sys
from pathlib import Path
from bench.data.folders import read_folder
print(read_folder(Path(sys.argv[1])).key)
"""


def test_processes_that_open_one_folder_at_once_agree(tmp_path: Path, own_cache: Path) -> None:
    make("png", tmp_path, 1)
    command = ["-c", _OPEN, str(tmp_path / "set")]
    running = [quick_processes.Process(command) for _ in range(3)]
    keys = {process.communicate(timeout=120)[0] for process in running}
    assert len(keys) == 1
    assert "folder:" in keys.pop()


def test_a_file_that_changes_between_its_stamp_and_its_hash_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(b"half")
    stamps = identity.stamps_of([(tmp_path / "x.png").stat()])
    (tmp_path / "x.png").write_bytes(b"whole")
    with pytest.raises(UsageError, match=r"x.png changes while it is read; wait until it is whole and start again$"):
        identity.open_tree(tmp_path, ["x.png"], stamps)


def test_the_hash_is_that_of_the_standard_library(tmp_path: Path) -> None:
    for size in (0, 5, (1 << 20) + 1, 3 << 20):
        content = np.random.default_rng(size).bytes(size)
        (tmp_path / "x").write_bytes(content)
        assert identity.content_digest(tmp_path / "x") == hashlib.sha256(content).digest()
    with pytest.raises(UsageError, match=r"cannot be read .*; mend the link or the rights"):
        identity.content_digest(tmp_path / "absent")
