"""AdaBN: its statistics are numpy's of the whole pool, layer after layer."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from methods import METHODS
from methods.base import Job, Labelled, Unlabelled, Unsupported
from methods.nets.timm_encoders import TimmArchitecture
from methods.nets.weights import Architecture, Classifier, Weights
from methods.recipes.adabn_pool import PoolAdaBN, _in_order, with_pool_statistics
from methods.recipes.source import SourceOnly, SourceOptions
from methods.selfsoup.ingredients import tensors_of

CNN = TimmArchitecture("test_resnet", 32, (0.5, 0.4, 0.3), (0.3, 0.25, 0.2), 32)


def pool(count: int = 150) -> Unlabelled:
    """Images in several batches, the last one ragged, that grow brighter, so that batches differ in their means."""
    generator = torch.Generator().manual_seed(1)
    noise = torch.rand(count, 3, 32, 32, generator=generator)
    light = torch.linspace(0.1, 1, count).view(-1, 1, 1, 1)
    return Unlabelled((255 * noise * light).to(torch.uint8), "pool")


def source_classifier() -> Weights:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Classifier(CNN, 4).weights()


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def entering(weights: Weights, images: Tensor) -> dict[str, np.ndarray]:
    """What enters each BatchNorm of a classifier in eval mode, float64 [channels, values], for all images at once."""
    model = Classifier.of(weights).eval()
    seen: dict[str, np.ndarray] = {}
    for name, layer in model.named_modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.register_forward_pre_hook(
                lambda _, inputs, name=name: seen.__setitem__(
                    name, inputs[0].double().numpy().swapaxes(0, 1).reshape(inputs[0].shape[1], -1)
                )
            )
    with torch.no_grad():
        model(images.float() / 255)
    return seen


def test_the_statistics_are_those_of_numpy_on_the_whole_pool() -> None:
    data = pool()
    adapted = with_pool_statistics([source_classifier()], data, None, seeded())
    values = entering(adapted, data.images[:])
    assert len(values) > 3
    for name, entered in values.items():
        np.testing.assert_allclose(adapted.tensors[f"{name}.running_mean"], entered.mean(1), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(adapted.tensors[f"{name}.running_var"], entered.var(1), rtol=1e-4, atol=1e-6)
    first = next(iter(values))
    assert not np.allclose(
        source_classifier().tensors[f"{first}.running_mean"], adapted.tensors[f"{first}.running_mean"]
    )


def test_the_pool_is_answered_as_one_batch_in_training_mode() -> None:
    data = pool()
    before = source_classifier()
    adapted = with_pool_statistics([before], data, None, seeded())
    images = data.images[:].float() / 255
    with torch.no_grad():
        as_one_batch = Classifier.of(before).train()(images)
        torch.testing.assert_close(Classifier.of(adapted).eval()(images), as_one_batch, rtol=1e-4, atol=1e-5)


def test_nothing_else_changes() -> None:
    before = source_classifier()
    after = with_pool_statistics([before], pool(), None, seeded())
    changed = {name for name, tensor in before.tensors.items() if not torch.equal(tensor, after.tensors[name])}
    assert changed == {name for name in before.tensors if name.endswith((".running_mean", ".running_var"))}


def test_it_starts_from_the_source_classifier_and_refuses_what_it_cannot_do() -> None:
    images = pool(20)
    source = Labelled(images.images, "source", torch.arange(20) % 4, 4)
    stock = Weights(CNN, tensors_of(CNN.initial(seeded()), "encoder"))
    job = PoolAdaBN().plan(stock, source, images)[""]
    (tuned,) = job.inputs
    assert isinstance(tuned, Job)
    expected = SourceOnly().plan(stock, source, None)[""]
    assert (tuned.function, tuned.config) == (expected.function, expected.config)
    assert job.data is images
    assert {f.name for f in fields(PoolAdaBN.Config)} == {f.name for f in fields(SourceOptions)}
    assert METHODS["adabn_pool"].access == PoolAdaBN.access
    assert PoolAdaBN.access.track == "C"

    vit = Architecture(image_size=32, patch_size=8, dim=16, depth=1, heads=2)
    without = Weights(vit, tensors_of(vit.initial(seeded()), "encoder"))
    with pytest.raises(Unsupported, match=r"BatchNorm and the stock .* has none; give a stock with BatchNorm"):
        PoolAdaBN().plan(without, source, images)
    with pytest.raises(Unsupported, match="gives an adapt half"):
        PoolAdaBN().plan(stock, source, None)
    for wrong, kind, sentence in (
        (source, TypeError, "never sees labels"),
        (pool(1), ValueError, "single image"),
        (Unlabelled(images.images[..., :8], "small"), ValueError, "32"),
    ):
        with pytest.raises(kind, match=sentence):
            with_pool_statistics([source_classifier()], wrong, None, seeded())


def test_a_layer_that_runs_twice_is_refused() -> None:
    twice = nn.BatchNorm2d(3)
    with pytest.raises(Unsupported, match="runs twice"):
        _in_order(nn.Sequential(twice, nn.Conv2d(3, 3, 1), twice), torch.rand(2, 3, 4, 4))
