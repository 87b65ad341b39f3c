"""Stocks: the bundled one comes from its documented command, and others are made in the same way."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from bench.core.conditions import CLEAN
from bench.core.errors import BenchError, MissingDataError, UsageError
from bench.execution.task_pool import set_threads
from bench.models.weights_io import load_stock, load_weights, save_weights
from bench.shifts import load_shift
from bench.training.pretrain_stock import (
    CHECK_STEPS,
    DIGITS,
    SIZES,
    ShownCheckpointer,
    StockSpec,
    architecture,
    check,
    make_stock,
    plan_stock,
    train_stock,
    where_to,
)
from methods.base import Unlabelled
from methods.selfsoup.pretraining import pretrain

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


def quiet(done: int, loss: float | None) -> None:
    """Ignore progress."""


def test_a_stock_of_few_steps_is_made_read_back_and_reproducible(tmp_path: Path) -> None:
    reported: list[int] = []
    spec = StockSpec("digits", seed=3, steps=2)
    weights = make_stock(spec, tmp_path / "a.safetensors", lambda done, loss: reported.append(done))
    again, facts = load_weights(tmp_path / "a.safetensors")
    assert facts["command"] == "bench stock digits --steps 2 --seed 3"
    assert len(facts["losses"]) == reported[-1] == 2
    assert load_stock(str(tmp_path / "a.safetensors")).digest == weights.digest == again.digest
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    other = StockSpec("digits", seed=4, steps=2)
    assert train_stock(plan_stock(spec), spec)[0].digest == weights.digest
    assert train_stock(plan_stock(other), other)[0].digest != weights.digest


def test_its_own_recipe_is_what_digits_get() -> None:
    plan = plan_stock(StockSpec("digits"))
    assert plan.recipe == DIGITS
    assert plan.threads == 1


def test_architectures_are_those_of_their_names() -> None:
    base = architecture("vit_base_patch16_224")
    assert (base.dim, base.depth, base.heads) == (768, 12, 12)
    assert (base.decoder_dim, base.decoder_depth, base.decoder_heads) == (512, 8, 16)
    for size in SIZES:
        made = architecture(f"vit_{size}_patch4_32")
        assert (made.image_size, made.patch_size, made.tokens) == (32, 4, 64)


class Killed(Exception):
    """An error that ends a training in the middle."""


@pytest.mark.parametrize("kills", [(3,), (1, 2, 5)])
def test_a_killed_training_goes_on_and_ends_with_the_same_bits(
    kills: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = StockSpec("digits", arch="vit_micro_patch8_32", steps=7, batch_size=32, limit=80)
    whole = make_stock(spec, tmp_path / "whole.safetensors", quiet)
    for kill in kills:

        def tell(done: int, loss: float | None, kill: int = kill) -> None:
            if done > kill:
                raise Killed

        with pytest.raises(Killed):
            make_stock(spec, tmp_path / "killed.safetensors", tell, seconds=0.0)
        assert not (tmp_path / "killed.safetensors").exists()
    reported: list[int] = []
    after = make_stock(spec, tmp_path / "killed.safetensors", lambda done, loss: reported.append(done))
    assert reported[0] == kills[-1]
    assert after.digest == whole.digest
    facts = [load_weights(tmp_path / f"{name}.safetensors")[1] for name in ("whole", "killed")]
    assert facts[0]["losses"] == facts[1]["losses"]
    assert not list((tmp_path / "cache" / "training").glob("*.pt"))


def test_what_changes_the_bits_changes_the_checkpoint(tmp_path: Path) -> None:
    base = StockSpec("digits", arch="vit_micro_patch8_32", limit=20, steps=3)
    variants = [
        {},
        {"steps": 4},
        {"seed": 1},
        {"limit": 21},
        {"lr": 1e-3},
        {"batch_size": 8},
        {"mask_ratio": 0.5},
        {"norm_pix": True},
        {"threads": 2},
        {"arch": "vit_micro_patch4_32"},
    ]
    keys = {plan_stock(replace(base, **change)).key for change in variants}
    assert len(keys) == len(variants)


def test_images_are_normalised_by_their_own_mean_and_deviation() -> None:
    plan = plan_stock(StockSpec("digits", arch="vit_micro_patch8_32"))
    pixels = plan.data.images[:].double() / 255
    shape = plan.recipe.architecture
    assert shape.mean == pytest.approx(pixels.mean((0, 2, 3)).tolist(), abs=5.1e-4)
    assert shape.std == pytest.approx(pixels.std((0, 2, 3), correction=0).tolist(), abs=5.1e-4)


def test_epochs_are_passes_over_the_images() -> None:
    plan = plan_stock(StockSpec("digits", arch="vit_micro_patch8_32", epochs=3, batch_size=64))
    assert plan.recipe.steps == 3 * (697 // 64)


def test_a_folder_of_ones_own_becomes_a_stock(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for label in ("cat", "dog"):
        for number in range(12):
            path = tmp_path / "mine" / "train" / label / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(path)
    spec = StockSpec(f"folder:{tmp_path / 'mine'}", arch="vit_micro_patch8_32", steps=1, batch_size=8)
    made = make_stock(spec, tmp_path / "own.safetensors", quiet)
    assert load_stock(str(tmp_path / "own.safetensors")).digest == made.digest
    bare = replace(spec, data=f"folder:{tmp_path / 'mine' / 'train'}")
    assert plan_stock(bare).data.digest == plan_stock(spec).data.digest


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"data": "cifar"}, "did you mean 'cifar10'"),
        ({"data": "folder"}, "needs a name after a colon"),
        ({"arch": "resnet"}, "write vit_SIZE_patchP_PIXELS"),
        ({"arch": "vit_giga_patch4_32"}, "SIZE is one of micro"),
        ({"arch": "vit_mini_patch5_32"}, "not a multiple of patch_size"),
        ({"arch": "vit_mini_patch4_64"}, "ends in _32"),
        ({"epochs": 1, "steps": 1}, "exclude each other"),
        ({"mask_ratio": 1.0}, "--mask-ratio"),
        ({"device": "tpu"}, "device"),
    ],
)
def test_a_stock_that_cannot_be_made_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(BenchError, match=said) as caught:
        plan_stock(replace(StockSpec("digits"), **changes))
    assert caught.value.exit_code == 2


def test_a_training_that_diverges_says_so(tmp_path: Path) -> None:
    spec = StockSpec("digits", arch="vit_micro_patch8_32", steps=30, lr=1e9, limit=64, batch_size=32)
    with pytest.raises(BenchError, match="lower the learning rate"):
        make_stock(spec, tmp_path / "x.safetensors", quiet)
    assert not (tmp_path / "x.safetensors").exists()


def test_stocks_are_written_where_runs_look_for_them(tmp_path: Path) -> None:
    from bench.models.weights_io import find_stock
    from bench.shifts import find_row

    row = find_row("cifar10-c-gen")
    with pytest.raises(MissingDataError, match=r"bench stock --data cifar10 -o") as caught:
        find_stock(row, tmp_path)
    assert caught.value.exit_code == 3
    out = where_to(StockSpec("cifar10", data_root=tmp_path), None)
    assert str(out) in str(caught.value)
    save_weights(out, load_stock("digits"), {})
    assert find_stock(row, tmp_path) == str(out)
    with pytest.raises(MissingDataError, match=r"curl .*mae_visualize_vit_base\.pth"):
        find_stock(find_row("imagenet-c"), tmp_path)
    with pytest.raises(UsageError, match="-o FILE"):
        where_to(StockSpec("imagenet"), None)
    with pytest.raises(UsageError, match="safetensors"):
        where_to(StockSpec("digits"), tmp_path / "x.pth")
    with pytest.raises(UsageError, match="cannot write"):
        where_to(StockSpec("digits"), Path("/proc/none/x.safetensors"))


def test_a_damaged_checkpoint_starts_again(tmp_path: Path) -> None:
    path = tmp_path / "c.pt"
    path.write_bytes(b"half")
    checkpointer = ShownCheckpointer(path, quiet)
    assert checkpointer.load() is None
    assert not path.exists()


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
