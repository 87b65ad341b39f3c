"""Protocols: the order of the stream and the resets of the adapter. Imports no torch.

A protocol is written as text, "NAME" or "NAME:parameter=value,parameter=value", and parsed once into a typed value.
Clean images are always a separate stream before the shifted ones, so clean accuracy never depends on the shift.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import count
from typing import Any, ClassVar

import numpy as np
from pydantic import TypeAdapter, ValidationError

from bench.core.conditions import Condition, stream_rng
from bench.core.errors import UsageError, nearest
from bench.core.invalid_input import in_words

_GRID = 0.25


@dataclass(frozen=True)
class Segment:
    """A part of the stream after which records can be made. It holds ids and numbers, never pixels or labels.

    `reset`: the adapter first returns to its state after `prepare`. `episodic`: it also does so before every batch.
    The i-th image is `ids[i]` under `conditions[which[i]]`, and counts for the record of that condition. For blended
    images, `blends[blend[i]]` names the corruptions applied to the clean image one after another instead.
    """

    reset: bool
    episodic: bool
    conditions: tuple[Condition, ...]
    which: np.ndarray
    ids: np.ndarray
    blends: tuple[tuple[Condition, ...], ...] = ()
    blend: np.ndarray | None = None


@dataclass(frozen=True)
class StreamedImages:
    """The images of a stream: every id under every condition. Labels (int64, one per id) only determine the order."""

    conditions: tuple[Condition, ...]
    ids: np.ndarray
    labels: np.ndarray
    seed: int

    @property
    def clean(self) -> tuple[Condition, ...]:
        return tuple(c for c in self.conditions if c.corruption is None)

    @property
    def shifted(self) -> tuple[Condition, ...]:
        return tuple(c for c in self.conditions if c.corruption is not None)

    def rng(self, *purpose: str) -> np.random.Generator:
        return stream_rng(self.seed, "order", *purpose)


@dataclass(frozen=True)
class Protocol(ABC):
    """How images become a stream. The fields of a subclass are its parameters; `summary` describes it in one line."""

    name: ClassVar[str]
    summary: ClassVar[str]

    @abstractmethod
    def segments(self, images: StreamedImages) -> list[Segment]:
        """Return the stream. Raises UsageError if the conditions do not suit the protocol."""

    def __str__(self) -> str:
        """The text that parses to this protocol; parameters at their defaults are left out."""
        changed = [
            f"{f.name}={_text(getattr(self, f.name))}" for f in fields(self) if getattr(self, f.name) != f.default
        ]
        return f"{self.name}:{','.join(changed)}" if changed else self.name


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _one(condition: Condition, ids: np.ndarray, *, reset: bool, episodic: bool = False) -> Segment:
    return Segment(reset, episodic, (condition,), np.zeros(len(ids), dtype=np.int64), ids)


def _shuffled(images: StreamedImages, condition: Condition) -> np.ndarray:
    ids: np.ndarray = images.ids[images.rng(str(condition)).permutation(len(images.ids))]
    return ids


@dataclass(frozen=True)
class ResetEachShift(Protocol):
    """Fully test-time adaptation as in Wang et al. 2021: each condition is one stream in random order."""

    name = "reset_each_shift"
    summary = "each condition is a separate stream; the adapter is reset before it"

    def segments(self, images: StreamedImages) -> list[Segment]:
        return [_one(condition, _shuffled(images, condition), reset=True) for condition in images.conditions]


@dataclass(frozen=True)
class Episodic(Protocol):
    """As in Zhang et al. 2022 (MEMO): the adapter is reset before every batch."""

    name = "episodic"
    summary = "like reset_each_shift, with a reset before every batch"

    def segments(self, images: StreamedImages) -> list[Segment]:
        return [_one(c, _shuffled(images, c), reset=True, episodic=True) for c in images.conditions]


@dataclass(frozen=True)
class Continual(Protocol):
    """One condition after another without reset (Wang et al. 2022, CoTTA, arXiv:2203.13591).

    order: "given" (by the shift), "seeded" (random for each seed), or names of corruptions joined with "/".
    """

    name = "continual"
    summary = "one stream, conditions one after another, no reset between them; order: given, seeded or A/B/C"
    order: str = "given"

    def segments(self, images: StreamedImages) -> list[Segment]:
        clean = [_one(c, _shuffled(images, c), reset=True) for c in images.clean]
        ordered = self._ordered(images)
        return clean + [_one(c, _shuffled(images, c), reset=i == 0) for i, c in enumerate(ordered)]

    def _ordered(self, images: StreamedImages) -> Sequence[Condition]:
        shifted = images.shifted
        if self.order == "given":
            return shifted
        if self.order == "seeded":
            return [shifted[i] for i in images.rng("conditions").permutation(len(shifted))]
        names = self.order.split("/")
        present = {condition.corruption for condition in shifted}
        if len(set(names)) != len(names) or set(names) != present:
            raise UsageError(
                f'continual:order={self.order} must be "given", "seeded" or name each corruption of the run once, '
                f"joined with '/': {'/'.join(dict.fromkeys(str(c.corruption) for c in shifted))}"
            )
        return sorted(shifted, key=lambda condition: names.index(str(condition.corruption)))


@dataclass(frozen=True)
class Gradual(Protocol):
    """Each corruption rises to the highest severity and falls again, without reset.

    As in the gradual setting of Marsden et al. 2024 (ROID), with one difference: every image is shown once under every
    condition, half of them on the way up and half on the way down (all at the highest severity). The original shows all
    images both times.
    """

    name = "gradual"
    summary = "one stream, each corruption from low to high severity and back, no reset; needs several severities"

    def segments(self, images: StreamedImages) -> list[Segment]:
        levels = sorted({condition.severity for condition in images.shifted})
        if images.shifted and len(levels) < 2:
            raise UsageError("gradual needs several severities; add --severity 1-5")
        stream = [_one(c, _shuffled(images, c), reset=True) for c in images.clean]
        corruptions = dict.fromkeys(condition.corruption for condition in images.shifted)
        for number, corruption in enumerate(corruptions):
            conditions = tuple(Condition(corruption, level) for level in levels)
            halves = [np.array_split(_shuffled(images, c), [(len(images.ids) + 1) // 2]) for c in conditions]
            up = [(i, half[0]) for i, half in enumerate(halves)]
            visits = [*up, *((i, half[1]) for i, half in reversed(list(enumerate(halves))))]
            which = np.concatenate([np.full(len(ids), i, dtype=np.int64) for i, ids in visits])
            stream.append(Segment(number == 0, False, conditions, which, np.concatenate([ids for _, ids in visits])))
        return stream


@dataclass(frozen=True)
class MixedDomains(Protocol):
    """All shifted images of all conditions in one random order."""

    name = "mixed_domains"
    summary = "one stream, images of all conditions interleaved at random"

    def segments(self, images: StreamedImages) -> list[Segment]:
        clean = [_one(c, _shuffled(images, c), reset=True) for c in images.clean]
        if not images.shifted:
            return clean
        order = images.rng("mixed").permutation(len(images.shifted) * len(images.ids))
        return [*clean, _mixed(images, order)]


def _mixed(images: StreamedImages, order: np.ndarray) -> Segment:
    which, place = np.divmod(order, len(images.ids))
    return Segment(True, False, images.shifted, which, images.ids[place])


@dataclass(frozen=True)
class Correlated(Protocol):
    """Temporally correlated labels: conditions one after another without reset, images of one class close together.

    delta: 0 sorts each condition by class. Larger values split every class over as many chunks as there are classes, in
    shares drawn from a Dirichlet distribution of that concentration (Gong et al. 2022, NOTE, arXiv:2208.05117): 1 is
    mild, 0.01 nearly sorted.
    """

    name = "correlated"
    summary = "like continual, with images of one class close together; delta: 0 sorts by class, larger is milder"
    delta: float = 0.0

    def __post_init__(self) -> None:
        _check_delta(self.delta)

    def segments(self, images: StreamedImages) -> list[Segment]:
        stream = []
        for number, condition in enumerate((*images.clean, *images.shifted)):
            order = by_class(images.labels, self.delta, images.rng("correlated", str(condition)))
            reset = condition.corruption is None or number == len(images.clean)
            stream.append(_one(condition, images.ids[order], reset=reset))
        return stream


@dataclass(frozen=True)
class MixedDomainsCorrelated(Protocol):
    """All shifted images of all conditions in one stream with correlated labels; delta as in `Correlated`."""

    name = "mixed_domains_correlated"
    summary = "like mixed_domains, with images of one class close together; delta: 0 sorts by class, larger is milder"
    delta: float = 0.0

    def __post_init__(self) -> None:
        _check_delta(self.delta)

    def segments(self, images: StreamedImages) -> list[Segment]:
        stream = []
        for condition in images.clean:
            order = by_class(images.labels, self.delta, images.rng("correlated", str(condition)))
            stream.append(_one(condition, images.ids[order], reset=True))
        if images.shifted:
            labels = np.tile(images.labels, len(images.shifted))
            stream.append(_mixed(images, by_class(labels, self.delta, images.rng("mixed", "correlated"))))
        return stream


def _check_delta(delta: float) -> None:
    if not 0 <= delta < np.inf:
        raise ValueError(f"delta must be a finite number of at least 0, not {delta}")


def by_class(labels: np.ndarray, delta: float, rng: np.random.Generator) -> np.ndarray:
    """Return a permutation (int64 [n]) that puts images of one class close together; see `Correlated`."""
    rows = [rng.permutation(np.flatnonzero(labels == label)) for label in np.unique(labels)]
    if delta == 0:
        return np.concatenate(rows)
    chunks: list[list[np.ndarray]] = [[] for _ in rows]
    for own in rows:
        shares = rng.dirichlet(np.full(len(chunks), delta))
        bounds = np.round(np.cumsum(shares)[:-1] * len(own)).astype(np.int64)
        for chunk, part in zip(chunks, np.split(own, bounds), strict=True):
            chunk.append(part)
    return np.concatenate([chunk[i] for chunk in chunks for i in rng.permutation(len(chunk))])


@dataclass(frozen=True)
class LabelShifts(Protocol):
    """A label distribution that changes during the stream: the imbalanced stream of Niu et al. 2023 (SAR), section 4.

    Classes take turns in a random order; during its turn a class is `ratio` times as likely as each other class. The
    adapter is reset before every condition, and every condition shows the same images in the same order, as many as
    there are. Images are drawn from their class without replacement; a used-up class is shuffled and drawn again, so
    some images may come twice and others not at all.

    ratio: 1 is uniform; 500000 (the largest in the paper) is practically one class after another.
    """

    name = "label_shifts"
    summary = "like reset_each_shift, with one class at a time more likely than the others; ratio: by which factor"
    ratio: float = 500000.0

    def __post_init__(self) -> None:
        if not 1 <= self.ratio < np.inf:
            raise ValueError(f"ratio must be a finite number of at least 1, not {self.ratio}")

    def segments(self, images: StreamedImages) -> list[Segment]:
        rng = images.rng("label_shifts")
        decks = [_Deck(np.flatnonzero(images.labels == label), rng) for label in np.unique(images.labels)]
        turns = np.array_split(np.arange(len(images.ids)), len(decks))
        rows = []
        for likely, turn in zip(rng.permutation(len(decks)), turns, strict=True):
            chances = np.ones(len(decks))
            chances[likely] = self.ratio
            rows += [decks[label].draw() for label in rng.choice(len(decks), len(turn), p=chances / chances.sum())]
        return [_one(condition, images.ids[rows], reset=True) for condition in images.conditions]


class _Deck:
    """Draws rows one by one in random order, without replacement, and starts again when all are drawn."""

    def __init__(self, rows: np.ndarray, rng: np.random.Generator) -> None:
        self._rows, self._rng, self._left = rows, rng, np.empty(0, dtype=np.int64)

    def draw(self) -> int:
        if not len(self._left):
            self._left = self._rng.permutation(self._rows)
        last, self._left = int(self._left[-1]), self._left[:-1]
        return last


@dataclass(frozen=True)
class CccUncalibrated(Protocol):
    """Continuously changing corruptions after Press et al. 2023 (RDumb), without their calibration.

    Two corruptions are applied one after the other. While the first falls from the run's severity to 0, the second
    rises from 0 to it, in steps of 0.25 that last `speed` images; the second is then the first of the next pair. The
    original follows a path of equal accuracy of a ResNet-50, for which it stores a table of 21 x 21 accuracies per
    pair. Here both severities always sum to the run's severity, so difficulty varies and numbers cannot be compared
    with published ones. All images are shown in random order, repeatedly; the whole stream is one record.

    Three parts of the published stream are left out: random flips and crops (RandomResizedCrop to 224), storage as JPEG
    of quality 85, and the lists of corruptions: 14 without brightness (easy), 13 without JPEG too (medium), or
    gaussian, shot and impulse noise and contrast (hard). Name such a list with --corruption. The corruptions, also at
    quarters of a severity, are those of the published code.

    speed: images per step (1000, 2000 or 5000 in the paper). images: length of the stream; 0 means all images times
    all corruptions, as in the other protocols.
    """

    name = "ccc_uncalibrated"
    summary = "one stream of blended corruption pairs whose severities drift; speed: images per step; images: length"
    speed: int = 1000
    images: int = 0

    def __post_init__(self) -> None:
        if self.speed < 1 or self.images < 0:
            raise ValueError("speed must be at least 1 and images at least 0")

    def segments(self, images: StreamedImages) -> list[Segment]:
        stream = [_one(c, _shuffled(images, c), reset=True) for c in images.clean]
        if not images.shifted:
            return stream
        names = tuple(dict.fromkeys(str(c.corruption) for c in images.shifted))
        levels = {c.severity for c in images.shifted}
        if len(names) < 2 or len(levels) > 1:
            raise UsageError(
                "ccc_uncalibrated blends pairs at one severity; give two corruptions or more and one severity"
            )
        level = levels.pop()
        length = self.images or len(images.shifted) * len(images.ids)
        blends = _walk(names, level, -(-length // self.speed), images.rng("ccc", "pairs"))
        deck = images.rng("ccc", "images")
        passes = [deck.permutation(len(images.ids)) for _ in range(-(-length // len(images.ids)))]
        which = np.zeros(length, dtype=np.int64)
        whole = (Condition(self.name, level),)
        ids = images.ids[np.concatenate(passes)[:length]]
        return [*stream, Segment(True, False, whole, which, ids, blends, np.arange(length) // self.speed)]


def _walk(
    names: Sequence[str], level: float, steps: int, rng: np.random.Generator
) -> tuple[tuple[Condition, ...], ...]:
    """Return the corruptions of each step: (first at level - t, second at t), without those at severity 0."""
    found: list[tuple[Condition, ...]] = []
    first = int(rng.integers(len(names)))
    while len(found) < steps:
        second = (first + 1 + int(rng.integers(len(names) - 1))) % len(names)
        for number in count():
            grown = number * _GRID
            if grown >= level:
                break
            pair = ((names[first], level - grown), (names[second], grown))
            found.append(tuple(Condition(name, severity) for name, severity in pair if severity > 0))
        first = second
    return tuple(found[:steps])


_KINDS: tuple[type[Protocol], ...] = (
    ResetEachShift,
    Episodic,
    Continual,
    Gradual,
    MixedDomains,
    Correlated,
    MixedDomainsCorrelated,
    LabelShifts,
    CccUncalibrated,
)

PROTOCOLS: Mapping[str, type[Protocol]] = {kind.name: kind for kind in _KINDS}


def parse_protocol(text: str) -> Protocol:
    """Parse "NAME" or "NAME:parameter=value,…". Raises UsageError that suggests the nearest name or a valid value."""
    name, _, rest = text.strip().partition(":")
    kind = PROTOCOLS[nearest(name.strip(), PROTOCOLS, "protocol")]
    known = [field.name for field in fields(kind)]
    given: dict[str, str] = {}
    for item in filter(None, (part.strip() for part in rest.split(","))):
        key, equals, value = (part.strip() for part in item.partition("="))
        if not known:
            raise UsageError(f"--protocol {kind.name} has no parameters; leave ':{rest}' out")
        if not equals:
            raise UsageError(f"--protocol takes NAME:parameter=value, as in {kind.name}:{known[0]}=…, not '{item}'")
        given[nearest(key, known, f"parameter of {kind.name}")] = value
    try:
        return TypeAdapter(kind).validate_python(given)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "parameters"
        raise UsageError(f"--protocol {kind.name}, {where}: {in_words(first)}; see `bench list protocols`") from None


def plan_stream(
    protocol: Protocol, conditions: Sequence[Condition], ids: np.ndarray, labels: np.ndarray, seed: int
) -> list[Segment]:
    """Return the segments of a protocol for `ids` (int64 [n]) with `labels` (int64 [n]) under all conditions."""
    return protocol.segments(StreamedImages(tuple(conditions), ids, labels, seed))


def chains(segments: Sequence[Segment]) -> list[tuple[Segment, ...]]:
    """Split the stream into chains that depend on nothing before them: each starts with a reset."""
    groups: list[list[Segment]] = []
    for segment in segments:
        if segment.reset or not groups:
            groups.append([])
        groups[-1].append(segment)
    return [tuple(group) for group in groups]
