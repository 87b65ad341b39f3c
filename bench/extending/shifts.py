"""Write a starter file for a user-defined shift, and check a shift against the rules of all shifts."""

from __future__ import annotations

import hashlib
import inspect
import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bench.core.child_processes import without_script
from bench.core.conditions import CLEAN, Condition
from bench.core.errors import BenchError, UsageError
from bench.core.import_object import load_file
from bench.extending.methods import tell_findings, write_first
from bench.shifts import SHIFTS, load_shift
from bench.shifts.data_root import Reading
from bench.shifts.shift import Shift, limit_ids
from bench.shifts.user_shift import OwnShift
from methods.conformance import Finding

_IMAGES = 8
_LEVELS = (1.0, 3.0, 5.0)
_AT_ONCE = 256

_NEXT = """wrote {file} and {test}
try it:      bench check shift {file}
test it:     python -m pytest {test}
run it:      bench run --method source,tent --shift {file}:{title} --stock digits
"""


def write_shift(name: str, folder: Path) -> None:
    """Write NAME.py and test_NAME.py into a folder. Raises UsageError for a name or file that exists."""
    write_first("shift", name, SHIFTS, folder, _NEXT, "shift")


def check_shift(shift: str, data_root: Path | None, *, as_json: bool) -> int:
    """Print the rules that a shift breaks, and return 0 if it breaks none, else 4."""
    path = named(shift)
    findings = list(conform(path, data_root))
    name = f"{Path(path.rpartition(':')[0]).name}:{path.rpartition(':')[2]}"
    return tell_findings("shift", name, "cases", findings, as_json=as_json)


def conform(path: str, data_root: Path | None = None) -> Iterator[Finding]:
    """Check FILE.py:CLASS on a few of its images, under each corruption at its severities (default: 1, 3 and 5).

    A shift that keeps all rules is checked again in another process. Raises UsageError if it cannot be loaded.
    """
    shift = load_shift(path, data_root)
    failed = False
    for finding in (*_parts(shift, shift.ids("test")), *_conditions(shift)):
        failed |= finding.status == "failed"
        yield finding
    if not failed:
        yield from _elsewhere(path, data_root)


def _conditions(shift: Shift) -> Iterator[Finding]:
    few = _few(shift)
    clean = shift.images(few, CLEAN)
    for condition in _tried(shift):
        try:
            whole = shift.images(few, condition)
        except Exception as error:  # noqa: BLE001 - the user's code may raise any error
            yield Finding("gives_images", str(condition), "failed", f"{type(error).__name__}: {error}")
            continue
        yield Finding("gives_images", str(condition), "passed")
        yield _result(
            "changes_images", condition, not torch.equal(whole, clean), "it changes no image; alter the pixels"
        )
        again = torch.equal(shift.images(few, condition), whole)
        yield _result("same_again", condition, again, "two calls give different pixels; draw from self.draws alone")
        alone = torch.cat([shift.images(few[i : i + 1], condition) for i in range(len(few))])
        turned = shift.images(few[::-1].copy(), condition).flip(0)
        same = torch.equal(alone, whole) and torch.equal(turned, whole)
        yield _result("same_in_every_batch", condition, same, "an image depends on its batch; draw by image, with ids")


def _few(shift: Shift) -> np.ndarray:
    return limit_ids(shift.ids("test"), _IMAGES)


def _tried(shift: Shift) -> list[Condition]:
    names, levels = (*shift.corruptions, *shift.tuning_corruptions), shift.severities or _LEVELS
    return [Condition(name, level) for name in names for level in levels]


def _elsewhere(path: str, data_root: Path | None) -> Iterator[Finding]:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        with without_script():
            task = process.submit(hashes, path, data_root)
        there = task.result()
    message = "another process makes other pixels; use no global state"
    for condition, here in hashes(path, data_root).items():
        yield _result("same_in_another_process", condition, there[condition] == here, message)


def hashes(path: str, data_root: Path | None) -> dict[Condition, str]:
    """Return a hash of the checked images under each checked condition, computed in this process."""
    shift = load_shift(path, reading=Reading(data_root))
    return {condition: _hash(shift.images(_few(shift), condition)) for condition in _tried(shift)}


def _parts(shift: Shift, ids: np.ndarray) -> Iterator[Finding]:
    lacking = sorted(set(range(shift.classes)) - set(shift.labels(ids).tolist()))
    yield _result("tests_every_class", "test", not lacking, f"no image of class {', '.join(map(str, lacking[:8]))}")
    try:
        others = {part: shift.ids(part) for part in ("train", "dev")}
    except BenchError:
        yield Finding("keeps_parts_apart", "train", "refused", "there are no train images, so recipes cannot run")
        return
    tested = set(_each(shift, ids))
    for part, own in others.items():
        both = sum(one in tested for one in _each(shift, own))
        yield _result("keeps_parts_apart", part, not both, f"{both} of its images are test images too")


def _each(shift: Shift, ids: np.ndarray) -> Iterator[str]:
    for low in range(0, len(ids), _AT_ONCE):
        for image in shift.images(ids[low : low + _AT_ONCE], CLEAN):
            yield _hash(image)


def _hash(images: Tensor) -> str:
    return hashlib.blake2b(images.contiguous().numpy().data, digest_size=16).hexdigest()


def _result(check: str, where: object, holds: bool, message: str) -> Finding:
    return Finding(check, str(where), "passed" if holds else "failed", "" if holds else message)


def named(shift: str) -> str:
    """Return FILE.py:CLASS for FILE.py if it defines exactly one shift. Raises UsageError."""
    if not shift.endswith(".py"):
        if ".py:" not in shift:
            raise UsageError(f"give a file, as in my_shift.py or my_shift.py:MyShift, not '{shift}'")
        return shift
    module = load_file(Path(shift))
    defined = [
        name
        for name, value in vars(module).items()
        if inspect.isclass(value) and issubclass(value, OwnShift) and value.__module__ == module.__name__
    ]
    if len(defined) != 1:
        raise UsageError(f"{shift} defines {', '.join(defined) or 'none'} as shifts; say which, as in {shift}:Name")
    return f"{shift}:{defined[0]}"
