"""Submissions: bundles made from a results folder, and all checks before one is published.

Besides the file, a checker knows the words of the tables, the right data and weights, and all earlier publications. It
trusts nothing in a submission that can be recomputed.
"""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from leaderboards.bundle import Bits, Bundle, BundleError, pack, read_bundle
from leaderboards.card import card_of, settings_of
from leaderboards.compact import compact, metric_problems
from leaderboards.comparable import BoardError, check_comparable, line_name, line_of, place_of
from leaderboards.files import StoreError
from leaderboards.identity import labels_digest
from leaderboards.known import Definition, Known, KnownSplit, scored
from leaderboards.metrics import score
from leaderboards.plausible import doubts
from leaderboards.predictions import Predictions
from leaderboards.provenance import Reviews, contradictions, notes_of, provenance, reviews, standing
from leaderboards.record import Record, condition_met
from leaderboards.union import clashes
from leaderboards.verify import TOLERANCE, Problem, verify, wrong_key
from leaderboards.vocabulary import (
    Vocabulary,
    component_problems,
    condition_of,
    definition_problems,
    method_problems,
    of_stream,
    word_problems,
)

FILE_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,99}\.jsonl")
_COMMIT = re.compile(r"[0-9a-f]{7,40}")
_LINK = re.compile(r"(?i)(javascript|vbscript|data)\s*:")
_DATA = re.compile(r"data\s*:")
_SEVERAL_ANSWERS = ("imagenet-real",)  # shifts whose images have several right answers
_MOST_SEEDS = 1000


@dataclass(frozen=True, slots=True)
class Checker:
    """The reference for checks of a submission: the words that it may use, known data, and what was reviewed."""

    vocabulary: Vocabulary
    known: Known
    reviews: Reviews = field(default_factory=reviews)


def make_bundle(
    records: Sequence[Record],
    predictions: Callable[[Record], Predictions],
    card: str | None = None,
    *,
    probabilities: bool = True,
    submitter: str | None = None,
    weights: str | None = None,
) -> Bundle:
    """Make the bundle of comparable records.

    `card` replaces the model card that is made from the records. Without `probabilities` the file is a tenth as large
    and its ECE, NLL and Brier score are shown as submitted. Raises BoardError if the records do not make one board,
    StoreError if predictions are missing or a record failed.
    """
    check_comparable(records)
    bundle = Bundle(card_of(records) if card is None else card, settings_of(records), tuple(records), {}, {})
    bits: dict[str, Bits] = {}
    digests: dict[str, str] = {}
    codes, labels = {}, {}
    for record in records:
        if record.status != "done":
            raise StoreError(f"{place_of(record)} failed; run it again with --only-failed")
        made = predictions(record)
        bits[record.key], digests[record.key] = pack(made), made.digest()
        if probabilities:
            codes[record.key] = compact(made)
            labels[record.key] = made.label[np.argsort(made.id, kind="stable")]
    return replace(
        bundle, bits=bits, digests=digests, probabilities=codes, labels=labels, submitter=submitter, weights=weights
    )


def check_file(path: Path | str, checker: Checker) -> tuple[Bundle | None, list[Problem]]:
    """Read and check one bundle; each error becomes a problem of one sentence, never an exception."""
    path = Path(path)
    if not FILE_NAME.fullmatch(path.name):
        name = re.sub(r"[^ -~]", "?", path.name)
        return None, [
            Problem(None, name, "has an odd name; use lower-case letters, digits, dots and dashes, and .jsonl")
        ]
    try:
        bundle = read_bundle(path)
        return bundle, [Problem(key, path.name, message) for key, message in check_bundle(bundle, checker)]
    except BundleError as error:
        return None, [Problem(None, path.name, str(error))]
    except (ArithmeticError, MemoryError, RecursionError, ValueError, TypeError) as error:
        reason = f"cannot be checked ({type(error).__name__}); bundle the run again"
        return None, [Problem(None, path.name, reason)]


def check_folder(folder: Path | str, checker: Checker) -> tuple[dict[str, Bundle], list[Problem]]:
    """Check every bundle of a folder of published results, and that none contradicts another.

    Anything but bundles and a README.md is a problem. A result may be in several files if it is the same in all. The
    bundles are returned as they are shown (`presented`).
    """
    bundles: dict[str, Bundle] = {}
    problems: list[Problem] = []
    here = replace(checker, reviews=replace(checker.reviews, withdrawn={}))
    for path in sorted(Path(folder).iterdir()):
        if path.name == "README.md" and path.is_file() and not path.is_symlink():
            continue
        bundle, found = check_file(path, here)
        problems += found
        if bundle is not None:
            bundles[path.name] = bundle
    return presented(bundles, checker), [*problems, *check_together(bundles, checker)]


def presented(bundles: Mapping[str, Bundle], checker: Checker) -> dict[str, Bundle]:
    """Return bundles without rows that hold a withdrawn record; each says of every record who has confirmed it."""
    shown = standing(bundles, checker.reviews)
    words = provenance(shown, checker.known, checker.reviews)
    return {
        name: replace(made, provenance=words[name], notes=notes_of(made, checker.known)) for name, made in shown.items()
    }


def check_together(bundles: Mapping[str, Bundle], checker: Checker, proposed: Collection[str] = ()) -> list[Problem]:
    """Check files, by name, that were checked one by one: none may contradict another, nor most others on the data.

    Of two files the `proposed` one is named, else the one that was made later.
    """
    return [*clashes(bundles, proposed), *contradictions(bundles, checker.known)]


def check_run(folder: Path | str, checker: Checker, card: str | None = None) -> list[Problem]:
    """Check the bundle of a results folder as for publication, and that its numbers follow from its files."""
    problems = list(verify(folder, checker.known.labels_of).problems)
    if problems:
        return problems
    from leaderboards.store import Store

    store = Store(folder)
    try:
        bundle = make_bundle(store.records(), store.predictions, card)
    except (StoreError, BoardError) as error:
        return [Problem(None, str(folder), str(error))]
    return [Problem(key, str(folder), message) for key, message in check_bundle(bundle, checker)]


def check_predictions(bundle: Bundle, predictions: Callable[[Record], Predictions]) -> Iterator[Problem]:
    """Check a bundle against the full predictions of its run: digest, and every metric recomputed."""
    for record in bundle.records:
        file = f"predictions/{record.key}.npz"
        try:
            made = predictions(record)
        except StoreError as error:
            yield Problem(record.key, file, str(error))
            continue
        if made.digest() != bundle.digests[record.key]:
            yield Problem(record.key, file, "is not what the bundle was made from; give the folder of that very run")
            continue
        for name, value in score(made).model_dump().items():
            if not abs(getattr(record.metrics, name) - value) <= TOLERANCE:
                yield Problem(record.key, file, f"gives another {name} than the bundle says; bundle the run again")


def check_bundle(bundle: Bundle, checker: Checker) -> Iterator[tuple[str | None, str]]:
    """Return all that keeps a bundle from being published, as (record key, sentence that ends with what to do).

    Strings must be plain text, and every word of a record one of the closed lists; keys must follow from the records;
    records must be comparable, and none failed, limited or withdrawn; the method must be known, with exactly its access
    and options; images, data, labels and weights must be the known ones, or as the shift defines them; every corruption
    of the shift must be present for every method, part, severity and seed; accuracy must be the mean of the bits, other
    metrics must follow from the probabilities or at least be possible; accuracies must be plausible; the code must be a
    clean commit or a release.
    """
    for place, text in _strings(bundle):
        if reason := _unsafe(text):
            yield None, f"{place[:80]} holds {reason}; write plain text"
            return
    try:
        check_comparable(bundle.records)
    except BoardError as error:
        yield None, str(error)
        return
    if bundle.settings != settings_of(bundle.records):
        yield None, "the settings are not those of the records; bundle the run again"
    if bundle.probabilities and not bundle.recomputed:
        yield None, "only some records have probabilities; bundle the run again"
    shared: dict[str, Record] = {}
    for record in bundle.records:
        for message in _problems_of(record, bundle, checker):
            yield record.key, message
        other = shared.setdefault(bundle.digests[record.key], record)
        if (other.corruption, other.severity) != (record.corruption, record.severity):
            yield (
                record.key,
                f"{place_of(record)} has the predictions of {place_of(other)}; run both again with --rerun",
            )
    yield from ((record.key, message) for record, message in doubts(bundle.records, checker.known))
    yield from ((None, message) for message in _gaps(bundle.records, checker.known))


def _problems_of(record: Record, bundle: Bundle, checker: Checker) -> Iterator[str]:
    place = place_of(record)
    if (why := checker.reviews.withdrawn.get(record.key)) is not None:
        yield f"{place} was withdrawn on {why.date}: {why.reason}; leave it out"
    for found in (_record_problems(record, checker), _word_problems(record, checker)):
        yield from (f"{place} {message}" for message in found)
    yield from _method_problems(record, checker)
    yield from _data_problems(record, checker.known, bundle.bits[record.key])
    yield from (f"{place} {message}" for message in _number_problems(record, bundle))


def _strings(bundle: Bundle) -> Iterator[tuple[str, str]]:
    """Yield the places and texts that may be unsafe. What is plain ASCII without markup is passed over quickly."""
    yield "the card", bundle.card.replace("\n", " ")
    yield from _texts("settings", dict(bundle.settings))
    for record in bundle.records:
        if _is_suspect(record.to_json().lower()):
            yield from _texts(f"record {record.key}", record.model_dump(mode="json"))


def _is_suspect(text: str) -> bool:
    marks = ("<", ">", "\\", "../", "script")
    return not text.isascii() or any(mark in text for mark in marks) or _DATA.search(text) is not None


def _texts(place: str, value: Any) -> Iterator[tuple[str, str]]:
    match value:
        case str():
            yield place, value
        case dict():
            for name, inner in value.items():
                if _unsafe(name):
                    yield place, name
                else:
                    yield from _texts(f"{place}, {name}", inner)
        case list():
            for inner in value:
                yield from _texts(place, inner)


def _unsafe(text: str) -> str | None:
    if "<" in text or ">" in text:
        return "an angle bracket"
    if _LINK.search(text):
        return "a link that runs code"
    if not text.isascii() and any(
        unicodedata.category(character) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp") for character in text
    ):
        return "an invisible character"
    if not text.isprintable() and text.isascii():
        return "an invisible character"
    if "../" in text or "..\\" in text:
        return "a path that leaves its folder"
    return None


def _record_problems(record: Record, checker: Checker) -> Iterator[str]:
    if record.status != "done":
        yield "failed; run it again with --only-failed"
    if record.limit is not None:
        yield f"was limited to {record.limit} images; run it again without --limit"
    if record.data.skipped:
        yield f"left out {record.data.skipped} test images; mend them and run it again on all of them"
    yield from wrong_key(record)
    commit, project = record.env.get("git"), record.env.get("project")
    if commit is None:
        released = checker.known.releases.get(project) if isinstance(project, str) else None
        if released is None or record.env.get("package") != released:
            yield "was made with neither a commit nor a release; run it from a clean commit or a release"
    elif not (isinstance(commit, str) and _COMMIT.fullmatch(commit)) or record.env.get("dirty") is not False:
        yield "was made with uncommitted changes; commit them and run it again"


def _word_problems(record: Record, checker: Checker) -> Iterator[str]:
    yield from word_problems(record, checker.vocabulary)
    definition = checker.known.definitions.get(record.shift)
    if definition is not None:
        yield from definition_problems(record, definition)


def _method_problems(record: Record, checker: Checker) -> Iterator[str]:
    words = checker.vocabulary.method_of(record.method)
    if words is None:
        yield f"the method {record.method} is not in the table of methods; add it there in the same pull request"
        return
    definition = checker.known.definitions.get(record.shift)
    found = list(method_problems(record, words))
    if definition is not None:
        found += component_problems(record, words, checker.vocabulary, definition.made_here)
    yield from (f"{place_of(record)} {message}" for message in found)


def _data_problems(record: Record, known: Known, bits: Bits) -> Iterator[str]:
    shift, place = record.shift, place_of(record)
    definition = known.definitions.get(shift)
    pinned = known.shifts.get(shift, {})
    if definition is None and not pinned:
        yield f"no data of the shift {shift} is known; a maintainer adds it with `bench publish known`"
        return
    split = pinned.get(record.split)
    if pinned and split is None:
        yield f"split {record.split} of {shift} is not published; use one of {', '.join(sorted(pinned))}"
        return
    conditions = _conditions(known, shift, record.split)
    if not (condition_of(record) in conditions or of_stream(record)):
        yield f"{shift} has no published condition {condition_of(record)}; leave it out"
    elif split is not None and split.conditions.get(condition_of(record), record.data.digest) != record.data.digest:
        yield f"the data of {place} are not those of {shift}; see `bench data verify {shift}`"
    if record.n != len(bits):
        yield f"{place} says n = {record.n} and has {len(bits)} outcomes; bundle the run again"
    elif message := _wrong_images(record, bits, split, definition):
        yield f"{place} {message}"
    labels = split.labels if split is not None else known.labels_of(record)
    if labels is not None and record.data.labels != labels:
        yield f"the labels of {place} are not those of {shift}; see `bench data verify {shift}`"
    yield from _history_problems(record, known)
    yield from _weights_problems(record, known)


def _history_problems(record: Record, known: Known) -> Iterator[str]:
    """Yield the first condition met that its shift does not report; of another shift all corruptions must be met."""
    met: dict[str, set[str]] = defaultdict(set)
    for condition, other in map(condition_met, record.data.history):
        shift = other or record.shift
        conditions = _conditions(known, shift, record.split)
        if condition not in conditions or condition == "clean":
            yield f"{place_of(record)} has met {condition}, which {shift} does not report; run it on its own conditions"
            return
        if other is not None:
            met[other].add(condition)
    for shift, found in met.items():
        levels = {condition.rpartition("@")[2] for condition in found}
        reported = {name for name in _conditions(known, shift, record.split) if name.rpartition("@")[2] in levels}
        if reported - {"clean"} != found:
            yield f"{place_of(record)} has met some conditions of {shift} only; run it with --pool {shift}"


def _conditions(known: Known, shift: str, split: str) -> Iterable[str]:
    pinned, definition = known.shifts.get(shift, {}).get(split), known.definitions.get(shift)
    if pinned is not None:
        return pinned.conditions
    return definition.conditions if definition is not None else ()


def _wrong_images(record: Record, bits: Bits, split: KnownSplit | None, definition: Definition | None) -> str | None:
    """Return how the images differ from those of the split, each as often as the protocol shows it."""
    if record.protocol.partition(":")[0] == "label_shifts":
        return "draws its images (label_shifts), so which they are cannot be checked; publish another protocol"
    most = split.n if split is not None else definition.most(record.split) if definition is not None else None
    shown = bits.id
    if of_stream(record):
        shown, times = np.unique(bits.id, return_counts=True)
        if times.max() - times.min() > 1:
            return "shows some images much more often than others; run it again"
    if split is not None:
        right = np.array_equal(shown, split.images)
    else:  # which images a user has, only their number is free
        count = 2 * len(shown) + (record.split == "disjoint") if record.split != "transductive" else len(shown)
        wanted = scored(record.split, count)[: len(shown)] if record.split in ("disjoint", "joint") else None
        right = np.array_equal(shown, scored("transductive", count) if wanted is None else wanted)
        right = right and (most is None or len(shown) <= most)
    if right:
        return None
    return f"was not scored on the {most or len(shown)} images of split {record.split}, each once; run it again"


def _weights_problems(record: Record, known: Known) -> Iterator[str]:
    model, digest = record.model, record.weights.digest
    weights = known.models.get(model)
    if weights is not None and weights != digest:
        yield f"the weights of {place_of(record)} are not those of {model}; run it with the published ones"
    names = [name for name, other in known.models.items() if other == digest and name != model]
    if names:
        yield f"{place_of(record)} has the weights of {names[0]} under the name {model}; run it with {names[0]}"


def _number_problems(record: Record, bundle: Bundle) -> Iterator[str]:
    metrics, bits = record.metrics, bundle.bits[record.key]
    if metrics is None:
        return
    accuracy = float(bits.hits.mean())
    if not abs(accuracy - metrics.accuracy) <= TOLERANCE:
        yield f"says accuracy {metrics.accuracy!r}, its bits give {accuracy!r}; bundle the run again"
    # A wrong prediction is at least as probable as the label, so the label's probability is at most one half.
    if metrics.brier < 0.5 * (1 - accuracy) - 1e-3 or metrics.nll < float(np.log(2)) * (1 - accuracy) - 1e-3:
        yield "has a Brier score or NLL too good for its accuracy; run it again with --rerun"
    if (codes := bundle.probabilities.get(record.key)) is not None:
        one_label = record.shift not in _SEVERAL_ANSWERS
        for message in metric_problems(metrics, codes, bits.hits):
            yield f"says {message}; bundle the run again"
        for message in codes.contradictions(bits.hits, one_label=one_label):
            yield f"has {message} in its probabilities; bundle the run again"
    if (labels := bundle.labels.get(record.key)) is not None and labels_digest(bits.id, labels) != record.data.labels:
        yield "has other labels than the digest of its data says; bundle the run again"
    if record.cost is not None and record.cost.forwards < record.n - 0.5:
        yield "counts fewer forward passes than images; run it again with --rerun"


def _gaps(records: Sequence[Record], known: Known) -> Iterator[str]:
    groups: dict[tuple[tuple[str, str | None], int], list[Record]] = defaultdict(list)
    for record in records:
        groups[line_of(record), record.seed].append(record)
    seeds = {seed for _, seed in groups}
    lines = {line for line, _ in groups}
    if len(seeds) != max(seeds) - min(seeds) + 1:
        yield "the seeds have gaps; run the missing ones or bundle without the outer ones"
    if len(seeds) > _MOST_SEEDS:
        yield f"there are more than {_MOST_SEEDS} seeds; bundle fewer"
    lacking = ((line, seed) for line in sorted(lines, key=line_name) for seed in sorted(seeds))
    for line, seed in lacking:
        if (line, seed) not in groups:
            yield f"{line_name(line)} lacks seed {seed} that others have; run it or leave the seed out"
    some_clean = any(record.clean for record in records)
    for (line, seed), group in groups.items():
        wanted = _wanted(known, group, some_clean)
        if missing := sorted(wanted - {condition_of(record) for record in group}):
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            yield f"{line_name(line)}, seed {seed}, lacks {missing[0]}{more}; run the whole shift"
        if all(record.clean for record in group):
            yield f"{line_name(line)}, seed {seed}, has no corrupted condition; run the whole shift"


def _wanted(known: Known, group: Sequence[Record], some_clean: bool) -> set[str]:
    """Return the conditions that one seed of a row must have: all corruptions at its severities, and clean images."""
    first = group[0]
    definition, pinned = known.definitions.get(first.shift), known.shifts.get(first.shift, {})
    if (definition is None and not pinned) or (pinned and first.split not in pinned):
        return set()
    levels = {f"{record.severity:g}" for record in group if not record.clean}
    clean = definition.clean if definition is not None else "always"
    conditions = set(_conditions(known, first.shift, first.split))
    if any(of_stream(record) for record in group):
        conditions = {condition_of(record) for record in group} | ({"clean"} & conditions)
    if clean == "optional" and not some_clean:
        conditions.discard("clean")
    return {name for name in conditions if name == "clean" or name.rpartition("@")[2] in levels}
