"""Code from outside: an object by "file.py:Name" or "package.module:Name", in this process and in those it starts."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from functools import cache
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

from bench.errors import UsageError


def load_object(path: str) -> Any:
    """The object at "package.module:Name" or "path/to/file.py:Name"; a file that changed is read again."""
    place, _, name = path.rpartition(":")
    if place.endswith(".py"):
        module = load_file(Path(place))
    else:
        try:
            module = importlib.import_module(place)
        except ModuleNotFoundError as error:
            raise UsageError(f"{path} cannot be loaded: {error}; install or correct the package it is from") from None
    if not hasattr(module, name):
        raise UsageError(f"{place} has no '{name}'; check the name after the colon")
    return getattr(module, name)


def load_file(file: Path) -> ModuleType:
    """A Python file as a module; one that changed is read again. Raises UsageError where there is none."""
    if not file.is_file():
        raise UsageError(f"no file {file}; give the path of a Python file, as in path/to/file.py:Name")
    return _load_file(file.resolve(), file.read_bytes())


_PREFIX = "_plugin_"


@cache
def _load_file(file: Path, source: bytes) -> ModuleType:
    name = f"{_PREFIX}{hashlib.sha256(source).hexdigest()[:16]}_{str(file).encode().hex()}"
    spec = importlib.util.spec_from_loader(name, loader=None, origin=str(file))
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    module.__file__ = str(file)
    sys.modules[name] = module  # dataclasses and pickle look a class up by its module's name
    exec(compile(source, file, "exec"), module.__dict__)
    return module


class _Files(MetaPathFinder, Loader):
    """Finds the module of a file by its name in a process that has not loaded it: objects of it can be sent there."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        return importlib.util.spec_from_loader(name, self) if name.startswith(_PREFIX) else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        file = Path(bytes.fromhex(spec.name.rpartition("_")[2]).decode())
        module = load_file(file)
        if module.__name__ != spec.name:
            raise ImportError(f"{file} has changed since the run was planned; run the same command again")
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Nothing is left to do."""


sys.meta_path.append(_Files())
