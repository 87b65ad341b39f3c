"""Submissions: bundles made from a results folder, and all checks before one is published.

Besides the file, a checker knows three things: what each method may see, the right data and weights, and all earlier
publications. It trusts nothing in a submission that can be recomputed.
"""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, JsonValue

from leaderboards.bundle import MAX_CARD, Bits, Bundle, BundleError, ids_of, pack, read_bundle
from leaderboards.comparable import BoardError, check_comparable, condition_name, line_name, line_of
from leaderboards.files import StoreError
from leaderboards.metrics import score
from leaderboards.plausible import clean_doubts
from leaderboards.predictions import Predictions
from leaderboards.record import Access, Name, Record, strict_json
from leaderboards.union import clashes
from leaderboards.verify import TOLERANCE, Problem, verify, wrong_key

AccessOf = Callable[[str], Access | None]
Runs = list[tuple[int, int, int]]

FILE_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,99}\.jsonl")
_COMMIT = re.compile(r"[0-9a-f]{7,40}")
_LINK = re.compile(r"(?i)(javascript|vbscript|data)\s*:")


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class KnownSplit(_Part):
    """The scored images of a split as runs [first id, step, count], with digests.

    The digests are those of each condition ("fog@5") and of the images' labels (`leaderboards.identity.labels_digest`).
    """

    ids: Runs
    conditions: dict[Name, Name]
    labels: Name | None = None

    @property
    def n(self) -> int:
        """Number of images scored in each condition."""
        return sum(count for _, _, count in self.ids)


class Known(_Part):
    """The required inputs of published results.

    Splits by shift and name, digests of weights by model, and the content of the packages (`package` in `env`) by
    release. A split holds only the reported conditions, so results on tuning corruptions or dev images are never
    published.
    """

    shifts: dict[Name, dict[Name, KnownSplit]] = Field(default_factory=dict)
    models: dict[Name, Name] = Field(default_factory=dict)
    releases: dict[Name, Name] = Field(default_factory=dict)

    def labels_of(self, record: Record) -> str | None:
        """Return the digest of the labels of a record's images; None if they are not those of a known split."""
        split = self.shifts.get(record.shift, {}).get(record.split)
        return split.labels if split is not None and record.limit is None and record.n == split.n else None


@dataclass(frozen=True, slots=True)
class Checker:
    """The reference for checks of a submission: access by method (None for an unknown method) and known data."""

    access_of: AccessOf
    known: Known


def known() -> Known:
    """Return the known data and weights that ship with the project."""
    with resources.as_file(resources.files("leaderboards") / "reference" / "known.json") as path:
        return read_known(path)


def read_known(path: Path) -> Known:
    """Read the table of known data and weights. Raises StoreError if the file is broken."""
    try:
        strict_json(path.read_bytes())
        return Known.model_validate_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise StoreError(f"{path} is no table of known data ({error}); restore it from the repository") from None


def make_bundle(
    records: Sequence[Record], predictions: Callable[[Record], Predictions], card: str | None = None
) -> Bundle:
    """Make the bundle of comparable records.

    `card` replaces the model card that is made from the records. Raises BoardError if the records do not make one
    board, StoreError if predictions are missing or a record failed.
    """
    check_comparable(records)
    read = {record.key: predictions(record) for record in records}
    return Bundle(
        card=card_of(records) if card is None else card,
        settings=settings_of(records),
        records=tuple(records),
        bits={key: pack(made) for key, made in read.items()},
        digests={key: made.digest() for key, made in read.items()},
    )


def settings_of(records: Sequence[Record]) -> dict[str, JsonValue]:
    """Return the settings of a run file that repeats these records; keys are the names of flags."""
    first = records[0]
    corrupted = [record for record in records if not record.clean]
    seeds = sorted({record.seed for record in records})
    options: dict[str, dict[str, JsonValue]] = {}
    for record in records:
        for method, values in record.options.items():
            options.setdefault(method, {}).update(values)
    return {
        "method": list[JsonValue](sorted({record.method for record in records})),
        "shift": first.shift,
        "corruption": list[JsonValue](sorted({str(record.corruption) for record in corrupted})),
        "severity": list[JsonValue](sorted({record.severity for record in corrupted})),
        "model" if first.weights.ready else "stock": first.model,
        "protocol": first.protocol,
        "split": first.split,
        "seed": seeds[0],
        "seeds": seeds[-1] - seeds[0] + 1,
        "batch-size": first.batch_size,
        "precision": first.precision,
        "labels": first.data.labels_per_class or 0,
        "set": dict[str, JsonValue](options),
    }


_SOURCE = {
    "none": "no source data while adapting",
    "statistics": "statistics of source data",
    "unlabelled": "unlabelled source images",
    "labelled": "labelled source images",
}
_TEST = {
    "none": "no test images",
    "image": "each test image alone",
    "stream": "the scored stream of test images, without labels",
    "pool": "a pool of shifted test images before scoring, without labels",
}


def card_of(records: Sequence[Record]) -> str:
    """Return the model card: what was run on which data, what each method saw, with which weights and code."""
    first = records[0]
    seeds = sorted({record.seed for record in records})
    labels = first.data.labels_per_class
    seen = {
        record.method: f"- {record.method} (track {record.track}): sees {_TEST[record.access.test]} and "
        f"{_SOURCE[record.access.source]}; {record.access.state}, gradients: {record.access.backprop}"
        for record in sorted(records, key=lambda record: record.method)
    }
    made = sorted({f"soupbench {r.env.get('project')}, commit {r.env.get('git') or 'of the release'}" for r in records})
    devices = sorted({record.cost.device_name for record in records if record.cost})
    corruptions = sorted({record.corruption for record in records if record.corruption})
    lines = [
        f"# {first.shift}, {first.model}, {first.protocol}, split {first.split}",
        "",
        f"{len(records)} records of {len(seen)} methods over {len(corruptions)} corruptions; seeds "
        f"{', '.join(map(str, seeds))}; {first.n} images in each condition.",
        "",
        "## What each method has seen",
        "",
        *seen.values(),
        "",
        "## Data and weights",
        "",
        f"- Corruptions: {', '.join(corruptions)}",
        f"- Labelled source images of each class: {labels or 'all'}",
        f"- Weights of {first.model}: {first.weights.digest}",
        f"- Preprocessing {first.data.profile}, storage {first.data.storage}, corruption seed {first.data.seed}",
        "",
        "## Made with",
        "",
        *(f"- {text}" for text in made),
        *(f"- device: {device}" for device in devices),
        "",
        "## How to repeat it",
        "",
        "`bench publish settings FILE -o run.toml` writes the run file, `bench run run.toml` runs it, and",
        "`bench run --record KEY --from FILE` repeats one record and compares its metrics.",
    ]
    return "\n".join(lines)[:MAX_CARD]


def check_file(path: Path, checker: Checker) -> tuple[Bundle | None, list[Problem]]:
    """Read and check one bundle; each error becomes a problem of one sentence, never an exception."""
    if not FILE_NAME.fullmatch(path.name):
        name = re.sub(r"[^ -~]", "?", path.name)
        return None, [
            Problem(None, name, "has an odd name; use lower-case letters, digits, dots and dashes, and .jsonl")
        ]
    try:
        bundle = read_bundle(path)
    except BundleError as error:
        return None, [Problem(None, path.name, str(error))]
    return bundle, [Problem(key, path.name, message) for key, message in check_bundle(bundle, checker)]


def check_folder(folder: Path, checker: Checker) -> tuple[dict[str, Bundle], list[Problem]]:
    """Check every bundle of a folder of published results, and that none contradicts another.

    Anything but bundles and a README.md is a problem. A result may be in several files if it is the same in all.
    """
    bundles: dict[str, Bundle] = {}
    problems: list[Problem] = []
    for path in sorted(folder.iterdir()):
        if path.name == "README.md" and path.is_file() and not path.is_symlink():
            continue
        bundle, found = check_file(path, checker)
        problems += found
        if bundle is not None:
            bundles[path.name] = bundle
    return bundles, [*problems, *check_together(bundles)]


def check_together(bundles: Mapping[str, Bundle], proposed: Collection[str] = ()) -> list[Problem]:
    """Check files, by name, that were checked one by one: none may contradict another.

    Of two files the `proposed` one is named, else the one that was made later.
    """
    return list(clashes(bundles, proposed))


def check_run(folder: Path, checker: Checker, card: str | None = None) -> list[Problem]:
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

    Strings must be plain text; keys must follow from the records; records must be comparable, and none failed or
    limited; the method must be known, with exactly its access; data, labels, images and weights must be the known ones;
    every corruption of the shift must be present for every method, part, severity and seed; accuracy must be the mean
    of the bits, and other metrics possible beside it; clean accuracy must be plausible; the code must be a clean commit
    or a release.
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
    shared: dict[str, Record] = {}
    for record in bundle.records:
        checks = (
            _record_problems(record, checker),
            _data_problems(record, checker.known, bundle.bits[record.key]),
            _number_problems(record, bundle.bits[record.key]),
        )
        for check in checks:
            yield from ((record.key, message) for message in check)
        other = shared.setdefault(bundle.digests[record.key], record)
        if (other.corruption, other.severity) != (record.corruption, record.severity):
            yield record.key, f"{_place(record)} has the predictions of {_place(other)}; run both again with --rerun"
    yield from ((record.key, message) for record, message in clean_doubts(bundle.records))
    yield from ((None, message) for message in _gaps(bundle.records, checker.known))


def _strings(bundle: Bundle) -> Iterator[tuple[str, str]]:
    yield "the card", bundle.card.replace("\n", " ")
    yield from _texts("settings", dict(bundle.settings))
    for record in bundle.records:
        yield from _texts(f"record {record.key}", record.model_dump(mode="json"))


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
    if any(unicodedata.category(character) in ("Cc", "Cf", "Cs", "Co", "Zl", "Zp") for character in text):
        return "an invisible character"
    if "../" in text or "..\\" in text:
        return "a path that leaves its folder"
    return None


def _record_problems(record: Record, checker: Checker) -> Iterator[str]:
    if record.status != "done":
        yield f"{_place(record)} failed; run it again with --only-failed"
    if record.limit is not None:
        yield f"{_place(record)} was limited to {record.limit} images; run it again without --limit"
    if record.data.skipped:
        yield f"{_place(record)} left out {record.data.skipped} test images; mend them and run it again on all of them"
    yield from (f"{_place(record)} {message}" for message in wrong_key(record))
    known = checker.access_of(record.method)
    if known is None:
        yield f"the method {record.method} is not in the table of methods; add it there in the same pull request"
    elif known != record.access:
        yield f"the access of {_place(record)} is not that of {record.method}; see `bench show method {record.method}`"
    commit, project = record.env.get("git"), record.env.get("project")
    if commit is None:
        released = checker.known.releases.get(project) if isinstance(project, str) else None
        if released is None or record.env.get("package") != released:
            place = _place(record)
            yield f"{place} was made with neither a commit nor a release; run it from a clean commit or a release"
    elif not (isinstance(commit, str) and _COMMIT.fullmatch(commit)) or record.env.get("dirty") is not False:
        yield f"{_place(record)} was made with uncommitted changes; commit them and run it again"


def _data_problems(record: Record, known: Known, bits: Bits) -> Iterator[str]:
    splits = known.shifts.get(record.shift)
    if splits is None:
        yield f"no data of the shift {record.shift} is known; a maintainer adds it with `bench publish known`"
        return
    split = splits.get(record.split)
    if split is None:
        yield f"split {record.split} of {record.shift} is not published; use one of {', '.join(sorted(splits))}"
        return
    condition = _condition(record)
    digest = split.conditions.get(condition)
    if digest is None:
        yield f"{record.shift} has no published condition {condition}; leave it out"
    elif digest != record.data.digest:
        yield f"the data of {_place(record)} are not those of {record.shift}; see `bench data verify {record.shift}`"
    if split.labels is not None and record.data.labels != split.labels:
        yield f"the labels of {_place(record)} are not those of {record.shift}; see `bench data verify {record.shift}`"
    if record.n != len(bits):
        yield f"{_place(record)} says n = {record.n} and has {len(bits)} outcomes; bundle the run again"
    if not np.array_equal(np.unique(bits.id), np.unique(ids_of(split.ids))):
        yield f"{_place(record)} was not scored on the {split.n} images of split {record.split}; run it again"
    for met in record.data.history:
        if met not in split.conditions:
            yield f"{_place(record)} has met {met}, which {record.shift} does not report; run it on its own conditions"
            break
    weights = known.models.get(record.model)
    if weights is None:
        yield f"no weights of the model {record.model} are known; a maintainer adds them with `bench publish known`"
    elif weights != record.weights.digest:
        yield f"the weights of {_place(record)} are not those of {record.model}; run it with the published ones"


def _number_problems(record: Record, bits: Bits) -> Iterator[str]:
    metrics = record.metrics
    if metrics is None:
        return
    accuracy = float(bits.hits.mean())
    if not abs(accuracy - metrics.accuracy) <= TOLERANCE:
        yield f"{_place(record)} says accuracy {metrics.accuracy!r}, its bits give {accuracy!r}; bundle the run again"
    # A wrong prediction is at least as probable as the label, so the label's probability is at most one half.
    if metrics.brier < 0.5 * (1 - accuracy) - 1e-3 or metrics.nll < float(np.log(2)) * (1 - accuracy) - 1e-3:
        yield f"{_place(record)} has a Brier score or NLL too good for its accuracy; run it again with --rerun"
    if record.cost is not None and record.cost.forwards < record.n - 0.5:
        yield f"{_place(record)} counts fewer forward passes than images; run it again with --rerun"


def _gaps(records: Iterable[Record], known: Known) -> Iterator[str]:
    groups: dict[tuple[tuple[str, str | None], int], list[Record]] = defaultdict(list)
    for record in records:
        groups[line_of(record), record.seed].append(record)
    seeds = {seed for _, seed in groups}
    lines = {line for line, _ in groups}
    if seeds != set(range(min(seeds), max(seeds) + 1)):
        yield "the seeds have gaps; run the missing ones or bundle without the outer ones"
    for line, seed in sorted((line, seed) for line in lines for seed in seeds if (line, seed) not in groups):
        yield f"{line_name(line)} lacks seed {seed} that others have; run it or leave the seed out"
    for (line, seed), group in groups.items():
        split = known.shifts.get(group[0].shift, {}).get(group[0].split)
        if split is None:
            continue
        here = {_condition(record) for record in group}
        levels = {f"{record.severity:g}" for record in group if not record.clean}
        wanted = {name for name in split.conditions if name == "clean" or name.rpartition("@")[2] in levels}
        if missing := sorted(wanted - here):
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            yield f"{line_name(line)}, seed {seed}, lacks {missing[0]}{more}; run the whole shift"
        if not levels:
            yield f"{line_name(line)}, seed {seed}, has no corrupted condition; run the whole shift"


def _condition(record: Record) -> str:
    return "clean" if record.corruption is None else f"{record.corruption}@{record.severity:g}"


def _place(record: Record) -> str:
    return f"{line_name(line_of(record))}, {condition_name(record.corruption, record.severity)}, seed {record.seed}"
