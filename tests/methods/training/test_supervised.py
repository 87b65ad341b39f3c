"""Training from scratch against a plain loop with torch's own optimiser and schedule, and its course of accuracies."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from sklearn.metrics import accuracy_score
from torch.nn import functional as F

from methods.base import Labelled, Unlabelled
from methods.nets.small_resnets import SmallResNet
from methods.nets.timm_encoders import TimmArchitecture
from methods.nets.weights import Classifier, Weights
from methods.training.supervised import Course, Supervised, accuracy, train_classifier

SMALL = SmallResNet(8, image_size=16)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def task(count: int = 60, seed: int = 0) -> Labelled:
    """Noise whose brightness indicates the class."""
    labels = torch.arange(count) % 3
    noise = torch.randint(0, 60, (count, 3, 16, 16), generator=seeded(seed))
    return Labelled((noise + 80 * labels[:, None, None, None]).to(torch.uint8), f"task {seed}", labels, 3)


def config(**changes: Any) -> Supervised:
    return Supervised(SMALL, **{"epochs": 6, "batch_size": 20, "padding": 2} | changes)


@pytest.mark.parametrize("norm", ["bn", "gn"])
def test_it_is_gradient_descent_with_nesterov_momentum_and_a_cosine(norm: Any) -> None:
    """Batches of all images, so that their order is not compared; the rate by torch's schedulers."""
    data, shape = task(), replace(SMALL, norm=norm)
    options = Supervised(shape, 8, 60, 0.05, 0.9, 1e-3, 0.25, 0.1, 0, False)
    found = train_classifier((), data, options, seeded())

    model = Classifier(shape, 3)
    model.encoder.load_state_dict(shape.initial(seeded()).state_dict())
    for parameter in model.head.parameters():
        torch.nn.init.zeros_(parameter)
    optimiser = torch.optim.SGD(model.parameters(), 0.05, 0.9, weight_decay=1e-3, nesterov=True, foreach=False)
    rise = torch.optim.lr_scheduler.LinearLR(optimiser, 1e-6, 1.0, 2)
    fall = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 6)
    rate = torch.optim.lr_scheduler.SequentialLR(optimiser, [rise, fall], [2])
    model.train()
    for _ in range(8):
        loss = F.cross_entropy(model(data.images.float() / 255), data.labels, label_smoothing=0.1)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        rate.step()
    wanted = model.weights().tensors
    assert found.tensors.keys() == wanted.keys()
    for name, tensor in found.tensors.items():
        torch.testing.assert_close(tensor, wanted[name], rtol=2e-3, atol=2e-4, msg=name)


def test_it_learns_and_measures_every_epoch() -> None:
    held, course = task(45, seed=1), None
    course = Course(held)
    weights = train_classifier((), task(), config(), seeded(), course=course)
    assert len(course.learnt) == len(course.held_out) == 6
    model = Classifier.of(weights).eval()
    with torch.no_grad():
        answers = model(held.images.float() / 255).argmax(1)
    assert course.held_out[-1] == pytest.approx(accuracy_score(held.labels, answers))
    assert course.held_out[-1] == accuracy(model, held) > 0.9
    assert course.learnt[0] < course.learnt[-1]
    assert Classifier.of(weights).encoder.norm.running_mean.abs().sum() > 0


def test_to_measure_changes_no_weight() -> None:
    measured = train_classifier((), task(), config(), seeded(), course=Course(task(45, seed=1)))
    assert measured.digest == train_classifier((), task(), config(), seeded()).digest


def test_accuracies_on_train_images_are_those_of_the_answers_given() -> None:
    """With one batch an epoch and a rate of nearly nothing, the head of zeros answers class 0 throughout."""
    course = Course()
    train_classifier((), task(), config(epochs=2, batch_size=60, lr=0.0, weight_decay=0.0), seeded(), course=course)
    assert course.learnt == [pytest.approx(1 / 3)] * 2
    assert course.held_out == []


def test_a_ragged_last_batch_is_left_out_unless_it_is_the_only_one() -> None:
    for count, batch, steps in ((50, 20, 2), (50, 64, 1), (40, 20, 2)):
        course, keep = Course(), Losses()
        options = config(epochs=3, batch_size=batch)
        assert options.steps(count) == 3 * steps
        train_classifier((), task(count), options, seeded(), keep, course)
        assert keep.count == 3 * steps
        assert len(course.learnt) == 3


class Losses:
    """A checkpointer that only counts losses."""

    count = 0

    def load(self) -> None:
        return None

    def due(self) -> bool:
        return False

    def save(self, state: dict[str, Any]) -> None:
        raise AssertionError

    def finished(self, losses: torch.Tensor) -> None:
        self.count = len(losses)


def test_bfloat16_trains_weights_of_float32_that_are_close() -> None:
    exact, coarse = (train_classifier((), task(), config(bf16=half), seeded()) for half in (False, True))
    assert all(tensor.dtype != torch.bfloat16 for tensor in coarse.tensors.values())
    assert exact.digest != coarse.digest
    assert accuracy(Classifier.of(coarse).eval(), task(45, seed=1)) > 0.9


def test_stop_ends_early_on_the_same_schedule() -> None:
    first, whole = Course(), Course()
    train_classifier((), task(), config(stop=6), seeded(), course=first)
    train_classifier((), task(), config(), seeded(), course=whole)
    assert first.learnt == whole.learnt[:2]


def test_networks_of_timm_are_trained_too() -> None:
    shape = TimmArchitecture("resnet10t", 32, (0.5,) * 3, (0.25,) * 3, 32)
    data = Labelled(task(12).images.repeat(1, 1, 2, 2), "large", task(12).labels, 3)
    weights = train_classifier((), data, Supervised(shape, epochs=1, batch_size=6), seeded())
    assert Classifier.of(weights).eval()(torch.rand(1, 3, 32, 32)).shape == (1, 3)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"epochs": 0}, "epochs"),
        ({"batch_size": 0}, "batch_size"),
        ({"lr": float("inf")}, "lr"),
        ({"lr": -1.0}, "lr"),
        ({"momentum": 1.0}, "momentum"),
        ({"label_smoothing": 1.0}, "label_smoothing"),
        ({"weight_decay": -1e-3}, "weight_decay"),
        ({"warmup": 1.1}, "warmup"),
    ],
)
def test_options_out_of_range_are_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        config(**changes)


def test_what_cannot_be_trained_is_refused() -> None:
    data = task()
    with pytest.raises(TypeError, match="Labelled"):
        train_classifier((), Unlabelled(data.images, "x"), config(), seeded())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="fine_tune"):
        train_classifier((Weights(SMALL, {}),), data, config(), seeded())
    with pytest.raises(ValueError, match="resize them first"):
        train_classifier((), data, Supervised(SmallResNet(8)), seeded())
    with pytest.raises(FloatingPointError, match="learning rate"):
        train_classifier((), data, config(lr=1e30), seeded())
