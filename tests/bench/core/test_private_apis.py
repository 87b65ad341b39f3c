"""The private parts of libraries that this project uses exist and do what it needs."""

from __future__ import annotations

import os
import pickle
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import datasets
import numpy as np
import pytest
import timm
import torch
import torchvision
import typer
from torch import Tensor, nn

from bench.core.private_apis import fingerprint_of, is_selection, model_arguments, processes_of
from bench.models.tensor_files import Checkpoint
from methods.private_apis import _BatchNorm, _DropoutNd, _InstanceNorm, flop_counter, in_transform, unwrapped


def test_the_processes_of_a_pool_are_its_workers() -> None:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        number = pool.submit(os.getpid).result()
        assert [process.pid for process in processes_of(pool)] == [number]
    assert processes_of(pool) == []


def test_tables_have_fingerprints_and_know_whether_they_are_selections() -> None:
    table, other = (datasets.Dataset.from_dict({"a": values}) for values in ([1, 2, 3], [1, 2, 4]))
    assert fingerprint_of(table) != fingerprint_of(other)
    assert not is_selection(table)
    assert is_selection(table.select([2, 0]))


def test_timm_keeps_the_arguments_of_a_folder(tmp_path: Path) -> None:
    given = {"global_pool": "avg", "qkv_bias": False}
    network = timm.create_model("test_vit", num_classes=0, **given)
    timm.models.save_for_hf(network, tmp_path, model_args=given)
    loaded = timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
    assert model_arguments(loaded).items() >= given.items()
    assert model_arguments(nn.Linear(1, 1)) == {}


def test_pickles_of_numpy_numbers_are_read(tmp_path: Path) -> None:
    numbers = [np.float64(0.5), np.float32(0.5), np.int64(3), np.bool_(True)]
    torch.save({"model": {"w": torch.ones(2)}, "best": numbers}, tmp_path / "new.pt")
    assert set(Checkpoint(tmp_path / "new.pt")) == {"w"}
    assert pickle.dumps(numbers[0]).count(b"scalar") == 1


def test_transforms_of_torchvision_say_how_they_cut() -> None:
    transform = torchvision.models.ResNet18_Weights.DEFAULT.transforms()
    assert (transform.crop_size, transform.resize_size) == ([224], [256])
    assert transform.interpolation.value == "bilinear"
    assert len(transform.mean) == len(transform.std) == 3


def test_tensors_of_a_transform_are_known_and_opened() -> None:
    seen: list[tuple[bool, tuple[int, ...]]] = []

    def double(row: Tensor) -> Tensor:
        seen.append((in_transform(row), tuple(unwrapped(row).shape)))
        return 2 * row

    torch.func.vmap(double)(torch.ones(4, 3))
    assert seen == [(True, (4, 3))]
    assert not in_transform(torch.ones(4, 3))


def test_bases_of_layers_cover_every_dimension() -> None:
    for base, kinds in (
        (_BatchNorm, (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)),
        (_InstanceNorm, (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)),
        (_DropoutNd, (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)),
    ):
        assert all(issubclass(kind, base) for kind in kinds)
    assert not issubclass(nn.GroupNorm, (_BatchNorm, _InstanceNorm))


def test_operations_are_counted_where_parameters_are_expanded() -> None:
    token = nn.Parameter(torch.ones(1, 1, 4), requires_grad=False)
    linear = nn.Linear(4, 2, bias=False)
    with flop_counter() as counter:
        linear(token.expand(3, 1, 4)).sum().backward()
    forward = 2 * 3 * 4 * 2
    assert counter.get_total_flops() == 2 * forward
    assert set(counter.get_flop_counts()) == {"Global"}


def test_values_move_by_shares_in_place() -> None:
    values = [torch.zeros(2), torch.ones(3)]
    torch._foreach_lerp_(values, [torch.ones(2), torch.zeros(3)], 0.25)
    assert torch.equal(values[0], torch.full((2,), 0.25))
    assert torch.equal(values[1], torch.full((3,), 0.75))


@pytest.mark.parametrize("name", ["TyperCommand", "TyperGroup"])
def test_commands_of_typer_have_an_option_for_help(name: str) -> None:
    assert callable(getattr(typer.core, name).get_help_option)
