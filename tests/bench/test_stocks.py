"""Stocks: the bundled one comes from its documented command, and any other is made the same way."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.errors import BenchError
from bench.models import load_stock, load_weights, save_weights
from bench.shifts import load_shift
from bench.stocks import CHECK_STEPS, DIGITS, check, make_stock, pretrain_stock
from bench.trial import CLEAN
from bench.workers import set_threads
from methods.base import Unlabelled
from methods.pretrain import pretrain

BUNDLED = resources.files("bench") / "assets" / "digits-stock.safetensors"


def bundled_facts() -> dict[str, Any]:
    with resources.as_file(BUNDLED) as path:
        return load_weights(path)[1]


def test_the_bundled_stock_is_small_whole_and_says_where_it_comes_from() -> None:
    with resources.as_file(BUNDLED) as path:
        assert path.stat().st_size < 1_000_000
        weights, facts = load_weights(path)
    assert facts["digest"] == weights.digest
    assert facts["command"] == "bench stock digits --seed 0"
    assert {name.partition(".")[0] for name in weights.tensors} == {"encoder", "decoder"}
    assert all(torch.isfinite(tensor).all() for tensor in weights.tensors.values())
    shift = load_shift("digits-c")
    assert facts["data"] == shift.digest(shift.ids("train"), CLEAN)


def test_the_first_steps_of_its_training_come_out_again() -> None:
    """Bit for bit on the machine that made it; elsewhere the loss after these steps agrees within 1e-4."""
    set_threads(1)
    shift = load_shift("digits-c")
    data = Unlabelled(shift.images(shift.ids("train"), CLEAN), shift.digest(shift.ids("train"), CLEAN))
    recipe = replace(DIGITS, stop=CHECK_STEPS)
    again = check(pretrain((), data, recipe, torch.Generator().manual_seed(0)), data)
    made = bundled_facts()["check"]
    assert again["digest"] == made["digest"] or abs(again["loss"] - made["loss"]) <= 1e-4
    other = check(pretrain((), data, recipe, torch.Generator().manual_seed(1)), data)
    assert abs(other["loss"] - made["loss"]) > 1e-4


def test_a_stock_of_few_steps_is_made_read_back_and_reproducible(tmp_path: Path) -> None:
    said: list[str] = []
    make_stock("digits", tmp_path / "a.safetensors", 3, 2, "cpu", said.append)
    weights, facts = load_weights(tmp_path / "a.safetensors")
    assert "--seed 3 --steps 2" in facts["command"]
    assert load_stock(str(tmp_path / "a.safetensors")).digest == weights.digest
    assert pretrain_stock("digits", 3, 2)[0].digest == weights.digest != pretrain_stock("digits", 4, 2)[0].digest
    assert "bench run" in said[-1]


def test_only_whole_files_of_ours_are_read(tmp_path: Path) -> None:
    weights = load_stock("digits")
    path = tmp_path / "stock.safetensors"
    save_weights(path, weights, {"a": 1})
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"\x80\x04garbage"):
        path.write_bytes(content)
        with pytest.raises(BenchError, match="not a whole safetensors file"):
            load_stock(str(path))
    path.write_bytes(len(b"{}").to_bytes(8, "little") + b"{}")
    with pytest.raises(BenchError, match="neither a file of `bench stock` nor"):
        load_stock(str(path))
    with pytest.raises(BenchError, match="bench stock"):
        load_stock(str(tmp_path / "absent.safetensors"))


def test_facts_travel_as_json(tmp_path: Path) -> None:
    path = tmp_path / "stock.safetensors"
    facts = {"command": 'quote " and \\ and ü', "nested": {"steps": 3}}
    save_weights(path, load_stock("digits"), facts)
    assert load_weights(path)[1] == json.loads(json.dumps(facts))
