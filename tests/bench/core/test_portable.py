"""Nothing needs POSIX: what typeshed says Windows or macOS lacks is guarded, and text has an encoding."""

from __future__ import annotations

import ast
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import windows

from bench.core import file_names
from bench.core.cache_dir import remove
from bench.core.file_names import are_portable, command_line, portable_name
from bench.data import content_hash
from bench.evaluation import pass_counter
from bench.execution import task_pool
from leaderboards import files

HOME = Path(__file__).resolve().parents[3]
PACKAGES = ("bench", "corruptions", "methods", "leaderboards")
SOURCES = sorted(path for package in PACKAGES for path in (HOME / package).rglob("*.py"))


def unguarded(tree: ast.AST, platform: str) -> Iterator[str]:
    """Uses of what a system lacks outside of `if sys.platform …` and `hasattr`."""
    modules = ("os", "signal", "time", "socket", "sys")

    def walk(node: ast.AST) -> Iterator[str]:
        if isinstance(node, ast.If | ast.IfExp):
            test = ast.unparse(node.test)
            if "sys.platform" in test or "hasattr(" in test:
                return
        match node:
            case ast.Attribute(value=ast.Name(id=module), attr=name) if module in modules:
                if name in windows.missing(module, platform):
                    yield f"{node.lineno}: {module}.{name}"
        if isinstance(node, ast.Import | ast.ImportFrom):
            named = [alias.name for alias in node.names]
            whole = named if isinstance(node, ast.Import) else [node.module or ""]
            for module in whole:
                if module in sys.stdlib_module_names and windows.has_stub(module):
                    if windows.is_absent(module, platform) or "multiprocessing.forkserver" in module:
                        yield f"{node.lineno}: import {module}"
                    elif isinstance(node, ast.ImportFrom):
                        lost = windows.missing(module, platform) & set(named)
                        yield from (f"{node.lineno}: {module}.{name}" for name in lost)
        for child in ast.iter_child_nodes(node):
            yield from walk(child)

    yield from walk(tree)


def test_what_other_systems_lack_is_guarded() -> None:
    assert {"pread", "pwrite", "sync", "fork", "sched_getaffinity"} <= windows.missing("os")
    assert {"SIGKILL", "SIGHUP"} <= windows.missing("signal")
    assert windows.is_absent("fcntl")
    assert windows.is_absent("resource")
    assert not windows.is_absent("signal")
    found = [
        f"{path.relative_to(HOME)}:{use} is not on {platform}"
        for path in SOURCES
        for platform in ("win32", "darwin")
        for use in unguarded(ast.parse(path.read_bytes()), platform)
    ]
    assert found == []


@pytest.mark.parametrize(
    "source",
    ["import os\nos.pread(0, 1, 2)", "import fcntl", "from os import fork", "import signal\nx = signal.SIGKILL"],
)
def test_what_is_not_guarded_is_found(source: str) -> None:
    assert list(unguarded(ast.parse(source), "win32"))
    inside = "\n".join(f"    {line}" for line in source.splitlines())
    assert not list(unguarded(ast.parse(f"if sys.platform != 'win32':\n{inside}"), "win32"))


def texts_without_encoding(tree: ast.AST) -> Iterator[int]:
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        given = {keyword.arg: keyword.value for keyword in node.keywords}
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        modes = [each.value for each in (*node.args[:2], given.get("mode")) if isinstance(each, ast.Constant)]
        binary = any(isinstance(mode, str) and "b" in mode for mode in modes)
        is_text = (
            (name in ("read_text", "write_text") and isinstance(node.func, ast.Attribute))
            or (name in ("open", "fdopen", "TemporaryFile", "NamedTemporaryFile") and not binary and _opens_text(node))
            or (name in ("run", "Popen", "check_output") and "text" in given)
        )
        if is_text and "encoding" not in given and "/proc" not in ast.unparse(node):
            yield node.lineno


def _opens_text(node: ast.Call) -> bool:
    """Whether a call of that name opens a text file: `open` and `Path.open`, not those of Pillow, zip files or sets."""
    if isinstance(node.func, ast.Name):
        return node.func.id == "open"
    if isinstance(node.func, ast.Attribute) and node.func.attr == "open":
        return not node.args or (isinstance(node.args[0], ast.Constant) and node.args[0].value in ("r", "w", "a", "x"))
    return False


def test_text_is_read_and_written_in_utf_8_everywhere() -> None:
    found = [
        f"{path.relative_to(HOME)}:{line}"
        for path in SOURCES
        for line in texts_without_encoding(ast.parse(path.read_bytes()))
    ]
    assert found == []


@pytest.mark.parametrize("source", ["p.read_text()", "p.write_text('x')", "p.open()", "p.open('a')", "open(p)"])
def test_text_without_an_encoding_is_found(source: str) -> None:
    assert list(texts_without_encoding(ast.parse(source)))


def test_the_same_files_are_checked_out_everywhere() -> None:
    lines = (HOME / ".gitattributes").read_text(encoding="utf-8").splitlines()
    assert "* text=auto eol=lf" in lines
    for path in ("a.npz", "a.safetensors", "a.png"):
        assert f"*{Path(path).suffix} binary" in lines


# --- names ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("digits-c-tent", "digits-c-tent"),
        ("folder:C:\\my pics-tent", "folder_C__my pics-tent"),
        ("timm:resnet50@a.pth", "timm_resnet50@a.pth"),
        ("a?*<>|\"b", "a______b"),
        ("ends. ", "ends"),
        ("con", "_con"),
        ("LPT1.txt", "_LPT1.txt"),
        ("console", "console"),
        ("...", "_"),
        ("", "_"),
    ],
)  # fmt: skip
def test_names_of_files_work_everywhere(text: str, name: str) -> None:
    assert portable_name(text) == name
    assert portable_name(name) == name


def test_names_that_differ_in_case_alone_are_one_folder_on_some_systems() -> None:
    assert are_portable(["cat", "dog"])
    assert not are_portable(["Cat", "cat"])
    assert not are_portable(["a/b"])
    assert not are_portable(["aux"])
    assert not are_portable(["with: colon"])


def test_commands_are_quoted_for_the_shell_of_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["bench", "run", "my runs/run.toml", 'a="b"']
    assert shlex.split(command_line(words)) == words
    monkeypatch.setattr(file_names, "sys", SimpleNamespace(platform="win32"))
    assert command_line(words) == subprocess.list2cmdline(words) == 'bench run "my runs/run.toml" a=\\"b\\"'


# --- branches of other systems ----------------------------------------------------------------------------------------


def test_memory_is_counted_in_the_unit_of_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pass_counter, "Path", lambda _: Path(os.devnull))
    here = pass_counter.peak_memory_mb("cpu")
    assert here is not None
    assert here > 10
    monkeypatch.setattr(pass_counter, "sys", SimpleNamespace(platform="darwin"))
    assert pass_counter.peak_memory_mb("cpu") == pytest.approx(here / 1024, rel=0.2)
    monkeypatch.setattr(pass_counter, "sys", SimpleNamespace(platform="win32"))
    assert pass_counter.peak_memory_mb("cpu") is None


def test_a_file_is_settled_by_its_last_change(monkeypatch: pytest.MonkeyPatch) -> None:
    now, long_ago = 10**18, 10**17
    assert not content_hash.is_settled((0, 0, 0, long_ago, now), now)
    monkeypatch.setattr(content_hash, "sys", SimpleNamespace(platform="win32"))  # the last time is that of creation
    assert not content_hash.is_settled((0, 0, 0, now, long_ago), now)
    assert content_hash.is_settled((0, 0, 0, long_ago, now), now)


def test_workers_are_spawned_where_nothing_forks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task_pool, "_FORKS", False)
    assert task_pool._context().get_start_method() == "spawn"
    task_pool.get_ready()
    task_pool.leave_none()


def test_a_file_that_is_open_elsewhere_is_replaced_when_it_is_closed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    refusals = iter([True, True, False])
    real = Path.replace

    def replace(self: Path, target: Path) -> Path:
        if next(refusals, False):
            raise PermissionError(13, "another process has it open")
        return real(self, target)

    monkeypatch.setattr(Path, "replace", replace)
    monkeypatch.setattr(files, "_SECONDS_OPEN", 5.0)
    files.write_atomically(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"new"
    monkeypatch.setattr(files, "_SECONDS_OPEN", 0.0)
    refusals = iter([True])
    with pytest.raises(PermissionError):
        files.write_atomically(tmp_path / "a", b"newer")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_what_cannot_be_removed_stays(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "a").write_bytes(b"x")
    assert remove(tmp_path / "a")
    assert remove(tmp_path / "a")

    def unlink(self: Path, missing_ok: bool = False) -> None:
        raise PermissionError(13, "another process has it open")

    monkeypatch.setattr(Path, "unlink", unlink)
    assert not remove(tmp_path / "a")
    assert "stays (another process has it open)" in caplog.text
