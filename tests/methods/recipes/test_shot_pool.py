"""SHOT over a pool: its labels by hand, its frozen head and what it refuses (the release: tests/methods/official)."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from methods import METHODS
from methods.base import Job, Labelled, Unlabelled, Unsupported
from methods.nets.weights import Architecture, Classifier, Weights
from methods.recipes import shot_pool
from methods.recipes.shot_pool import PoolShot, Shot, objective, pseudo_labels, shot

SMALL = Architecture(image_size=16, patch_size=8, dim=16, depth=1, heads=2)


def model() -> Weights:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Classifier(SMALL, 3).weights()


def pool(count: int = 20) -> Unlabelled:
    generator = torch.Generator().manual_seed(1)
    return Unlabelled(torch.randint(0, 256, (count, 3, 16, 16), generator=generator, dtype=torch.uint8), "pool")


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def test_labels_follow_the_features_and_not_a_wrong_prediction() -> None:
    angles = torch.tensor([0.0, 0.1, 0.2, 3.0, 3.1, 3.2])
    features = 10 * torch.stack([angles.cos(), angles.sin()], 1)
    logits = 4 * torch.nn.functional.one_hot(torch.tensor([0, 0, 1, 1, 1, 1]), 3).float()
    assert pseudo_labels(features, logits).tolist() == [0, 0, 0, 1, 1, 1]
    logits[2] = torch.tensor([0.0, 0.0, 4.0])  # the only one of its class, too few at a threshold of 1
    assert pseudo_labels(features, logits, 1).tolist() == [0, 0, 0, 1, 1, 1]
    with pytest.raises(ValueError, match=r"more than 5 images .*; lower shot_pool\.threshold"):
        pseudo_labels(features, logits, 5)


def test_all_but_the_head_is_adapted_and_labels_matter() -> None:
    before = model()
    after = shot([before], pool(), Shot(passes=2, batch_size=8, rate=1e-2), seeded())
    changed = {name for name, tensor in before.tensors.items() if not torch.equal(tensor, after.tensors[name])}
    trained = {name for name in before.tensors if not name.startswith("head.")} - {"encoder.pos_embed"}
    assert changed == trained
    without = shot([before], pool(), Shot(passes=2, batch_size=8, rate=1e-2, pseudo=0.0), seeded())
    assert without.digest != after.digest
    with pytest.raises(FloatingPointError, match="lower its rate"):
        shot([before], pool(), Shot(passes=3, batch_size=8, rate=1e30, pseudo=0.0), seeded())


def test_the_objective_of_certain_predictions_is_known() -> None:
    # The release (object/loss.py, image_target.py) adds 1e-5 to what it takes logarithms of: 0 unsure, ln 2 diverse.
    logits = 1000 * torch.eye(2, dtype=torch.float64).repeat(4, 1)
    expected = -math.log1p(1e-5) + math.log(0.5 + 1e-5)
    found = objective(logits, torch.zeros(8, dtype=torch.int64), Shot(pseudo=0.0))
    assert float(found) == pytest.approx(expected, abs=1e-12)


def test_every_batch_is_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []

    def noted(logits: torch.Tensor, *more: Any) -> torch.Tensor:
        sizes.append(len(logits))
        return objective(logits, *more)

    monkeypatch.setattr(shot_pool, "objective", noted)
    shot([model()], pool(20), Shot(passes=2, batch_size=8), seeded())
    assert sizes == [8] * 4
    sizes.clear()
    shot([model()], pool(5), Shot(passes=2, batch_size=8), seeded())
    assert sizes == [5] * 2


def test_what_it_refuses() -> None:
    images = pool()
    labelled = Labelled(images.images, "labelled", torch.arange(20) % 3, 3)
    with pytest.raises(TypeError, match="never sees labels"):
        shot([model()], labelled, Shot(), seeded())
    stock = Weights(SMALL, {name: tensor for name, tensor in model().tensors.items() if name.startswith("encoder.")})
    with pytest.raises(Unsupported, match="gives an adapt half"):
        PoolShot().plan(stock, labelled, None)
    wrong: dict[str, Any]
    for wrong in ({"pseudo": -1.0}, {"information": float("inf")}, {"threshold": -1}, {"passes": 0}, {"rate": -1.0}):
        with pytest.raises(ValueError, match=f"shot_pool.{next(iter(wrong))} must be"):
            PoolShot.Config(**wrong)


def test_the_plan_hands_all_options_on() -> None:
    options = {"rate": 0.5, "passes": 2, "batch": 8, "pseudo": 0.1, "information": 0.2, "threshold": 3}
    stock = Weights(SMALL, {name: tensor for name, tensor in model().tensors.items() if name.startswith("encoder.")})
    source = Labelled(pool().images, "source", torch.arange(20) % 3, 3)
    job = PoolShot(PoolShot.Config(**options)).plan(stock, source, pool())[""]  # type: ignore[arg-type]
    assert job.config == Shot(0.5, 2, 8, 0.1, 0.2, 3)
    assert job.work is not None
    assert job.work.steps == 4
    assert isinstance(job.inputs[0], Job)
    assert METHODS["shot_pool"].access == PoolShot.access
    assert PoolShot.access.track == "C"
