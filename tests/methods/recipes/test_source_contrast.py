"""Joint training on labels and a contrast of views: its loss, its head, its views and its plan."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from methods.base import Labelled, Unsupported
from methods.data_parallel import Share
from methods.nets.weights import Architecture, Classifier, Weights, build_encoder, ready
from methods.recipes.source_contrast import Contrasting, SourceContrast, fine_tune_contrastively
from methods.selfsoup.ingredients import tensors_of
from methods.training.finetune import start_side_head
from methods.training.loop import reset

SMALL = Architecture(image_size=16, patch_size=8, dim=16, depth=1, heads=2)
HEAD = [f"projection.{layer}.{kind}" for layer in (0, 2) for kind in ("weight", "bias")]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def stock() -> Weights:
    encoder = build_encoder(SMALL)
    reset(encoder, seeded())
    return Weights(SMALL, tensors_of(encoder, "encoder"))


def task(count: int = 40) -> Labelled:
    """Noise whose brightness indicates the class, with a blot that tells images apart."""
    labels = torch.arange(count) % 3
    images = torch.randint(0, 30, (count, 3, 16, 16), generator=seeded(1)) + 80 * labels[:, None, None, None]
    return Labelled(images.to(torch.uint8), "task", labels, 3)


class Losses:
    """Keeps the losses of a training."""

    def __init__(self) -> None:
        self.found = torch.empty(0)

    def load(self) -> None:
        return None

    def due(self) -> bool:
        return False

    def save(self, state: dict[str, Any]) -> None: ...

    def finished(self, found: Tensor) -> None:
        self.found = found


def losses_of(**options: Any) -> Tensor:
    keep = Losses()
    fine_tune_contrastively([stock()], task(), Contrasting(**options), seeded(), keep)
    return keep.found


def test_labels_and_views_are_learnt_and_the_head_is_kept() -> None:
    config = Contrasting(epochs=60, lr=1e-2, batch_size=20, area=0.9, flip=False, jitter=0.0, balance=0.5)
    made = fine_tune_contrastively([stock()], task(), config, seeded())
    assert set(made.tensors) == set(stock().tensors) | {"head.weight", "head.bias", *HEAD}
    model = ready(made)
    assert isinstance(model, Classifier)
    assert model.rotation is None
    images = task().images[:] / 255
    with torch.no_grad():
        assert (model(images).argmax(1) == task().labels).float().mean() > 0.9
    assert Classifier.of(made).weights().digest == made.digest
    found = losses_of(epochs=60, lr=1e-2, batch_size=40, area=0.9, jitter=0.0, balance=0.0)
    assert found[-5:].mean() < found[:5].mean() - 1


def test_the_first_loss_is_that_of_both_tasks() -> None:
    """As the release writes it: both views' cross-entropy, and SimCLR's loss over all pairs of views."""
    options: dict[str, Any] = {"epochs": 1, "batch_size": 40, "temperature": 0.5}
    labels_alone, views_alone = (losses_of(**options, balance=balance)[0] for balance in (1.0, 0.0))
    torch.testing.assert_close(losses_of(**options, balance=0.9)[0], 0.9 * labels_alone + 0.1 * views_alone)

    drawn = seeded()
    model = Classifier(SMALL, 3, ["projection"])
    model.encoder.load_state_dict(stock().part("encoder"))
    assert model.projection is not None
    start_side_head(model.projection, drawn)
    order = torch.randperm(40, generator=drawn)
    views = Contrasting(**options).views(task().images[:][order], drawn, Share())
    assert views.shape == (40, 2, 3, 16, 16)
    with torch.no_grad():
        first, second = (F.normalize(model.projection(model.features(views[:, place])), dim=1) for place in range(2))
    rows = torch.cat([first, second])
    expected = 0.0
    for place in range(80):
        others = [other for other in range(80) if other != place]
        cosines = rows[place] @ rows[others].T / 0.5
        partner = others.index((place + 40) % 80)
        expected += float(-(cosines[partner] - cosines.logsumexp(0))) / 80
    torch.testing.assert_close(views_alone, torch.tensor(0.5 / 0.07 * expected), rtol=1e-4, atol=1e-4)


def test_views_of_an_image_differ_and_follow_the_options() -> None:
    images = task().images[:]
    views = Contrasting(area=1.0, flip=False, jitter=0.0).views(images, seeded(), Share())
    assert not torch.equal(views[:, 0], views[:, 1])  # other ratios, or gray
    pairs = Contrasting().views(images, seeded(), Share())
    assert float((pairs[:, 0] - pairs[:, 1]).abs().mean()) > 0.02


def test_training_ends_as_a_pure_function_of_its_seed() -> None:
    again = [fine_tune_contrastively([stock()], task(), Contrasting(epochs=1), seeded()).digest for _ in range(2)]
    assert again[0] == again[1]
    assert fine_tune_contrastively([stock()], task(), Contrasting(epochs=1), seeded(1)).digest != again[0]


def test_the_plan_is_one_job_behind_the_probe() -> None:
    (job,) = SourceContrast(SourceContrast.Config(epochs=3)).plan(stock(), task(), None).values()
    assert job.config == Contrasting(epochs=3)
    assert job.shared
    assert job.keeps == ("projection",)
    assert job.work is not None
    with pytest.raises(Unsupported, match="cannot be cut"):
        SourceContrast(SourceContrast.Config(batch_size=7, accumulate=2)).plan(stock(), task(), None)


@pytest.mark.parametrize("wrong", [{"three_augment": True}, {"balance": 1.1}, {"temperature": 0.0}])
def test_options_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} must be"):
        SourceContrast.Config(**wrong)
