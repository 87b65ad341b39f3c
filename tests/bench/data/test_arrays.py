"""Reading .npy in five severities, IDX and CIFAR's binary files, checked against files written by hand."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest

from bench.core.errors import MissingDataError, UsageError
from bench.data.arrays import read_cifar_binary, read_idx, read_npy

TEN = [str(number) for number in range(10)]
PIXELS = np.random.default_rng(0).integers(0, 256, (20, 32, 32, 3), dtype=np.uint8)
LABELS = np.array([3, 1, 4, 1])


def _npy(root: Path, pixels: np.ndarray = PIXELS, labels: np.ndarray = LABELS) -> tuple[Path, Path]:
    np.save(root / "fog.npy", pixels)
    np.save(root / "labels.npy", labels)
    return root / "fog.npy", root / "labels.npy"


@pytest.mark.parametrize("labels", [LABELS, np.tile(LABELS, 5), LABELS.astype(np.uint8)])
@pytest.mark.parametrize("severity", [1, 3, 5])
def test_a_severity_is_its_fifth(severity: int, labels: np.ndarray, tmp_path: Path) -> None:
    found = read_npy(*_npy(tmp_path, labels=labels), TEN, severity)
    assert found.labels.tolist() == LABELS.tolist()
    for row in range(4):
        assert np.array_equal(np.asarray(found.read(row)), PIXELS[4 * (severity - 1) + row])
    assert found.name(1).endswith(f"fog.npy[{4 * (severity - 1) + 1}]")


WRONG = {
    "labels of another release": (PIXELS, np.arange(7) % 3, "labels.npy holds 7 labels but .*fog.npy 20 images; fetch"),
    "a label too large": (PIXELS, np.array([0, 1, 2, 10]), "the label 10, outside of 0 .. 9"),
    "a negative label": (PIXELS, np.array([0, 1, 2, -1]), "the label -1, outside of 0 .. 9"),
    "labels that are no numbers": (PIXELS, np.array([0.5, 1, 2, 3]), "holds float64 .*; labels must be whole numbers"),
    "labels of one-hot": (PIXELS, np.eye(4, dtype=int), r"holds int64 \[4, 4\]; labels must be whole numbers"),
    "floats": (PIXELS / 255, LABELS, "holds float64 .*; it must be uint8"),
    "channels first": (PIXELS.transpose(0, 3, 1, 2), LABELS, r"holds uint8 \[20, 3, 32, 32\]; it must be uint8 \[n, h"),
    "not five severities": (PIXELS[:19], LABELS, "holds 19 images, not five severities"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_arrays_name_the_file(case: str, tmp_path: Path) -> None:
    pixels, labels, sentence = WRONG[case]
    with pytest.raises(UsageError, match=sentence):
        read_npy(*_npy(tmp_path, pixels, labels), TEN, 2)


def test_truncated_pickled_and_missing_arrays(tmp_path: Path) -> None:
    images, labels = _npy(tmp_path)
    images.write_bytes(images.read_bytes()[:1000])
    with pytest.raises(UsageError, match=r"fog.npy is not a whole .npy file"):
        read_npy(images, labels, TEN, 1)
    np.save(images, np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(UsageError, match=r"fog.npy is not a whole .npy file"):
        read_npy(images, labels, TEN, 1)
    images.unlink()
    with pytest.raises(MissingDataError, match=r"no file .*fog.npy"):
        read_npy(images, labels, TEN, 1)


def _idx(values: np.ndarray) -> bytes:
    return (
        struct.pack(">BBBB", 0, 0, 8, values.ndim) + struct.pack(f">{values.ndim}i", *values.shape) + values.tobytes()
    )


@pytest.mark.parametrize("packed", [False, True])
def test_idx_files(packed: bool, tmp_path: Path) -> None:
    grey = PIXELS[:4, :28, :28, 0].copy()
    contents = {"images-idx3-ubyte": _idx(grey), "labels-idx1-ubyte": _idx(LABELS.astype(np.uint8))}
    paths = []
    for name, content in contents.items():
        paths.append(tmp_path / (name + ".gz" * packed))
        paths[-1].write_bytes(gzip.compress(content) if packed else content)
    found = read_idx(paths[0], paths[1], TEN)
    assert found.labels.tolist() == LABELS.tolist()
    assert np.array_equal(np.asarray(found.read(2)), np.stack([grey[2]] * 3, axis=-1))
    paths[0].write_bytes(paths[0].read_bytes()[:-9])
    with pytest.raises(UsageError, match=r"images-idx3.* fetch it again"):
        read_idx(paths[0], paths[1], TEN)


def test_fashion_mnist_is_read_as_torchvision_reads_it(tmp_path: Path) -> None:
    from torchvision.datasets import FashionMNIST

    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for stem, count in (("train", 6), ("t10k", 4)):
        (raw / f"{stem}-images-idx3-ubyte").write_bytes(_idx(PIXELS[:count, :28, :28, 1].copy()))
        (raw / f"{stem}-labels-idx1-ubyte").write_bytes(_idx(np.arange(count).astype(np.uint8)))
    reference = FashionMNIST(str(tmp_path), train=False)
    found = read_idx(raw / "t10k-images-idx3-ubyte", raw / "t10k-labels-idx1-ubyte", TEN)
    for row, (image, label) in enumerate(reference):
        assert found.labels[row] == label
        assert np.array_equal(np.asarray(found.read(row)), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("label_bytes", [1, 2])
def test_cifars_binary_version(label_bytes: int, tmp_path: Path) -> None:
    files = []
    for part in range(2):
        rows = [
            bytes([9] * (label_bytes - 1) + [int(LABELS[row])]) + PIXELS[part * 4 + row].transpose(2, 0, 1).tobytes()
            for row in range(4)
        ]
        files.append(tmp_path / f"data_batch_{part + 1}.bin")
        files[-1].write_bytes(b"".join(rows))
    found = read_cifar_binary(files, TEN, label_bytes)
    assert found.labels.tolist() == LABELS.tolist() * 2
    assert np.array_equal(np.asarray(found.read(5)), PIXELS[5])
    files[1].write_bytes(files[1].read_bytes()[:-1])
    with pytest.raises(UsageError, match=r"data_batch_2.bin is not a whole file"):
        read_cifar_binary(files, TEN, label_bytes)
