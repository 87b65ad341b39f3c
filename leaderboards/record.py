"""The record: the measured result of one condition of one trial, and the unit of publication.

Everything read from a file passes through `Record.from_json`, so every `Record` is consistent.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from datetime import datetime
from functools import lru_cache
from typing import Annotated, Any, Literal, NoReturn, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    StringConstraints,
    ValidationError,
    model_validator,
)

SCHEMA = 3
"""Raised whenever a field is added, removed, renamed or gets another meaning, with a migration from the schema before;
so a reader that meets an unknown field of its own schema knows that the record is not one."""


def _from_first(content: dict[str, Any]) -> dict[str, Any]:
    """Migrate schema 1, which called the pictures of tiles `data.pool` and did not list the inputs of its key."""
    data = dict(content.get("data") or {})
    data["tiles"] = data.pop("pool", None)
    return content | {"data": data, "components": {}}


def _from_second(content: dict[str, Any]) -> dict[str, Any]:
    """Migrate schema 2, which did not identify the images that a method was trained on (`data.source`)."""
    return content


# From the content of a record of schema k to that of schema k + 1, for every k below SCHEMA.
MIGRATIONS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {1: _from_first, 2: _from_second}

Track = Literal["R", "A", "B", "C", "D", "E", "F"]

# Cells of tables and spreadsheets hold these names: no line breaks, no control characters (C0 and C1), nothing that
# turns the direction of text, and no start that a spreadsheet would run as a formula, in ASCII or full width.
_HIDDEN = r"\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff"
_NO_START = r" =+\-@\uff1d\uff0b\uff0d\uff20"
_NAME = rf"^[^{_HIDDEN}{_NO_START}][^{_HIDDEN}]*$"
LARGEST = 2**53  # whole numbers up to here are the same in every JSON reader
MOST = 10_000  # entries of a list or a table in a record

Name = Annotated[str, StringConstraints(min_length=1, max_length=300, pattern=_NAME)]
Key = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{8,64}$")]
Fraction = Annotated[float, Field(ge=0, le=1)]
Amount = Annotated[float, Field(ge=0, le=1e18)]  # so that sums of many stay finite
Count = Annotated[int, Field(ge=0, le=LARGEST)]
Share = Annotated[float, Field(ge=-1e9, le=1e9)]
Positive = Annotated[int, Field(ge=1, le=LARGEST)]
Text = Annotated[str, Field(max_length=1000)]
Names = Annotated[tuple[Name, ...], Field(max_length=MOST)]


class RecordError(ValueError):
    """Raised where a text is not a record of this schema; the message says what is wrong and what to do."""


SUITE = re.compile(r"[a-z0-9][a-z0-9-]{0,39} v[1-9][0-9]{0,3}(, changed: [a-z, -]{1,200})?")
"""A suite with its version, as `suite` in `env` names it, and what the run changed of it."""
_MET = re.compile(r"(?P<condition>[^@]+@[0-9.]+|clean) of (?P<shift>.+)")


def condition_met(met: str) -> tuple[str, str | None]:
    """Return an entry of a history as its condition ("fog@5") and the shift that it is of; None: the scored one."""
    found = _MET.fullmatch(met)
    return (found["condition"], found["shift"]) if found else (met, None)


_UNTOLD: set[str] = set()


class _RecordPart(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, from_attributes=True)

    def model_post_init(self, _: object) -> None:
        # The set of given fields takes half of the memory of a record and is never used.
        object.__setattr__(self, "__pydantic_fields_set__", _UNTOLD)


class Access(_RecordPart):
    """What a method may see and do; the literals repeat those of the table of methods.

    `Access.model_validate(other)` takes any object with these four attributes.
    """

    source: Literal["none", "statistics", "unlabelled", "labelled"]
    test: Literal["none", "image", "stream", "other", "pool"]
    state: Literal["fixed", "episodic", "online", "offline"]
    backprop: Literal["none", "norm", "partial", "full"]

    @property
    def track(self) -> Track:
        """The track in which this access is ranked."""
        if self.test == "none":
            return "R"
        if self.test == "pool":
            return "D" if self.source == "labelled" else "C"
        if self.test == "other":
            return "F" if self.source == "labelled" else "E"
        return "A" if self.source == "none" else "B"


class Metrics(_RecordPart):
    """Means over the images of one condition; computed by `leaderboards.metrics.score` only.

    `accuracy` and `ece` are fractions in [0, 1], `nll` is in nats, `brier` (summed over classes) lies in [0, 2].
    """

    accuracy: Fraction
    nll: Amount
    ece: Fraction
    brier: Annotated[float, Field(ge=0, le=2)]


class Diagnostics(_RecordPart):
    """How a stream went, to see a method collapse or forget; computed by `leaderboards.metrics.diagnose` only.

    `distinct_classes` counts the classes predicted at least once, `marginal_entropy` (nats) is the entropy of their
    shares: both fall when a method collapses to few classes. `first_tenth`, `last_tenth` and `worst_tenth` are
    accuracies over tenths of the condition's images in stream order. `clean_accuracy_after` is the accuracy on clean
    images of the adapted state once a stream of several conditions is over, given with its last ones; None elsewhere.
    """

    distinct_classes: Positive
    marginal_entropy: Amount
    first_tenth: Fraction
    last_tenth: Fraction
    worst_tenth: Fraction
    clean_accuracy_after: Fraction | None = None


class Cost(_RecordPart):
    """The cost of the number.

    `forwards` and `backwards` count samples, not batches; a condition of a mixed stream gets its share, so they need
    not be whole. `fit_seconds` is the time of the training for this condition, whether or not other conditions share
    it; `predict_seconds` is the time of the scored stream. `peak_memory_mb` is None unless the method ran alone.
    """

    fit_seconds: Amount
    predict_seconds: Amount
    forwards: Amount
    backwards: Amount
    peak_memory_mb: Amount | None
    device_name: Name


class ConnectivityLine(_RecordPart):
    """Accuracy on held-out clean images along the straight line between two classifiers in weight space."""

    first: Name
    second: Name
    accuracy: Annotated[tuple[Fraction, ...], Field(min_length=3, max_length=MOST)]


class Connectivity(_RecordPart):
    """Whether the ingredients of a soup lie in one basin: lines between them, at `positions` from 0 to 1, `n` images.

    Each ingredient is connected with the next one, the last with the first.
    """

    n: Positive
    positions: Annotated[tuple[Fraction, ...], Field(min_length=3, max_length=MOST)]
    lines: Annotated[tuple[ConnectivityLine, ...], Field(min_length=1, max_length=MOST)]

    @model_validator(mode="after")
    def _one_accuracy_each(self) -> Self:
        if any(len(line.accuracy) != len(self.positions) for line in self.lines):
            raise ValueError("each line needs one accuracy for each position")
        return self

    @property
    def barrier(self) -> float:
        """The largest drop of accuracy below the straight line between its ends; 0 if there is none."""
        gaps = [
            (1 - at) * line.accuracy[0] + at * line.accuracy[-1] - found
            for line in self.lines
            for at, found in zip(self.positions, line.accuracy, strict=True)
        ]
        return max(0.0, *gaps)


class MixtureShares(_RecordPart):
    """The coefficients that a way of mixing chose by data: shares of the ingredients, by layer or for "all" layers."""

    ingredients: Annotated[tuple[Name, ...], Field(min_length=1, max_length=MOST)]
    shares: Annotated[dict[Name, tuple[Share, ...]], Field(min_length=1, max_length=MOST)]

    @model_validator(mode="after")
    def _one_share_each(self) -> Self:
        if any(len(row) != len(self.ingredients) for row in self.shares.values()):
            raise ValueError("each layer of a mixture needs one share for each ingredient")
        return self

    @property
    def means(self) -> tuple[float, ...]:
        """The share of each ingredient, averaged over layers."""
        return tuple(sum(column) / len(self.shares) for column in zip(*self.shares.values(), strict=True))


class DataIdentity(_RecordPart):
    """Identity of the scored images: content digest, corruption seed, storage type, preprocessing profile.

    `labels_per_class` is the number of labelled source images per class, None if all were used. `history` names the
    conditions ("fog@5", or "fog@5 of cifar10-c" for one of another shift) whose images the method saw besides the
    scored ones, in a pool or along the stream, in order; with it the run can be planned again from the record alone. It
    is empty if only the scored condition counts.
    `skipped` counts test images that the user left out; such a result is not published. `tiles` names the pictures from
    which tiles pasted over images were made, if the shift has such corruptions. `labels` is the digest of the scored
    images' ids and labels (`leaderboards.identity.labels_digest`). `seen` is a digest of all images of `history`; None
    if there are none. `source` is a digest of all images that the method was trained on or is given besides the stream;
    None if there are none, or if a required package holds them. `classes`, `label` and `part` are the user's settings
    of the order of the classes, the column of labels and the scored part, None if they were detected. `ingredients` is
    the seed of all trainings without labels behind the method where it is not the record's own; None elsewhere.
    """

    digest: Name
    seed: Count
    storage: Name
    profile: Name
    labels_per_class: Positive | None = None
    history: Names = ()
    skipped: Count = 0
    tiles: Name | None = None
    labels: Name | None = None
    seen: Name | None = None
    source: Name | None = None
    classes: Name | None = None
    label: Name | None = None
    part: Name | None = None
    ingredients: Count | None = None


class WeightsIdentity(_RecordPart):
    """Identity of the weights from which the trial started; `ready` if they are a whole classifier, not a stock."""

    digest: Name
    ready: bool = False


@lru_cache(maxsize=4096)
def _first_of_equals(value: _RecordPart) -> _RecordPart:
    return value


# Thousands of records have the same access, data and weights; they hold one object instead of thousands.
_SHARED = AfterValidator(_first_of_equals)


class Record(_RecordPart):
    """One condition of one trial, done or failed.

    `method` is the string as given (`selfsoup+sar`); `part` names a row inside a method ("soup", "ingredient:mae-2e-5")
    and is None for the method itself. `corruption` None is clean, with severity 0. `options` holds the resolved options
    by method name. `components` maps the parts of the code that made the number ("harness", "method:tent",
    "corruption:fog", …) to their versions, or third-party code to a digest. `n` is the number of scored images. A
    failed record carries an error and no metrics or predictions; a done one carries both, and its predictions are in
    `predictions/<key>.npz`. `key` follows from the other fields (`leaderboards.identity`).

    Raises pydantic's ValidationError (a ValueError) if anything is missing, unknown, out of range or contradictory.
    """

    schema_number: Literal[3] = Field(default=3, alias="schema")
    key: Key
    created: Annotated[str, Field(max_length=64)]
    status: Literal["done", "failed"]
    method: Name
    part: Name | None
    access: Annotated[Access, _SHARED]
    track: Track
    shift: Name
    corruption: Name | None
    severity: Annotated[float, Field(ge=0, le=5)]
    model: Name
    protocol: Name
    split: Name
    seed: Count
    batch_size: Positive
    precision: Name
    options: Annotated[dict[Text, dict[Text, JsonValue]], Field(max_length=MOST)]
    components: Annotated[dict[Name, Name], Field(max_length=MOST)]
    limit: Positive | None
    n: Count
    metrics: Metrics | None
    diagnostics: Diagnostics | None = None
    cost: Cost | None
    connectivity: Connectivity | None = None
    mixture: MixtureShares | None = None
    data: Annotated[DataIdentity, _SHARED]
    weights: Annotated[WeightsIdentity, _SHARED]
    env: Annotated[dict[Text, Text | bool | None], Field(max_length=MOST)]
    predictions: str | None
    error: str | None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for problem in (self._time_problem(), self._condition_problem(), self._status_problem()):
            if problem:
                raise ValueError(problem)
        return self

    def _time_problem(self) -> str | None:
        try:
            zone = datetime.fromisoformat(self.created).tzinfo
        except ValueError:
            zone = None
        return None if zone else f"created must be an ISO time with a time zone, not {self.created!r}"

    def _condition_problem(self) -> str | None:
        if self.corruption is None and self.severity != 0:
            return f"clean (corruption null) has severity 0, not {self.severity:g}"
        if self.track != self.access.track:
            return f"track {self.track} contradicts the access, which belongs to track {self.access.track}"
        if not _finite(self.options):
            return f"options must not hold NaN, infinite numbers or whole numbers beyond {LARGEST}"
        return None

    def _status_problem(self) -> str | None:
        if self.status == "failed":
            if self.metrics is not None or self.predictions is not None:
                return "a failed record has no metrics and no predictions"
            return None if self.error else "a failed record must say its error"
        if self.error is not None:
            return "a done record has no error"
        if self.metrics is None or self.cost is None or self.n < 1:
            return "a done record needs metrics, cost and n >= 1"
        if self.predictions != f"predictions/{self.key}.npz":
            return f"predictions must be predictions/{self.key}.npz, not {self.predictions!r}"
        return None

    @property
    def clean(self) -> bool:
        """Whether the images are uncorrupted; such records stay outside the mean over corruptions."""
        return self.corruption is None

    @property
    def other_shifts(self) -> tuple[str, ...]:
        """The other shifts of which the method saw images."""
        return tuple(dict.fromkeys(other for _, other in map(condition_met, self.data.history) if other is not None))

    @property
    def suite(self) -> str | None:
        """The suite, with its version, of which a run made the number; it is no part of the number's identity."""
        named = self.env.get("suite")
        return named if isinstance(named, str) and SUITE.fullmatch(named) else None

    @property
    def error_rate(self) -> float | None:
        """1 - accuracy, in [0, 1]; None if the record failed."""
        return None if self.metrics is None else 1 - self.metrics.accuracy

    def to_json(self) -> str:
        """Return one line of JSON without line break; `from_json` returns an equal record."""
        return self.model_dump_json(by_alias=True)

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Read one record, of this schema or of an earlier one, which is migrated.

        Raises RecordError with one sentence for anything else.
        """
        return cls.from_content(_object(text))

    @classmethod
    def from_content(cls, content: Mapping[str, Any]) -> Self:
        """Read one record from the content of its JSON text; as `from_json`, which also refuses repeated names."""
        if "schema" not in content:
            raise RecordError(_NO_SCHEMA)
        number = content["schema"]
        if type(number) is not int or not (number == SCHEMA or number in MIGRATIONS):
            raise RecordError(
                f"schema {number!r} is not known (this version reads {SCHEMA}); install a newer soupbench"
            )
        found = dict(content)
        for step in range(number, SCHEMA):
            found = MIGRATIONS[step](found) | {"schema": step + 1}
        try:
            return cls.model_validate_json(json.dumps(found))
        except ValidationError as error:
            raise RecordError(f"{_first(error)}; {_mend(error)}") from error


def schema() -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of a record, as `Record.to_json` writes it.

    It states types, ranges and the closed list of fields; only `Record.from_json` checks rules between fields (a failed
    record has no metrics).
    """
    return Record.model_json_schema(by_alias=True, mode="serialization")


def strict_json(text: str | bytes) -> Any:
    """Parse a JSON text. Raises ValueError for NaN, Infinity, a repeated key, or excessive nesting."""
    try:
        return json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse)
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(name for name in names if names.count(name) > 1)!r} occurs twice")
    return content


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no number of JSON")


def _object(text: str | bytes) -> dict[str, Any]:
    try:
        content = strict_json(text)
    except ValueError as error:
        raise RecordError(f"not JSON ({error}); write the record again or delete it and rerun") from error
    if not isinstance(content, dict) or "schema" not in content:
        raise RecordError(_NO_SCHEMA)
    return content


_NO_SCHEMA = "not a record: it has no schema number; give a file that `bench run` wrote"


def _finite(value: object) -> bool:
    match value:
        case bool():
            return True
        case int():
            return abs(value) <= LARGEST
        case float():
            return math.isfinite(value)
        case dict():
            return all(map(_finite, value.values()))
        case list():
            return all(map(_finite, value))
    return True


def _mend(error: ValidationError) -> str:
    if any(first["type"] == "extra_forbidden" for first in error.errors(include_url=False, include_context=False)):
        return f"a record of schema {SCHEMA} has no such field: if nobody added it, install a newer soupbench"
    return "correct the field or delete the record and rerun"


def _first(error: ValidationError) -> str:
    first, *rest = error.errors(include_url=False, include_context=False)
    place = ".".join(str(step)[:60] for step in first["loc"])
    message = first["msg"].removeprefix("Value error, ")
    more = f" (and {len(rest)} more)" if rest else ""
    return f"{place}: {message}{more}" if place else f"{message}{more}"
