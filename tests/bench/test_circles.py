"""No file imports another that leads back to it, also inside functions; imports for type checkers alone may."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

HOME = Path(__file__).resolve().parents[2]
PACKAGES = ("bench", "corruptions", "methods", "leaderboards")


def modules(home: Path) -> dict[str, Path]:
    """The files of the packages by the names of their modules."""
    files = (file for package in PACKAGES for file in (home / package).rglob("*.py"))
    return {".".join(file.relative_to(home).with_suffix("").parts).removesuffix(".__init__"): file for file in files}


def imported(node: ast.AST) -> Iterator[tuple[str, str]]:
    """Yield (module, name or "") of all imports in a tree, without those under `if TYPE_CHECKING`."""
    match node:
        case ast.If(test=ast.Name(id="TYPE_CHECKING")):
            return
        case ast.Import(names=names):
            yield from ((alias.name, "") for alias in names)
        case ast.ImportFrom(module=str(module), names=names):
            yield from ((module, alias.name) for alias in names)
    for inner in ast.iter_child_nodes(node):
        yield from imported(inner)


def graph(home: Path) -> dict[str, set[str]]:
    """The modules that each module imports. `from package import module` imports the module, not the package."""
    files = modules(home)
    found = {}
    for module, file in files.items():
        pairs = imported(ast.parse(file.read_bytes()))
        targets = {f"{source}.{name}" if f"{source}.{name}" in files else source for source, name in pairs}
        found[module] = targets & files.keys() - {module}
    return found


def test_there_is_no_circle_of_files() -> None:
    arrows = graph(HOME)
    assert "bench.core.errors" in arrows["bench.runs.run"]
    assert "bench.runs.run" in arrows["bench.cli.run"]  # imported inside a function
    TopologicalSorter(arrows).prepare()


def test_a_circle_inside_functions_is_found(tmp_path: Path) -> None:
    (tmp_path / "methods").mkdir()
    (tmp_path / "methods" / "a.py").write_text("from methods import b\n")
    (tmp_path / "methods" / "b.py").write_text("def late() -> None:\n    from methods.a import thing\n")
    with pytest.raises(CycleError):
        TopologicalSorter(graph(tmp_path)).prepare()
    (tmp_path / "methods" / "b.py").write_text("if TYPE_CHECKING:\n    from methods.a import thing\n")
    TopologicalSorter(graph(tmp_path)).prepare()
