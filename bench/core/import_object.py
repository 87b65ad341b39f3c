"""Import third-party objects by "file.py:Name" or "package.module:Name", in this process and its child processes."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import metadata
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from bench.core.errors import UsageError
from bench.core.source_code import brought_along, content_digest, files_digest, is_installed, is_own, package_of


def load_object(path: str) -> Any:
    """Import the object at "package.module:Name" or "path/to/file.py:Name"; a changed file is loaded again.

    Raises UsageError if it does not exist.
    """
    place, _, name = path.rpartition(":")
    if place.endswith(".py"):
        module = load_file(Path(place))
    else:
        search_for(_folder_of_package(place))
        try:
            module = importlib.import_module(place)
        except ModuleNotFoundError as error:
            raise UsageError(f"{path} cannot be loaded: {error}; install or correct that package") from None
    if not hasattr(module, name):
        raise UsageError(f"{place} has no '{name}'; check the name after the colon")
    return getattr(module, name)


def code_of(path: str) -> str:
    """Return the identity of the third-party code at "path/to/file.py:Name" or "package.module:Name".

    It is a digest of the files as this process loaded them (`bench.core.source_code.files_digest`), after the version
    of a package.
    """
    place = path.rpartition(":")[0]
    if place.endswith(".py"):
        return code_of_module(load_file(Path(place)).__name__)
    importlib.import_module(place)
    return code_of_module(place)


def code_of_module(module: str) -> str:
    """Return the same identity by the name of a loaded module."""
    return module[len(_PREFIX) :].partition("_")[0] if is_file_module(module) else _installed(module)


@cache
def _installed(module: str) -> str:
    """Return the version of an installed package, if it has one, and the digest of its code."""
    file = getattr(sys.modules.get(module), "__file__", None)
    if file is None or not Path(file).is_file():
        raise UsageError(f"the code of {module} is in no file, so changes cannot be detected; put it into a file")
    try:
        version = metadata.version(module.partition(".")[0]) + "/"
    except metadata.PackageNotFoundError:
        version = ""
    return version + files_digest(Path(file))


def is_file_module(module: str) -> bool:
    """Whether `load_file` created this module."""
    return module.startswith(_PREFIX)


def load_file(file: Path) -> ModuleType:
    """Load a Python file as a module; if the file or its helper modules changed, load them again.

    The file can import modules from its own folder, and relative imports work if its folder is a package. Raises
    UsageError if there is no such file.
    """
    if not file.is_file():
        raise UsageError(f"no file {file}; give the path of a Python file, as in path/to/file.py:Name")
    place = file.resolve()
    return _load_file(place, files_digest(place))


_PREFIX = "_plugin_"
_loaded: dict[Path, str] = {}
"""The digest of each helper file of third-party code at the time when this process loaded it."""


@cache
def _load_file(file: Path, digest: str) -> ModuleType:
    name = f"{_PREFIX}{digest}_{str(file).encode().hex()}"
    spec = importlib.util.spec_from_loader(name, loader=None, origin=str(file))
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    module.__file__ = str(file)
    package, _ = package_of(file)
    if package:
        module.__package__, module.__spec__ = package, None
    helpers = {place: called for place, called in brought_along(file).items() if called}
    _forget_changed(helpers)
    search_for({called.partition(".")[0]: _folder_of(place, called) for place, called in helpers.items()})
    sys.modules[name] = module  # dataclasses and pickle look a class up by its module's name
    exec(compile(file.read_bytes(), file, "exec"), module.__dict__)
    _loaded.update({place: content_digest(place) for place in helpers})
    if files_digest(file) != digest:
        raise UsageError(f"{file} changed while it was read; run the same command again")
    return module


def _folder_of(place: Path, called: str) -> str:
    """Return the folder in which Python finds a module, from its file and its full name."""
    depth = called.count(".") + (place.stem == "__init__")
    return str(place.parents[depth])


def _folder_of_package(module: str) -> dict[str, str]:
    """Return the top of a module that is not imported yet and its folder, if it is no installed package."""
    top = module.partition(".")[0]
    known = top in sys.modules or top in _folders or is_own(top)
    spec = None if known else importlib.util.find_spec(top)
    if spec is None or spec.origin is None or not Path(spec.origin).is_file() or is_installed(Path(spec.origin)):
        return {}
    return {top: _folder_of(Path(spec.origin).resolve(), top)}


def _forget_changed(helpers: dict[Path, str]) -> None:
    """Make Python import all helpers again if one changed since its import or another module has its name."""
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
    """Import these top-level modules from these folders, in preference to others of the same name."""
    _folders.update(modules)


def searched_for() -> dict[str, str]:
    """Return the modules that third-party files import, and their folders, for child processes."""
    return dict(_folders)


class _FromSource(SourceFileLoader):
    """Runs the text of a file as it is now. Kept bytecode may be that of an older text of the same second and size."""

    def get_code(self, fullname: str) -> CodeType:
        code: CodeType = self.source_to_code(self.get_data(self.path), self.path)
        return code


class _Files(MetaPathFinder, Loader):
    """An import hook that loads file modules by name, so that their objects can be unpickled in another process.

    It also finds the modules that such files import, other than installed packages.
    """

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: object = None) -> ModuleSpec | None:
        folder = _folders.get(name.partition(".")[0])
        if folder is not None:
            spec = PathFinder.find_spec(name, path or [folder])
            if spec is not None and type(spec.loader) is SourceFileLoader:
                spec.loader = _FromSource(spec.loader.name, spec.loader.path)
            return spec
        return importlib.util.spec_from_loader(name, self) if name.startswith(_PREFIX) else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        file = Path(bytes.fromhex(spec.name.rpartition("_")[2]).decode())
        module = load_file(file)
        if module.__name__ != spec.name:
            raise ImportError(f"{file} has changed since the run was planned; run the same command again")
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Do nothing: `create_module` returns a loaded module."""


sys.meta_path.insert(0, _Files())
