"""Damaged files are never used: cached results are made again, and files of users are refused."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from bench.core.errors import MissingDataError, UsageError
from bench.data import content_hash as identity
from bench.evaluation.evaluate import Evaluation, evaluate
from bench.execution import checkpointing as keeping
from bench.execution.checkpointing import FileCheckpointer
from bench.models import weights_io as models
from bench.models.tensor_files import CHECKSUM, Checkpoint, read_tensors, tensor_digest, write_tensors
from bench.models.weights_io import load_stock, load_weights, open_weights, save_weights, whole_facts
from bench.planning.plan import make_plan
from bench.planning.streams import missing_streams
from bench.runs.run import Outcome
from bench.settings.run_spec import make_spec
from bench.soups.mix_files import mix
from bench.training import job_cache
from bench.training.job_cache import cached_facts, job_key, run_job, training_tasks
from methods.base import Job, Unlabelled
from methods.nets.weights import Architecture, Weights
from methods.selfsoup.ingredients import Ingredient, inter_train

Quick = Callable[..., Outcome]
MODEL = """
import torch
from torch import nn

def build():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10)
    )
"""


class Killed(Exception):
    pass


class Dying(FileCheckpointer):
    """A checkpointer that saves at every chance and raises Killed after a given number of saves."""

    def __init__(self, path: Path, last: int, place: str | None = "cpu") -> None:
        super().__init__(path, 0.0, place)
        self.left = last

    def save(self, state: dict[str, Any]) -> None:
        super().save(state)
        self.left -= 1
        if self.left == 0:
            raise Killed


def flip_signs(path: Path, count: int = 400) -> None:
    """Flip the sign of at most this many float32 numbers of a safetensors file."""
    content = bytearray(path.read_bytes())
    start = 8 + int.from_bytes(content[:8], "little")
    places = np.random.default_rng(0).permutation((len(content) - start) // 4)[:count]
    for place in places:
        content[start + 4 * place + 3] ^= 0x80
    path.write_bytes(content)


def flip_signs_of(path: Path, tensors: Iterator[Tensor], count: int = 400) -> None:
    """Flip the sign of this many numbers in the float tensors of a checkpoint."""
    content = bytearray(path.read_bytes())
    left = count
    for tensor in tensors:
        if tensor.dtype != torch.float32 or tensor.numel() < 8:
            continue
        place = content.find(tensor.contiguous().numpy().tobytes())
        for number in range(min(left, tensor.numel())):
            content[place + 4 * number + 3] ^= 0x80
        left -= min(left, tensor.numel())
    assert left < count
    path.write_bytes(content)


def tensors_in(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict | list | tuple):
        for part in value.values() if isinstance(value, dict) else value:
            yield from tensors_in(part)


def predictions(outcome: Outcome) -> dict[str, bytes]:
    found = {}
    for path in sorted((outcome.out / "predictions").glob("*.npz")):
        with np.load(path) as columns:
            found[path.stem] = b"".join(columns[name].tobytes() for name in sorted(columns))
    return found


def numbers(outcome: Outcome) -> dict[Any, Any]:
    return {(r.method, r.part, r.corruption): (r.metrics, r.key, r.weights) for r in outcome.records()}


@pytest.mark.parametrize("unsettled", [identity.UNSETTLED_NS, -3_600_000_000_000])
@pytest.mark.parametrize("damage", ["ingredients and soup", "one"])
def test_damaged_weights_in_the_cache_are_made_again(
    settings: dict[str, Any],
    own_cache: Path,
    tmp_path: Path,
    run_quick: Quick,
    no_answers: None,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    damage: str,
    unsettled: int,
) -> None:
    """Both in a new process and in one that has read them undamaged before."""
    monkeypatch.setattr(models, "is_settled", lambda stamp, now: stamp[4] <= now - unsettled)
    first = run_quick(settings, method="selfsoup,source+tent")
    files = sorted((own_cache / "weights").glob("*.safetensors"))
    whole = {path.name: load_weights(path)[0].digest for path in files}
    for path in files if damage != "one" else files[:1]:
        flip_signs(path)
    with caplog.at_level(logging.WARNING):
        second = run_quick(settings, method="selfsoup,source+tent", out=tmp_path / "again")
    assert "training it again" in caplog.text
    assert numbers(second) == numbers(first)
    assert predictions(second) == predictions(first)
    assert {path.name: load_weights(path)[0].digest for path in files} == whole


def test_damage_anywhere_in_weights_is_one_sentence(stock: str, tmp_path: Path) -> None:
    """Flip one bit of every 97th byte: the file is read as it was written, or refused."""
    good = Path(stock).read_bytes()
    whole, facts = load_weights(Path(stock))
    bad = tmp_path / "bad.safetensors"
    told = 0
    for place in range(0, len(good), 97):
        content = bytearray(good)
        content[place] ^= 1 << (place % 8)
        bad.write_bytes(content)
        try:
            weights, found = load_weights(bad)
        except UsageError:
            told += 1
            continue
        assert (weights.digest, found) == (whole.digest, facts), place
    assert told > 0.95 * len(range(0, len(good), 97))
    flip_signs(Path(stock), 1)
    for read in (load_weights, open_weights, whole_facts, read_tensors):
        with pytest.raises(UsageError, match=r"tiny.safetensors is damaged, .* checksum says; make or copy it again$"):
            read(Path(stock))
    with pytest.raises(UsageError, match="is damaged"):
        load_stock(stock)


def test_facts_belong_to_the_checksum(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_weights(path, Weights(Architecture(), {"a": torch.ones(3)}), {"shares": [0.25, 0.75]})
    assert whole_facts(path) == {"shares": [0.25, 0.75]}
    path.write_bytes(path.read_bytes().replace(b"0.25", b"0.35"))
    with pytest.raises(UsageError, match="is damaged"):
        load_weights(path)
    with pytest.raises(UsageError, match="is damaged"):
        whole_facts(path)
    with pytest.raises(MissingDataError):
        whole_facts(tmp_path / "absent.safetensors")


def test_a_file_without_checksum_is_read_as_before_but_no_result(stock: str, own_cache: Path) -> None:
    """Other people's files are read; cached weights without a checksum are made again."""
    metadata = {name: text for name, text in Checkpoint(Path(stock)).metadata.items() if name != CHECKSUM}
    tensors = load_file(stock)
    digest = load_stock(stock).digest
    save_file(tensors, stock, metadata=metadata)
    assert load_stock(stock).digest == digest
    assert read_tensors(Path(stock)).keys() == tensors.keys()
    (own_cache / "weights").mkdir(parents=True)
    shutil.copy(stock, own_cache / "weights" / "key.safetensors")
    assert cached_facts("key") is None
    assert not (own_cache / "weights" / "key.safetensors").exists()


def test_whole_weights_are_read_once_in_a_process(stock: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = Path(stock)
    read: list[Path] = []
    true = models._read
    monkeypatch.setattr(models, "_read", lambda path: read.append(path) or true(path))
    whole_facts(path)
    whole_facts(path)
    assert len(read) == 2  # written a moment ago
    monkeypatch.setattr(models, "is_settled", lambda stamp, now: True)
    for _ in range(3):
        whole_facts(path)["mine"] = "changed"
    assert len(read) == 3
    assert "mine" not in whole_facts(path)
    shutil.copy(path, path.with_suffix(".copy"))
    path.with_suffix(".copy").replace(path)
    whole_facts(path)
    assert len(read) == 4


def test_soups_of_files_carry_a_checksum(tmp_path: Path) -> None:
    kinds = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.bool]
    tensors = {str(kind): (torch.arange(6).reshape(2, 3) % 2).to(kind) for kind in kinds} | {"none": torch.ones(0)}
    shapes = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    out = tmp_path / "soup.safetensors"
    write_tensors(out, shapes, lambda name: tensors[name], {"facts": "{}"})
    found = read_tensors(out)
    assert {name: tensor_digest(tensor) for name, tensor in found.items()} == {
        name: tensor_digest(tensor) for name, tensor in tensors.items()
    }
    assert Checkpoint(out).metadata[CHECKSUM].strip("-").startswith("sha256:")
    Checkpoint(out).verified()
    shutil.copy(out, tmp_path / "other.safetensors")
    flip_signs(out, 1)
    for use in (
        lambda: read_tensors(out),
        lambda: Checkpoint(out).verified(),
        lambda: mix([tmp_path / "other.safetensors", out], tmp_path / "new.safetensors", "uniform", None, (), False),
    ):
        with pytest.raises(UsageError, match=r"soup.safetensors is damaged"):
            use()


def job() -> Job:
    pixels = torch.randint(0, 256, (60, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    how = Ingredient(steps=8, batch_size=8)
    return Job(inter_train, how, (load_stock("digits"),), Unlabelled(pixels, "p"), "mae", True)


@pytest.mark.parametrize("damaged", [False, True])
def test_a_damaged_checkpoint_of_a_training_counts_as_none(
    own_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damaged: bool
) -> None:
    (task,) = training_tasks([job()], 0, "cpu")
    with monkeypatch.context() as killing:
        killing.setattr(job_cache, "FileCheckpointer", lambda path, report: Dying(path, 4))
        with pytest.raises(Killed):
            run_job(*task.arguments)
    (path,) = (own_cache / "training").glob("*.pt")
    state = FileCheckpointer(path).load()
    assert state is not None
    assert 0 < state["step"] < 8
    if damaged:
        flip_signs_of(path, tensors_in(state))
        assert path.stat().st_size
    began: list[bool] = []
    true = FileCheckpointer.load
    monkeypatch.setattr(FileCheckpointer, "load", lambda self: began.append((found := true(self)) is None) or found)
    run_job(*task.arguments)
    assert began == [damaged]
    made = load_weights(own_cache / "weights" / f"{job_key(job(), 0)}.safetensors")[0]
    monkeypatch.setenv("SOUPBENCH_CACHE", str(tmp_path / "fresh"))
    run_job(*task.arguments)
    fresh = load_weights(tmp_path / "fresh" / "weights" / f"{job_key(job(), 0)}.safetensors")[0]
    assert made.digest == fresh.digest


@pytest.mark.parametrize("damaged", [False, True])
def test_a_damaged_checkpoint_of_a_stream_counts_as_none(
    settings: dict[str, Any], tmp_path: Path, damaged: bool, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "model.py").write_text(MODEL)
    changed = {key: value for key, value in settings.items() if key != "stock"}
    spec = {**changed, "model": f"{tmp_path / 'model.py'}:build", "method": "tent", "protocol": "continual"}
    streams = [task.arguments[0] for task, *_ in missing_streams(make_plan(make_spec(spec)))]
    stream: Evaluation = max(streams, key=lambda each: len(each.segments))

    def values(keep: FileCheckpointer | None) -> list[Any]:
        parts = evaluate(stream, keep)
        return [{n: c.tobytes() for n, c in vars(part.predictions).items() if c is not None} for part in parts]

    whole = values(None)
    path = tmp_path / "kept.pt"
    with pytest.raises(Killed):
        evaluate(stream, Dying(path, 3, None))
    state = FileCheckpointer(path).load()
    assert state is not None
    if damaged:
        flip_signs_of(path, tensors_in(state))
    with caplog.at_level(logging.WARNING):
        assert values(FileCheckpointer(path, place=None)) == whole
    assert ("is damaged (its content is not what its checksum says)" in caplog.text) == damaged


def test_every_bit_of_a_checkpoint_counts(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    FileCheckpointer(path).save({"step": 1, "a": torch.ones(5)})
    good = path.read_bytes()
    assert good.startswith(keeping._MARK)
    for place in range(0, len(good), 11):
        content = bytearray(good)
        content[place] ^= 1 << (place % 8)
        path.write_bytes(content)
        assert FileCheckpointer(path).load() is None, place
    path.write_bytes(good)
    assert FileCheckpointer(path).load() is not None
