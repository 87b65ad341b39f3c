"""Small hostile files: what they state costs neither memory nor disk, and one sentence says what is wrong."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import resource
import struct
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save

from bench.core.errors import BenchError, UsageError
from bench.data.arrays import read_idx, read_npy
from bench.data.decode import decode
from bench.data_tools import fetch as fetching
from bench.models.tensor_files import Checkpoint
from bench.models.trained import load_trained
from bench.models.weights_io import facts_of, load_stock, load_weights, open_weights

MIB = 1 << 20


@pytest.fixture(autouse=True)
def _little_memory() -> Any:
    """Address space for a few hundred MiB more than now: what a file merely states must not be allocated."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 600 * MIB, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


# --- weights ----------------------------------------------------------------------------------------------------------


def _weights(path: Path, **sizes: Any) -> Path:
    tensors = {"encoder.cls_token": torch.zeros(1, 1, 4), "head.bias": torch.zeros(10)}
    path.write_bytes(save(tensors, {"architecture": json.dumps(sizes)}))
    return path


@pytest.mark.parametrize(
    "sizes",
    [
        {"dim": 1 << 40, "heads": 1},
        {"depth": 10**9},
        {"decoder_depth": 10**9},
        {"decoder_dim": 1 << 40, "decoder_heads": 1},
        {"image_size": 1 << 14, "patch_size": 1},
        {"depth": -1},
        {"mean": [1, 1, float("inf")]},
        {"std": [1, 1, 0]},
        {"dim": 16384, "heads": 1, "depth": 256},
        {"norm": "bn", "depth": 1022, "factor": 64},
        {"norm": "bn", "depth": 10**9 + 2},
        {"name": "vit_giant_patch14_224", "image_size": 224, "resize": 224, "mean": [0, 0, 0], "std": [1, 1, 1]},
        {"name": "vit_tiny_patch16_224", "image_size": 10**9, "resize": 10**9, "mean": [0, 0, 0], "std": [1, 1, 1]},
    ],
    ids=str,
)
def test_a_small_file_cannot_state_a_large_network(tmp_path: Path, sizes: dict[str, Any]) -> None:
    path = _weights(tmp_path / "a.safetensors", **sizes)
    for read in (load_weights, open_weights, lambda path: load_stock(str(path)), lambda path: load_trained(str(path))):
        with pytest.raises(UsageError, match=r"damaged metadata|states a network of [\d,]+ million numbers"):
            read(path)


def test_a_header_has_a_bound(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    header = b'{"__metadata__":{"facts":"' + b"x" * (33 * MIB) + b'"}}'
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    for read in (load_weights, Checkpoint):
        with pytest.raises(UsageError, match="33 MiB of names and metadata, at most 32 are read"):
            read(path)
    assert facts_of(path) == {}
    path.write_bytes(struct.pack("<Q", 1 << 62) + b"{}")
    with pytest.raises(UsageError, match="not a whole safetensors file"):
        load_weights(path)


def test_an_index_has_a_bound(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors.index.json"
    path.write_bytes(b'{"weight_map": {"a": "' + b"x" * (33 * MIB) + b'"}}')
    with pytest.raises(UsageError, match="more than 32 MiB"):
        Checkpoint(path)
    path.write_bytes(b"[" * 200_000)
    with pytest.raises(UsageError, match="is not an index"):
        Checkpoint(path)


def test_what_is_no_part_of_a_stock_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from bench.models.mae_files import _say_left_out

    _say_left_out(tmp_path / "a.pth", ["teacher.x"], {"head.bias": torch.zeros(1), "norm.bias": torch.zeros(1)})
    assert "2 tensors are no part of a stock and are left out (teacher.x, head.bias)" in caplog.text
    caplog.clear()
    _say_left_out(tmp_path / "a.pth", [], {"norm.bias": torch.zeros(1)})
    assert caplog.text == ""


# --- images and arrays ------------------------------------------------------------------------------------------------


def _idx(*sizes: int, content: bytes = b"", kind: int = 8) -> bytes:
    return bytes([0, 0, kind, len(sizes)]) + struct.pack(f">{len(sizes)}I", *sizes) + content


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (_idx(1 << 31, 1 << 10, 1 << 10), "promises"),
        (_idx(*[1 << 31] * 4), "promises"),
        (_idx(2, 2, 2, content=b"x" * 8)[:9], "not an IDX file"),
        (bytes([0, 0, 8, 255]), "not an IDX file"),
        (bytes([0, 0, 8, 0]), "not an IDX file"),
        (b"", "not an IDX file"),
        (_idx(2, 2, 2, content=b"x" * 7), "holds 7 values but promises"),
        (_idx(2, 2, 2, content=b"x" * 9), "holds more values but promises"),
    ],
    ids=range(8),
)
@pytest.mark.parametrize("packed", [False, True])
def test_idx_files_hold_what_they_promise(tmp_path: Path, images: bytes, message: str, packed: bool) -> None:
    suffix = ".gz" if packed else ""
    (tmp_path / f"images{suffix}").write_bytes(gzip.compress(images, 1) if packed else images)
    (tmp_path / "labels").write_bytes(_idx(2, content=b"\0\1"))
    with pytest.raises(UsageError, match=message):
        read_idx(tmp_path / f"images{suffix}", tmp_path / "labels", ("a", "b"))


def test_an_idx_file_unpacks_to_no_more_than_it_promises(tmp_path: Path) -> None:
    """700 MiB of zeros, packed 1 MiB at a time: parts of a gzip file follow one another."""
    zeros = gzip.compress(bytes(MIB))
    (tmp_path / "images.gz").write_bytes(gzip.compress(_idx(2, 2, 2)) + 700 * zeros)
    (tmp_path / "labels").write_bytes(_idx(2, content=b"\0\1"))
    with pytest.raises(UsageError, match="holds more values but promises"):
        read_idx(tmp_path / "images.gz", tmp_path / "labels", ("a", "b"))


@pytest.mark.parametrize("shape", ["(1000000000000,32,32,3)", "(-1,32,32,3)", "((((((1,),),),),),)", "(" * 5000])
def test_npy_files_hold_what_they_state(tmp_path: Path, shape: str) -> None:
    header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}".encode()
    (tmp_path / "a.npy").write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header)
    np.save(tmp_path / "labels.npy", np.zeros(1, np.int64))
    with pytest.raises(UsageError, match=r"not a whole \.npy file"):
        read_npy(tmp_path / "a.npy", tmp_path / "labels.npy", ("a",))


def test_a_picture_of_a_million_by_a_million_pixels_is_not_decoded() -> None:
    def chunk(kind: bytes, body: bytes) -> bytes:
        import zlib

        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 10**6, 10**6, 8, 2, 0, 0, 0)
    picture = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")
    with pytest.raises(UsageError, match="is damaged"):
        decode(picture, "a.png", "leave it out", as_published=False)


# --- archives ---------------------------------------------------------------------------------------------------------


def _zip(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def _tar(path: Path, name: str, size: int) -> Path:
    """An archive whose only member states more than follows."""
    member = tarfile.TarInfo(name)
    member.size = size
    path.write_bytes(member.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
    return path


@pytest.fixture
def little_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    real = fetching.shutil.disk_usage
    monkeypatch.setattr(fetching.shutil, "disk_usage", lambda path: real(path)._replace(free=10 * MIB))


@pytest.mark.usefixtures("little_disk")
def test_an_archive_unpacks_to_no_more_than_there_is_room_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "data"
    bomb = _zip(tmp_path / "a.zip", {f"{number}.npy": bytes(6 * MIB) for number in range(2)})
    assert bomb.stat().st_size < 20_000
    for archive in (bomb, _tar(tmp_path / "a.tar", "a.npy", 1 << 40)):
        with pytest.raises(UsageError, match=r"unpacks to more than the 0\.0105 GB left here"):
            fetching._unpack(archive, root)
        assert list(root.iterdir()) == []
    monkeypatch.setattr(fetching, "_MOST_MEMBERS", 3)
    with pytest.raises(UsageError, match="more than 3 files"):
        fetching._unpack(_zip(tmp_path / "b.zip", {str(number): b"" for number in range(4)}), root)
    fetching._unpack(_zip(tmp_path / "c.zip", {"a/b.txt": b"x"}), root)
    assert (root / "a" / "b.txt").read_bytes() == b"x"


@pytest.mark.parametrize("name", ["../evil", "/evil", "C:/evil", "C:evil", "a/../../evil", "\\\\host\\evil"])
def test_members_stay_in_the_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="leads elsewhere"):
        fetching._unpack(_zip(tmp_path / "a.zip", {name: b"x"}), tmp_path / "deep" / "data")
    assert not list(tmp_path.rglob("*evil*"))


# --- lists on the network ---------------------------------------------------------------------------------------------


class Answers:
    def __init__(self, content: bytes) -> None:
        self.content = io.BytesIO(content)

    def __enter__(self) -> Answers:
        return self

    def __exit__(self, *_: object) -> None: ...

    def raise_for_status(self) -> None: ...

    def iter_content(self, size: int) -> Any:
        return iter(lambda: self.content.read(size), b"")


def _listing(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setattr(fetching.requests, "get", lambda *_, **__: Answers(content))


def _record(name: str, checksum: str) -> bytes:
    files = [{"key": name, "size": 1, "checksum": checksum, "links": {"self": "https://example.org"}}]
    return json.dumps({"files": files}).encode()


def test_what_was_published_is_what_is_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    row = fetching.find_row("cifar10-c")
    (name, checksum), *_ = fetching.PINNED["2535967"].items()
    said: list[str] = []
    _listing(monkeypatch, _record(name, checksum))
    assert [remote.checksum for remote in fetching._of_zenodo(row, said.append)] == [checksum]
    assert said == []
    for other in (_record(name, "md5:" + "0" * 32), _record("other.tar", checksum)):
        _listing(monkeypatch, other)
        with pytest.raises(UsageError, match="but it was published with"):
            fetching._of_zenodo(row, said.append)
    _listing(monkeypatch, _record("a.zip", "md5:" + "0" * 32))
    assert fetching._of_zenodo(fetching.find_row("laion-c"), said.append)
    assert "no published checksum is known for laion-c" in said[0]


def test_sums_are_pinned_for_every_record_of_the_paper_but_two() -> None:
    records = {row.doi.rpartition(".")[2] for row in fetching_rows() if row.doi}
    assert records - fetching.PINNED.keys() == {"14051887", "2536630"}  # LAION-C and Tiny-ImageNet-C
    for files in fetching.PINNED.values():
        for checksum in files.values():
            kind, _, digits = checksum.partition(":")
            assert len(digits) == 2 * hashlib.new(kind).digest_size


def fetching_rows() -> Any:
    from bench.shifts import SHIFTS

    return SHIFTS.values()


@pytest.mark.parametrize("content", [b"[]", b"{}", b"x", b'{"files": [{}]}', b'{"files": 3}', b"[" * 100_000])
def test_an_answer_that_is_no_record_is_one_sentence(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    _listing(monkeypatch, content)
    with pytest.raises(BenchError, match="no list of files"):
        fetching._of_zenodo(fetching.find_row("cifar10-c"), lambda _: None)


def test_a_list_without_end_is_not_read_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "_MOST_LISTED", MIB)
    _listing(monkeypatch, bytes(2 * MIB))
    with pytest.raises(UsageError, match="more than 1 MiB"):
        fetching._ask("https://example.org", "it")
