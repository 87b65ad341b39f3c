"""The images that a method learns from belong to its numbers: train images, clean pools, and what an adapter gets."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from bench.core.conditions import CLEAN, Condition
from bench.core.errors import BenchError
from bench.core.import_object import load_object
from bench.evaluation.evaluate import evaluate
from bench.planning.plan import make_plan
from bench.planning.streams import missing_streams
from bench.runs.run import run
from bench.settings.run_spec import make_spec
from bench.shifts import load_shift, shift
from bench.shifts.data_root import Reading
from bench.shifts.shift import stream_rng
from leaderboards.store import Store
from leaderboards.verify import verify
from methods.adapters.eata import Eata
from methods.base import Source, SourceBatch

MODEL = """
import torch
from torch import nn

def net(classes=2):
    torch.manual_seed(0)
    body = [nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*body, nn.Linear(8, classes))

def ten():
    return net(10)
"""


def picture(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Two classes of nine train and nine test images."""
    for number, where in enumerate(("train/a", "train/b", "test/a", "test/b")):
        for image in range(9):
            picture(tmp_path / "images" / where / f"{image}.png", 9 * number + image)
    return tmp_path / "images"


@pytest.fixture
def model(tmp_path: Path) -> str:
    (tmp_path / "net.py").write_text(MODEL)
    return f"{tmp_path / 'net.py'}:net"


def keys_of(settings: dict[str, Any], folder: Path, **changes: Any) -> dict[str, list[str]]:
    plan = make_plan(make_spec({**settings, "shift": f"folder:{folder}", "labels": 2, "corruption": "fog", **changes}))
    return {entry.trial.method: list(entry.keys.values()) for entry in plan.entries}


def ready(settings: dict[str, Any], model: str) -> dict[str, Any]:
    return {**{name: value for name, value in settings.items() if name != "stock"}, "model": model}


def change_every(folder: Path) -> None:
    for number, path in enumerate(sorted(folder.rglob("*.png"))):
        picture(path, 100 + number)


def test_another_train_image_gives_another_key_to_those_that_learn_from_it(
    images: Path, settings: dict[str, Any], model: str
) -> None:
    settings = {**settings, "method": "source,source+tent,selfsoup_clean,source+eata"}
    alone = {**ready(settings, model), "method": "tent,eata"}
    before, before_alone = keys_of(settings, images), keys_of(alone, images)
    change_every(images / "train")
    after, after_alone = keys_of(settings, images), keys_of(alone, images)
    assert {method for method in before if before[method] != after[method]} == set(before)
    assert before_alone["tent"] == after_alone["tent"]
    assert not set(before_alone["eata"]) & set(after_alone["eata"])


def test_train_images_in_another_place_give_the_same_keys(
    images: Path, settings: dict[str, Any], tmp_path: Path
) -> None:
    settings = {**settings, "method": "source,source+eata"}
    shutil.copytree(images, tmp_path / "elsewhere" / "images")
    assert keys_of(settings, images) == keys_of(settings, tmp_path / "elsewhere" / "images")


def test_bundled_images_are_in_no_key(settings: dict[str, Any]) -> None:
    plan = make_plan(make_spec({**settings, "method": "source,source+eata"}))
    assert {fields["data"]["source"] for entry in plan.entries for fields in entry.identities.values()} == {None}


def test_a_large_train_set_is_identified_by_labels_and_names(
    images: Path, settings: dict[str, Any], model: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(shift, "MOST_DECODED", 3)
    settings = {**ready(settings, model), "method": "eata"}
    first = keys_of(settings, images)
    shutil.copytree(images, tmp_path / "copy/images")
    assert keys_of(settings, tmp_path / "copy/images") == first
    (tmp_path / "copy/images/train/a/7.png").rename(tmp_path / "copy/images/train/a/77.png")
    renamed = keys_of(settings, tmp_path / "copy/images")
    assert renamed != first
    (tmp_path / "copy/images/train/a/77.png").rename(tmp_path / "copy/images/train/b/77.png")
    assert keys_of(settings, tmp_path / "copy/images") not in (first, renamed)


def test_the_digits_have_a_listing_too() -> None:
    digits = load_shift("digits-c", reading=Reading())
    assert digits.bundled
    assert digits.listing(digits.ids("train")) != digits.listing(digits.ids("test"))


def test_clean_images_that_change_after_planning_are_refused(
    images: Path, settings: dict[str, Any], model: str
) -> None:
    spec = make_spec({**ready(settings, model), "shift": f"folder:{images}", "corruption": "fog", "method": "eata"})
    task = next(task for task, _, _ in missing_streams(make_plan(spec)))
    job = task.arguments[0]
    assert len(evaluate(job)) == 1
    with pytest.raises(BenchError, match=r"^the clean images of .* that eata learns from have changed since the run"):
        evaluate(replace(job, expected=replace(job.expected, source="sha256:other")))


def test_eata_val_takes_clean_test_images_that_are_not_scored(
    images: Path, settings: dict[str, Any], model: str
) -> None:
    shutil.rmtree(images / "train")
    (images / "test/a").rename(images / "a")
    (images / "test/b").rename(images / "b")
    (images / "test").rmdir()
    asked = {**ready(settings, model), "shift": f"folder:{images}", "corruption": "fog", "batch_size": 4, "limit": None}
    options = {"eata": {"margin": 1.0, "epsilon": 2.0, "lr": 0.1, "beta": 50.0}}
    outcome = run(make_spec({**asked, "method": "source,eata,eata_val"}, {"set": options}))
    found = {record.method: record for record in outcome.records() if record.corruption == "fog"}
    assert found["eata"].error is not None
    assert "eata needs clean train images" in found["eata"].error
    record = found["eata_val"]
    assert (record.status, record.track, record.access.source, record.access.test) == (
        "done",
        "C",
        "unlabelled",
        "pool",
    )
    assert record.data.source is not None
    assert found["source"].data.source is None
    assert not [problem for problem in verify(outcome.out).problems if problem.key == record.key]
    np.testing.assert_allclose(
        _by_hand(images, asked, model, options["eata"]), _confidences(outcome, record), atol=1e-6
    )


def _confidences(outcome: Any, record: Any) -> np.ndarray:
    found = Store(outcome.out).predictions(record)
    return np.asarray(found.confidence)[np.argsort(found.id)]


def _by_hand(images: Path, asked: dict[str, Any], model: str, options: dict[str, Any]) -> np.ndarray:
    """EATA given the clean images at even positions, then streamed over the foggy ones at odd positions."""
    photos = load_shift(f"folder:{images}", reading=make_plan(make_spec({**asked, "method": "eata_val"})).reading)
    ids, fog = photos.ids("test"), Condition("fog", 3)
    order = stream_rng(0, "source", photos.name).permutation(ids[0::2])
    clean = [photos.images(order[start : start + 4], CLEAN).float() / 255 for start in range(0, len(order), 4)]
    adapter = Eata(load_object(model)(), Eata.Config(**options))
    adapter.prepare(Source(lambda number: SourceBatch(clean[number]), len(clean)))
    plan = make_plan(make_spec({**asked, "method": "eata_val", "out": asked["out"].parent / "other"}))
    streamed = next(segment.ids for segment in plan.entries[0].segments if segment.conditions == (fog,))
    assert sorted(streamed) == ids[1::2].tolist()
    answers = [
        adapter.predict(photos.images(streamed[start : start + 4], fog).float() / 255).detach().double()
        for start in range(0, len(streamed), 4)
    ]
    return torch.softmax(torch.cat(answers), 1).amax(1).numpy()[np.argsort(streamed)]


def test_eata_val_without_clean_images_says_so(settings: dict[str, Any], model: str, tmp_path: Path) -> None:
    root = tmp_path / "cifar10-c"
    root.mkdir()
    random = np.random.default_rng(0)
    np.save(root / "labels.npy", np.tile(np.repeat([0, 1], 5), 5))
    np.save(root / "fog.npy", random.integers(0, 255, (50, 32, 32, 3), dtype=np.uint8))
    asked = {**ready(settings, model.replace(":net", ":ten")), "shift": "cifar10-c", "data_root": tmp_path}
    outcome = run(make_spec({**asked, "corruption": "fog", "method": "tent,eata_val"}))
    assert len(outcome.errors) == 1
    assert "eata_val needs clean images of the test set, and cifar10-c has none; put them where" in outcome.errors[0]
