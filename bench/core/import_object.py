"""Code from outside: an object by "file.py:Name" or "package.module:Name", in this process and in those it starts."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Mapping
from functools import cache
from importlib import metadata
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

from bench.core.errors import UsageError
from bench.core.source_code import brought_along, content_digest, files_digest, package_of


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


def code_of(path: str) -> str:
    """What identifies the code behind "path/to/file.py:Name" or "package.module:Name" of other people: a digest of what
    its files do (`bench.core.source_code.files_digest`) as this process has loaded them, and the version of a package.
    """
    place = path.rpartition(":")[0]
    if place.endswith(".py"):
        return code_of_module(load_file(Path(place)).__name__)
    importlib.import_module(place)
    return code_of_module(place)


def code_of_module(module: str) -> str:
    """The same by the name of a module that is loaded."""
    return module[len(_PREFIX) :].partition("_")[0] if is_file_module(module) else _installed(module)


@cache
def _installed(module: str) -> str:
    """The version of an installed package, where it has one, and what its code does."""
    file = getattr(sys.modules.get(module), "__file__", None)
    if file is None or not Path(file).is_file():
        raise UsageError(f"the code of {module} is in no file, so nothing can tell when it changes; put it into one")
    try:
        version = metadata.version(module.partition(".")[0]) + "/"
    except metadata.PackageNotFoundError:
        version = ""
    return version + files_digest(Path(file))


def is_file_module(module: str) -> bool:
    """Whether a module is one that `load_file` made."""
    return module.startswith(_PREFIX)


def load_file(file: Path) -> ModuleType:
    """A Python file as a module; one that changed, or whose helpers changed, is read again with them.

    Modules beside the file can be imported by it, and relative imports work where its folder is a package. Raises
    UsageError where there is no such file.
    """
    if not file.is_file():
        raise UsageError(f"no file {file}; give the path of a Python file, as in path/to/file.py:Name")
    place = file.resolve()
    return _load_file(place, files_digest(place))


_PREFIX = "_plugin_"
_loaded: dict[Path, str] = {}
"""The digest of each file that other people's code has brought along, as it was when this process loaded it."""


@cache
def _load_file(file: Path, digest: str) -> ModuleType:
    name = f"{_PREFIX}{digest}_{str(file).encode().hex()}"
    spec = importlib.util.spec_from_loader(name, loader=None, origin=str(file))
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    module.__file__ = str(file)
    package, above = package_of(file)
    if package:
        module.__package__, module.__spec__ = package, None
    helpers = {place: called for place, called in brought_along(file).items() if called}
    _forget_changed(helpers)
    beside = {called.partition(".")[0] for place, called in helpers.items() if place.is_relative_to(above)}
    search_for(dict.fromkeys(beside, str(above)))
    sys.modules[name] = module  # dataclasses and pickle look a class up by its module's name
    exec(compile(file.read_bytes(), file, "exec"), module.__dict__)
    _loaded.update({place: content_digest(place) for place in helpers})
    if files_digest(file) != digest:
        raise UsageError(f"{file} was changed while it was read; run the same command again")
    return module


def _forget_changed(helpers: dict[Path, str]) -> None:
    """Let Python import all of these again if one has changed since it was imported, or stands in another's name."""
    if not any(_is_stale(place, sys.modules.get(called)) for place, called in helpers.items()):
        return
    for called in helpers.values():
        parent, _, last = called.rpartition(".")
        sys.modules.pop(called, None)
        if hasattr(sys.modules.get(parent), last):
            delattr(sys.modules[parent], last)
    importlib.invalidate_caches()


def _is_stale(place: Path, module: ModuleType | None) -> bool:
    file = getattr(module, "__file__", None)
    if file is None:
        return False
    return Path(file).resolve() != place or _loaded.get(place, content_digest(place)) != content_digest(place)


_folders: dict[str, str] = {}


def search_for(modules: Mapping[str, str]) -> None:
    """Find these top-level modules in these folders, before others of their names."""
    _folders.update(modules)


def searched_for() -> dict[str, str]:
    """Modules that other people's files import from beside them, and their folders: another process needs them too."""
    return dict(_folders)


class _Files(MetaPathFinder, Loader):
    """Finds the module of a file by its name in a process that has not loaded it: objects of it can be sent there.

    It also finds what such files import from beside them.
    """

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if name in _folders:
            return PathFinder.find_spec(name, [_folders[name]])
        return importlib.util.spec_from_loader(name, self) if name.startswith(_PREFIX) else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        file = Path(bytes.fromhex(spec.name.rpartition("_")[2]).decode())
        module = load_file(file)
        if module.__name__ != spec.name:
            raise ImportError(f"{file} has changed since the run was planned; run the same command again")
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Nothing is left to do."""


sys.meta_path.insert(0, _Files())
