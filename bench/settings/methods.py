"""Look up methods by name: row, class and options. Torch is imported only when a class is loaded."""

from __future__ import annotations

import ast
import importlib.util
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.core.errors import UsageError, nearest
from bench.core.invalid_input import in_words
from bench.core.source_code import HOME
from methods import METHODS, PLAIN
from methods.table import Access, MethodRow

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

    from pydantic import TypeAdapter

PLUGINS = "soupbench.methods"
"""Entry-point group through which installed packages add methods: NAME = "package.module:Class"."""


@dataclass(frozen=True)
class Method:
    """A parsed method: a recipe, and the adapter that runs on the classifier that the recipe trains.

    `implied`: the recipe was not named, so a ready classifier may stand in for what it trains.
    """

    text: str
    recipe: MethodRow
    adapter: MethodRow | None
    implied: bool = False

    @property
    def access(self) -> Access:
        return self.recipe.access | (self.adapter or PLAIN).access

    @property
    def elsewhere(self) -> Access:
        """The access where the recipe learns from the pool of another shift."""
        test = self.recipe.access.test
        recipe = replace(self.recipe.access, test="other" if test == "pool" else test)
        return recipe | (self.adapter or PLAIN).access


def parse_method(text: str) -> Method:
    """Parse "tent", "selfsoup", "selfsoup+tent" or "file.py:Class".

    A recipe alone runs with the plain adapter, an adapter alone on the classifier of the recipe that it needs, which is
    `source` unless its row names another. Raises UsageError.
    """
    rows = [_row(part.strip()) for part in text.split("+")]
    recipes = [row for row in rows if row.kind == "recipe"]
    adapters = [row for row in rows if row.kind == "adapter"]
    if len(recipes) > 1 or len(adapters) > 1:
        raise UsageError(f"'{text}' names more than one recipe or adapter; write RECIPE, ADAPTER or RECIPE+ADAPTER")
    shown = "+".join(
        row.name if ".py:" in row.path else part.strip() for row, part in zip(rows, text.split("+"), strict=True)
    )
    adapter = adapters[0] if adapters else None
    needed = METHODS[(adapter.needs if adapter else None) or "source"]
    return Method(shown, recipes[0] if recipes else needed, adapter, implied=not recipes)


def _row(name: str) -> MethodRow:
    if ".py:" in name:
        file, _, class_name = name.rpartition(":")
        return _row_of_class(f"{Path(file).name}:{class_name}", f"{Path(file).resolve()}:{class_name}")
    if name in METHODS:
        return METHODS[name]
    entries = plugins()
    return _row_of_class(name, entries[nearest(name, (*METHODS, *entries), "method")].value)


def plugins() -> dict[str, EntryPoint]:
    """Return the entry points of methods in installed packages, by name, without names in the built-in table."""
    from importlib.metadata import entry_points

    found = entry_points(group=PLUGINS)
    return {entry.name: entry for entry in found if entry.name not in METHODS}


def _row_of_class(name: str, path: str) -> MethodRow:
    """Return a row for a class outside the table, "file.py:Class" or "module:Class". Raises UsageError."""
    from bench.core.import_object import load_object
    from methods.base import Adapter, Recipe

    cls = load_object(path)
    if not isinstance(cls, type) or not issubclass(cls, Adapter | Recipe):
        raise UsageError(f"{path} is not a subclass of methods.base.Adapter or methods.base.Recipe; derive it from one")
    if not isinstance(getattr(cls, "access", None), Access):
        raise UsageError(
            f"{path} does not declare what it may access; add `access = Access(...)` from methods.table to the class"
        )
    summary = (cls.__doc__ or "").strip().split("\n")[0]
    kind = "adapter" if issubclass(cls, Adapter) else "recipe"
    return MethodRow(name, kind, path, summary, cls.access, "", needs=getattr(cls, "needs", None))  # type: ignore[arg-type]


def parse_setting(text: str) -> tuple[str, str, Any]:
    """Parse "NAME.key=value", where the value is TOML or else a plain string. Raises UsageError."""
    import tomllib

    target, equals, value = text.partition("=")
    name, dot, key = target.rpartition(".")
    if not (equals and dot and name and key):
        raise UsageError(f"--set takes NAME.key=value, as in --set tent.lr=1e-3, not '{text}'")
    try:
        return name.strip(), key.strip(), tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return name.strip(), key.strip(), value.strip()


def options_by_method(texts: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Parse several "NAME.key=value": options by the name of their method, later ones over earlier ones."""
    options: dict[str, dict[str, Any]] = {}
    for name, key, value in map(parse_setting, texts):
        options.setdefault(name, {})[key] = value
    return options


def build_config(row: MethodRow, options: Mapping[str, Any]) -> Any:
    """Return the method's frozen options. Raises UsageError for unknown keys and invalid values."""
    from pydantic import ValidationError

    from bench.core.import_object import load_object

    config_class = load_object(row.path).Config
    names = [field.name for field in fields(config_class)]
    for key in options:
        nearest(key, names, f"option of {row.name}")
    try:
        config = _reader(config_class).validate_python(dict(options))
    except ValidationError as error:
        first = error.errors()[0]
        if first["type"] == "value_error":  # raised by the method's own check
            message = _of_row(str(first["ctx"]["error"]), row, names)
            raise UsageError(f"{message}; see `bench show method {row.name}`") from None
        where = ".".join(str(part) for part in first["loc"]) or "options"
        if first["type"] == "tuple_type":
            raise UsageError(
                f'{row.name}.{where} takes a list in quotes, as in --set \'{row.name}.{where}=["A", "B"]\', not '
                f"{first['input']!r}"
            ) from None
        raise UsageError(f"{row.name}.{where} {in_words(first)}; see `bench show method {row.name}`") from None
    for name, value in plain_values(config).items():
        if isinstance(value, float) and not math.isfinite(value):
            raise UsageError(f"{row.name}.{name} must be a finite number, not {value}")
    return config


def _of_row(message: str, row: MethodRow, names: Sequence[str]) -> str:
    """Return a class's message "class.option must be …" with the method's name, as methods may share a class."""
    _, dot, rest = message.partition(".")
    return f"{row.name}.{rest}" if dot and rest.partition(" ")[0] in names else message


@cache
def _reader(config_class: type) -> TypeAdapter[Any]:
    from pydantic import TypeAdapter

    return TypeAdapter(config_class)


def plain_values(config: Any) -> Any:
    """Return a frozen options object as JSON values.

    An option that is None and came later than its class (`methods.base.Options.later`) is left out, so that the keys of
    older records hold.
    """
    if is_dataclass(config) and not isinstance(config, type):
        later = {name for kind in type(config).__mro__ for name in vars(kind).get("later", ())}
        values = {field.name: getattr(config, field.name) for field in fields(config)}
        return {name: plain_values(value) for name, value in values.items() if name not in later or value is not None}
    if isinstance(config, tuple | list):
        return [plain_values(item) for item in config]
    return config


@dataclass(frozen=True)
class Option:
    """An option of a method, as written in its file."""

    name: str
    type: str
    default: str


@dataclass(frozen=True)
class Described:
    """What the file of a method says: about the method, about its options, and the options."""

    text: str
    about_options: str
    options: list[Option]


def described(row: MethodRow) -> Described:
    """Return the docstring and options of a method, parsed from its file without importing it.

    An option is documented by the class that declares it: `about_options` joins the docstrings of classes that describe
    an option, bases first, without the sentence that says whose options they are; of bases only what describes one.
    """
    module, _, class_name = row.path.rpartition(":")
    found, tree = _class(module, class_name)
    about = []
    options: dict[str, Option] = {}
    classes = _config_classes(found, module)
    for config in classes:
        text, declared = ast.get_docstring(config) or "", _fields(config)
        own = config is classes[-1]
        about += [
            part
            for part in _without_heading(text).split("\n\n")
            if own or any(f"{option.name}:" in part for option in declared)
        ]
        options |= {option.name: option for option in declared}
    text = ast.get_docstring(found) or ast.get_docstring(tree) or ""
    return Described(text, "\n\n".join(filter(None, about)), list(options.values()))


def _without_heading(text: str) -> str:
    """Return a docstring without "Options of …." at its start, which names classes and no option."""
    heading = re.match(r"(?:No options|Options)\b.*?([.;])(?:\s+|\Z)", text, re.DOTALL)
    if heading is None:
        return text
    rest = text[heading.end() :]
    return rest[:1].upper() + rest[1:] if heading[1] == ";" else rest


def options_of(row: MethodRow) -> list[Option]:
    """Return the options of a method, parsed from its file without importing it."""
    return described(row).options


def _fields(config: ast.ClassDef) -> list[Option]:
    return [
        Option(node.target.id, _plain_type(node.annotation), ast.unparse(node.value) if node.value else "")
        for node in config.body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
        if not ast.unparse(node.annotation).startswith("ClassVar")
    ]


def _plain_type(annotation: ast.expr) -> str:
    """Return a type as text, "int" for a name of methods.limits that stands for whole numbers."""
    match annotation:
        case ast.Subscript(value=ast.Name(id="Annotated"), slice=ast.Tuple(elts=[plain, *_])):
            return ast.unparse(plain)
    text = ast.unparse(annotation)
    for node in _tree("methods.limits").body:
        match node:
            case ast.Assign(targets=[ast.Name(id=name)], value=ast.Subscript(slice=ast.Tuple(elts=[plain, _]))):
                text = re.sub(rf"\b{name}\b", ast.unparse(plain), text)
    return text


def choices_of(row: MethodRow, name: str) -> str:
    """Return what an alias of a type ("Order") stands for in the files of a method, or the text itself."""
    modules = [row.path.rpartition(":")[0]] if name.isidentifier() else []
    for module in modules:  # grows while it is read
        for node in _tree(module).body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name:
                return ast.unparse(node.value)
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("methods."):
                modules += [node.module] if node.module not in modules else []
    return name


def subclasses_of(base: str, module: str) -> list[tuple[dict[str, str], list[Option]]]:
    """Return the string attributes and fields of each class in a module derived from `base`, without importing it."""
    return [
        (
            {
                node.targets[0].id: node.value.value
                for node in found.body
                if isinstance(node, ast.Assign)
                and isinstance(node.targets[0], ast.Name)
                and isinstance(node.value, ast.Constant)
                and isinstance(node.value.value, str)
            },
            _fields(found),
        )
        for found in _tree(module).body
        if isinstance(found, ast.ClassDef) and any(ast.unparse(above) == base for above in found.bases)
    ]


def literal_of(row: MethodRow, name: str, default: Any) -> Any:
    """Return a class attribute of a method or of its bases, parsed from their files without importing them.

    Returns `default` if neither the class nor a readable base sets it to a literal.
    """
    module, _, class_name = row.path.rpartition(":")
    found = _attribute(class_name, module, name)
    try:
        return default if found is None else ast.literal_eval(found)
    except ValueError:
        return default


def _attribute(class_name: str, module: str, name: str) -> ast.expr | None:
    place = _find(class_name, module)
    for found, _ in _in_order(*place) if place else ():
        for node in found.body:
            targets = (
                node.targets
                if isinstance(node, ast.Assign)
                else [node.target]
                if isinstance(node, ast.AnnAssign)
                else []
            )
            if isinstance(node, ast.Assign | ast.AnnAssign) and any(
                isinstance(target, ast.Name) and target.id == name for target in targets
            ):
                return node.value
    return None


def _in_order(found: ast.ClassDef, module: str) -> list[tuple[ast.ClassDef, str]]:
    """Return a class and its bases, each with its module, in the order in which Python searches them for attributes."""
    above = [
        place
        for base in found.bases
        if isinstance(base, ast.Name) and (own := _find(base.id, module))
        for place in _in_order(*own)
    ]
    # What several bases share is searched after the last of them.
    return [(found, module), *reversed(dict.fromkeys(reversed(above)))]


def _config_classes(found: ast.ClassDef, module: str) -> list[ast.ClassDef]:
    """Return the `Config` of a method class and of its bases, bases first, across files."""
    for owner, home in _in_order(found, module):
        for node in owner.body:
            if isinstance(node, ast.ClassDef) and node.name == "Config":
                return _with_bases(node, home)
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Attribute) and node.value.attr == "Config":
                place = _find(ast.unparse(node.value.value), home)
                return _config_classes(*place) if place else []
    return []


def _with_bases(node: ast.ClassDef, module: str) -> list[ast.ClassDef]:
    return [config for base in node.bases for config in _configs_of(base, module)] + [node]


def _configs_of(base: ast.expr, module: str) -> list[ast.ClassDef]:
    """Return the option classes that a base, "Options" or "Method.Config", stands for, bases first."""
    match base:
        case ast.Name(id=name) if place := _find(name, module):
            return _with_bases(*place)
        case ast.Attribute(value=ast.Name(id=owner), attr="Config") if place := _find(owner, module):
            return _config_classes(*place)
    return []


def _find(name: str, module: str) -> tuple[ast.ClassDef, str] | None:
    """Return a class by its name in a module that defines it or imports it, and the module that defines it."""
    tree = _tree(module)
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            return node, module
        if isinstance(node, ast.ImportFrom) and node.module and any(alias.name == name for alias in node.names):
            return _find(name, node.module) if _file(node.module).is_file() else None
    return None


def _class(module: str, name: str) -> tuple[ast.ClassDef, ast.Module]:
    place = _find(name, module)
    if place is None:
        raise UsageError(f"{module} has no class '{name}'; check the name after the colon")
    return place[0], _tree(place[1])


@cache
def _tree(module: str) -> ast.Module:
    return ast.parse(_file(module).read_bytes())


def _file(module: str) -> Path:
    if module.endswith(".py"):
        return Path(module)
    place = HOME.joinpath(*module.split("."))
    file = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
    if file.is_file() or module.partition(".")[0] not in _outside_packages():
        return file
    spec = importlib.util.find_spec(module)
    return Path(spec.origin) if spec and spec.origin else file


def _outside_packages() -> set[str]:
    """Return the packages of plug-ins, the only packages outside this project whose files are read."""
    return {entry.module.partition(".")[0] for entry in plugins().values()}
