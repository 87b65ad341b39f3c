"""Heads on a frozen encoder, against scikit-learn's neighbours with the same votes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor

from methods.base import Labelled
from methods.nets.weights import Architecture, Classifier, NeighbourClassifier, Weights, build_encoder, ready
from methods.training.heads import Neighbours, headed, nearest_neighbours
from methods.training.loop import reset


@pytest.fixture
def stock() -> Weights:
    architecture = Architecture(dim=16, depth=1, heads=2, decoder_dim=16, decoder_heads=2)
    encoder = build_encoder(architecture)
    reset(encoder, torch.Generator().manual_seed(0))
    return Weights(architecture, {f"encoder.{name}": tensor for name, tensor in encoder.state_dict().items()})


def images(count: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, 32, 32), generator=generator, dtype=torch.uint8)


def source(count: int = 60) -> Labelled:
    return Labelled(images(count, 1), "digest", torch.arange(count) % 5, 7)


def features(stock: Weights, pixels: Tensor) -> np.ndarray:
    model = Classifier(stock.architecture, 2).eval()
    model.encoder.load_state_dict(stock.part("encoder"))
    with torch.no_grad():
        return model.features(pixels.float() / 255).double().numpy()


@pytest.mark.parametrize(("neighbours", "temperature"), [(20, 0.07), (3, 1.0), (1, 0.07)])
def test_the_shares_of_votes_are_those_of_scikit_learn(stock: Weights, neighbours: int, temperature: float) -> None:
    data, test = source(), images(40, 2)
    config = Neighbours(neighbours, temperature)
    model = ready(nearest_neighbours([stock], data, config, torch.Generator()))
    assert isinstance(model, NeighbourClassifier)
    theirs = KNeighborsClassifier(
        neighbours, metric="cosine", algorithm="brute", weights=lambda distance: np.exp((1 - distance) / temperature)
    )
    theirs.fit(features(stock, data.images), data.labels.numpy())  # type: ignore[arg-type]
    wanted = theirs.predict_proba(features(stock, test))
    with torch.no_grad():
        shares = model(test.float() / 255).exp()
    assert shares.shape == (40, 7)
    np.testing.assert_allclose(shares[:, :5].numpy(), np.maximum(wanted, 1e-6), rtol=2e-3, atol=2e-6)
    np.testing.assert_allclose(shares[:, 5:].numpy(), NeighbourClassifier.LEAST, rtol=1e-5)
    assert torch.isfinite(shares.log()).all()


def test_fewer_images_than_neighbours_all_vote(stock: Weights) -> None:
    model = ready(nearest_neighbours([stock], source(5), Neighbours(), torch.Generator()))
    with torch.no_grad():
        shares = model(images(3, 2).float() / 255).exp()
    np.testing.assert_allclose(shares[:, :5].sum(1).numpy(), 1, rtol=1e-5)
    assert (shares[:, :5] > NeighbourClassifier.LEAST).all()


def test_the_encoder_stays_and_labels_are_needed(stock: Weights) -> None:
    data = source()
    for head in ("probe", "knn"):
        job = headed(stock, stock, data, head, 1e-2)  # type: ignore[arg-type]
        made = job.function([stock], data, job.config, torch.Generator())
        assert all(torch.equal(made.tensors[name], tensor) for name, tensor in stock.tensors.items())
    with pytest.raises(TypeError, match="clean labelled images"):
        nearest_neighbours([stock], data.without_labels(), Neighbours(), torch.Generator())  # type: ignore[arg-type]
