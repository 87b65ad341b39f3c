"""Results on the hub: bundles, a table and a card in a data set, and model cards with `model-index`. No torch.

A data set that `push` filled holds results/NAME.jsonl, data/records.parquet and README.md. Files from the hub are read
as data, after their sizes are known, and nothing else of a repository is fetched.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench.core.cache_dir import write_bytes
from bench.core.console import print_text
from bench.core.errors import BenchError, MissingDataError, UsageError
from bench.core.errors import ValidationError as InvalidResults
from bench.core.offline import is_offline
from bench.runs.publishing import checker, open_bundle, plain, read_and_check
from leaderboards.bundle import MAX_FILE, Bundle, write_bundle
from leaderboards.card import is_made
from leaderboards.comparable import line_name, line_of
from leaderboards.provenance import provenance, reviews, weakest, weights_word
from leaderboards.record import Record
from leaderboards.submit import FILE_NAME, check_folder

_REPO = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_FOLDER = "results/"
_MOST_FILES = 1000


def push(path: Path, repo: str, out: Path, upload: bool) -> None:
    """Check bundles and write them as a hub data set into a folder; with `upload`, send what was written."""
    _parsed(repo)
    problems = read_and_check(path, None, checker())[1]
    if problems:
        raise InvalidResults(plain(f"{problems[0].file}: {problems[0].message}"))
    files = [path] if path.is_file() else sorted(path.glob("*.jsonl"))
    bundles = {file.name: open_bundle(file) for file in files}
    for name, bundle in bundles.items():
        write_bundle(out / "results" / name, bundle)
    write_parquet(
        [record for bundle in bundles.values() for record in bundle.records], out / "data" / "records.parquet"
    )
    write_bytes(out / "README.md", data_card(repo, bundles).encode())
    if not upload:
        print_text(f"wrote {out}, sent nothing; add --upload to send it to {repo}")
        return
    written = ["README.md", "data/records.parquet", *(f"{_FOLDER}{name}" for name in bundles)]
    _library().HfApi().upload_folder(folder_path=out, repo_id=repo, repo_type="dataset", allow_patterns=written)
    print_text(f"sent {out} to the data set {repo}")


def pull(repo: str, out: Path) -> int:
    """Fetch the bundles of a data set into a folder if they pass the checks; return exit code 0, or 4 for problems."""
    with tempfile.TemporaryDirectory() as scratch:
        files = _fetched(repo, Path(scratch))
        found = check_folder(Path(scratch), checker())[1]
        for problem in found[:100]:
            print_text(plain(f"{problem.file}: {problem.message}"))
        if found:
            return 4
        out.mkdir(parents=True, exist_ok=True)
        for file in files:
            write_bytes(out / file.name, file.read_bytes())
    print_text(f"{out}: {len(files)} files of results from {repo}, no problems")
    return 0


def checked(repo: str, home: Path) -> list[Path]:
    """Fetch the bundles of a data set into a folder and return them. Raises InvalidResults if one has a problem."""
    shutil.rmtree(home, ignore_errors=True)
    files = _fetched(repo, home)
    if found := check_folder(home, checker())[1]:
        raise InvalidResults(plain(f"{repo}, {found[0].file}: {found[0].message}"))
    return files


def _fetched(text: str, home: Path) -> list[Path]:
    repo, revision = _parsed(text)
    if is_offline():
        raise MissingDataError(f"hf:{text} cannot be fetched offline; pull it once with: bench publish pull {repo}")
    library = _library()
    try:
        info = library.HfApi().dataset_info(repo, revision=revision, files_metadata=True)
        files = list(_bundles(repo, info.siblings or ()))
        home.mkdir(parents=True, exist_ok=True)
        for name in files:
            cached = library.hf_hub_download(repo, f"{_FOLDER}{name}", repo_type="dataset", revision=info.sha)
            shutil.copyfile(cached, home / name)
    except OSError as error:  # which the errors of the library and of the network are
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:160]
        raise MissingDataError(f"hf:{text} is not available ({plain(reason)}); check the name and connect") from None
    return [home / name for name in files]


def _bundles(repo: str, files: Sequence[Any]) -> Iterator[str]:
    """Yield the names of the bundles among the files of a repository, before any is fetched."""
    found = 0
    for file in files:
        name = file.rfilename.removeprefix(_FOLDER)
        if not file.rfilename.startswith(_FOLDER) or not FILE_NAME.fullmatch(name):
            continue
        found += 1
        if (file.size or 0) > MAX_FILE or found > _MOST_FILES:
            raise InvalidResults(f"{repo} has {_FOLDER}{name} or more files than are read; leave it out")
        yield name
    if not found:
        raise MissingDataError(
            f"{repo} holds no {_FOLDER}NAME.jsonl; fill it with: bench publish push FILE --repo {repo}"
        )


def _parsed(text: str) -> tuple[str, str | None]:
    repo, at, revision = text.partition("@")
    if not _REPO.fullmatch(repo) or (at and not _REVISION.fullmatch(revision)):
        raise UsageError(f"'{text}' is no data set of the hub; write NAME/REPO or NAME/REPO@REVISION")
    return repo, revision or None


def _library() -> Any:
    try:
        import huggingface_hub
    except ImportError:
        raise BenchError(
            "the hub needs huggingface_hub, which is not installed; run: pip install huggingface_hub"
        ) from None
    return huggingface_hub


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


def data_card(repo: str, bundles: dict[str, Bundle]) -> str:
    """Return the card of a data set of results: how to read it, and the card of each bundle."""
    head = [
        "---",
        "configs:",
        "- config_name: records",
        "  data_files: data/records.parquet",
        "tags:",
        "- soupbench",
        "---",
    ]
    body = [
        *("", f"# Results of soupbench: {repo}", ""),
        f"`bench leaderboard --from hf:{repo}` makes the board, `bench publish pull {repo}` fetches the files.",
    ]
    for name, bundle in bundles.items():
        body += ["", f"## {name}", "", *_card_lines(bundle)]
    return "\n".join([*head, *body]) + "\n"


def _card_lines(bundle: Bundle) -> list[str]:
    """Return a card's lines for Markdown: what this project made as it is, a submitter's text as a block of code."""
    lines = bundle.card.splitlines()
    if is_made(bundle):
        return [f"##{line}" if line.startswith("#") else line for line in lines]
    return ["The submitter's own text, which nobody has checked:", "", *(f"    {line}" for line in lines)]


def write_model_card(path: Path, out: Path | None) -> None:
    """Print or write the model card of a bundle, with its results as `model-index`."""
    text = model_card(open_bundle(path))
    if out is None:
        print_text(text)
    else:
        write_bytes(out, text.encode())


def model_card(bundle: Bundle) -> str:
    """Return a model card of the hub: every complete row as a result of `model-index`, then the bundle's card."""
    library, against = _library(), checker()
    words = provenance({"": bundle}, against.known, reviews())[""]
    first = bundle.records[0]
    results = [
        library.EvalResult(
            task_type="image-classification",
            dataset_type=first.shift.partition(":")[0],
            dataset_name=first.shift,
            dataset_config=first.protocol,
            dataset_split=first.split,
            metric_type=metric,
            metric_name=f"{metric} of {name}, mean over corruptions, {word}",
            metric_value=round(value, 6),
        )
        for name, metric, value, word in _rows(bundle, words)
    ]
    data = library.ModelCardData(
        model_name=first.model, eval_results=results, tags=["soupbench", "test-time-adaptation"]
    )
    stated = weights_word(first, bundle, against.known)
    return "\n".join(["---", data.to_yaml(), "---", "", f"Weights: {stated}.", "", *_card_lines(bundle)]) + "\n"


def _rows(bundle: Bundle, words: dict[str, str]) -> Iterator[tuple[str, str, float, str]]:
    """Yield (row, metric, mean over corruptions and seeds, how well confirmed) of each row."""
    lines: dict[tuple[str, str | None], list[Record]] = defaultdict(list)
    for record in bundle.records:
        if not record.clean and record.metrics is not None:
            lines[line_of(record)].append(record)
    metrics = ("accuracy", "ece", "nll", "brier") if bundle.recomputed else ("accuracy",)
    for line, records in sorted(lines.items(), key=lambda item: line_name(item[0])):
        word = weakest([words[record.key] for record in records])
        for metric in metrics:
            yield line_name(line), metric, float(np.mean([getattr(r.metrics, metric) for r in records])), word
