"""Implement `bench publish`: bundles of results and the checks that published results must pass. No torch."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tomli_w
from pydantic import TypeAdapter, ValidationError

from bench.core.cache_dir import write_bytes
from bench.core.console import print_json, print_text
from bench.core.errors import BenchError, MissingDataError, UsageError
from bench.core.errors import ValidationError as InvalidResults
from bench.runs.read_records import filtered, open_records
from bench.runs.vocabulary import vocabulary
from leaderboards import site
from leaderboards.bundle import MAX_FILE, Bundle, BundleError, Link, Submitter, read_bundle, write_bundle
from leaderboards.changes import changes
from leaderboards.comparable import BoardError
from leaderboards.files import StoreError
from leaderboards.known import Known, known, read_known
from leaderboards.record import schema
from leaderboards.store import find_predictions
from leaderboards.submit import (
    FILE_NAME,
    Checker,
    check_file,
    check_folder,
    check_predictions,
    check_run,
    check_together,
    make_bundle,
    presented,
)
from leaderboards.verify import Problem

RESULTS = Path("leaderboards") / "results"
_MOST_SHOWN = 100  # problems of one submission that are printed


def checker(table: Path | None = None) -> Checker:
    """Return a checker that knows the words of the tables, and the data and weights that ship with the project.

    A `table` of `bench publish known` takes the place of these, for boards of your own.
    """
    try:
        return Checker(vocabulary(), known() if table is None else read_known(table))
    except StoreError as error:
        raise InvalidResults(str(error)) from None


def bundle(
    folder: Path,
    out: Path,
    card: Path | None,
    where: list[str],
    *,
    submitter: str | None = None,
    weights: str | None = None,
    lean: bool = False,
) -> None:
    """Write the bundle of a results folder.

    `submitter` and `weights` are what the file states of who submits and where an own model is; a `lean` bundle has no
    probabilities.
    """
    for value, kind, what in ((submitter, Submitter, "submitter"), (weights, Link, "weights")):
        _check_word(value, kind, what)
    if not FILE_NAME.fullmatch(out.name):
        raise UsageError(f"-o {out.name} is not a valid name; use lower case, as in digits-c-tent.jsonl")
    records = filtered(open_records([folder]), where)
    text = None if card is None else _read_text(card)
    try:
        made = make_bundle(
            records,
            lambda record: find_predictions([folder], record),
            text,
            probabilities=not lean,
            submitter=submitter,
            weights=weights,
        )
        write_bundle(out, made)
        if out.stat().st_size > MAX_FILE:
            out.unlink()
            raise InvalidResults(
                f"{out.name} has more than {MAX_FILE >> 20} MiB; add --lean, or bundle fewer records (--where)"
            )
    except (BoardError, StoreError) as error:
        raise InvalidResults(str(error)) from None
    print_text(f"{out}: {len(made.records)} records; check it with: bench publish check {out}")


def _check_word(value: str | None, kind: Any, what: str) -> None:
    try:
        TypeAdapter(kind | None).validate_python(value)
    except ValidationError:
        like = {"submitter": "a user name, as in jane-doe", "weights": "hf:REPO@REVISION (40 digits) or https://…"}
        raise UsageError(f"--{what} {value!r} is not {like[what]}; write it like that") from None


def check(
    path: Path,
    predictions: Path | None,
    as_json: bool,
    published: Path | None = None,
    allow_changes: bool = False,
    table: Path | None = None,
) -> int:
    """Check a bundle, a folder of bundles or a results folder and print each problem; return exit code 0 or 4.

    With a folder of `published` results, also say what would vanish, change or be added; only additions pass, unless
    `allow_changes`. A folder of bundles is then the proposed state of that folder, anything else is added to it. A
    `table` of known data takes the place of the project's.
    """
    against = checker(table)
    bundles, found = read_and_check(path, predictions, against)
    sentences: list[str] = []
    if published is not None and not found:
        more, sentences = _compared(path, bundles, published, against, allow_changes=allow_changes)
        found += more
    found = [Problem(p.key, plain(p.file), plain(p.message)) for p in found]
    sentences = [plain(sentence) for sentence in sentences]
    if as_json:
        problems = [{"key": p.key, "file": p.file, "message": p.message} for p in found]
        print_json({"problems": problems, "changes": sentences})
        return 4 if found else 0
    counts = Counter(f"{problem.file}: {problem.message}" for problem in found)  # many records may share a problem
    for sentence, times in list(counts.items())[:_MOST_SHOWN]:
        print_text(sentence + (f" ({times} times)" if times > 1 else ""))
    if len(counts) > _MOST_SHOWN:
        print_text(f"and {len(counts) - _MOST_SHOWN} more; fix these first")
    for sentence in sentences[:_MOST_SHOWN]:
        print_text(f"- {sentence}")
    if len(sentences) > _MOST_SHOWN:
        print_text(f"- and {len(sentences) - _MOST_SHOWN} more")
    if not found:
        print_text(f"{path}: no problems; it can be published")
    return 4 if found else 0


def published_beside(path: Path) -> Path | None:
    """Return the published results with which a bundle or a run is compared: those of this checkout, None without."""
    one = path.is_file() or (path / "records").is_dir() or (path / "records.jsonl").is_file()
    return RESULTS if one and RESULTS.is_dir() else None


def read_and_check(path: Path, predictions: Path | None, against: Checker) -> tuple[dict[str, Bundle], list[Problem]]:
    """Return the bundles that a path holds or makes, by file name, and what keeps them from being published."""
    if path.is_file() or path.is_symlink():
        made, found = check_file(path, against)
        if made is None:
            return {}, found
        if predictions is not None:
            found += check_predictions(made, lambda record: find_predictions([predictions], record))
        return {path.name: made}, found
    if (path / "records").is_dir() or (path / "records.jsonl").is_file():
        if found := check_run(path, against):
            return {}, found
        name = re.sub(r"[^a-z0-9._-]", "-", path.resolve().name.lower()).lstrip("._-") or "run"
        return {f"{name}.jsonl": make_bundle(open_records([path]), lambda r: find_predictions([path], r))}, []
    if path.is_dir():
        return check_folder(path, against)
    raise MissingDataError(f"{path} does not exist; give a file made by `bench publish bundle` or a folder of them")


def _compared(
    path: Path, bundles: Mapping[str, Bundle], published: Path, against: Checker, *, allow_changes: bool
) -> tuple[list[Problem], list[str]]:
    """Return what the bundles contradict, hide or change in a folder of published results, and sentences on the rest.

    The whole site is built without and with them.
    """
    if not published.is_dir():
        raise MissingDataError(f"no folder {published}; give the published results, or run this in a checkout")
    whole = path.is_dir() and not (path / "records").is_dir() and not (path / "records.jsonl").is_file()
    if whole and path.resolve() == published.resolve():
        return [], []
    there = sorted(file for file in published.glob("*.jsonl") if file.resolve() != path.resolve())
    then = {file.name: open_bundle(file) for file in there}
    now = dict(bundles) if whole else {**then, **bundles}
    proposed = {name for name in bundles if name not in then or then[name].records != bundles[name].records}
    if found := check_together(now, against, proposed):
        return found, []
    before = site.make_site(presented(then, against))
    try:
        after = site.make_site(presented(now, against), before)
        site.files_of(after, {}, with_figures=False)
    except BoardError as error:
        return [Problem(None, path.name, f"cannot stand with what is published: {error}")], []
    different = list(changes(before, after))
    harm = [] if allow_changes else [change for change in different if not change.harmless]
    advice = "only additions are published; a maintainer may allow it with --allow-changes"
    return (
        [Problem(None, path.name, f"{change.text}; {advice}") for change in harm],
        [change.text for change in different if change not in harm],
    )


def build_site(results: Path, out: Path, project: str | None = None) -> None:
    """Write the site of a folder of published results, all of which must pass the checks; `project` is an address."""
    if project is not None and not re.fullmatch(r"https://[!-~]+", project):
        raise UsageError(f"--project takes an address that begins with https://, not '{project}'")
    if not results.is_dir():
        raise MissingDataError(f"no folder {results}; run this in a checkout, or give records with --from")
    bundles, problems = check_folder(results, checker())
    if problems:
        first = plain(f"{problems[0].file}: {problems[0].message}")
        raise InvalidResults(f"{first} (see `bench publish check {results}`)")
    try:
        pages = site.build_site(bundles, out, project=project)
    except OSError as error:
        raise BenchError(f"cannot write {out}: {error.strerror}; choose another folder") from None
    print_text(f"{len(bundles)} files of results, {len(pages)} pages; open {pages[0]}")


def plain(text: str) -> str:
    """Return text that is safe to print, because problems quote untrusted files.

    Control characters, non-ASCII characters and angle brackets become question marks.
    """
    return re.sub(r"[^\x20-\x7e]|[<>]", "?", text)


def open_bundle(path: Path) -> Bundle:
    """Read a bundle, without checking whether it may be published."""
    if not path.is_file():
        raise MissingDataError(f"no file {path}; give one made by `bench publish bundle`")
    try:
        return read_bundle(path)
    except BundleError as error:
        raise InvalidResults(str(error)) from None


def write_settings(path: Path, out: Path | None) -> None:
    """Print or write the run file that repeats a bundle."""
    text = tomli_w.dumps(_without_none(open_bundle(path).settings))
    if out is None:
        print_text(text)
    else:
        write_bytes(out, text.encode())


def _without_none(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings without None values, at any depth: TOML has no null, and None is the default."""
    return {
        name: _without_none(value) if isinstance(value, Mapping) else value
        for name, value in settings.items()
        if value is not None
    }


def write_schema(out: Path | None) -> None:
    """Print or write the JSON Schema of a record."""
    if out is None:
        print_json(schema())
    else:
        write_bytes(out, (json.dumps(schema(), indent=2) + "\n").encode())


def write_known(shift_name: str | None, out: Path, data_root: Path | None = None) -> None:
    """Write the definitions of all standard shifts into a table, and pin the digests of one of them.

    The digests are those of the data on this machine. Raises MissingDataError if they are not found.
    """
    from bench.runs.known_data import definitions, pinned
    from bench.shifts import find_row

    table = read_known(out) if out.is_file() else Known()
    if shift_name is None:
        table = table.model_copy(update={"definitions": definitions()})
    else:
        table = pinned(table, find_row(shift_name).name, data_root)
    write_bytes(out, (json.dumps(table.model_dump(mode="json"), indent=1, sort_keys=True) + "\n").encode())


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        raise UsageError(f"{path} cannot be read as UTF-8 text; give another card") from None
