"""The closed lists of words that a published record may use, and the sentences about a record that uses others.

The words come from the tables of methods and protocols, which lie above this package: a checker is handed them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from leaderboards.known import SPLITS, Definition
from leaderboards.record import SUITE, Access, Record, condition_met

PRECISIONS = ("fp32", "bf16")
LARGEST_SEED = 2**31 - 1
LARGEST_BATCH = 1_000_000
LARGEST_LABELS = 1_000_000  # labelled images of a class
MOST_WORDS = 100  # entries of an option that is a list
FIRST_YEAR = 2025  # no result of this project is older

_SHARES = r"shares(:[0-9]{1,9}(\.[0-9]{1,9})?){1,64}"
_WORD = re.compile(rf"[a-z0-9][a-z0-9_-]*(:[a-z0-9_]+=[A-Za-z0-9_.+-]+)*|{_SHARES}", re.ASCII)
_GRID_PART = re.compile(r"soup:shares(:[0-9]{1,4}){2,3}", re.ASCII)
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,6})?(Z|[+-]\d\d:\d\d)", re.ASCII)
_HEX = re.compile(r"[0-9a-f]{32}")
_CODE = re.compile(r"[0-9a-f]{8,64}")
_DIGEST = re.compile(r"sha256:([0-9a-f]{32}|[0-9a-f]{64})")
_COMPONENT = re.compile(r"[1-9][0-9]{0,3}")
_MODEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@+#-]{0,149}", re.ASCII)
_TILES = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", re.ASCII)
_DEVICE = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._:()@,/+-]{0,119}", re.ASCII)
_COLUMN = re.compile(r"[A-Za-z0-9_.-]{1,60}", re.ASCII)
_VERSION = re.compile(r"[0-9][0-9A-Za-z.+_-]{0,39}", re.ASCII)
_ENV: Mapping[str, re.Pattern[str]] = {
    "git": re.compile(r"[0-9a-f]{7,40}"),
    "package": re.compile(r"[0-9a-f]{16}"),
    "platform": re.compile(r"[A-Za-z0-9 ._-]{1,60}", re.ASCII),
    "suite": SUITE,
    **dict.fromkeys(("project", "python", "torch", "torchvision", "timm", "numpy", "scikit-learn"), _VERSION),
}
ENV = frozenset({*_ENV, "dirty"})
"""The keys of `env` in a published record."""


@dataclass(frozen=True, slots=True)
class Kind:
    """The values that an option takes. `choices` closes a word's list; words are names with options of their own."""

    type: Literal["int", "float", "bool", "word", "words", "numbers"]
    optional: bool = False
    choices: tuple[str, ...] = ()

    def admits(self, value: Any) -> bool:
        """Whether a value of JSON is one of these."""
        if value is None:
            return self.optional
        match self.type:
            case "bool":
                return isinstance(value, bool)
            case "int":
                return isinstance(value, int) and not isinstance(value, bool) and abs(value) <= 10**12
            case "float":
                return _is_number(value)
            case "word":
                return isinstance(value, str) and (value in self.choices if self.choices else _is_word(value))
            case "words":
                return isinstance(value, list) and len(value) <= MOST_WORDS and all(map(_is_word, value))
            case "numbers":
                return isinstance(value, list) and len(value) <= MOST_WORDS and all(map(_is_number, value))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= 1e12


def _is_word(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= 200 and _WORD.fullmatch(value) is not None


@dataclass(frozen=True, slots=True)
class Half:
    """A recipe or an adapter: its component, the newest version of that, and the kinds of its options by name.

    `options_of` is the name under which a record holds the options.
    """

    component: str
    version: int
    options_of: str
    options: Mapping[str, Kind]


@dataclass(frozen=True, slots=True)
class MethodWords:
    """What a record of a method may say. `name` is the method's one spelling; `adapter` is None for a recipe alone.

    `elsewhere` is the access where the recipe saw the images of another shift only; None: that of the scored one.
    """

    name: str
    access: Access
    recipe: Half
    adapter: Half | None
    elsewhere: Access | None = None

    def halves(self, ready: bool) -> list[Half]:
        """Return the halves that made a number: a ready classifier needs no recipe."""
        return [*([] if ready else [self.recipe]), *([self.adapter] if self.adapter else [])]


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The words of methods (None for an unknown one) and the one spelling of a protocol (None for what is none).

    `corruptions` and `harness` are the newest versions of these parts of the code.
    """

    method_of: Callable[[str], MethodWords | None]
    protocol_of: Callable[[str], str | None]
    corruptions: Mapping[str, int]
    harness: int


def method_problems(record: Record, words: MethodWords) -> Iterator[str]:
    """Yield what a record says that its method has not: its name, access, options, parts and versions of code."""
    name = record.method
    if words.name != name:
        yield f"the method {name} is published as {words.name}; run it under that name"
        return
    if record.access not in (words.access, words.elsewhere):
        yield f"has an access that is not that of {name}; see `bench show method {name}`"
    halves = words.halves(record.weights.ready)
    known = {half.options_of: half.options for half in halves}
    for method, given in record.options.items():
        if method not in known:
            yield f"has options of {_short(method)}, which takes no part in {name}; run it again with this version"
            continue
        for option, value in given.items():
            kind = known[method].get(option)
            if kind is None:
                yield f"has the option {_short(f'{method}.{option}')}, which is unknown; see `bench show method {name}`"
            elif not kind.admits(value):
                yield f"has a value of {method}.{option} that it never takes; see `bench show method {name}`"
    if record.part is not None and record.part not in _parts(record, words) and not _of_a_grid(record, words):
        yield f"is a part of {name} that its options do not make; bundle what the run made"


def _parts(record: Record, words: MethodWords) -> set[str]:
    options = record.options.get(words.recipe.options_of, {})
    if words.adapter is not None or record.weights.ready or "mixes" not in words.recipe.options:
        return set()
    mixes, ingredients, scales, others = (
        _listed(options.get(name)) for name in ("mixes", "ingredients", "scales", "also_on")
    )
    ingredients = [*ingredients, *(f"{text} on {shift}" for text in ingredients for shift in others)]
    marks = ["", *(f"@{scale:g}" for scale in scales if isinstance(scale, int | float))]
    parts = {"soup", *(f"soup:{mix}" for mix in mixes[1:])}
    return parts | {f"ingredient:{text}{mark}" for text in ingredients for mark in marks}


def _of_a_grid(record: Record, words: MethodWords) -> bool:
    """Return whether a part is one mixture of a grid over the shares of two or three ingredients, "simplex:side=7"."""
    mixes = _listed(record.options.get(words.recipe.options_of, {}).get("mixes"))
    asked = words.adapter is None and not record.weights.ready and any(str(mix).startswith("simplex") for mix in mixes)
    return asked and _GRID_PART.fullmatch(record.part or "") is not None


def _listed(value: Any) -> list[Any]:
    return value[:MOST_WORDS] if isinstance(value, list) else []


def component_problems(record: Record, words: MethodWords, vocabulary: Vocabulary, made_here: bool) -> Iterator[str]:
    """Yield what a record says of the code that made it and cannot be; `made_here`: this project made its images."""
    wanted = {"harness": vocabulary.harness}
    wanted |= {half.component: half.version for half in words.halves(record.weights.ready)}
    versions = vocabulary.corruptions
    name = record.corruption or ""
    if made_here and name in versions:
        wanted[f"corruption:{name}"] = versions[name]
    allowed = dict(wanted)
    if made_here and of_stream(record):
        allowed |= {f"corruption:{name}": version for name, version in versions.items()}
    named = {"classes": _HEX, "model": _CODE} if ".py:" in record.model else {"classes": _HEX}
    found = {name: version for name, version in record.components.items() if name not in named}
    if not all(pattern.fullmatch(record.components.get(name, "0" * 32)) for name, pattern in named.items()):
        yield "names its classes or its model's code by no digest; run it again with this version"
    if not wanted.keys() <= found.keys() <= allowed.keys():
        odd = sorted((wanted.keys() - found.keys()) | (found.keys() - allowed.keys()))
        yield f"says that other code made it than its method runs ({_short(odd[0])}); run it again with this version"
        return
    for name, version in found.items():
        if not _COMPONENT.fullmatch(version) or int(version) > allowed[name]:
            yield f"has version {_short(version)} of {name}, which the project does not have; run a released one"


def word_problems(record: Record, vocabulary: Vocabulary, now: datetime | None = None) -> Iterator[str]:
    """Yield every free word and number of a record that is none of the closed lists: one sentence each."""
    if vocabulary.protocol_of(record.protocol) != record.protocol:
        yield f"has no protocol of the project ({_short(record.protocol)}); see `bench list protocols`"
    if record.split not in SPLITS:
        yield f"has split {_short(record.split)}, which is not published; use one of {', '.join(SPLITS)}"
    if record.precision not in PRECISIONS:
        yield f"has precision {_short(record.precision)}; it is one of {', '.join(PRECISIONS)}"
    if not _MODEL.fullmatch(record.model) or ".." in record.model:
        yield "names its model by more than letters, digits and ._:/@+#-; rename the file and run it again"
    yield from _number_words(record)
    yield from _time_words(record, now or datetime.now(UTC))
    yield from _digest_words(record)
    yield from _place_words(record)


def _number_words(record: Record) -> Iterator[str]:
    limits = {
        "seed": (record.seed, LARGEST_SEED),
        "batch size": (record.batch_size, LARGEST_BATCH),
        "number of labels": (record.data.labels_per_class or 0, LARGEST_LABELS),
    }
    for name, (value, most) in limits.items():
        if value > most:
            yield f"has a {name} above {most}; run it with a smaller one"
    if record.data.seed != 0:
        yield f"has the corruption seed {record.data.seed}; every published result has 0"
    if len(set(record.data.history)) != len(record.data.history):
        yield "names a condition twice in its history; bundle the run again"


def _time_words(record: Record, now: datetime) -> Iterator[str]:
    made = datetime.fromisoformat(record.created) if _TIME.fullmatch(record.created) else None
    if made is None:
        yield "has a date that is not like 2026-01-31T12:00:00+00:00; bundle the run again"
    elif made.year < FIRST_YEAR or made > now + timedelta(days=1):
        yield f"is dated {made:%Y-%m-%d}, when it cannot have been made; set the clock and run it again"


def _digest_words(record: Record) -> Iterator[str]:
    data = record.data
    if not _DIGEST.fullmatch(data.digest) or not _DIGEST.fullmatch(record.weights.digest):
        yield "has data or weights without a SHA-256; run it again with this version"
    if not all(value is None or _HEX.fullmatch(value) for value in (data.labels, data.seen)) or data.labels is None:
        yield "has labels or images met before without a digest; run it again with this version"
    pooled = record.access.test in ("pool", "other")
    alone = record.protocol.partition(":")[0] in ("reset_each_shift", "episodic", "label_shifts")
    if (pooled and not data.history) or (alone and not pooled and data.history) or _wrong_shifts(record, alone):
        yield "has a history that its access and protocol do not give; run it again with this version"
    elif data.seen is not None and not data.history:
        yield "has met images of no condition (data.seen); run it again with this version"


def _wrong_shifts(record: Record, alone: bool) -> bool:
    """Whether the shifts in a history are not those that access, protocol and options give."""
    here = any(shift is None for _, shift in map(condition_met, record.data.history))
    asked = {shift for options in record.options.values() for shift in _listed(options.get("also_on"))}
    others = set(record.other_shifts)
    if record.access.test == "other":
        return not others or (alone and here) or len(others - asked) > 1
    return record.shift in others or (record.access.test == "pool" and not here) or not others <= asked


def _place_words(record: Record) -> Iterator[str]:
    for name, value in record.env.items():
        if name not in ENV:
            yield f"has {_short(name)} in env, which is unknown; bundle what the run wrote"
        elif name in _ENV and value is not None and not (isinstance(value, str) and _ENV[name].fullmatch(value)):
            yield f"has no {name} in env that a run writes; bundle what the run wrote"
    if record.cost is not None and not _DEVICE.fullmatch(record.cost.device_name):
        yield "names its device by more than plain letters, digits and brackets; write its product name"
    data = record.data
    if data.classes is not None or data.part is not None or not (data.label is None or _COLUMN.fullmatch(data.label)):
        yield "was read with settings of --classes, --label or --part; run it on the data as published"
    if record.part is not None and len(record.part) > 220:
        yield "has a part with too long a name; shorten the ingredient"


def definition_problems(record: Record, definition: Definition) -> Iterator[str]:
    """Yield how a record contradicts the definition of its shift, apart from its images."""
    shift, data = record.shift, record.data
    if data.storage != definition.storage or data.profile != definition.profile:
        yield (
            f"has storage and profile {_short(f'{data.storage}, {data.profile}')}, but {shift} has "
            f"{definition.storage}, {definition.profile}; run it on {shift}"
        )
    if (data.tiles is not None) != definition.tiles or (data.tiles is not None and not _TILES.fullmatch(data.tiles)):
        yield f"has {'other' if data.tiles else 'no'} tiles than {shift} is made with; run it on {shift}"
    name = record.protocol.partition(":")[0]
    if definition.protocol and name != definition.protocol:
        yield f"has protocol {_short(name)}, but {shift} is one stream; run it with --protocol {definition.protocol}"


def of_stream(record: Record) -> bool:
    """Whether the record is that of a whole stream of blended corruptions, named after its protocol."""
    return record.corruption is not None and record.corruption == record.protocol.partition(":")[0]


def condition_of(record: Record) -> str:
    """Return the name of a record's condition: "clean" or "fog@5"."""
    return "clean" if record.corruption is None else f"{record.corruption}@{record.severity:g}"


def _short(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:77]}..."
