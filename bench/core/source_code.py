"""Digests of code that ignore comments, docstrings, formatting, and the names of files and folders.

For this project's own code a digest covers single definitions and every definition that they reach, so that an edit
affects only what depends on it. For third-party code it covers whole files, and every file that they import from
outside the standard library and site-packages.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import os
import site
import sys
import sysconfig
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path

OWN = ("bench", "corruptions", "methods", "leaderboards")
"""The packages of this project."""

HOME = Path(__file__).resolve().parents[2]

Root = tuple[str, str]
"""A definition: its module and its name at the top level of that module."""


def is_own(module: str) -> bool:
    """Whether a module belongs to this project."""
    return module.partition(".")[0] in OWN


@dataclass(frozen=True, eq=False)
class _Module:
    """A parsed module: statements by the name that they define, the sources of imported names, and other statements."""

    definitions: Mapping[str, tuple[ast.stmt, ...]]
    imports: Mapping[str, tuple[str, str | None]]
    loose: tuple[ast.stmt, ...]


def definitions_digest(roots: Collection[Root], stop: Collection[str] = ()) -> str:
    """Return a digest of definitions of this project and of all definitions that they reach, in any module.

    A definition reaches those whose names it mentions, in its own module or imported; names of other packages count as
    names. `stop` names modules ("bench.core.errors") and definitions ("bench.evaluation.evaluate:Evaluation") that are
    not followed. Error texts do not count. Raises KeyError for a root that does not exist.
    """
    stops = frozenset(stop)
    seen: set[Root] = set()
    todo = list(roots)
    found: set[str] = set()
    while todo:
        root = todo.pop()
        if root in seen or root[0] in stops or ":".join(root) in stops:
            continue
        seen.add(root)
        text, reached = _read(root)
        found.add(text)
        todo += reached
    return hashlib.sha256("\n".join(sorted(found)).encode()).hexdigest()[:16]


def definitions_of(module: str) -> tuple[str, ...]:
    """Return the names that a module of this project defines at its top level."""
    return tuple(_parsed(module).definitions)


@cache
def _read(root: Root) -> tuple[str, tuple[Root, ...]]:
    """Return a digest of one definition alone, and the definitions that it names."""
    module, name = root
    parsed = _parsed(module)
    nodes = parsed.loose if name == _LOOSE else parsed.definitions[name]
    walk = _Walk()
    text = "\n".join(walk.text(node) for node in nodes)
    reached: dict[Root, None] = {}
    outside: set[str] = set()
    for used, attribute in walk.names:
        for target in _resolve(module, used, attribute):
            if isinstance(target, str):
                outside.add(f"{used}={target}")
            elif target != root:
                reached[target] = None
    if name != _LOOSE and parsed.loose:
        reached[module, _LOOSE] = None
    sha = hashlib.sha256("\n".join([text, *sorted(outside)]).encode()).hexdigest()
    return sha, tuple(reached)


_LOOSE = "<module>"


def _resolve(module: str, name: str, attribute: str | None) -> Iterator[Root | str]:
    """Yield the definitions that a name (or an attribute of an imported module) refers to; a string if third-party."""
    parsed = _parsed(module)
    if name in parsed.definitions:
        yield module, name
    elif name in parsed.imports:
        source, wanted = parsed.imports[name]
        if not is_own(source):
            yield source if wanted is None else f"{source}.{wanted}"
            return
        inner = source if wanted is None else f"{source}.{wanted}"
        if wanted is None or _file_of(inner) is not None:
            if attribute is None:
                yield from ((inner, each) for each in _parsed(inner).definitions)
            elif _file_of(f"{inner}.{attribute}") is not None:
                yield from ((f"{inner}.{attribute}", each) for each in _parsed(f"{inner}.{attribute}").definitions)
            else:
                yield from _resolve(inner, attribute, None)
        else:
            yield from _resolve(source, wanted, None)


@cache
def _parsed(module: str) -> _Module:
    file = _file_of(module)
    if file is None:
        return _Module({}, {}, ())
    tree = ast.parse(file.read_bytes())
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    definitions: dict[str, list[ast.stmt]] = {}
    loose: list[ast.stmt] = []
    for node in tree.body:
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                definitions.setdefault(name, []).append(node)
            case ast.Assign() | ast.AnnAssign():
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                names = [part.id for target in targets for part in ast.walk(target) if isinstance(part, ast.Name)]
                if all(isinstance(target, ast.Name | ast.Tuple) for target in targets):
                    for name in names:
                        definitions.setdefault(name, []).append(node)
                else:  # assigns an item or attribute: it modifies an existing object
                    loose.append(node)
            case ast.Import() | ast.ImportFrom():
                pass
            case ast.Expr(value=ast.Constant()):
                pass
            case ast.If(test=ast.Name(id="TYPE_CHECKING")):
                pass
            case _:
                loose.append(node)
    imports = {alias: (source, wanted) for source, wanted, alias in _imports(tree, package) if alias is not None}
    return _Module({name: tuple(nodes) for name, nodes in definitions.items()}, imports, tuple(loose))


def _imports(tree: ast.AST, package: str) -> Iterator[tuple[str, str | None, str | None]]:
    """Yield (module, imported name, local name) of every import, at the top or inside functions.

    The local name is None for `import a.b`. Relative imports are resolved in `package`, or keep their dots if it is "".
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for each in node.names:
                yield each.name, None, each.asname or (each.name if "." not in each.name else None)
        elif isinstance(node, ast.ImportFrom):
            source = node.module or ""
            if node.level and not package:
                source = "." * node.level + source
            elif node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                source = ".".join([*above, *([source] if source else [])])
            for each in node.names:
                yield source, each.name, each.asname or each.name


@cache
def _file_of(module: str) -> Path | None:
    """Return the file of a module of this project, None if there is none."""
    place = HOME.joinpath(*module.split("."))
    file = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
    return file if is_own(module) and file.is_file() else None


class _Walk:
    """Build the normal form of statements, equal in every version of Python, and collect the names they mention.

    `names` holds (name, None), or (name, attribute) for an attribute access on that name.
    """

    def __init__(self) -> None:
        self.names: dict[tuple[str, str | None], None] = {}

    def text(self, node: ast.AST) -> str:
        match node:
            case ast.Raise(exc=error):  # the error class counts, its message does not
                return f"Raise({self._error(error)})"
            case ast.Attribute(value=ast.Name(id=name), attr=attribute):
                self.names[name, attribute] = None
                return f"{name}.{attribute}"
            case ast.Name(id=name):
                self.names[name, None] = None
                return name
            case ast.Constant(value=value):
                return repr(value)
        parts = []
        for field, value in ast.iter_fields(node):
            if field in ("ctx", "kind", "type_comment"):
                continue
            if isinstance(value, list):
                body = _without_docstring(node, value) if field == "body" else value
                body = [each for each in body if not isinstance(each, ast.Import | ast.ImportFrom)]
                if body:
                    inner = ",".join(self.text(each) if isinstance(each, ast.AST) else repr(each) for each in body)
                    parts.append(f"{field}=[{inner}]")
            elif isinstance(value, ast.AST):
                parts.append(f"{field}={self.text(value)}")
            elif value is not None:
                parts.append(f"{field}={value!r}")
        return f"{type(node).__name__}({','.join(parts)})"

    def _error(self, error: ast.expr | None) -> str:
        made = error.func if isinstance(error, ast.Call) else error
        return "" if made is None else ast.unparse(made)


def _without_docstring(node: ast.AST, body: list[ast.stmt]) -> list[ast.stmt]:
    """Return the body without docstrings and, in a class, without descriptive attributes: they change no number."""
    has = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Module)
    kept = [each for each in body if not (has and isinstance(each, ast.Expr) and isinstance(each.value, ast.Constant))]
    return [each for each in kept if not (isinstance(node, ast.ClassDef) and _is_descriptive(each))]


def _is_descriptive(statement: ast.stmt) -> bool:
    """Whether a class attribute only serves tuning, tests or `bench show`; keys hold the values of chosen options."""
    match statement:
        case ast.AnnAssign(target=ast.Name(id=name)) | ast.Assign(targets=[ast.Name(id=name)]):
            return name in ("search", "presets", "rate_rules", "tested_against", "checked_with")
    return False


# --- third-party files ----------------------------------------------------------------------------------------------


def files_digest(file: Path) -> str:
    """Return a digest of the code of a Python file and of every helper module that it imports.

    Helpers are the modules imported at the top or inside functions, and their imports in turn, except those of the
    standard library, site-packages and this project. A file of an installed package includes the modules of its own
    package. Raises OSError if a file cannot be read, SyntaxError if one is not valid Python.
    """
    contents = sorted(content_digest(each) for each in brought_along(file))
    return hashlib.sha256("\n".join(contents).encode()).hexdigest()[:16]


def content_digest(path: Path) -> str:
    """Return a digest of the code of one file."""
    return _content(path)[0]


def brought_along(file: Path) -> dict[Path, str]:
    """Return a Python file and the files of its helper modules (see `files_digest`), each with its import name ("" for
    the file itself).
    """
    start = file.resolve()
    own = _top_of(start) if is_installed(start) else None
    found: dict[Path, str] = {start: ""}
    todo = [start]
    while todo:
        path = todo.pop()
        for module, name in _content(path)[1]:
            for each, called in _places(path, module, name):
                if each not in found and (not is_installed(each) or _top_of(each) == own):
                    found[each] = called
                    todo.append(each)
    return found


def _content(path: Path) -> tuple[str, tuple[tuple[str, str | None], ...]]:
    """Return the digest of one file in its normal form, and its imports."""
    source = path.read_bytes()
    return _content_of(source, str(path)) if path.suffix == ".py" else (hashlib.sha256(source).hexdigest(), ())


@lru_cache(maxsize=4096)
def _content_of(source: bytes, name: str) -> tuple[str, tuple[tuple[str, str | None], ...]]:
    tree = ast.parse(source, name)
    imports = list(_imports(tree, ""))
    # Modules of this project may move, so their names do not count; the imported names and their aliases do.
    named = sorted(repr(("" if is_own(module) else module, name, alias)) for module, name, alias in imports)
    normal = "\n".join([_Walk().text(tree), *named])
    followed = [(module, name) for module, name, _ in imports if not is_own(module)]
    called = [(text, None) for text in _called_imports(tree)]
    return hashlib.sha256(normal.encode()).hexdigest(), tuple(dict.fromkeys([*followed, *called]))


def _called_imports(tree: ast.AST) -> Iterator[str]:
    """Yield modules that are imported by a call: importlib.import_module("helper"), __import__("helper")."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            function = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if function in ("import_module", "__import__") and isinstance(node.args[0].value, str):
                yield node.args[0].value


def _places(path: Path, module: str, name: str | None) -> Iterator[tuple[Path, str]]:
    """Yield the files of one import: the parent packages, the module, and the submodule that `name` may be."""
    bare = module.lstrip(".")
    level = len(module) - len(bare)
    if level:
        package, folder = package_of(path)
        above = package.split(".")[: len(package.split(".")) - level + 1]
        parts = [*above, *(bare.split(".") if bare else []), *([name] if name and name != "*" else [])]
        yield from _down(folder, parts)
        return
    parts = bare.split(".")
    top = parts[0]
    if top in sys.stdlib_module_names or is_own(top):
        return
    for folder in (path.parent, *_search_path(top)):
        found = list(_down(folder, [*parts, *([name] if name and name != "*" else [])]))
        if found:
            yield from found
            return


def package_of(path: Path) -> tuple[str, Path]:
    """Return the dotted name of the package of a file ("" for none), and the folder above that package."""
    folder, names = path.parent, list[str]()
    while (folder / "__init__.py").is_file():
        names.insert(0, folder.name)
        folder = folder.parent
    return ".".join(names), folder


def _down(folder: Path, parts: list[str]) -> Iterator[tuple[Path, str]]:
    """Yield the files of the modules in a dotted name below a folder, each with its dotted name."""
    called = ""
    for part in parts:
        called = f"{called}.{part}" if called else part
        inner = folder / part
        if (inner / "__init__.py").is_file():
            yield (inner / "__init__.py").resolve(), called
            folder = inner
        elif inner.with_suffix(".py").is_file():
            yield inner.with_suffix(".py").resolve(), called
            return
        elif inner.is_dir():  # a namespace package
            folder = inner
        else:
            compiled = (each for each in sorted(folder.glob(f"{part}.*")) if each.suffix in (".so", ".pyd"))
            yield from ((each.resolve(), called) for each in compiled)
            return


def _search_path(top: str) -> list[Path]:
    """Return the folders in which Python finds the top-level module of this name."""
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return []
    if spec is None:
        return []
    if spec.submodule_search_locations:
        return [Path(place).parent for place in spec.submodule_search_locations]
    return [Path(spec.origin).parent] if spec.origin and os.sep in spec.origin else []


@cache
def _site_folders() -> tuple[Path, ...]:
    names = [sysconfig.get_path(kind) for kind in ("purelib", "platlib", "stdlib", "platstdlib")]
    names += [*site.getsitepackages(), site.getusersitepackages()]
    return tuple(dict.fromkeys(Path(name).resolve() for name in names if name))


def is_installed(path: Path) -> bool:
    """Whether a file belongs to Python or to an installed package."""
    return any(path.is_relative_to(folder) for folder in _site_folders())


def _top_of(path: Path) -> Path:
    """Return the folder of the top-level package of a file, or the file itself if it is in no package."""
    package, folder = package_of(path)
    return folder / package.partition(".")[0] if package else path
