"""Whoever calls this project from Python may write every path as text."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bench
import corruptions
import leaderboards

FIELD = Path(leaderboards.__file__).parent / "results" / "digits-c-field.jsonl"


def public() -> Iterator[tuple[str, Any]]:
    for package in (bench, corruptions, leaderboards):
        for name in package.__all__:
            found = getattr(package, name)
            if inspect.isfunction(found):
                yield f"{package.__name__}.{name}", found
            if inspect.isclass(found):
                for each, method in vars(found).items():
                    plain = method.__func__ if isinstance(method, staticmethod | classmethod) else method
                    if inspect.isfunction(plain) and (not each.startswith("_") or each == "__init__"):
                        yield f"{package.__name__}.{name}.{each}", plain


def test_every_public_function_that_takes_a_path_says_that_it_takes_text() -> None:
    taking = {}
    for name, function in public():
        for parameter, annotation in inspect.get_annotations(function).items():
            if parameter != "return" and re.search(r"\bPath\b", text := str(annotation)):
                taking[name, parameter] = text
    assert ("leaderboards.read_bundle", "path") in taking
    only = {place: text for place, text in taking.items() if not re.search(r"\bstr\b|PathLike", text)}
    # folder_pool makes the first, run the second.
    assert only.keys() <= {("corruptions.TilePool.__init__", "pictures"), ("bench.Outcome.__init__", "out")}


def test_bundles_predictions_and_folders_take_text(tmp_path: Path) -> None:
    bundle = leaderboards.read_bundle(str(FIELD))
    target = str(tmp_path / "new" / "x.jsonl")
    leaderboards.write_bundle(target, bundle)
    assert leaderboards.read_bundle(target).digests == bundle.digests
    assert leaderboards.read(target) == leaderboards.read([FIELD]) == leaderboards.read(FIELD)
    record = bundle.records[0]
    assert np.array_equal(leaderboards.find_scored(target, record).hits, bundle.bits[record.key].hits)
    ids = np.arange(2)
    column = np.ones(2, dtype=np.float32)
    made = leaderboards.Predictions(id=ids, label=ids, predicted=ids, confidence=column, p_label=column, sum_p2=column)
    made.save(str(tmp_path / "p.npz"))
    assert leaderboards.Predictions.load(str(tmp_path / "p.npz")).digest() == made.digest()
    memory = leaderboards.Memory(str(tmp_path / "memory"), lambda record: "")
    assert memory.recall("nothing") is None


def test_runs_shifts_stocks_and_pools_take_text_and_paths(tmp_path: Path) -> None:
    stock = Path(bench.__file__).parent / "assets" / "digits-stock.safetensors"
    assert bench.load_stock(stock).digest == bench.load_stock(str(stock)).digest
    for kind in (str, Path):
        spec = bench.RunSpec(
            method="source", shift="digits-c", stock=kind(stock), out=kind(tmp_path), data_root=kind("d")
        )
        assert (spec.stock, spec.out, spec.data_root) == (str(stock), tmp_path, Path("d"))
        assert len(bench.load_shift("digits-c", data_root=kind(tmp_path)).ids("test"))
        with pytest.raises(ValueError, match="has no pictures"):
            corruptions.folder_pool(kind(tmp_path))
