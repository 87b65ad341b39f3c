"""Identify every part of the code that can change a number.

A part of this project is a *component* with a name and a declared version. The lock file holds the version of each
component and the digest of its code. Code that matches the lock is identified by its version alone, so a comment, a
moved file or a release changes no key. Code that does not match (an edited checkout) is identified by version and
digest, so that exactly the results that depend on it are measured again. Third-party code is identified by a digest of
its files (`bench.core.source_code.files_digest`).
"""

from __future__ import annotations

import hashlib
import importlib
import json
import pkgutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from bench.core.environment import package_digest
from bench.core.errors import UsageError
from bench.core.import_object import code_of, code_of_module, is_file_module
from bench.core.source_code import HOME, Root, definitions_digest, definitions_of, is_own
from corruptions import catalog, tables
from methods import METHODS, PLAIN
from methods.identity import Identity, declared
from methods.table import MethodRow

HARNESS = "harness"
"""The component that every number depends on: streams, splits, predictions and metrics."""

DECODER = "decoder"
"""The component that decodes files to pixels."""

LIBRARY = "library"
"""The component that third-party methods build on: base classes, losses, norms, nets and views."""

_NEVER_FOLLOWED = (
    "bench.core.errors",
    "bench.core.invalid_input",
    "bench.execution.progress_files",
    "methods",
    "methods.table",
    "methods.nets.flops",
    "methods.identity",
    "leaderboards.files",
)
"""Modules that change no number: errors, progress, the table of methods (but for the access), operation counts."""


@dataclass(frozen=True)
class Component:
    """A part of this project: its root definitions, and plain values that count as its code."""

    version: int
    roots: tuple[Root, ...]
    values: str = ""
    stop: tuple[str, ...] = field(default=_NEVER_FOLLOWED)

    @property
    def code(self) -> str:
        """A digest of the code in the current files."""
        found = definitions_digest(self.roots, self.stop)
        return hashlib.sha256(f"{found}\n{self.values}".encode()).hexdigest()[:16] if self.values else found


_SHARED: dict[str, Component] = {
    HARNESS: Component(
        1,
        (
            ("bench.evaluation.protocols", "*"),
            ("bench.shifts.shift", "split_ids"),
            ("bench.shifts.shift", "limit_ids"),
            ("bench.shifts.shift", "labelled_source"),
            ("bench.shifts.shift", "adapt_pool"),
            ("bench.shifts.shift", "clean_labelled"),
            ("bench.shifts.shift", "clean_pool"),
            ("bench.evaluation.evaluate", "_run_segment"),
            ("bench.evaluation.evaluate", "_source"),
            ("bench.evaluation.evaluate", "_autocast"),
            ("bench.evaluation.stream_results", "StreamResults"),
            ("bench.models.classifiers", "OfClasses"),
            ("bench.models.classifiers", "ReadyClassifier"),
            ("bench.models.classifiers", "for_classes"),
            ("bench.models.trained", "TrainedClassifier"),
            ("methods.adapters.plain", "Plain"),
            ("methods.nets.weights", "ready"),
            ("methods.nets.weights", "Architecture"),
            ("methods.nets.timm_encoders", "TimmArchitecture"),
            ("methods.nets.small_resnets", "SmallResNet"),
            ("leaderboards.metrics", "score"),
        ),
        stop=(
            *_NEVER_FOLLOWED,
            "corruptions.pipeline",
            "bench.evaluation.evaluate:Evaluation",
            "bench.evaluation.evaluate:_write_progress",
            "bench.evaluation.pass_counter",
            "bench.core.environment",
            "bench.shifts.lazy_images",
            "bench.shifts.catalog",
            "bench.shifts.data_root",
        ),
    ),
    DECODER: Component(1, (("bench.data.decode", "*"),)),
    LIBRARY: Component(
        1,
        tuple(
            (f"methods.{module}", name)
            for module, names in {
                "base": ("Adapter", "Recipe", "Labelled", "Unlabelled", "Job"),
                "losses": ("*",),
                "norms": ("*",),
                "online": ("*",),
                "nets.feature_head_split": ("*",),
                "nets.weights": ("Weights", "ready"),
                "views.ssl_views": ("Views",),
            }.items()
            for name in names
        ),
    ),
}


def harness_version() -> int:
    """Return the version of the component that every number depends on."""
    return _SHARED[HARNESS].version


def method_name(row: MethodRow) -> str:
    """Return the name of the component of a row of the method table."""
    return f"method:{row.name}"


def corruption_name(name: str) -> str:
    """Return the name of the component of a corruption."""
    return f"corruption:{name}"


@cache
def is_corruption(name: str) -> bool:
    """Whether this project has a corruption of this name."""
    return name in catalog.names()


def corruption_marks(name: str | None) -> list[str]:
    """Return what a digest of corrupted images includes besides their parameters.

    This is nothing for version 1 of a corruption, so that digests published before versions were declared stay valid.
    """
    found = "1" if name is None or not is_corruption(name) else identity(corruption_name(name))
    return [] if found == "1" else [f"{name} {found}"]


@cache
def component_of(name: str) -> Component:
    """Return a component by its name. Raises KeyError for an unknown name."""
    if name in _SHARED:
        found = _SHARED[name]
        roots = tuple(each for root in found.roots for each in _expanded(root))
        return Component(found.version, roots, found.values, found.stop)
    kind, _, rest = name.partition(":")
    if kind == "method":
        row = PLAIN if rest == PLAIN.name else METHODS[rest]
        module, _, cls = row.path.partition(":")
        return Component(row.version, ((module, cls),), repr(row.access))
    if kind == "corruption":
        return _corruption(catalog.describe(rest))
    identity, root = _declared_at()[name]
    return Component(identity.version, (root,))


def _expanded(root: Root) -> Iterable[Root]:
    """Yield the root itself, or all definitions of its module if its name is "*"."""
    module, name = root
    return ((module, each) for each in definitions_of(module)) if name == "*" else (root,)


def _corruption(row: catalog.Row) -> Component:
    module = f"corruptions.{row.module}"
    there = definitions_of(module)
    own = [name for name in (row.name, f"draw_{row.name}", f"{row.name}_bytes") if name in there]
    profiles = sorted(tables.PROFILES)
    values = repr([(profile, tables.PROFILES[profile].get(row.name)) for profile in profiles])
    lists = ("ROWS", "_BY_NAME", "ALIASES", "Row", "names", "canonical")
    stop = (*_NEVER_FOLLOWED, "corruptions.tables", *(f"corruptions.catalog:{name}" for name in lists))
    roots = (*((module, name) for name in own), ("corruptions.pipeline", "corrupt"))
    return Component(row.version, roots, values + repr(tables.CLEAN.get(row.name)), stop)


@cache
def _declared_at() -> dict[str, tuple[Identity, Root]]:
    """Return the declared identities of job functions and option classes, by name, with their current location."""
    import methods

    found: dict[str, tuple[Identity, Root]] = {}
    for info in pkgutil.walk_packages(methods.__path__, "methods."):
        module = importlib.import_module(info.name)
        for name, thing in vars(module).items():
            if getattr(thing, "__module__", None) != info.name:
                continue
            for each in (thing, *vars(thing).values()) if isinstance(thing, type) else (thing,):
                identity = declared(each) if callable(each) else None
                if identity is None or each.__module__ != info.name or each.__qualname__.partition(".")[0] != name:
                    continue
                if found.setdefault(identity.name, (identity, (info.name, name)))[1] != (info.name, name):
                    raise ValueError(f"two components are called {identity.name}; give one of them another name")
    return found


def is_component(name: str) -> bool:
    """Whether this project has a component of this name."""
    return name in _SHARED or (name in _lock() and name != _PACKAGE)


def all_components() -> list[str]:
    """Return the names of all components, sorted."""
    methods = [method_name(row) for row in (PLAIN, *METHODS.values())]
    corruptions = [corruption_name(name) for name in catalog.names()]
    return sorted([*_SHARED, *methods, *corruptions, *_declared_at()])


@cache
def _lock() -> Mapping[str, tuple[int, str]]:
    text = (resources.files("bench") / "assets" / "components.json").read_text(encoding="utf-8")
    return {name: (version, code) for name, (version, code) in json.loads(text).items()}


@cache
def _as_released() -> bool:
    """Whether all files equal, byte for byte, those that the lock file was written for; then nothing needs parsing."""
    return _lock().get(_PACKAGE, (0, ""))[1] == package_digest()


_PACKAGE = "package"


@cache
def identity(name: str) -> str:
    """Return the identity of a component in keys: its version ("2"), or "2+DIGEST" if its code is not as locked."""
    return _as_locked(name, component_of(name))


def _as_locked(name: str, found: Component) -> str:
    if _as_released() and _lock().get(name, (0,))[0] == found.version:
        return str(found.version)
    code = found.code
    return str(found.version) if _lock().get(name) == (found.version, code) else f"{found.version}+{code}"


def write_lock(path: Path | None = None) -> list[str]:
    """Rewrite the lock file and return the names of the components whose entry changed."""
    file = path or HOME / "bench" / "assets" / "components.json"
    before = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    now = {name: [component_of(name).version, component_of(name).code] for name in all_components()}
    now[_PACKAGE] = [0, package_digest()]
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(entry)}" for name, entry in now.items())
    file.write_bytes(("{\n" + lines + "\n}\n").encode())
    return [
        name for name in sorted(before.keys() | now.keys()) if before.get(name) != now.get(name) and name != _PACKAGE
    ]


# --- functions and classes ------------------------------------------------------------------------------------------


def name_of(thing: Callable[..., Any]) -> str:
    """Return the name of a job function or option class, which seeds random numbers: the declared name, or for
    third-party code "package:Class", which does not depend on the location of the file.

    Raises UsageError for code of this project that declares no name.
    """
    found = declared(thing)
    if found is not None:
        return found.name
    if is_own(thing.__module__):
        raise UsageError(f"{thing.__module__}.{thing.__qualname__} has no identity; add @component to it")
    package = "" if is_file_module(thing.__module__) else thing.__module__.partition(".")[0]
    return f"{package}:{thing.__qualname__}"


@cache
def identity_of(thing: Callable[..., Any]) -> tuple[str, str]:
    """Return the identity of a job function or option class in keys: its name, and its version or code digest."""
    found = declared(thing)
    if found is None or not is_own(thing.__module__):
        return name_of(thing), f"{code_of_module(thing.__module__)}/{identity(LIBRARY)}"
    root = thing.__module__, thing.__qualname__.partition(".")[0]
    return found.name, _identity_at(found.name, found.version, root)


@cache
def _identity_at(name: str, version: int, root: Root) -> str:
    return _as_locked(name, Component(version, (root,)))


def identity_of_path(path: str) -> str:
    """Return the identity of a method by the path of its class: its version, or for third-party code a digest."""
    row = _rows_by_path().get(path)
    return identity(method_name(row)) if row is not None else f"{code_of(path)}/{identity(LIBRARY)}"


@cache
def _rows_by_path() -> dict[str, MethodRow]:
    return {row.path: row for row in (PLAIN, *METHODS.values())}
