"""Adapters run for epochs over a pool: the weights of the adapter itself, driven by hand."""

from __future__ import annotations

import pytest
import torch

from methods.adapters.shot_im import ShotIM
from methods.adapters.tent import Tent
from methods.base import Labelled, Unlabelled
from methods.losses import entropy
from methods.nets.weights import Architecture, Classifier, Weights
from methods.recipes.pool_adaptation import Adaptation, adapt

SMALL = Architecture(image_size=16, patch_size=8, dim=16, depth=1, heads=2)


def model() -> Weights:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Classifier(SMALL, 3).weights()


def pool() -> Unlabelled:
    generator = torch.Generator().manual_seed(1)
    return Unlabelled(torch.randint(0, 256, (20, 3, 16, 16), generator=generator, dtype=torch.uint8), "pool")


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(3)


@pytest.mark.parametrize("rule", [Tent.Config(lr=1e-2, optimizer="adam"), ShotIM.Config(lr=1e-2)])
def test_equals_the_adapter_driven_by_hand(rule: Tent.Config | ShotIM.Config) -> None:
    data = pool()
    found = adapt([model()], data, Adaptation(rule, passes=2, batch_size=8), seeded())
    adapter = (Tent if isinstance(rule, Tent.Config) else ShotIM)(Classifier.of(model()), rule)
    adapter.prepare()
    draws = seeded()
    for _ in range(2):
        order = torch.randperm(20, generator=draws)
        for batch in (order[:8], order[8:16]):
            adapter.predict(data.images[batch].float() / 255)
    for name, tensor in adapter.model.state_dict().items():
        assert torch.equal(found.tensors[name], tensor), name
    assert found.digest != model().digest


def test_entropy_falls_over_the_epochs() -> None:
    data = pool()

    def mean_entropy(weights: Weights) -> float:
        with torch.no_grad():
            return float(entropy(Classifier.of(weights).eval()(data.images[:].float() / 255)).mean())

    rule = Tent.Config(lr=1e-2, optimizer="adam")
    after = [mean_entropy(adapt([model()], data, Adaptation(rule, passes, 10), seeded())) for passes in (1, 4)]
    assert mean_entropy(model()) > after[0] > after[1]


def test_labels_are_refused_and_divergence_is_an_error() -> None:
    data = pool()
    labelled = Labelled(data.images, "labelled", torch.arange(20) % 3, 3)
    with pytest.raises(TypeError, match="never sees labels"):
        adapt([model()], labelled, Adaptation(), seeded())
    with pytest.raises(FloatingPointError, match="lower its rate"):
        adapt([model()], data, Adaptation(ShotIM.Config(lr=1e30), 3, 10), seeded())
