"""What a row of a board is: one method, part and setting, under a name that no other result can change.

The setting of a record is everything besides its seed and condition that can move its number: options, batch size,
precision, versions of the code, and the conditions that the method met besides the scored one. Two settings are two
rows. A row is named by what differs from the setting that has the plain name of the method. Those settings are kept in
`reference/settings.json` by shift and model, so that a name follows from the row alone, whatever else is published.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from importlib import resources

from leaderboards.record import Record, condition_met

Pairs = frozenset[tuple[str, str]]
Flat = Mapping[str, str]
Condition = tuple[str | None, float]

BATCH, PRECISION = "batch", "precision"
_HEAD = ".head"
_VERSION = "version of "
_CORRUPTION = "corruption:"  # the version of a corruption is in the digest of the images
_MOST_NAMED = 3  # differences that a name spells out
_LONGEST = 40  # characters of one value in a name


@dataclass(frozen=True, slots=True)
class Setting:
    """A setting: options, batch size and precision (`options`) and versions of code as JSON by name, conditions met."""

    options: Pairs
    versions: Pairs
    met: frozenset[str]


@dataclass(frozen=True, slots=True)
class SettingRow:
    """The records of one method and setting, with all their parts, and what names the setting; None for the plain."""

    method: str
    label: str | None
    records: tuple[Record, ...]

    @property
    def name(self) -> str:
        """The method with its setting."""
        return setting_name(self.method, self.label)


def setting_name(method: str, label: str | None) -> str:
    """Return a method and the label of its setting in words."""
    return method if label is None else f"{method} [{label}]"


def split_settings(
    records: Iterable[Record], conditions: Collection[Condition], *, full_names: bool = False
) -> list[SettingRow]:
    """Split records into rows, by method and setting.

    `conditions` are the corrupted ones of the board; a pool or stream of others is said in the name, and so is a head
    that is not fine-tuned. With `full_names` every other difference from the plain setting is too, else only where a
    method has several settings here: only full names stay the same when other settings come. Versions of code divide a
    setting where two of them made different seeds, or the same cell twice; within one seed they may be mixed, which the
    notes of a board say.
    """
    settings = Settings()
    groups: dict[tuple[str, Pairs, frozenset[str]], list[tuple[Pairs, Record]]] = defaultdict(list)
    for record in records:
        setting = settings.of(record)
        groups[record.method, setting.options, setting.met].append((setting.versions, record))
    found: dict[str, list[tuple[Setting, list[Record]]]] = defaultdict(list)
    for (method, options, met), group in groups.items():
        for versions, own in _by_version(group).items():
            found[method].append((Setting(options, versions, met), own))
    rows = []
    for method, everything in found.items():
        for several in _by_head(everything):
            plain = _plain_of(method, several)
            for setting, own in several:
                named = _differences(method, setting, plain) if full_names or len(several) > 1 else []
                others = [*_heads(setting), *_met(setting.met, conditions)]
                rows.append(SettingRow(method, ", ".join([*named, *others]) or None, tuple(own)))
    return rows


class Settings:
    """Settings of many records; equal ones are one object, because thousands of records share few."""

    def __init__(self) -> None:
        self._known: dict[tuple[object, ...], Setting] = {}

    def of(self, record: Record) -> Setting:
        """Return the setting of a record."""
        place = (
            *(record.shift, record.model, record.method, record.batch_size, record.precision, record.data.history),
            *(json.dumps(record.options, sort_keys=True), *sorted(record.components.items())),
        )
        if (known := self._known.get(place)) is None:
            options, versions = frozenset(_options(record).items()), frozenset(_components(record).items())
            known = self._known[place] = Setting(options, versions, frozenset(record.data.history))
        return known


def _options(record: Record) -> dict[str, str]:
    given = {f"{method}.{name}": _json(v) for method, own in record.options.items() for name, v in own.items()}
    return given | {BATCH: _json(record.batch_size), PRECISION: _json(record.precision)}


def _components(record: Record) -> dict[str, str]:
    return {f"{_VERSION}{n}": _json(v) for n, v in record.components.items() if not n.startswith(_CORRUPTION)}


def _json(value: object) -> str:
    return json.dumps(value, sort_keys=True)


def _by_version(group: Sequence[tuple[Pairs, Record]]) -> dict[Pairs, list[Record]]:
    """Divide records of one setting by the versions of the code that made them, as `split_settings` says."""
    first = group[0][0]
    if all(versions is first or versions == first for versions, _ in group):
        return {first: [record for _, record in group]}
    seeds: dict[int, list[tuple[Pairs, Record]]] = defaultdict(list)
    for versions, record in group:
        seeds[record.seed].append((versions, record))
    found: dict[Pairs, list[Record]] = defaultdict(list)
    for own in seeds.values():
        cells = Counter((record.part, record.corruption, record.severity) for _, record in own)
        mixed = frozenset(pair for versions, _ in own for pair in versions)
        for versions, record in own:
            found[versions if max(cells.values()) > 1 else mixed].append(record)
    return found


@cache
def _table() -> dict[str, dict[str, dict[str, dict[str, str]]]]:
    text = resources.files("leaderboards").joinpath("reference", "settings.json").read_text(encoding="utf-8")
    table: dict[str, dict[str, dict[str, dict[str, str]]]] = json.loads(text)
    return table


@cache
def _plain(shift: str, model: str, method: str) -> Flat:
    """Return the setting with the plain name; that of `a+b` follows from those of a and b. Empty if none is known."""
    known = _table().get(shift, {}).get(model, {})
    if method in known:
        return known[method]
    parts = [known.get(part) for part in method.split("+")]
    return {name: value for part in parts if part for name, value in part.items()} if all(parts) else {}


def _plain_of(method: str, several: Sequence[tuple[Setting, Sequence[Record]]]) -> Flat:
    """Return the setting against which those of a method are named: the known one, else the one that was made first."""
    record = several[0][1][0]
    if known := _plain(record.shift, record.model, method):
        return known
    own = f"{method}."

    def order(one: tuple[Setting, Sequence[Record]]) -> tuple[object, ...]:
        options = one[0].options
        named = frozenset(pair for pair in options if pair[0].startswith(own))
        return min(map(_made, one[1])), _natural(named), _natural(options - named), sorted(one[0].versions)

    setting, _ = min(several, key=order)
    return dict(sorted(setting.options | setting.versions))


def _made(record: Record) -> datetime:
    return datetime.fromisoformat(record.created)


def _natural(pairs: Pairs) -> list[tuple[str, int, float, str]]:
    """Return pairs in an order in which 0.01 comes before 0.1, and 9 before 10."""
    values = [(name, json.loads(text), text) for name, text in sorted(pairs)]
    numbers = [isinstance(value, int | float) for _, value, _ in values]
    return [(n, 0, float(v), t) if is_ else (n, 1, 0.0, t) for (n, v, t), is_ in zip(values, numbers, strict=True)]


def _by_head(several: Sequence[tuple[Setting, list[Record]]]) -> list[list[tuple[Setting, list[Record]]]]:
    """Divide settings by head: each has a plain one, since a head that is not fine-tuned decides other options too."""
    found: dict[tuple[str, ...], list[tuple[Setting, list[Record]]]] = defaultdict(list)
    for one in several:
        found[tuple(_heads(one[0]))].append(one)
    return list(found.values())


def _heads(setting: Setting) -> list[str]:
    """Say what head a stock has if it is not fine-tuned: another evaluation, however many settings a method has."""
    heads = {json.loads(value) for name, value in setting.options if name.endswith(_HEAD)}
    return [f"head={head}" for head in sorted(heads)]


def _differences(method: str, setting: Setting, plain: Flat) -> list[str]:
    given: dict[str, list[str]] = defaultdict(list)
    for name, value in sorted(setting.options | setting.versions):
        given[name].append(value)
    implied = (_HEAD, ".order") if _heads(setting) else (_HEAD,)
    known = (name for name in {*given, *plain} if not name.endswith(implied))
    names = sorted(n for n in known if given.get(n) != ([plain[n]] if n in plain else None))
    texts = [_setting_text(method, name, given.get(name)) for name in names]
    if len(texts) <= _MOST_NAMED:
        return texts
    return [*texts[:_MOST_NAMED], f"{len(texts) - _MOST_NAMED} more: {_digest([(n, given.get(n)) for n in names])}"]


def _setting_text(method: str, name: str, values: list[str] | None) -> str:
    if name.startswith(_VERSION):
        what, made = name.removeprefix(_VERSION), " and ".join(map(json.loads, values or ['"absent"']))
        return f"version {made}" if what == f"method:{method}" else f"{what} version {made}"
    shown = " and ".join(map(_shown, values)) if values else "absent"
    return f"{name.removeprefix(f'{method}.')}={shown}"


def _shown(value: str) -> str:
    """Return a value for a name: texts without quotes where they cannot be taken for something else, long ones cut."""
    text = json.loads(value)
    if isinstance(text, str):
        try:
            json.loads(text)
        except ValueError:
            value = value[1:-1]
    return value if len(value) <= _LONGEST else f"{value[: _LONGEST - 8]}…{_digest(value)}"


def _met(met: frozenset[str], conditions: Collection[Condition]) -> list[str]:
    """Say which conditions a method met in a pool or stream, unless they are those of the board, and of which shift."""
    others: dict[str, list[str]] = defaultdict(list)
    for condition, shift in map(condition_met, sorted(met)):
        others[shift or ""].append(condition)
    own = frozenset(others.pop("", ()))
    return [*_met_here(own, conditions), *(_met_there(name, others[name], conditions) for name in sorted(others))]


def _met_there(shift: str, met: Collection[str], conditions: Collection[Condition]) -> str:
    """Name another shift that was seen: its severities unless they are those of the board, few corruptions by name."""
    names, levels = (dict.fromkeys(m.rpartition("@")[place] for m in met) for place in (0, 2))
    own = {f"{severity:g}" for _, severity in conditions}
    at = "" if set(levels) == own or list(levels) == ["1"] else f" at severity {' '.join(levels)}"
    few = f" ({', '.join(names)})" if len(names) <= _MOST_NAMED and list(names) != ["natural"] else ""
    return f"saw {shift}{at}{few}"


def _met_here(met: frozenset[str], conditions: Collection[Condition]) -> list[str]:
    levels: dict[str, set[str]] = defaultdict(set)
    for name in met:
        corruption, _, severity = name.rpartition("@")
        levels[corruption].add(severity)
    own = {f"{corruption}@{severity:g}" for corruption, severity in conditions}
    if not met or met == own:
        return []
    names = {corruption for corruption, _ in conditions}
    first = next(iter(levels.values()))
    if levels.keys() == names and all(found == first for found in levels.values()):
        return [f"met {'severities' if len(first) > 1 else 'severity'} {' '.join(sorted(first))}"]
    return [f"met {len(met)} other conditions: {_digest(sorted(met))}"]


def _digest(value: object) -> str:
    return hashlib.sha256(_json(value).encode()).hexdigest()[:6]
