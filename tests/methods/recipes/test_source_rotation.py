"""Joint training on labels and rotations: its loss, its head, and what it shares with plain fine-tuning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bench.models.weights_io import load_weights, save_weights
from methods.base import Labelled, Unsupported
from methods.nets.weights import Architecture, Classifier, Ensemble, Weights, build_encoder, ready
from methods.recipes.source_rotation import Jointly, SourceRotation, fine_tune_jointly
from methods.selfsoup.ingredients import tensors_of
from methods.training.finetune import FineTune, fine_tune
from methods.training.loop import reset

SMALL = Architecture(image_size=16, patch_size=8, dim=16, depth=1, heads=2)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def stock() -> Weights:
    encoder = build_encoder(SMALL)
    reset(encoder, seeded())
    return Weights(SMALL, tensors_of(encoder, "encoder"))


def task(count: int = 40) -> Labelled:
    """Noise whose brightness indicates the class, darker from top to bottom, so that a rotation can be seen."""
    labels = torch.arange(count) % 3
    noise = torch.randint(0, 30, (count, 3, 16, 16), generator=seeded(1))
    slope = torch.linspace(60, 0, 16).view(1, 1, 16, 1)
    return Labelled((noise + 80 * labels[:, None, None, None] + slope).to(torch.uint8), "task", labels, 3)


STILL: dict[str, Any] = {"area": 1.0, "flip": False, "batch_size": 40, "warmup": 0.0, "weight_decay": 0.0}


@pytest.mark.parametrize("rotations", ["expand", "rand"])
def test_both_tasks_are_learnt_and_the_head_is_kept(rotations: Any) -> None:
    config = Jointly(epochs=60, lr=1e-2, batch_size=20, area=1.0, flip=False, rotations=rotations)
    made = fine_tune_jointly([stock()], task(), config, seeded())
    assert set(made.tensors) == set(stock().tensors) | {
        f"{h}.{k}" for h in ("head", "rotation") for k in ("weight", "bias")
    }
    model = ready(made)
    assert isinstance(model, Classifier)
    images = task().images[:] / 255
    with torch.no_grad():
        assert (model(images).argmax(1) == task().labels).float().mean() > 0.9
        for turn in range(4):
            assert (model.rotation_logits(torch.rot90(images, turn, (2, 3))).argmax(1) == turn).float().mean() > 0.8


def test_without_weight_it_is_plain_fine_tuning() -> None:
    options: dict[str, Any] = {"epochs": 2, "batch_size": 16}
    plain = fine_tune([stock()], task(), FineTune(**options), seeded())
    made = fine_tune_jointly([stock()], task(), Jointly(**options, rotation_weight=0.0), seeded())
    for name, tensor in plain.tensors.items():
        torch.testing.assert_close(made.tensors[name], tensor)
    assert not any(tensor.any() for tensor in made.part("rotation").values())


def test_a_step_follows_both_losses() -> None:
    """The first loss is that of the probe plus ln 4, as the rotation head starts from zero."""
    losses: list[Tensor] = []

    class Keep:
        def load(self) -> None:
            return None

        def due(self) -> bool:
            return False

        def save(self, state: dict[str, Any]) -> None: ...

        def finished(self, found: Tensor) -> None:
            losses.append(found)

    config = Jointly(epochs=1, rotation_weight=0.5, **STILL)
    fine_tune_jointly([stock()], task(), config, seeded(), Keep())
    fine_tune([stock()], task(), FineTune(epochs=1, **STILL), seeded(), Keep())
    torch.testing.assert_close(losses[0][0], losses[1][0] + 0.5 * torch.tensor(4.0).log())


def test_parts_of_a_batch_give_the_step_of_the_whole() -> None:
    whole = fine_tune_jointly([stock()], task(), Jointly(epochs=2, lr=1e-3, **STILL), seeded())
    parts = fine_tune_jointly([stock()], task(), Jointly(epochs=2, lr=1e-3, accumulate=2, **STILL), seeded())
    for name, tensor in whole.tensors.items():
        torch.testing.assert_close(parts.tensors[name], tensor, rtol=1e-3, atol=2e-4)


def test_the_head_survives_files_and_soups(tmp_path: Path) -> None:
    made = fine_tune_jointly([stock()], task(), Jointly(epochs=1), seeded())
    save_weights(tmp_path / "made.safetensors", made, {})
    again = load_weights(tmp_path / "made.safetensors")[0]
    assert again.digest == made.digest
    images = task().images[:] / 255
    with torch.no_grad():
        scores = [Classifier.of(weights).rotation_logits(images) for weights in (made, again)]
    assert torch.equal(*scores)
    assert Classifier.of(made).weights().digest == made.digest
    several = Weights(SMALL, {f"members.{n}.{name}": t for n in range(2) for name, t in made.tensors.items()})
    assert isinstance(ready(several), Ensemble)


def test_the_plan_is_one_job_behind_the_probe() -> None:
    recipe = SourceRotation(SourceRotation.Config(epochs=3, rotations="rand"))
    (job,) = recipe.plan(stock(), task(), None).values()
    assert job.config == Jointly(epochs=3, rotations="rand")
    assert job.shared
    assert job.work is not None
    expanded = SourceRotation(SourceRotation.Config(epochs=3)).plan(stock(), task(), None)[""].work
    assert expanded is not None
    assert expanded.steps == job.work.steps
    assert 2.4 < expanded.flops / job.work.flops < 2.6
    with pytest.raises(Unsupported, match="cannot be cut"):
        SourceRotation(SourceRotation.Config(batch_size=7, accumulate=2)).plan(stock(), task(), None)


@pytest.mark.parametrize("wrong", [{"rotations": "all"}, {"rotation_weight": -1.0}, {"rotation_weight": float("inf")}])
def test_options_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} must be"):
        SourceRotation.Config(**wrong)
