"""Tell without torch that a command has nothing left to do: what it depends on is as it was when it finished.

A finished run leaves a receipt in the folder of its records: the keys of these records and a digest of everything that
their keys are made of, or that decides which there are. If the digest is the same, so are the keys. Where the inputs
cannot be listed without opening them (weights from a hub, user code that may read any file), there is no receipt, and
the run is planned as usual.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from bench.core.cache_dir import write_bytes
from bench.core.conditions import digest_of
from bench.core.environment import package_digest
from bench.core.errors import BenchError
from bench.core.source_code import files_digest
from bench.data.content_hash import is_settled, stamp_of
from bench.models.known_names import BUNDLED
from bench.runs.outcome import Outcome
from bench.settings.grid import settings_of
from bench.settings.run_spec import RunSpec
from bench.settings.shift_options import budget_of
from bench.shifts import find_row
from bench.shifts.data_root import Reading
from leaderboards.store import Store, StoreError
from methods import METHODS

_MOST_FILES = 100_000
"""More files than this take longer to look at than a run takes to be planned."""

_PART = re.compile("train|test|val|dev", re.IGNORECASE)
_VARIABLES = ("SOUPBENCH_", "CUDA_", "XDG_CACHE_HOME", "PYTHONPATH")


class _Unknown(Exception):
    """The inputs of a run cannot be told without opening them."""


@dataclass(frozen=True)
class FinishedRuns:
    """Runs that have nothing left to do: an outcome of each, notes for the user, and the run file that repeats them."""

    outcomes: tuple[Outcome, ...]
    notes: tuple[str, ...]
    settings: str


def state_of_inputs(specs: Sequence[RunSpec]) -> str | None:
    """Return a digest of all that decides the records of runs; None if that cannot be told, or may still change."""
    if any(spec.rerun or spec.only_failed or spec.tracker for spec in specs):
        return None
    now = time.time_ns()
    try:
        stamps = [stamp for spec in specs for path in _inputs(spec) for stamp in _stamps(path, now)]
        own_code = [files_digest(Path(file).resolve()) for spec in specs for file in _own_code(spec)]
    except (_Unknown, OSError, SyntaxError, ValueError, BenchError):
        return None
    settings = [settings_of(specs), [spec.model_dump(mode="json", include={"launch", "slurm"}) for spec in specs]]
    machine = [platform.node(), platform.machine(), sys.version, sys.prefix, str(Path.cwd()), _devices()]
    variables = sorted((key, value) for key, value in os.environ.items() if key.startswith(_VARIABLES))
    return digest_of([settings, machine, variables, _installed(), package_digest(), _assets(), own_code, stamps])


def recall(specs: Sequence[RunSpec], out: Path) -> FinishedRuns | None:
    """Return the outcomes of runs whose records all exist; None if there may be something to do."""
    path = _receipt(specs, out)
    if not path.is_file() or (state := state_of_inputs(specs)) is None:
        return None
    try:
        kept = json.loads(path.read_bytes())
        if kept["state"] != state:
            return None
        runs = [tuple(map(str, keys)) for keys in kept["runs"]]
        if len(runs) != len(specs) or not Store(out).has_done({key for keys in runs for key in keys}):
            return None
        outcomes = tuple(Outcome(out, keys, 0, 0, len(keys), ()) for keys in runs)
        return FinishedRuns(outcomes, tuple(map(str, kept["notes"])), str(kept["settings"]))
    except (OSError, ValueError, TypeError, KeyError, StoreError):
        return None


def keep(specs: Sequence[RunSpec], out: Path, before: str | None, outcomes: Sequence[Outcome]) -> None:
    """Leave a receipt if all runs are done and their inputs are still those of `before`, when they were planned."""
    if before is None or len(outcomes) != len(specs) or any(outcome.failed or outcome.errors for outcome in outcomes):
        return
    if any(outcome.done and budget_of(spec.shift, spec.budget) for spec, outcome in zip(specs, outcomes, strict=True)):
        return  # the notes say what the trainings cost, which is no longer true
    if state_of_inputs(specs) != before:
        return
    settings = (out / "run.toml").read_text(encoding="utf-8")
    runs = [list(outcome.keys) for outcome in outcomes]
    notes = list(dict.fromkeys(note for outcome in outcomes for note in outcome.notes))
    kept = {"state": before, "runs": runs, "notes": notes, "settings": settings}
    write_bytes(_receipt(specs, out), json.dumps(kept).encode())


def _receipt(specs: Sequence[RunSpec], out: Path) -> Path:
    return out / "state" / f"finished-{digest_of(settings_of(specs))[:16]}.json"


def _inputs(spec: RunSpec) -> Iterator[Path]:
    """Yield the files and folders that a run reads, or would read if they existed. Raises _Unknown."""
    row = find_row(spec.shift)
    if spec.init_from or row.path.startswith(("bench.shifts.user_shift:", "bench.shifts.vtab:")):
        raise _Unknown
    kind, _, argument = row.name.partition(":")
    root = Reading(spec.data_root).root
    if kind == "hf":
        raise _Unknown
    if kind == "folder":
        place = Path(argument).expanduser()
        # The other parts of a set may lie beside a folder that holds one of them.
        yield from (each.parent if _PART.search(place.name) else each for each in (place, root / place))
    elif row.name != "digits-c":
        yield from _published(Reading(spec.data_root), (row.places, row.clean, row.train))
    if spec.classes is not None and Path(spec.classes).exists():
        yield Path(spec.classes)
    yield from _base(spec, root, needs_stock=row.default_stock not in BUNDLED)


def _published(reading: Reading, kinds: Sequence[Sequence[str]]) -> Iterator[Path]:
    """Yield the folders of a published set; one that is not there may come from a hub, whose files are not listed."""
    for number, places in enumerate(kinds):
        found = reading.find(places)
        if found is not None:
            yield found
        elif number == 0:
            raise _Unknown
    # Lists and tiles that a shift finds beside its images.
    yield from (path for path in sorted(reading.root.iterdir()) if path.is_file() or path.name == "laion-c-tiles")


def _base(spec: RunSpec, root: Path, *, needs_stock: bool) -> Iterator[Path]:
    """Yield the file of the stock or model. Raises _Unknown for weights from a hub and for factories."""
    name = spec.model or spec.stock
    if name is None:
        if needs_stock:
            if find_row(spec.shift).default_model:
                raise _Unknown
            yield root / "stocks"
    elif name not in BUNDLED and not name.startswith("lite:"):
        file = Path((name.rpartition("@")[2] or name).partition("#")[0]).expanduser()
        if ".py:" in name or not file.exists() or name.startswith(("hf:", "openclip:", "robustbench:")):
            raise _Unknown
        yield file.parent if file.suffix == ".json" else file  # an index lists files beside it


def _own_code(spec: RunSpec) -> Iterator[str]:
    """Yield the files of the user's methods and corruptions. Raises _Unknown for methods of other packages."""
    for part in (part.strip() for method in spec.method for part in method.split("+")):
        if ".py:" in part:
            yield part.rpartition(":")[0]
        elif part not in METHODS:
            raise _Unknown
    yield from (name.rpartition(":")[0] for name in spec.corruption or () if name.rpartition(":")[0].endswith(".py"))


def _stamps(path: Path, now: int) -> list[Any]:
    """Return path and stamp of a file, or of all files in a folder. Raises _Unknown if one has just changed."""
    if not path.exists():
        return [str(path)]
    found: list[Any] = []
    for each in _walk(path):
        stamp = stamp_of(each.stat())
        if not is_settled(stamp, now) or len(found) > _MOST_FILES:
            raise _Unknown
        found.append((str(each), stamp))
    return sorted(found)


def _walk(path: Path) -> Iterator[Path]:
    """Yield a file or folder and all below it, also behind links."""
    yield path
    if path.is_dir():
        for folder, names, files in os.walk(path, followlinks=True):
            yield from (Path(folder, name) for name in (*names, *files))


def _installed() -> list[str]:
    """Return the installed distributions, whose folders are named by their versions."""
    folders = [Path(place) for place in dict.fromkeys(sys.path) if place and Path(place).is_dir()]
    return sorted(f"{folder}/{each.name}" for folder in folders for each in folder.glob("*.*-info"))


def _devices() -> list[str]:
    return sorted(str(path) for path in Path("/dev").glob("nvidia*"))


def _assets() -> str:
    """Return a digest of the tables and weights that come with the package."""
    sha = hashlib.sha256()
    with resources.as_file(resources.files("bench") / "assets") as home:
        for path in sorted(path for path in home.rglob("*") if path.is_file()):
            sha.update(f"{path.relative_to(home)}|".encode() + path.read_bytes())
    return sha.hexdigest()
