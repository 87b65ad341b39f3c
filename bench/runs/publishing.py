"""Implement `bench publish`: bundles of results and the checks that published results must pass. No torch."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import tomli_w

from bench.core.cache_dir import write_bytes
from bench.core.console import print_json, print_text
from bench.core.errors import BenchError, MissingDataError, UsageError, nearest
from bench.core.errors import ValidationError as InvalidResults
from bench.runs.open_results import filtered, open_records
from bench.settings.methods import parse_method
from leaderboards import site
from leaderboards.bundle import Bundle, BundleError, read_bundle, write_bundle
from leaderboards.comparable import BoardError
from leaderboards.files import StoreError
from leaderboards.identity import labels_digest
from leaderboards.record import Access, Record, schema
from leaderboards.store import find_predictions
from leaderboards.submit import (
    FILE_NAME,
    Checker,
    Known,
    KnownSplit,
    check_file,
    check_folder,
    check_predictions,
    check_run,
    known,
    make_bundle,
    read_known,
)
from leaderboards.verify import Problem
from methods import METHODS

_MOST_SHOWN = 100  # problems of one submission that are printed


def checker() -> Checker:
    """Return a checker that knows the table of methods and the data and weights that ship with the project."""
    return Checker(access_of, known())


def access_of(method: str) -> Access | None:
    """Return a method's access from the table, or None if it is not there. Never loads code that the name refers to."""
    if any(part not in METHODS for part in method.split("+")):
        return None
    try:
        parsed = parse_method(method)
    except UsageError:
        return None
    return Access.model_validate(parsed.access)


def bundle(folder: Path, out: Path, card: Path | None, where: list[str]) -> None:
    """Write the bundle of a results folder after the checks of `bench publish check`."""
    if not FILE_NAME.fullmatch(out.name):
        raise UsageError(f"-o {out.name} is not a valid name; use lower case, as in digits-c-tent.jsonl")
    records = filtered(open_records([folder]), where)
    text = None if card is None else _read_text(card)
    try:
        made = make_bundle(records, lambda record: find_predictions([folder], record), text)
        write_bundle(out, made)
    except (BoardError, StoreError) as error:
        raise InvalidResults(str(error)) from None
    print_text(f"{out}: {len(made.records)} records; check it with: bench publish check {out}")


def check(path: Path, predictions: Path | None, as_json: bool) -> int:
    """Check a bundle, a folder of bundles or a results folder and print each problem; return exit code 0 or 4."""
    found = [Problem(p.key, plain(p.file), plain(p.message)) for p in _problems(path, predictions)]
    if as_json:
        print_json({"problems": [{"key": p.key, "file": p.file, "message": p.message} for p in found]})
        return 4 if found else 0
    counts = Counter(f"{problem.file}: {problem.message}" for problem in found)  # many records may share a problem
    for sentence, times in list(counts.items())[:_MOST_SHOWN]:
        print_text(sentence + (f" ({times} times)" if times > 1 else ""))
    if len(counts) > _MOST_SHOWN:
        print_text(f"and {len(counts) - _MOST_SHOWN} more; fix these first")
    if not found:
        print_text(f"{path}: no problems; it can be published")
    return 4 if found else 0


def _problems(path: Path, predictions: Path | None) -> Iterator[Problem]:
    against = checker()
    if path.is_file() or path.is_symlink():
        made, found = check_file(path, against)
        yield from found
        if made is not None and predictions is not None:
            yield from check_predictions(made, lambda record: find_predictions([predictions], record))
    elif (path / "records").is_dir() or (path / "records.jsonl").is_file():
        yield from check_run(path, against)
    elif path.is_dir():
        yield from check_folder(path, against)[1]
    else:
        raise MissingDataError(f"{path} does not exist; give a file made by `bench publish bundle` or a folder of them")


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


def write_known(shift_name: str, out: Path) -> None:
    """Add a shift's scored ids, digests and default weights to a table, computed from local data.

    Raises MissingDataError if the data or the stock is not found.
    """
    from bench.core.conditions import CLEAN, Condition
    from bench.models.weights_io import load_stock
    from bench.shifts import SHIFTS, load_shift
    from bench.shifts.shift import split_ids
    from leaderboards.bundle import runs_of

    shift = load_shift(nearest(shift_name, SHIFTS, "shift"))
    stock = SHIFTS[shift_name].default_stock
    conditions = [CLEAN, *(Condition(name, level) for name in shift.corruptions for level in range(1, 6))]
    splits = {}
    for split in ("disjoint", "joint", "transductive"):
        _, scored = split_ids(shift.ids("test"), split)
        splits[split] = KnownSplit.model_validate(
            {
                "ids": [tuple(run) for run in runs_of(scored)],
                "conditions": {str(condition): shift.digest(scored, condition) for condition in conditions},
                "labels": labels_digest(scored, shift.labels(scored)),
            }
        )
    known = read_known(out) if out.is_file() else Known()
    known = Known(
        shifts=dict(known.shifts) | {shift_name: splits},
        models=dict(known.models) | {stock: load_stock(stock).digest},
        releases=dict(known.releases),
    )
    write_bytes(out, (json.dumps(known.model_dump(mode="json"), indent=1, sort_keys=True) + "\n").encode())


def push(path: Path, repo: str, out: Path, upload: bool) -> None:
    """Check bundles and write them as parquet, one record per row; with `upload`, send it to a hub data set."""
    problems = list(_problems(path, None))
    if problems:
        raise InvalidResults(plain(f"{problems[0].file}: {problems[0].message}"))
    files = [path] if path.is_file() else sorted(path.glob("*.jsonl"))
    write_parquet([record for file in files for record in open_bundle(file).records], out)
    if not upload:
        print_text(f"wrote {out}, sent nothing; add --upload to send it to {repo}")
        return
    from huggingface_hub import HfApi

    HfApi().upload_file(path_or_fileobj=out, path_in_repo=f"data/{out.name}", repo_id=repo, repo_type="dataset")
    print_text(f"sent {out} to the data set {repo}")


def write_parquet(records: list[Record], out: Path) -> None:
    """Write one row per record: plain fields, metrics and costs as separate columns, nested values as JSON."""
    import io

    import pandas as pd

    rows = []
    for record in records:
        content = record.model_dump(mode="json", by_alias=True)
        row: dict[str, object] = {}
        for name, value in content.items():
            if name in ("metrics", "cost", "access") and isinstance(value, dict):
                row |= {f"{name}_{inner}": plain_value for inner, plain_value in value.items()}
            else:
                row[name] = json.dumps(value) if isinstance(value, dict | list) else value
        rows.append(row)
    buffer = io.BytesIO()
    try:
        pd.DataFrame(rows).to_parquet(buffer, index=False)
    except ImportError:
        raise BenchError("parquet needs pyarrow, which is not installed; run: pip install pyarrow") from None
    write_bytes(out, buffer.getvalue())


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        raise UsageError(f"{path} cannot be read as UTF-8 text; give another card") from None
