"""CIFAR, Fashion-MNIST and the small tasks in small copies of their layouts, and tables of `datasets`."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

import corruptions
from bench.core.conditions import CLEAN, Condition
from bench.core.errors import MissingDataError, UsageError
from bench.data.hf_tables import read_parquet
from bench.shifts import find_row, load_shift
from bench.shifts.catalog import TASKS
from bench.shifts.data_root import Reading
from bench.shifts.shift import pick_conditions

from .conftest import as_stored, picture, save, table

FOG = Condition("fog", 4)
TEN = [str(number) for number in range(10)]
RNG = np.random.default_rng(0)
CORRUPTED = RNG.integers(0, 256, (30, 32, 32, 3), dtype=np.uint8)
LABELS = np.array([3, 8, 8, 0, 6, 6])


def write_cifar_c(root: Path, name: str = "CIFAR-10-C") -> Path:
    place = root / name
    place.mkdir()
    np.save(place / "fog.npy", CORRUPTED)
    np.save(place / "contrast.npy", CORRUPTED[::-1])
    np.save(place / "labels.npy", np.tile(LABELS, 5))
    return place


def write_cifar(root: Path, labels: np.ndarray = LABELS) -> list[np.ndarray]:
    """Clean CIFAR-10 in the hub's layout; gives the test pictures."""
    (root / "cifar10").mkdir()
    pictures = [picture(number, (32, 32)) for number in range(len(labels))]
    (root / "cifar10/test-00000-of-00001.parquet").write_bytes(table(pictures, labels.tolist(), TEN))
    train = [picture(50 + number, (32, 32)) for number in range(20)]
    (root / "cifar10/train-00000-of-00001.parquet").write_bytes(
        table(train, [number % 10 for number in range(20)], TEN)
    )
    return pictures


@pytest.mark.parametrize(
    ("name", "folder", "classes"), [("cifar10-c", "CIFAR-10-C", 10), ("cifar100-c", "CIFAR-100-C", 100)]
)
def test_published_arrays_alone(name: str, folder: str, classes: int, tmp_path: Path) -> None:
    write_cifar_c(tmp_path, folder)
    shift = load_shift(name, tmp_path)
    ids = shift.ids("test")
    assert shift.classes == classes
    assert shift.labels(ids).tolist() == LABELS.tolist()
    assert not shift.has_clean
    assert (shift.storage, shift.profile) == ("uint8", "cifar32")
    assert np.array_equal(shift.images(ids, FOG).numpy(), CORRUPTED[18:24].transpose(0, 3, 1, 2))
    last = shift.images(ids[::-1].copy(), Condition("contrast", 5)).numpy()
    assert np.array_equal(last, CORRUPTED[::-1][24:30][::-1].transpose(0, 3, 1, 2))
    with pytest.raises(MissingDataError, match=r"no file .*snow\.npy"):
        shift.images(ids, Condition("snow", 1))


def test_published_arrays_with_clean_images_beside_them(tmp_path: Path) -> None:
    write_cifar_c(tmp_path)
    pictures = write_cifar(tmp_path)
    shift = load_shift("cifar10-c", tmp_path)
    ids = shift.ids("test")
    assert shift.has_clean
    assert np.array_equal(shift.images(ids, CLEAN).numpy(), np.stack(pictures).transpose(0, 3, 1, 2))
    assert np.array_equal(shift.images(ids, FOG).numpy(), CORRUPTED[18:24].transpose(0, 3, 1, 2))
    assert len(shift.ids("train")) + len(shift.ids("dev")) == 20


def test_clean_images_in_another_order_are_not_paired(tmp_path: Path) -> None:
    write_cifar_c(tmp_path)
    write_cifar(tmp_path, LABELS[::-1].copy())
    shift = load_shift("cifar10-c", tmp_path)
    assert not shift.has_clean
    assert shift.labels(shift.ids("test")).tolist() == LABELS.tolist()


def test_a_larger_model_is_refused_for_published_pixels_only(tmp_path: Path) -> None:
    from bench.data.decode import Preprocessing

    write_cifar_c(tmp_path)
    write_cifar(tmp_path)
    large = Reading(tmp_path, Preprocessing(64, 64))
    shift = load_shift("cifar10-c", reading=large)
    with pytest.raises(UsageError, match=r"fog\.npy\[18\] is 32 x 32 px but the model takes 64 x 64"):
        shift.images(shift.ids("test"), FOG)
    assert load_shift("cifar10-c-gen", reading=large).images(np.arange(2), FOG).shape == (2, 3, 64, 64)


def test_generated_cifar_is_our_corruption_of_the_clean_images(tmp_path: Path) -> None:
    pictures = torch.from_numpy(np.stack(write_cifar(tmp_path)).transpose(0, 3, 1, 2).copy())
    shift = load_shift("cifar10-c-gen", tmp_path)
    ids = shift.ids("test")
    expected = corruptions.corrupt(pictures, "fog", 4, seed=0, ids=[0, 1, 2, 3, 4, 5], profile="cifar32")
    assert torch.equal(shift.images(ids, FOG), expected)
    assert shift.name == "cifar10-c-gen"


def test_cifar_100_takes_the_fine_labels(tmp_path: Path) -> None:
    (tmp_path / "cifar100").mkdir()
    names = [str(number) for number in range(100)]
    coarse = {"coarse_label": (datasets.ClassLabel(names=names[:20]), [1, 2])}
    content = table([picture(0, (32, 32)), picture(1, (32, 32))], [99, 4], names, coarse)
    made = datasets.Dataset.from_parquet(_file(tmp_path / "x.parquet", content)).rename_column("label", "fine_label")
    made.to_parquet(tmp_path / "cifar100/test.parquet")
    shift = load_shift("cifar100-c-gen", tmp_path)
    assert shift.classes == 100
    assert shift.labels(shift.ids("test")).tolist() == [99, 4]


def _file(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    return str(path)


def test_cifars_pickles_are_never_loaded(tmp_path: Path) -> None:
    place = tmp_path / "cifar10/cifar-10-batches-py"
    place.mkdir(parents=True)
    (place / "data_batch_1").write_bytes(b"\x80\x04cos\nsystem\n.")
    with pytest.raises(
        UsageError, match=r"a pickle, which can run code and is not loaded; .* bench data fetch cifar10-c-gen"
    ):
        load_shift("cifar10-c-gen", tmp_path).ids("test")


def _idx(values: np.ndarray) -> bytes:
    head = struct.pack(f">BBBB{values.ndim}i", 0, 0, 8, values.ndim, *values.shape)
    return head + values.tobytes()


@pytest.mark.parametrize("place", ["fashion-mnist", "FashionMNIST/raw"])
def test_fashion_from_debian_or_torchvision(place: str, tmp_path: Path) -> None:
    (tmp_path / place).mkdir(parents=True)
    grey = RNG.integers(0, 256, (6, 28, 28), dtype=np.uint8)
    for stem in ("t10k", "train"):
        (tmp_path / place / f"{stem}-images-idx3-ubyte.gz").write_bytes(gzip.compress(_idx(grey)))
        (tmp_path / place / f"{stem}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(_idx(LABELS.astype(np.uint8))))
    shift = load_shift("fashion-c", tmp_path)
    ids = shift.ids("test")
    assert shift.labels(ids).tolist() == LABELS.tolist()
    large = np.asarray(Image.fromarray(grey[2]).convert("RGB").resize((32, 32), Image.Resampling.BICUBIC))
    assert np.array_equal(shift.images(ids, CLEAN)[2].numpy(), large.transpose(2, 0, 1))
    assert len(shift.corruptions) == 12


def test_small_tasks_are_cut_to_a_thousand_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.shifts.vtab._IMAGES", 5)
    for split in ("train", "test"):
        for number in range(9):
            save(tmp_path / "mini-vtab/dtd" / split / f"{number % 3}" / f"{number}.png", picture(number, (230, 224)))
    shift = load_shift("mini-vtab:dtd", tmp_path)
    assert (shift.corruptions, shift.severities, shift.has_clean) == (("natural",), (1,), False)
    ids = shift.ids("test")
    assert len(ids) == 5
    corrupted = load_shift("mini-vtab-c:dtd", tmp_path)
    assert len(corrupted.corruptions) == 15
    assert torch.equal(corrupted.images(ids, CLEAN), shift.images(ids, Condition("natural", 1)))
    assert len(corrupted.ids("train")) + len(corrupted.ids("dev")) == 5
    assert pick_conditions(corrupted, [CLEAN, FOG]) == (CLEAN, FOG)
    with pytest.raises(UsageError, match="unknown task 'dtdd'; did you mean 'dtd'"):
        load_shift("mini-vtab:dtdd", tmp_path)
    assert len(TASKS) == 21


COLUMNS = {
    "two label columns": (
        {"other": (datasets.ClassLabel(names=TEN), [0, 1])},
        r"no single label column \(found: label, other\); name one with --label COLUMN",
    ),
    "two image columns": (
        {"mask": (datasets.Image(), [Image.fromarray(picture(0, (32, 32)))] * 2)},
        r"has 2 image columns \(image, label, mask\); one is needed",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", COLUMNS)
def test_tables_that_leave_a_question_say_which(case: str, tmp_path: Path) -> None:
    columns, sentence = COLUMNS[case]
    content = table([picture(0, (32, 32))] * 2, [0, 1], TEN, columns)
    with pytest.raises(UsageError, match=sentence):
        read_parquet([Path(_file(tmp_path / "x.parquet", content))])


def test_tables_with_names_for_labels_take_the_known_order(tmp_path: Path) -> None:
    pictures = [picture(number, (32, 32)) for number in range(3)]
    synsets = {
        "wnid": (datasets.Value("string"), ["n03", "n01", "n03"]),
        "title": (datasets.Value("string"), list("abc")),
    }
    content = table(pictures, [0, 0, 0], TEN, synsets)
    found = read_parquet([Path(_file(tmp_path / "x.parquet", content))], classes=("n01", "n02", "n03"))
    assert found.labels.tolist() == [2, 0, 2]
    assert found.classes == ("n01", "n02", "n03")
    unordered = table(pictures, [0, 1, 0], ["n03", "n01"])
    found = read_parquet([Path(_file(tmp_path / "y.parquet", unordered))], classes=("n01", "n02", "n03"))
    assert found.labels.tolist() == [2, 0, 2]
    with pytest.raises(UsageError, match="has 10 classes in label, not 3; give another data set"):
        read_parquet(
            [Path(_file(tmp_path / "z.parquet", table(pictures, [0, 1, 0], TEN)))], classes=("n01", "n02", "n03")
        )


def test_broken_and_missing_tables(tmp_path: Path) -> None:
    content = table([picture(0, (32, 32))] * 2, [0, 1], TEN)
    with pytest.raises(UsageError, match=r"x\.parquet is not a whole parquet file .*; fetch it again"):
        read_parquet([Path(_file(tmp_path / "x.parquet", content[:-100]))])
    with pytest.raises(MissingDataError, match=r"no file .*y\.parquet"):
        read_parquet([tmp_path / "y.parquet"])


def test_a_broken_image_in_a_table_is_named(tmp_path: Path) -> None:
    made = datasets.Dataset.from_dict(
        {"image": [{"bytes": b"\x89PNG broken", "path": None}], "label": [0]},
        features=datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=TEN)}),
    )
    made.to_parquet(tmp_path / "x.parquet")
    found = read_parquet([tmp_path / "x.parquet"])
    with pytest.raises(UsageError, match=r"x\.parquet, row 0 is not an image .*; write the table again without it"):
        found.read(0)


def test_saved_arrow_folders_and_one_file(tmp_path: Path) -> None:
    content = table([picture(number, (32, 32)) for number in range(4)], [1, 0, 1, 0], TEN)
    path = _file(tmp_path / "x.parquet", content)
    datasets.Dataset.from_parquet(path).save_to_disk(tmp_path / "saved")
    for place in (path, tmp_path / "saved"):
        shift: Any = load_shift(f"folder:{place}")
        assert shift.labels(shift.ids("test")).tolist() == [1, 0, 1, 0]


def test_folders_with_their_own_parts(tmp_path: Path) -> None:
    for split, start in (("train", 100), ("val", 0)):
        for number in range(4):
            save(tmp_path / split / f"c{number % 2}" / f"{number}.jpg", picture(start + number, (260, 260)))
    shift = load_shift(f"folder:{tmp_path}")
    assert shift.name == f"folder:{tmp_path.name}"
    assert shift.labels(shift.ids("test")).tolist() == [0, 0, 1, 1]
    assert len(shift.ids("train")) == 3
    stored = as_stored(picture(0, (260, 260)))
    resized = np.asarray(Image.fromarray(stored).resize((256, 256), Image.Resampling.BILINEAR))[16:240, 16:240]
    assert np.array_equal(shift.images(np.array([0]), CLEAN)[0].numpy(), resized.transpose(2, 0, 1))
    save(tmp_path / "train" / "c9" / "1.jpg", picture(0, (260, 260)))
    shift = load_shift(f"folder:{tmp_path}")
    assert shift.classes == 3
    train = np.concatenate([shift.ids("dev"), shift.ids("train")])
    assert sorted(shift.labels(train).tolist()) == [0, 0, 1, 1, 2]
    save(tmp_path / "val" / "c8" / "1.jpg", picture(0, (260, 260)))
    with pytest.raises(UsageError, match=r"val has the class c8, which .*train lacks, while it has c9; name"):
        load_shift(f"folder:{tmp_path}")


@pytest.mark.parametrize(("name", "sentence"), [
    ("folder", "folder needs a name after a colon"),
    ("folder:", "folder needs a name after a colon"),
    ("hf", "hf needs a name after a colon"),
    ("imagenet-c:fog", "imagenet-c takes nothing after a colon"),
    ("mini-vtab", "mini-vtab needs a name after a colon"),
    ("foldr:x", "did you mean 'folder'"),
])  # fmt: skip
def test_names_of_shifts(name: str, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        find_row(name)


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(MissingDataError, match=r"folder:nowhere: there is no nowhere here or in "):
        load_shift("folder:nowhere", tmp_path)
    (tmp_path / "mine/train/a").mkdir(parents=True)
    save(tmp_path / "mine/train/a/1.png", picture(0))
    with pytest.raises(UsageError, match="has a train part but no test part; name the other one"):
        load_shift("folder:mine", tmp_path)
