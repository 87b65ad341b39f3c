"""Expand the lists in the settings of a run to a grid of runs. Does not import torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from bench.core.errors import UsageError
from bench.core.file_names import portable_name
from bench.settings.absolute_paths import with_absolute_paths
from bench.settings.run_fields import LISTS
from bench.settings.run_spec import RunSpec, merge, validate

_NUMBERS = ("batch_size", "labels")
_PATHS = ("shift", "pool", "model", "stock")


@dataclass(frozen=True)
class GridCell:
    """One run of a grid; `name` holds the values that tell it from the others, empty if there are no others."""

    name: str
    spec: RunSpec


def cells_of(*layers: Mapping[str, Any]) -> tuple[GridCell, ...]:
    """Return a run for each combination of the lists in the settings, where later layers override earlier ones.

    A layer may hold `runs`: tables of settings over those of the layers up to it, for combinations that are no product
    of lists. Raises UsageError as `make_spec` does, and for
    two equal runs.
    """
    specs = [validate(one) for one in expand(*layers)]
    if len({spec.model_dump_json() for spec in specs}) < len(specs):
        raise UsageError("two runs of [[runs]] are equal; remove one")
    return tuple(GridCell(name, spec) for name, spec in zip(_names(specs), specs, strict=True))


def default_folder(spec: RunSpec) -> Path:
    """`runs/<shift>-<methods>`, so that the same command always means the same folder."""
    pool = [f"pool-{spec.pool}"] if spec.pool else []
    head = [] if spec.head == "fine-tuned" else [f"head-{spec.head}"]
    return _folder([spec.shift, *pool, *head, *spec.method])


def folder_of(cells: Sequence[GridCell]) -> Path:
    """Return the folder of the records of one run or of a grid, `runs/grid-<shifts>-<methods>` by default."""
    if (out := cells[0].spec.out) is not None:
        return out
    if len(cells) == 1:
        return default_folder(cells[0].spec)
    shifts = dict.fromkeys(cell.spec.shift for cell in cells)
    return _folder(["grid", *shifts, *dict.fromkeys(name for cell in cells for name in cell.spec.method)])


def _folder(names: Sequence[str]) -> Path:
    return Path("runs") / portable_name("-".join(names)[:80])


def expand(*layers: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the settings of each run, not validated yet. Raises UsageError for unknown settings and empty lists."""
    asked: list[dict[str, Any]] = [{}]
    for layer in layers:
        own = {key: value for key, value in layer.items() if key != "runs"}
        asked = [merge(before, own, more) for before in asked for more in _tables(layer)]
    return [one for settings in asked for one in _combinations(settings)]


def settings_of(specs: Sequence[RunSpec]) -> dict[str, Any]:
    """Return the settings of a run file that repeats these runs: the common ones, and `runs` if there are several."""
    dumped = [_plain(spec) for spec in specs]
    common = {key: value for key, value in dumped[0].items() if all(each.get(key) == value for each in dumped)}
    rest = [{key: value for key, value in each.items() if key not in common} for each in dumped]
    return common | ({"runs": rest} if len(specs) > 1 else {})


def _plain(spec: RunSpec) -> dict[str, Any]:
    left_out = {"out", "rerun", "only_failed", "launch", "slurm", "tracker"}
    values = spec.model_dump(mode="json", by_alias=True, exclude=left_out, exclude_none=True)
    values = with_absolute_paths(values)
    # TOML has no null; None is the default of these options.
    values["set"] = {
        method: {name: value for name, value in options.items() if value is not None}
        for method, options in values["set"].items()
    }
    return values


def _tables(layer: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    tables = layer.get("runs")
    if tables is None:
        return [{}]
    if not isinstance(tables, list) or not tables or not all(isinstance(table, Mapping) for table in tables):
        raise UsageError("runs must be tables of settings, each under [[runs]]")
    if nested := next((table for table in tables if "runs" in table), None):
        raise UsageError(f"[[runs]] holds runs itself ({', '.join(nested)}); write each as a table of its own")
    return tables


def _combinations(settings: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    lists = {name: _values(name, settings[name]) for name in LISTS if name in settings}
    for chosen in product(*lists.values()):
        yield {**settings, **dict(zip(lists, chosen, strict=True))}


def _values(name: str, given: Any) -> list[Any]:
    """Return the values in a list or in comma-separated text, each once. Raises UsageError for an empty one."""
    parts = given if isinstance(given, list | tuple) else _split(name, given) if isinstance(given, str) else [given]
    found = list(dict.fromkeys(_number(name, part) if name in _NUMBERS else part for part in parts))
    if not found:
        raise UsageError(f"--{name.replace('_', '-')} is empty; name at least one")
    return found


def _split(name: str, text: str) -> list[str]:
    if name in _PATHS and any(Path(path).expanduser().exists() for path in (text, text.partition(":")[2]) if path):
        return [text]  # a file with a comma in its name
    parts: list[str] = []
    for part in filter(None, map(str.strip, text.split(","))):
        # The parameters of a protocol are separated by commas too.
        if name == "protocol" and parts and ":" in parts[-1] and "=" in part and ":" not in part:
            parts[-1] += f",{part}"
        else:
            parts.append(part)
    return parts


def _number(name: str, value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return int(value)
    except ValueError:
        flag = f"--{name.replace('_', '-')}"
        raise UsageError(f"{flag} takes whole numbers, as in {flag} 16,64; not '{value}'") from None


def _names(specs: Sequence[RunSpec]) -> list[str]:
    """Return the values that tell each run from the others; "" for a single run."""
    if len(specs) == 1:
        return [""]
    columns = [_words([getattr(spec, name) for spec in specs], name) for name in ("method", *LISTS, "severity")]
    for more in ([], [_option_words(specs)]):
        told = [column for column in (*columns, *more) if len(set(column)) > 1]
        names = [", ".join(filter(None, words)) for words in zip(*told, strict=True)]
        if len(set(names)) == len(specs):
            return names
    return [f"run {number}" for number in range(1, len(specs) + 1)]


def _option_words(specs: Sequence[RunSpec]) -> list[str]:
    """Return the options that a run does not share with all others, as "selfsoup.steps=100"."""
    told = [
        {
            f"{method}.{name}={_word(name, value)}"
            for method, options in spec.options.items()
            for name, value in options.items()
        }
        for spec in specs
    ]
    common = set.intersection(*told)
    return [" ".join(sorted(each - common)) for each in told]


def _words(values: Sequence[Any], name: str) -> list[str]:
    """Return a setting's values as words; of paths only the last part, unless it does not tell them apart."""
    told = [_word(name, value) for value in values]
    if name not in _PATHS:
        return told
    short = [Path(word).name for word in told]
    return short if len(set(short)) == len(set(told)) else told


def _word(name: str, value: Any) -> str:
    if value is None:
        return f"default {name}"
    if isinstance(value, tuple | list):
        words = "+".join(f"{each:g}" if isinstance(each, float) else str(each) for each in value)
        return f"severity {words}" if name == "severity" else words
    return f"{name.replace('_', ' ')} {value}" if name in (*_NUMBERS, "pool", "head") else str(value)
