"""bench data fetch from a server that cuts connections, sends wrong files, or uses unsafe paths."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import quick_processes
import requests

from bench.core.conditions import Condition
from bench.core.errors import BenchError, MissingDataError, UsageError
from bench.data_tools import fetch as fetching
from bench.data_tools.fetch import download, fetch
from bench.shifts import load_shift
from bench.shifts.data_root import Reading


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def _tar(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in files.items():
            facts = tarfile.TarInfo(name)
            facts.size = len(content)
            tar.addfile(facts, io.BytesIO(content))
    return buffer.getvalue()


FOG = np.random.default_rng(0).integers(0, 256, (20, 32, 32, 3), dtype=np.uint8)
LABELS = np.tile(np.arange(4), 5)


def _zenodo(web: Any, monkeypatch: pytest.MonkeyPatch, content: bytes, checksum: str | None = None) -> None:
    """A record that lists one archive, in the form of Zenodo's interface."""
    (web.root / "CIFAR-10-C.tar").write_bytes(content)
    (web.root / "2535967").write_text(json.dumps({"files": [{
        "key": "CIFAR-10-C.tar",
        "size": len(content),
        "checksum": checksum or "md5:" + hashlib.md5(content).hexdigest(),
        "links": {"self": f"{web.url}/CIFAR-10-C.tar"},
    }]}))  # fmt: skip
    monkeypatch.setattr(fetching, "ZENODO", web.url)
    listed = checksum or "md5:" + hashlib.md5(content).hexdigest()
    monkeypatch.setattr(fetching, "PINNED", {"2535967": {"CIFAR-10-C.tar": listed}})


ARCHIVE = _tar({"CIFAR-10-C/fog.npy": _npy(FOG), "CIFAR-10-C/labels.npy": _npy(LABELS)})


def test_a_fetched_archive_is_unpacked_read_and_never_fetched_again(
    web: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _zenodo(web, monkeypatch, ARCHIVE)
    said: list[str] = []
    reading = Reading(tmp_path / "data")
    assert fetch("cifar10-c", reading, None, said.append) == tmp_path / "data" / "cifar10-c"
    assert "CC BY 4.0" in said[0]
    assert "1 files" in said[1]
    shift = load_shift("cifar10-c", reading=reading)
    assert np.array_equal(shift.images(np.arange(4), Condition("fog", 2)).numpy(), FOG[4:8].transpose(0, 3, 1, 2))
    web.asked.clear()
    fetch("cifar10-c", reading, None, said.append)
    assert [path for path, _ in web.asked] == ["/2535967"]


def test_what_broke_off_goes_on_where_it_stopped(web: Any, tmp_path: Path) -> None:
    content = np.random.default_rng(1).bytes(3_000_000)
    (web.root / "big").write_bytes(content)
    web.break_after = 1_000_000
    out = tmp_path / "out"
    download(f"{web.url}/big", str(out), None, part=tmp_path / "big.part")
    assert out.read_bytes() == content
    first, second = (asked for _, asked in web.asked)
    assert first is None
    assert 900_000 < int(second.removeprefix("bytes=").removesuffix("-")) <= 1_000_000


def test_a_server_without_ranges_is_read_from_the_start(web: Any, tmp_path: Path) -> None:
    (web.root / "big").write_bytes(b"new" * 100)
    web.ranges = False
    (tmp_path / "big.part").write_bytes(b"old")
    download(f"{web.url}/big", str(tmp_path / "out"), None, part=tmp_path / "big.part")
    assert (tmp_path / "out").read_bytes() == b"new" * 100


def test_a_part_that_is_whole_already_is_taken(web: Any, tmp_path: Path) -> None:
    (web.root / "big").write_bytes(b"whole")
    (tmp_path / "big.part").write_bytes(b"whole")
    download(f"{web.url}/big", str(tmp_path / "out"), None, part=tmp_path / "big.part")
    assert (tmp_path / "out").read_bytes() == b"whole"


def test_a_killed_fetch_is_continued_by_the_next(web: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _zenodo(web, monkeypatch, ARCHIVE)
    monkeypatch.setattr(fetching, "_TRIES", 1)
    web.break_after = None
    reading = Reading(tmp_path / "data")

    def cut(url: str, part: Path) -> None:
        part.write_bytes(ARCHIVE[:5000])
        raise requests.ConnectionError("the cable was pulled")

    with monkeypatch.context() as once:
        once.setattr(fetching, "_download_rest", cut)
        with pytest.raises(MissingDataError, match="run the same command again to continue"):
            fetch("cifar10-c", reading, None, lambda _: None)
    web.asked.clear()
    fetch("cifar10-c", reading, None, lambda _: None)
    assert ("/CIFAR-10-C.tar", "bytes=5000-") in web.asked
    assert np.array_equal(np.load(tmp_path / "data/cifar10-c/fog.npy"), FOG)


def test_a_wrong_checksum_leaves_nothing_behind(web: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _zenodo(web, monkeypatch, ARCHIVE, "md5:" + "0" * 32)
    with pytest.raises(MissingDataError, match=r"CIFAR-10-C\.tar does not match its checksum"):
        fetch("cifar10-c", Reading(tmp_path / "data"), None, lambda _: None)
    assert not [path for path in (tmp_path / "data").rglob("*") if path.is_file()]


def test_an_archive_that_leads_elsewhere_is_refused(web: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _zenodo(web, monkeypatch, _tar({"../../evil": b"x"}))
    with pytest.raises(UsageError, match="cannot be unpacked"):
        fetch("cifar10-c", Reading(tmp_path / "deep" / "data"), None, lambda _: None)
    assert not list(tmp_path.rglob("evil"))


def test_what_a_user_put_there_stays(web: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _zenodo(web, monkeypatch, ARCHIVE)
    mine = tmp_path / "data" / "cifar10-c" / "notes.txt"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    fetch("cifar10-c", Reading(tmp_path / "data"), None, lambda _: None)
    assert mine.read_text() == "mine"


def test_a_mirror_is_any_web_folder_with_sums(web: Any, tmp_path: Path) -> None:
    files = {"fog.npy": _npy(FOG), "labels.npy": _npy(LABELS)}
    for name, content in files.items():
        (web.root / name).write_bytes(content)
    sums = "".join(f"{hashlib.sha256(content).hexdigest()}  {name}\n" for name, content in files.items())
    (web.root / "SHA256SUMS").write_text(sums)
    reading = Reading(tmp_path / "data")
    fetch("cifar10-c", reading, web.url, lambda _: None)
    assert (tmp_path / "data/cifar10-c/SHA256SUMS").read_text() == sums
    (web.root / "SHA256SUMS").write_text(f"{'0' * 64}  ../../evil\n")
    with pytest.raises(UsageError, match="leads elsewhere"):
        fetch("cifar10-c", reading, web.url, lambda _: None)
    (web.root / "SHA256SUMS").write_text("<html>")
    with pytest.raises(UsageError, match="not a list of sha256sum"):
        fetch("cifar10-c", reading, web.url, lambda _: None)


def test_a_full_disk_is_seen_before_the_first_byte(web: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _zenodo(web, monkeypatch, ARCHIVE)
    record = json.loads((web.root / "2535967").read_text())
    record["files"][0]["size"] = 10**18
    (web.root / "2535967").write_text(json.dumps(record))
    with pytest.raises(BenchError, match="do not fit"):
        fetch("cifar10-c", Reading(tmp_path / "data"), None, lambda _: None)
    assert [path for path, _ in web.asked] == ["/2535967"]


def test_what_cannot_be_fetched_says_where_it_is_to_be_had(tmp_path: Path) -> None:
    with pytest.raises(MissingDataError, match=r"image-net\.org"):
        fetch("imagenet-c-gen", Reading(tmp_path), None, lambda _: None)
    with pytest.raises(UsageError, match="leave --offline out"):
        fetch("cifar10-c", Reading(tmp_path, offline=True), None, lambda _: None)


def test_the_command_line_ends_with_3_and_a_sentence(tmp_path: Path) -> None:
    done = quick_processes.run(
        ["-m", "bench", "data", "fetch", "imagenet-c", "--data-root", tmp_path],
        env={**os.environ, "https_proxy": "http://127.0.0.1:9"},
    )
    assert done.returncode == 3
    assert "check the network and run the same command again" in done.stderr
    assert "Traceback" not in done.stderr
