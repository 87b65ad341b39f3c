"""Submissions that want to deceive or to harm: refused with exit 4 and a sentence, and nothing else happens."""

from __future__ import annotations

import base64
import copy
import io
import json
import os
import pickle
import shutil
import struct
import subprocess
import sys
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import quick_processes

import leaderboards
from bench.runs import open_results as reading
from bench.runs import publishing
from bench.runs.vocabulary import method_of
from leaderboards import bundle as bundle_module
from leaderboards.identity import key_of
from leaderboards.submit import check_folder

Lines = list[dict[str, Any]]
ROOT = Path(leaderboards.__file__).parents[1]
SCRIPT = "<script>document.title='sprung'</script>"


def text_of(lines: Lines) -> str:
    return "".join(json.dumps(line) + "\n" for line in lines)


def refused(path: Path, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Check a path; assert exit 4, sentences of plain text that end with what to do, and that no file changed."""
    before = {file: file.lstat().st_mtime_ns for file in path.parent.parent.rglob("*")}
    assert publishing.check(path, None, as_json=False) == 4
    output = capsys.readouterr().out
    assert {file: file.lstat().st_mtime_ns for file in path.parent.parent.rglob("*")} == before
    assert "<" not in output
    assert all(character.isprintable() or character == "\n" for character in output)
    messages = output.splitlines()
    assert messages
    assert all("; " in message and len(message) < 500 for message in messages), messages
    return messages


def test_an_honest_submission_passes(submission: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert publishing.check(submission, None, as_json=False) == 0
    assert publishing.check(submission.parent, None, as_json=False) == 0
    assert "no problems; it can be published" in capsys.readouterr().out


def set_in(*place: str | int) -> Callable[[Lines, Any], None]:
    def change(lines: Lines, value: Any) -> None:
        target: Any = lines
        for step in place[:-1]:
            target = target[step]
        target[place[-1]] = value

    return change


RECORD_STRINGS = [
    ("record", "method"), ("record", "part"), ("record", "shift"), ("record", "corruption"), ("record", "model"),
    ("record", "protocol"), ("record", "split"), ("record", "precision"), ("record", "created"), ("record", "key"),
    ("record", "cost", "device_name"), ("record", "data", "digest"), ("record", "data", "storage"),
    ("record", "data", "profile"), ("record", "weights", "digest"), ("record", "env", "git"), ("record", "env", "new"),
    ("record", "options", "tent", "lr"), ("record", "error"), ("record", "predictions"), ("images",), ("hits",),
    ("predictions_sha256",),
]  # fmt: skip


@pytest.mark.parametrize(
    ("place", "text"),
    [
        *((place, SCRIPT) for place in RECORD_STRINGS),
        *(
            (place, text)
            for place in (("record", "env", "new"), ("record", "options", "tent", "lr"), ("record", "part"))
            for text in ("x\u202ey", "javascript:alert(1)", "a\x1b[2Jb", "../../x")
        ),
    ],
)
def test_code_in_any_string(
    submission: Path, capsys: pytest.CaptureFixture[str], place: tuple[str, ...], text: str
) -> None:
    lines = [json.loads(line) for line in submission.read_text().splitlines()]
    target = next(line for line in lines[1:] if line["record"]["method"] == "tent" and line["record"]["corruption"])
    set_in(lines.index(target), *place)(lines, text)
    submission.write_text(text_of(lines))
    refused(submission, capsys)


@pytest.mark.parametrize(("place", "value"), [
    (("card",), SCRIPT), (("card",), "[click](javascript:alert(1))"), (("card",), "x" * 20_001), (("card",), 1),
    (("settings", "method"), [SCRIPT]), (("settings", SCRIPT), 1), (("settings", "limit"), 5),
    (("settings", "set"), {}),
    (("format",), SCRIPT), (("version",), 99), (("version",), True), (("records",), 51), (("records",), 53),
    (("records",), -1), (("records",), 10**12), (("surprise",), 1), (("images",), {}),
    (("images", "images0"), [[0, 1, 10**15]]), (("images", "images0"), [[0, 1, 10**400]]),
    (("images", "images0"), [[2**62, 1, 350]]), (("images", "images0"), [[5, 0, 350]]), (("images", "images0"), []),
    (("images", "images0"), [[0, 1, 350]]), (("images", "images0"), [[9, 1, 1], [0, 1, 349]]),
    (("images", "bomb"), [[0, 1, 19_999_999]]),
])  # fmt: skip
def test_a_head_that_lies(
    submission: Path, capsys: pytest.CaptureFixture[str], place: tuple[str, ...], value: Any
) -> None:
    lines = [json.loads(line) for line in submission.read_text().splitlines()]
    assert len(lines) == 53
    set_in(0, *place)(lines, value)
    submission.write_text(text_of(lines))
    refused(submission, capsys)


def flip_bits(entry: dict[str, Any]) -> None:
    content = bytearray(base64.b64decode(entry["hits"]))
    content[0] ^= 0xFF
    entry["hits"] = base64.b64encode(bytes(content)).decode()


def set_stray_bits(entry: dict[str, Any]) -> None:
    content = bytearray(base64.b64decode(entry["hits"]))
    content[-1] |= 1
    entry["hits"] = base64.b64encode(bytes(content)).decode()


FORGERIES: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "accuracy 1.7": (lambda e: e["record"]["metrics"].update(accuracy=1.7), "less than or equal to 1"),
    "embellished accuracy": (lambda e: e["record"]["metrics"].update(accuracy=0.99), "its bits give"),
    "accuracy moved by one image": (
        lambda e: e["record"]["metrics"].update(accuracy=e["record"]["metrics"]["accuracy"] + 1 / 350),
        "its bits give"),
    "other bits": (flip_bits, "its bits give"),
    "bits beyond the end": (set_stray_bits, "beyond the last image"),
    "bits cut off": (lambda e: e.update(hits=e["hits"][:-4]), "350 images"),
    "bits that are no base64": (lambda e: e.update(hits="!" * len(e["hits"])), "base64"),
    "impossible Brier score": (lambda e: e["record"]["metrics"].update(brier=0.01), "too good"),
    "impossible NLL": (lambda e: e["record"]["metrics"].update(nll=0.001), "too good"),
    "NaN": (lambda e: e["record"]["metrics"].update(nll=float("nan")), "no number of JSON"),
    "Infinity": (lambda e: e["record"]["cost"].update(fit_seconds=float("inf")), "no number of JSON"),
    "NaN in options": (lambda e: e["record"]["options"]["source"].update(lr=float("nan")), "no number of JSON"),
    "wrong n": (lambda e: e["record"].update(n=50_000), "differ in n"),
    "n below 1": (lambda e: e["record"].update(n=0), "needs metrics, cost and n"),
    "unknown key": (lambda e: e["record"].update(verified=True), "verified"),
    "unknown key beside the record": (lambda e: e.update(verified=True), "verified"),
    "schema 99": (lambda e: e["record"].update(schema=99), "schema 99"),
    "no schema": (lambda e: e["record"].pop("schema"), "schema"),
    "path traversal": (lambda e: e["record"].update(predictions="../../../../etc/passwd"), "predictions"),
    "absolute path": (lambda e: e["record"].update(predictions="/etc/passwd"), "predictions"),
    "path in the key": (lambda e: e["record"].update(key="../../x"), "key"),
    "limited": (lambda e: e["record"].update(limit=350), "differ in limit"),
    "mixed splits": (lambda e: e["record"].update(split="joint"), "differ in split"),
    "mixed protocols": (lambda e: e["record"].update(protocol="continual"), "differ in protocol"),
    "mixed weights": (lambda e: e["record"]["weights"].update(digest="sha256:00"), "differ in weights"),
    "mixed options": (lambda e: e["record"]["options"]["source"].update(epochs=31), "differ in option"),
    "other data": (lambda e: e["record"]["data"].update(digest="sha256:00"), "differ in data digest"),
    "met other images": (lambda e: e["record"]["data"].update(history=["speckle_noise@3"]), "has met speckle_noise@3"),
    "track of another access": (lambda e: e["record"].update(track="A"), "contradicts the access"),
    "failed": (lambda e: e["record"].update(status="failed"), "failed record"),
    "uncommitted code": (lambda e: e["record"]["env"].update(dirty=True), "uncommitted"),
    "state of the code left out": (lambda e: e["record"]["env"].pop("dirty"), "uncommitted"),
    "no commit, no release": (lambda e: e["record"]["env"].update(git=None, project="0.2.dev0"), "nor a release"),
    "a release nobody knows": (lambda e: e["record"]["env"].update(git=None, project="0.1.0"), "nor a release"),
    "a release with a changed file": (
        lambda e: e["record"]["env"].update(git=None, project="9.9.9", package="0" * 16), "nor a release"
    ),
    "no forward pass": (lambda e: e["record"]["cost"].update(forwards=0), "fewer forward passes"),
    "no access": (lambda e: e["record"].pop("access"), "access"),
    "unhashed predictions": (lambda e: e.pop("predictions_sha256"), "predictions_sha256"),
    "huge number": (lambda e: e["record"].update(seed=10**5000), "line 2"),
    "record that is a list": (lambda e: e.update(record=[]), "record"),
}  # fmt: skip


@pytest.mark.parametrize("name", FORGERIES)
def test_a_forged_record(submission: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    forge, expected = FORGERIES[name]
    head, *lines = [json.loads(line) for line in submission.read_text().splitlines()]
    # In front, so that a whole line differs from it in what was forged.
    lines.sort(key=lambda line: (line["record"]["corruption"] != "fog", line["record"]["method"]))
    forge(lines[0])
    limit = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(0)
    text = text_of([head, *lines])
    sys.set_int_max_str_digits(limit)
    submission.write_text(text)
    assert any(expected in message for message in refused(submission, capsys))


def every_record(change: Callable[[dict[str, Any]], object]) -> Callable[[Lines], Lines]:
    def apply(lines: Lines) -> Lines:
        for line in lines[1:]:
            change(line["record"])
        return lines

    return apply


def of_tent(change: Callable[[dict[str, Any]], object]) -> Callable[[Lines], Lines]:
    return every_record(lambda record: change(record) if record["method"] == "tent" else None)


def forge_access(record: dict[str, Any]) -> None:
    record |= {"access": {"source": "none", "test": "none", "state": "fixed", "backprop": "none"}, "track": "R"}


def drop(keep: Callable[[dict[str, Any]], bool]) -> Callable[[Lines], Lines]:
    def apply(lines: Lines) -> Lines:
        kept = [line for line in lines[1:] if keep(line["record"])]
        return [lines[0] | {"records": len(kept)}, *kept]

    return apply


def repeat_a_cell(lines: Lines) -> Lines:
    again = copy.deepcopy(lines[1])
    again["record"] |= {"key": "ab" * 16, "predictions": f"predictions/{'ab' * 16}.npz"}
    return [lines[0] | {"records": 53}, *lines[1:], again]


def copy_a_condition(lines: Lines) -> Lines:
    one, other = (line for line in lines[1:] if line["record"]["corruption"] in ("fog", "contrast")
                  and (line["record"]["method"], line["record"]["seed"]) == ("tent", 0))  # fmt: skip
    other |= {"hits": one["hits"], "predictions_sha256": one["predictions_sha256"]}
    other["record"]["metrics"] = one["record"]["metrics"]
    return lines


WHOLES: dict[str, tuple[Callable[[Lines], Lines], str]] = {
    "forged access": (of_tent(forge_access), "is not that of tent"),
    "unknown method": (of_tent(lambda r: r.update(method="better")), "not in the table"),
    "a file as method": (of_tent(lambda r: r.update(method="evil.py:Method")), "not in the table"),
    "two adapters": (of_tent(lambda r: r.update(method="tent+bn")), "not in the table"),
    "unknown shift": (every_record(lambda r: r.update(shift="easy-c")), "easy-c is known"),
    "known weights under another name": (every_record(lambda r: r.update(model="bigger")), "run it with digits"),
    "other weights": (every_record(lambda r: r["weights"].update(digest="sha256:00")), "are not those of digits"),
    "other data everywhere": (
        every_record(lambda r: r["data"].update(digest="sha256:00")), "are not those of digits-c"),
    "limited everywhere": (every_record(lambda r: r.update(limit=350)), "limited to 350"),
    "left out everywhere": (every_record(lambda r: r["data"].update(skipped=2)), "left out 2 test images"),
    "dev images": (every_record(lambda r: r.update(split="dev")), "split dev"),
    "scored on seen images": (every_record(lambda r: r.update(split="joint")), "not scored on the 350 images"),
    "tuning corruption": (
        every_record(lambda r: r.update(corruption={"fog": "saturate"}.get(r["corruption"], r["corruption"]))),
        "no published condition saturate@3"),
    "a corruption left out": (drop(lambda r: r["corruption"] != "fog"), "lacks fog@3"),
    "clean left out": (drop(lambda r: r["corruption"] is not None), "lacks clean"),
    "only clean": (drop(lambda r: r["corruption"] is None), "no corrupted condition"),
    "a seed of one method left out": (drop(lambda r: r["method"] != "tent" or r["seed"] == 0), "lacks seed 1"),
    "a cell twice": (repeat_a_cell, "twice"),
    "a key twice": (lambda lines: [lines[0] | {"records": 53}, *lines[1:], lines[1]], "occurs twice"),
    "predictions of another condition": (copy_a_condition, "has the predictions of"),
}  # fmt: skip


@pytest.mark.parametrize("name", WHOLES)
def test_a_forged_whole(submission: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    forge, expected = WHOLES[name]
    submission.write_text(text_of(forge([json.loads(line) for line in submission.read_text().splitlines()])))
    assert any(expected in message for message in refused(submission, capsys))


class Trap:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def zip_bomb() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("../../escaped.txt", b"\0" * (1 << 24))
    return buffer.getvalue()


def npz_with_pickle(trap: Path) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, id=np.array([Trap(trap)], dtype=object), allow_pickle=True)
    return buffer.getvalue()


@pytest.mark.parametrize("name", [
    "empty", "blank", "text", "array", "binary", "zip bomb", "pickled npz", "pickle", "deep", "long line", "cut off",
    "no newline cut", "utf-16", "duplicate key",
])  # fmt: skip
def test_files_that_are_none(submission: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    trap = submission.parent.parent / "sprung"
    honest = submission.read_bytes()
    submission.write_bytes(
        {
            "empty": b"",
            "blank": b"\n\n",
            "text": b"hello\n",
            "array": b"[1]\n",
            "binary": bytes(range(256)) * 9,
            "zip bomb": zip_bomb(),
            "pickled npz": npz_with_pickle(trap),
            "pickle": pickle.dumps(Trap(trap)),
            "deep": b"[" * 1_000_000,
            "long line": honest + b" " * (bundle_module.MAX_LINE + 1),
            "cut off": honest[: honest.rindex(b"\n", 0, -1) + 1],
            "no newline cut": honest[:-40],
            "utf-16": honest.decode().encode("utf-16"),
            "duplicate key": honest.replace(b'"method":"tent"', b'"method":"tent","method":"source"', 1),
        }[name]
    )
    refused(submission, capsys)
    assert not trap.exists()
    assert not list(submission.parent.parent.rglob("escaped*"))


def test_a_huge_file_is_not_read(submission: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with submission.open("r+b") as file:
        file.truncate(1 << 40)  # sparse: a terabyte that takes no room
    (message,) = refused(submission, capsys)
    assert "MiB" in message


def test_declared_images_take_no_memory_before_they_are_checked(submission: Path) -> None:
    lines = [json.loads(line) for line in submission.read_text().splitlines()]
    lines[0]["images"] = {str(i): [[0, 1, 19_000_000]] for i in range(1000)}
    submission.write_text(text_of(lines))
    code = (
        "import resource, sys; from pathlib import Path; from bench.runs import publishing\n"
        "resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))\n"
        "sys.exit(publishing.check(Path(sys.argv[1]), None, as_json=False))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(submission)], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (4, "")
    assert "declares more than" in done.stdout


@pytest.mark.parametrize("kind", ["link", "folder", "fifo"])
def test_things_that_are_no_plain_files(submission: Path, capsys: pytest.CaptureFixture[str], kind: str) -> None:
    secret = submission.parent.parent / "secret.jsonl"
    submission.rename(secret)
    other = submission.with_name("other.jsonl")
    if kind == "link":
        other.symlink_to(secret)
    elif kind == "folder":
        other.mkdir()
    else:
        os.mkfifo(other)
    (message,) = refused(submission.parent, capsys)
    assert "no plain file" in message


@pytest.mark.parametrize("name", [
    "<img src=x onerror=alert(1)>.jsonl", "a\nb.jsonl", "x.npz", ".hidden.jsonl", "A.jsonl", "index.html", "x.jsonl.py",
])  # fmt: skip
def test_names_of_files(submission: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    submission.rename(submission.with_name(name))
    (message,) = refused(submission.parent, capsys)
    assert "odd name" in message


@pytest.fixture
def folder(digits_run: Any, tmp_path: Path) -> Path:
    """A results folder that nothing speaks against, to be spoiled."""
    copied = tmp_path / "runs" / "run"
    shutil.copytree(digits_run.store.folder, copied)
    return copied


def npz_of(columns: dict[str, bytes], packed: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", packed) as archive:
        for name, content in columns.items():
            archive.writestr(f"{name}.npy", content)
    return buffer.getvalue()


def npy_of(array: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def columns_of(npz: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(npz)) as archive:
        return {info.filename.removesuffix(".npy"): archive.read(info) for info in archive.infolist()}


def bomb_that_lies(honest: bytes, packed: int = zipfile.ZIP_DEFLATED) -> bytes:
    """A column that declares its honest size in the archive and unpacks to 64 MiB more."""
    columns = columns_of(honest)
    true, more = len(columns["id"]), 1 << 26
    content = npz_of(columns | {"id": columns["id"] + bytes(more)}, packed)
    declared = struct.pack("<L", true + more)
    assert content.count(declared) == 2
    return content.replace(declared, struct.pack("<L", true))


def negative_length(honest: bytes) -> bytes:
    columns = columns_of(honest)
    assert b"(350,)" in columns["id"]
    return npz_of(columns | {"id": columns["id"].replace(b"(350,)", b"(-50,)")})


NPZ: dict[str, Callable[[bytes, Path], bytes]] = {
    "a bomb that lies about its size": lambda honest, trap: bomb_that_lies(honest),
    "a bomb in a folder above": lambda honest, trap: zip_bomb(),
    "a bomb of bzip2": lambda honest, trap: bomb_that_lies(honest, zipfile.ZIP_BZIP2),
    "a bomb of lzma": lambda honest, trap: bomb_that_lies(honest, zipfile.ZIP_LZMA),
    "a negative length": lambda honest, trap: negative_length(honest),
    "a pickle inside": lambda honest, trap: npz_with_pickle(trap),
    "a pickle": lambda honest, trap: pickle.dumps(Trap(trap)),
    "nothing": lambda honest, trap: b"",
    "cut off": lambda honest, trap: honest[:-30],
    "with text before it": lambda honest, trap: b"#!/bin/sh\n" + honest[:200],
}  # fmt: skip


@pytest.mark.parametrize("name", NPZ)
def test_predictions_of_a_folder_that_harm(folder: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    trap = folder.parent / "sprung"
    path = sorted((folder / "predictions").iterdir())[0]
    path.write_bytes(NPZ[name](path.read_bytes(), trap))
    tracemalloc.start()
    messages = refused(folder, capsys)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert any(path.name in message for message in messages)
    assert not trap.exists()
    assert not list(folder.parent.rglob("escaped*"))
    assert peak < 32 << 20


def spoil_record(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    def spoil(folder: Path) -> None:
        path = sorted((folder / "records").iterdir())[0]
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))
        (folder / "records.jsonl").unlink()  # which would only say that the two differ

    return spoil


def replace_by(make: Callable[[Path], object], kind: str) -> Callable[[Path], object]:
    def spoil(folder: Path) -> None:
        path = folder / "records.jsonl" if kind == "lines" else sorted((folder / kind).iterdir())[0]
        path.unlink()
        make(path)

    return spoil


def sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 40)


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


FOLDERS: dict[str, Callable[[Path], object]] = {
    "markup in the model": spoil_record(lambda r: r.update(model=SCRIPT)),
    "markup in the shift": spoil_record(lambda r: r.update(shift=SCRIPT)),
    "a path as predictions": spoil_record(lambda r: r.update(predictions="../../../etc/passwd")),
    "a path as key": spoil_record(lambda r: r.update(key="../../escaped")),
    "accuracy 1.7": spoil_record(lambda r: r["metrics"].update(accuracy=1.7)),
    "NaN": spoil_record(lambda r: r["metrics"].update(accuracy=float("nan"))),
    "a cost without end": spoil_record(lambda r: r["cost"].update(forwards=1e308)),
    "deep options": spoil_record(lambda r: r["options"]["source"].update(deep=nested(900))),
    "deeper options": spoil_record(lambda r: r["options"]["source"].update(deep=nested(100))),
    "another n": spoil_record(lambda r: r.update(n=351)),
    "schema 99": spoil_record(lambda r: r.update(schema=99)),
    "a record that is a pipe": replace_by(os.mkfifo, "records"),
    "a record that is a folder": replace_by(Path.mkdir, "records"),
    "a record without end": replace_by(sparse, "records"),
    "a record that leads nowhere": replace_by(lambda path: path.symlink_to("nowhere"), "records"),
    "a record that leads to a device": replace_by(lambda path: path.symlink_to("/dev/zero"), "records"),
    "predictions that are a pipe": replace_by(os.mkfifo, "predictions"),
    "predictions without end": replace_by(sparse, "predictions"),
    "predictions from a device": replace_by(lambda path: path.symlink_to("/dev/zero"), "predictions"),
    "lines without end": replace_by(sparse, "lines"),
    "lines that are a pipe": replace_by(os.mkfifo, "lines"),
    "lines that are a folder": replace_by(Path.mkdir, "lines"),
}  # fmt: skip


@pytest.mark.parametrize("name", FOLDERS)
def test_a_results_folder_that_harms(folder: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    FOLDERS[name](folder)
    refused(folder, capsys)
    assert reading.print_verification(folder, as_json=False) == 4


def test_a_result_is_published_once(submission: Path, capsys: pytest.CaptureFixture[str]) -> None:
    again = submission.with_name("other.jsonl")
    again.write_bytes(submission.read_bytes())
    assert all("already" in message for message in refused(submission.parent, capsys))
    lines = [json.loads(line) for line in submission.read_text().splitlines()]
    for number, line in enumerate(lines[1:]):
        line["record"]["data"]["seen"] = str(number)
        line["record"]["key"] = key_of(line["record"])
        line["record"]["predictions"] = f"predictions/{line['record']['key']}.npz"
    again.write_text(text_of(lines))
    problems = check_folder(submission.parent, publishing.checker())[1]
    assert sum("under another key" in problem.message for problem in problems) == len(lines) - 1


def test_a_plugin_named_by_a_submission_is_never_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "evil.py").write_text("from pathlib import Path\nPath('sprung').touch()\n")
    monkeypatch.chdir(tmp_path)
    for method in ("evil.py:Method", f"{tmp_path}/evil.py:Method", "tent+evil.py:Method"):
        assert method_of(method) is None
    assert not (tmp_path / "sprung").exists()
    assert method_of("tent") is not None


def test_the_command_ends_with_4(submission: Path) -> None:
    submission.write_bytes(submission.read_bytes()[:-40])
    done = quick_processes.run(["-m", "bench", "publish", "check", submission], cwd=ROOT)
    assert (done.returncode, done.stderr) == (4, "")
    assert len(done.stdout.splitlines()) == 1
