"""Who has confirmed a published result, which results contradict one another, and which were withdrawn.

Where no digest can be pinned in advance, the first submission proposes labels and pixels, later ones confirm or
contradict them. Confirmation says that several submitters read the same images; it says nothing of their numbers.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import resources
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from leaderboards.bundle import Bundle
from leaderboards.comparable import line_of
from leaderboards.known import Known
from leaderboards.record import Key, Record, strict_json
from leaderboards.verify import Problem
from leaderboards.vocabulary import condition_of, of_stream

REPRODUCED = "reproduced"
KNOWN_DATA = "known data"
SINGLE = "single source"
CONFIRMED = "confirmed by"
MEANING: Mapping[str, str] = {
    REPRODUCED: "a maintainer ran it again and got the same metrics",
    KNOWN_DATA: "the digests of its images and labels are those that the project pins",
    CONFIRMED: "as many other submitters read the same images and labels",
    SINGLE: "nobody else has read these images with these weights yet",
}
"""The words of `provenance`, from the strongest to the weakest; "confirmed by" is followed by a number."""

_Date = Annotated[str, Field(pattern=r"^20[0-9]{2}-[01][0-9]-[0-3][0-9]$")]
_PlainLine = Annotated[str, Field(min_length=1, max_length=300, pattern=r"^[ -;=?-~]+$")]


class _Review(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    date: _Date


class Withdrawal(_Review):
    """Why a record was withdrawn."""

    reason: _PlainLine


class Reproduction(_Review):
    """Who ran a record again with `bench run --record KEY --from FILE` and got the same metrics."""

    by: _PlainLine


@dataclass(frozen=True, slots=True)
class Reviews:
    """The notes of maintainers on single records, by key."""

    withdrawn: Mapping[str, Withdrawal] = field(default_factory=dict)
    reproduced: Mapping[str, Reproduction] = field(default_factory=dict)


def reviews() -> Reviews:
    """Return the reviews that ship with the project: `reference/withdrawn.json` and `reference/reproduced.json`."""
    return Reviews(
        TypeAdapter(dict[Key, Withdrawal]).validate_python(_table("withdrawn.json")),
        TypeAdapter(dict[Key, Reproduction]).validate_python(_table("reproduced.json")),
    )


def _table(name: str) -> object:
    return strict_json((resources.files("leaderboards") / "reference" / name).read_bytes())


def standing(bundles: Mapping[str, Bundle], reviews: Reviews) -> dict[str, Bundle]:
    """Return the bundles without the rows that have a withdrawn record, and without files that have no other row."""
    found: dict[str, Bundle] = {}
    for name, bundle in bundles.items():
        gone = {line_of(record) for record in bundle.records if record.key in reviews.withdrawn}
        records = tuple(record for record in bundle.records if line_of(record) not in gone)
        if records:
            found[name] = replace(bundle, records=records) if gone else bundle
    return found


def contradictions(bundles: Mapping[str, Bundle], known: Known) -> Iterator[Problem]:
    """Yield a problem for each file whose data or weights other files contradict.

    What most submitters say stands; if as many say one thing as another, every file is named.
    """
    claims: dict[tuple[Hashable, ...], dict[str, dict[str, str]]] = defaultdict(lambda: defaultdict(dict))
    for name, bundle in bundles.items():
        who = bundle.submitter or ""
        for record in bundle.records:
            for subject, value in _claims(record, known):
                claims[subject][value].setdefault(name, who)
    noted: set[tuple[str, str]] = set()
    for (what, *_), values in claims.items():
        if len(values) < 2:
            continue
        voices = {value: len(set(files.values())) for value, files in values.items()}
        most = max(voices.values())
        right = [value for value, count in voices.items() if count == most]
        for value, files in values.items():
            if right == [value]:
                continue
            others = sorted({name for other in values if other != value for name in values[other]} - files.keys())
            for name in files:
                if others and (name, str(what)) not in noted:
                    noted.add((name, str(what)))
                    yield Problem(None, name, f"has other {what} than {others[0]}; {_REMEDY}")


_REMEDY = "one of the two read other files: run `bench data verify` on both"


def _claims(record: Record, known: Known) -> Iterator[tuple[tuple[Hashable, ...], str]]:
    """Yield what a record says of data and weights that no table pins: subjects and digests."""
    if ":" in record.model and "@" not in record.model and record.model not in known.models:
        yield ("weights", record.model), record.weights.digest  # published ones; two people may name a file alike
    if record.shift in known.shifts:
        return
    stream = condition_of(record) if of_stream(record) else ""
    yield ("labels", record.shift, record.split, record.n, stream), record.data.labels or ""
    yield ("pixels", *_pixels(record)), record.data.digest


def _pixels(record: Record) -> tuple[Hashable, ...]:
    """Return what decides the pixels of a condition: a model brings its preprocessing."""
    return (record.shift, record.split, record.n, condition_of(record), record.data.tiles, record.weights.digest)


def provenance(bundles: Mapping[str, Bundle], known: Known, reviews: Reviews) -> dict[str, dict[str, str]]:
    """Return a word for every record by file name and key, out of `MEANING`."""
    readers: dict[tuple[Hashable, ...], set[str]] = defaultdict(set)
    for bundle in bundles.values():
        for record in bundle.records:
            readers[*_pixels(record), record.data.digest, record.data.labels].add(bundle.submitter or "")

    def word(record: Record, who: str) -> str:
        if record.key in reviews.reproduced:
            return REPRODUCED
        if record.shift in known.shifts:
            return KNOWN_DATA
        others = readers[*_pixels(record), record.data.digest, record.data.labels] - {who}
        return f"{CONFIRMED} {len(others)}" if others else SINGLE

    return {
        name: {record.key: word(record, bundle.submitter or "") for record in bundle.records}
        for name, bundle in bundles.items()
    }


def weakest(words: Sequence[str]) -> str:
    """Return the weakest of the words of a row's records: a row is as well confirmed as its least record."""
    order = list(MEANING)

    def strength(word: str) -> tuple[int, int]:
        kind, _, count = word.rpartition(" ") if word.startswith(CONFIRMED) else (word, "", "0")
        return order.index(kind), -int(count)

    return max(words, key=strength)


def meaning_of(word: str) -> str:
    """Return what a word of `provenance` means."""
    return MEANING[CONFIRMED] if word.startswith(CONFIRMED) else MEANING[word]


def weights_word(record: Record, bundle: Bundle, known: Known) -> str:
    """Say where the weights of a record are to be had: known, at a stated place, or named by their digest only."""
    if known.models.get(record.model) == record.weights.digest:
        return "known weights"
    if bundle.weights is not None:
        return f"weights stated at {bundle.weights}"
    return f"weights {record.weights.digest[:19]}, stated nowhere"


def notes_of(bundle: Bundle, known: Known) -> tuple[str, ...]:
    """Return sentences on what a board of this file must say beside its numbers."""
    first = bundle.records[0]
    notes = [f"Submitted by {bundle.submitter}." if bundle.submitter else "The file does not say who submits it."]
    notes.append(f"{first.model}: {weights_word(first, bundle, known)}.")
    definition = known.definitions.get(first.shift)
    most = definition.most(first.split) if definition is not None and first.shift not in known.shifts else None
    shown = max((record.n for record in bundle.records if not of_stream(record)), default=most or 0)
    if most is not None and shown < most:
        notes.append(f"Scored on {shown} of the {most} images that {first.shift} has with split {first.split}.")
    how = "follow from the probabilities in the file" if bundle.recomputed else "are as submitted"
    notes.append(f"Accuracy follows from the outcome of every image; ECE, NLL and Brier score {how}.")
    notes.append("Seconds, passes and memory are as submitted.")
    return tuple(notes)
