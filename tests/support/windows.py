"""What Python lacks on Windows and macOS by typeshed, in the copy that mypy carries: stubs read for a system."""

from __future__ import annotations

import ast
import json
import os
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

import mypy

STUBS = Path(mypy.__file__).parent / "typeshed" / "stdlib"
HERE = Path(__file__).resolve().parent


@cache
def names(module: str, platform: str) -> frozenset[str]:
    """The names that a module of the standard library has on a system ("linux", "win32", "darwin")."""
    return frozenset(_names(_stub(module), platform))


def missing(module: str, platform: str = "win32") -> frozenset[str]:
    """The names of a module that Linux has and the other system has not."""
    return names(module, "linux") - names(module, platform)


def is_absent(module: str, platform: str = "win32") -> bool:
    """Whether a system lacks a module: nothing but imports is left of its stub."""
    return not any(_names(_stub(module), platform, imports=False))


def has_stub(module: str) -> bool:
    place = STUBS.joinpath(*module.split("."))
    return place.with_suffix(".pyi").is_file() or (place / "__init__.pyi").is_file()


@cache
def _stub(module: str) -> list[ast.stmt]:
    place = STUBS.joinpath(*module.split("."))
    file = place / "__init__.pyi" if place.is_dir() else place.with_suffix(".pyi")
    return ast.parse(file.read_bytes()).body


def _names(body: list[ast.stmt], platform: str, *, imports: bool = True) -> Iterator[str]:
    for node in body:
        match node:
            case ast.If(test=test, body=then, orelse=other):
                yield from _names(then if _holds(test, platform) else other, platform, imports=imports)
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                yield name
            case ast.AnnAssign(target=ast.Name(id=name)) | ast.Assign(targets=[ast.Name(id=name)]):
                yield name
            case ast.Import(names=aliases) | ast.ImportFrom(names=aliases) if imports:
                yield from (alias.asname or alias.name for alias in aliases)


def _holds(test: ast.expr, platform: str) -> bool:
    match test:
        case ast.BoolOp(op=ast.And(), values=parts):
            return all(_holds(part, platform) for part in parts)
        case ast.BoolOp(op=ast.Or(), values=parts):
            return any(_holds(part, platform) for part in parts)
        case ast.UnaryOp(op=ast.Not(), operand=inner):
            return not _holds(inner, platform)
    value: bool = eval(ast.unparse(test), {"sys": _System(platform), "TYPE_CHECKING": True})
    return value


class _System:
    def __init__(self, platform: str) -> None:
        self.platform = platform
        self.version_info = sys.version_info
        self.byteorder = sys.byteorder


def environment(root: Path) -> Mapping[str, str]:
    """The environment of a process of this project that lacks what Windows lacks; see `without_posix`."""
    modules = ("os", "signal", "time", "socket", "mmap", "multiprocessing.context", "sys")
    given = {module: sorted(missing(module) - {"platform"}) for module in modules}
    # typeshed has these under every system, and Python has not.
    given["multiprocessing.context"] += ["ForkServerContext", "ForkContext"]
    absent = [name for name in ("fcntl", "resource", "termios", "tty", "pty", "pwd", "grp") if is_absent(name)]
    path = os.pathsep.join([str(HERE / "without_posix"), str(root)])
    return {**os.environ, "PYTHONPATH": path, "WITHOUT_POSIX": json.dumps({"names": given, "modules": absent})}
