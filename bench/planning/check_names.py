"""Check every name in the settings of runs before torch is loaded and before any process starts.

A misspelt name costs a fraction of a second. What only the data or a class can tell is checked when a run is planned.
"""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from bench.core.errors import BenchError, MissingDataError, UsageError, closest, nearest
from bench.core.extras import OF_TRACKERS, SLURM, need
from bench.core.invalid_input import in_words
from bench.evaluation.protocols import parse_protocol
from bench.models.known_names import check_model, check_stock
from bench.settings.methods import choices_of, options_of, parse_method, plugins
from bench.settings.run_spec import RunSpec, read_severities
from bench.settings.tuning import Tuning
from bench.shifts import SHIFTS, find_row, refuse_settings
from bench.shifts.catalog import TASKS, ShiftRow
from bench.shifts.corruption_sets import corruptions_of
from corruptions.catalog import ROWS, canonical, group
from corruptions.tables import PROFILES
from methods import METHODS
from methods.table import MethodRow


def check_names(specs: Sequence[RunSpec]) -> None:
    """Raise UsageError for a name that is unknown, or MissingDataError for a file of the user's that does not exist.

    Corruptions and options of methods need to exist in one of the runs: a grid leaves out the runs that lack them.
    """
    for spec in specs:
        row = find_row(spec.shift)
        _check_argument(row)
        _check_argument(find_row(spec.recipe_shift))
        refuse_settings(row, spec.classes, spec.part)
        for method in spec.method:
            check_method(method)
        parse_protocol(spec.protocol)
        check_device(spec.device)
        _check_packages(spec)
        _check_base(spec)
    _check_in_any(_check_corruptions, specs)
    _check_in_any(_check_options, specs)


def _check_packages(spec: RunSpec) -> None:
    if spec.tracker is not None:
        need(OF_TRACKERS[spec.tracker], f"--tracker {spec.tracker}")
    if spec.launch == "slurm":
        need(SLURM, "--launch slurm")


def _check_in_any(check: Any, specs: Sequence[RunSpec]) -> None:
    errors: list[BenchError] = []
    for spec in specs:
        try:
            check(spec)
        except BenchError as error:
            errors.append(error)
    if specs and len(errors) == len(specs):
        raise errors[0]


def check_device(name: str) -> None:
    """Raise UsageError unless the text names the CPU or GPUs; whether there is one is for torch to say."""
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", name):
        raise UsageError(f"unknown device '{name}'; use auto, cpu, cuda or cuda:N")


def check_shift(name: str) -> ShiftRow:
    """Return the row of a shift. Raises UsageError for an unknown name, also of a task or of a class in a file."""
    row = find_row(name)
    _check_argument(row)
    return row


WAYS_TO_MIX = ("uniform", "weighted", "wise", "model_stock", "task_arithmetic", "ties", "dare", "slerp")
WAYS_TO_SEASON = ("self", "labels", "search", "greedy")
STOCK_DATA = ("digits", "fashion", "cifar10", "cifar100", "imagenet")
OBJECTIVES = ("mae", "mocov3", "mmcr", "lejepa", "mocov3_official", "mmcr_official", "lejepa_official")


def check_tuning(asked: Tuning) -> None:
    """Raise UsageError for an unknown name in `bench tune`, and for an option that the method to tune lacks."""
    check_names([asked.run])
    (method,) = asked.run.method
    rows = check_method(method)
    for row in rows[-1:] if len(rows) == len(method.split("+")) or "+" not in method else []:
        for key in asked.grid:
            nearest(key, [option.name for option in options_of(row)], f"option of {row.name}")


LAYOUTS = ("imagenet-c", "laion-c", "cifar-c")


def check_export(shift: str, corruption: str | None, severity: str, layout: str | None, device: str) -> None:
    """Raise UsageError for an unknown name in `bench data export`."""
    row = check_shift(shift)
    check_corruptions(row, [part.strip() for part in (corruption or "").split(",") if part.strip()])
    check_severity(severity)
    if layout is not None:
        nearest(layout, LAYOUTS, "layout")
    check_device(device)


def check_severity(text: str) -> None:
    """Raise UsageError unless the text is a list or a range of severities."""
    try:
        read_severities(text)
    except ValueError as error:
        raise UsageError(f"--severity {error}") from None


def check_gallery(corruption: str | None, severity: str, profile: str) -> None:
    """Raise UsageError for an unknown name in `bench gallery`."""
    suites = {row.suite for row in ROWS}
    for part in [part.strip() for part in (corruption or "").split(",") if part.strip()]:
        if part.rpartition(":")[0].endswith(".py"):
            check_own(part)
        elif part not in suites and not group(part):
            nearest(_canonical(part), [*(row.name for row in ROWS), *suites], "corruption")
    check_severity(severity)
    nearest(profile, ["auto", *PROFILES], "profile")


_ARCHITECTURES = ("resnet20", "resnet20-gn", "vit_mini_patch4_32", "timm:NAME")
_SIZES = ("micro", "mini", "tiny", "small", "base", "large", "huge")


def check_architecture(name: str) -> None:
    """Raise UsageError for an architecture that `bench stock` and `bench train` cannot build by its name alone."""
    kind, colon, _ = name.partition(":")
    if colon and kind == "timm":
        check_model(name)
    elif found := re.fullmatch(r"vit_([a-z]+)_patch\d+_\d+", name):
        nearest(found[1], _SIZES, "size of --arch")
    elif not re.fullmatch(r"resnet\d+(x\d+)?(-gn)?(:\d+)?", name):
        nearest(name, _ARCHITECTURES, "architecture")


def check_training(data: str, device: str, precision: str, arch: str | None, objective: str | None = None) -> None:
    """Raise UsageError for an unknown name in `bench stock` or `bench train`."""
    nearest(data.partition(":")[0], [*STOCK_DATA, *SHIFTS], "data")
    if data not in STOCK_DATA:
        check_shift(data)
    if arch is not None:
        check_architecture(arch)
    if objective is not None:
        nearest(objective, OBJECTIVES, "objective")
    check_device(device)
    if precision not in ("auto", "fp32", "bf16"):
        raise UsageError(f"--precision {precision} is unknown; choose auto, fp32 or bf16")


def check_soup(files: Sequence[Path], how: str | None = None, ways: Sequence[str] = WAYS_TO_MIX) -> None:
    """Raise UsageError for an unknown way of mixing, MissingDataError for a file of weights that does not exist."""
    if how is not None:
        nearest(how.partition(":")[0], ways, "way of mixing" if ways is WAYS_TO_MIX else "way of seasoning")
    for file in files:
        if not file.exists() and not Path(str(file).partition("#")[0]).exists():
            raise MissingDataError(f"no file {file}; give the path of a .safetensors, .pt or .pth file")


def _check_argument(row: ShiftRow) -> None:
    kind, _, argument = row.name.partition(":")
    if row.path.startswith("bench.shifts.user_shift:"):
        check_own(row.name)
    elif kind in ("mini-vtab", "mini-vtab-c"):
        nearest(argument, TASKS, "task")
    elif kind == "folder" and not Path(argument).expanduser().exists():
        raise MissingDataError(f"no folder {argument}; give the path of your images, as in folder:PATH")


def check_method(text: str) -> list[MethodRow]:
    """Return the rows of the table that a method names, without loading a class of the user's."""
    parts = [part.strip() for part in text.split("+")]
    own = [part for part in parts if ".py:" in part]
    for part in own:
        check_own(part)
    inside = [part for part in parts if part not in own]
    for part in inside:
        if part not in METHODS:
            nearest(part, (*METHODS, *plugins()), "method")
    listed = [part for part in inside if part in METHODS]
    if len(listed) < len(parts):
        return [METHODS[part] for part in listed]
    method = parse_method(text)
    return [method.recipe, *([method.adapter] if method.adapter else [])]


def _check_base(spec: RunSpec) -> None:
    if spec.model is not None:
        if ".py:" in spec.model:
            check_own(spec.model)
        else:
            check_model(spec.model)
    if spec.stock is not None:
        check_stock(spec.stock)
    if spec.init_from is not None:
        folder = spec.init_from if Path(spec.init_from).is_dir() else spec.init_from.rpartition(":")[0]
        if not Path(folder, "run.toml").is_file():
            raise MissingDataError(
                f"no run at {folder or spec.init_from}; give the folder of one, which holds run.toml"
            )


def _check_corruptions(spec: RunSpec) -> None:
    check_corruptions(find_row(spec.shift), spec.corruption or ())


def check_corruptions(row: ShiftRow, names: Sequence[str]) -> None:
    """Raise UsageError for a corruption that a shift lacks, also for a function that a file of the user's lacks."""
    known = corruptions_of(row)
    for name in names:
        if name.rpartition(":")[0].endswith(".py"):
            check_own(name)
        elif known is not None and name not in known and not set(group(name)) & set(known):
            nearest(_canonical(name), known, f"corruption of {row.name}")


def _canonical(name: str) -> str:
    try:
        return canonical(name)
    except ValueError:
        return name


def _check_options(spec: RunSpec) -> None:
    rows = [row for method in spec.method for row in check_method(method)]
    rows += METHODS.values() if spec.with_baselines else []
    known = {row.options_of or row.name: row for row in rows}
    parts = [part.strip() for method in spec.method for part in method.split("+")]
    for name, options in spec.options.items():
        if name in known:
            _check_values(known[name], options)
        elif all(part in METHODS for part in parts):  # others may bring options of their own
            close = closest(name, known)
            hint = f"did you mean '{close}'?" if close else f"they have {', '.join(sorted(known))}"
            raise UsageError(f"--set {name}.…: no run has a method '{name}'; {hint}")


def _check_values(row: MethodRow, options: dict[str, Any]) -> None:
    """Raise UsageError for an option that a method lacks, and for a value of another type or outside a closed set."""
    types = {option.name: option.type for option in options_of(row)}
    for key, value in options.items():
        nearest(key, types, f"option of {row.name}")
        try:
            _reader(choices_of(row, types[key])).validate_python(value)
            if isinstance(value, float) and math.isnan(value):
                raise UsageError(f"{row.name}.{key} must be a number, not nan; see `bench show method {row.name}`")
        except ValidationError as error:
            first = error.errors()[0]
            if first["type"] != "tuple_type":  # the loader says how to write a list
                where = f"{row.name}.{key}"
                raise UsageError(f"{where} {in_words(first)}; see `bench show method {row.name}`") from None


def _reader(annotation: str) -> TypeAdapter[Any]:
    """Return the parser of a type as it is written in the file of a method; one that takes anything for other types."""
    names = {"Literal": Literal, "bool": bool, "float": float, "int": int, "str": str, "tuple": tuple}
    tree = ast.parse(annotation, mode="eval")
    if any(isinstance(node, ast.Name) and node.id not in names for node in ast.walk(tree)):
        return TypeAdapter(Any)
    return TypeAdapter(eval(compile(tree, "annotation", "eval"), {"__builtins__": {}}, names))


def check_own(path: str) -> None:
    """Raise UsageError if FILE.py or FILE.py:NAME names no file, or a name that the file does not define."""
    file, _, name = (path, "", "") if path.endswith(".py") else path.rpartition(":")
    if not Path(file).is_file():
        raise UsageError(f"no file {file or path}; give the path of a Python file, as in path/to/file.py:Name")
    try:
        tree = ast.parse(Path(file).read_bytes(), file)
    except (SyntaxError, ValueError) as error:
        raise UsageError(f"{file} is not Python that this interpreter reads ({error}); correct it") from None
    defined = set(_defined(tree))
    if name and "*" not in defined:
        nearest(name, sorted(defined), f"name in {file}")


def _defined(tree: ast.Module) -> Iterator[str]:
    """Yield the names that the top level of a file may define; "*" if reading alone does not tell."""
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                yield name
            case ast.Name(id=name, ctx=ast.Store()):
                yield name
            case ast.alias(name=name, asname=alias):
                yield alias or name
            case ast.Name(id="globals" | "exec" | "setattr" | "vars"):
                yield "*"
