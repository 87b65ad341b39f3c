"""Soups that look at data: greedy, Fisher, re-estimated BatchNorm; and rules that measure from the stock."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from methods.base import Labelled
from methods.nets.weights import Architecture, Classifier, Weights, ready
from methods.soups import soup
from methods.soups.bn_recalibration import reestimate_batch_norm
from methods.soups.mixing import Mixed, TaskArithmetic, Wise
from methods.soups.soup import (
    Fisher,
    Greedy,
    Interpolation,
    Line,
    accuracy,
    best_ingredient,
    connectivity,
    diagonal_fisher,
    ensemble,
    fisher_soup,
    greedy_soup,
    interpolate,
    mixed_soup,
    uniform_soup,
)
from methods.training.loading import InOrder

SMALL = Architecture(image_size=16, patch_size=8, dim=16, depth=1, heads=2)


def model_of(seed: int) -> Weights:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Classifier(SMALL, 3).weights()


def labelled(count: int = 30) -> Labelled:
    generator = torch.Generator().manual_seed(0)
    side = SMALL.image_size
    pixels = torch.randint(0, 256, (count, 3, side, side), generator=generator, dtype=torch.uint8)
    return Labelled(pixels, "holdout", torch.arange(count) % 3, 3)


def test_greedy_by_hand_and_never_below_the_best_single() -> None:
    data = labelled()
    models = [model_of(seed) for seed in range(4)]
    device = torch.device("cpu")
    scores = [accuracy(model, data, device) for model in models]
    order = sorted(range(4), key=lambda i: -scores[i])
    kept = [models[order[0]]]
    for i in order[1:]:
        if accuracy(uniform_soup([*kept, models[i]]), data, device) >= accuracy(uniform_soup(kept), data, device):
            kept.append(models[i])
    found = greedy_soup(models, data, Greedy())
    assert found.digest == uniform_soup(kept).digest
    assert accuracy(found, data, device) >= max(scores)
    assert best_ingredient(models, data).digest == models[scores.index(max(scores))].digest


def test_a_tie_is_accepted_or_not() -> None:
    data, model = labelled(), model_of(0)
    twin = model_of(0)
    for ties, shares in ((False, (1.0, 0.0)), (True, (0.5, 0.5))):
        found = greedy_soup([model, twin], data, Greedy(ties=ties))
        assert isinstance(found, Mixed)
        assert found.shares == {"all": shares}
        assert found.digest == model.digest


def test_each_step_is_held_against_the_best_so_far(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models are single numbers and accuracy is a table: 3 and its mean with 5 are kept, what comes after is not."""
    models = [Weights(SMALL, {"encoder.x": torch.tensor(value)}) for value in (5.0, 3.0, 8.0, 3.0)]
    table = {3.0: 0.6, 5.0: 0.5, 8.0: 0.4, 4.0: 0.9, 16 / 3: 0.7, 11 / 3: 0.9, 4.75: 0.8}

    def look_up(weights: Weights, data: Labelled, device: torch.device) -> float:
        value = float(weights.tensors["encoder.x"])
        return next(score for own, score in table.items() if abs(own - value) < 1e-5)

    monkeypatch.setattr("methods.soups.soup.accuracy", look_up)
    for ties, shares in ((True, (1 / 3, 1 / 3, 0.0, 1 / 3)), (False, (0.5, 0.5, 0.0, 0.0))):
        found = greedy_soup(models, labelled(), Greedy(ties=ties))
        assert isinstance(found, Mixed)
        assert found.shares == {"all": pytest.approx(shares)}
    best = best_ingredient(models, labelled())
    assert isinstance(best, Mixed)
    assert best.shares == {"all": (0.0, 1.0, 0.0, 0.0)}


def test_fisher_holds_few_gradients_of_a_large_network_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model, data = model_of(0), labelled(7)
    sizes: list[int] = []

    def seen(count: int, size: int, device: torch.device) -> InOrder:
        sizes.append(size)
        return InOrder(count, size, device)

    monkeypatch.setattr(soup, "InOrder", seen)
    whole = diagonal_fisher(model, data, Fisher(batch_size=4), torch.device("cpu"))
    monkeypatch.setattr(soup, "_GRADIENTS_AT_ONCE", 2 * sum(p.numel() for p in whole.values()) + 1)
    few = diagonal_fisher(model, data, Fisher(batch_size=4), torch.device("cpu"))
    assert sizes == [4, 2]
    for name, information in whole.items():
        torch.testing.assert_close(few[name], information)


def test_fisher_weighs_what_matters() -> None:
    """Against a loop over images with ordinary autograd."""
    data = labelled(6)
    models = [model_of(seed) for seed in range(2)]
    config = Fisher(batch_size=4)
    expected = []
    for model in models:
        net = Classifier.of(model).eval()
        total = {name: torch.zeros_like(p) for name, p in net.named_parameters() if p.requires_grad}
        for image in data.images:
            net.zero_grad()
            (-net(image[None].float() / 255).log_softmax(1).max()).backward()
            for name, p in net.named_parameters():
                if p.grad is not None:
                    total[name] += p.grad.square() / 6
        found = diagonal_fisher(model, data, config, torch.device("cpu"))
        assert found.keys() == total.keys()
        for name in total:
            torch.testing.assert_close(found[name], total[name], rtol=1e-3, atol=1e-9)
        expected.append(total)
    fished = fisher_soup(models, data, config)
    name = "head.weight"
    weights = [own[name].double() + config.floor for own in expected]
    by_hand = sum(w * m.tensors[name].double() for w, m in zip(weights, models, strict=True)) / sum(weights)
    torch.testing.assert_close(fished.tensors[name].double(), by_hand, rtol=1e-3, atol=1e-5)


def test_mixing_measures_from_the_stock_and_averages_what_it_lacks() -> None:
    models = [model_of(seed) for seed in range(3)]
    stock = Weights(SMALL, {n: t for n, t in model_of(7).tensors.items() if n.startswith("encoder.")})
    soup = mixed_soup([stock, *models], None, TaskArithmetic(1 / 3))
    uniform = uniform_soup(models)
    assert torch.equal(soup.tensors["head.weight"], uniform.tensors["head.weight"])
    for name, tensor in uniform.tensors.items():
        torch.testing.assert_close(soup.tensors[name], tensor, rtol=0, atol=1e-5)
    half = mixed_soup([stock, *models], None, Wise(0.5))
    name = "encoder.blocks.0.attn.qkv.weight"
    torch.testing.assert_close(half.tensors[name], (stock.tensors[name] + uniform.tensors[name]) / 2)


def test_batch_norm_is_measured_again_on_the_mixed_model() -> None:
    """One layer alone: cumulative statistics are the mean of the batches' own."""
    net = nn.Sequential(nn.BatchNorm2d(3, momentum=0.3), nn.Dropout()).train()
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        net(5 + torch.rand(8, 3, 4, 4, generator=generator))  # other statistics, which must leave no trace
    images = [torch.rand(8, 3, 4, 4, generator=generator) for _ in range(5)]
    assert reestimate_batch_norm(net, images) == 1
    norm = net[0]
    assert isinstance(norm, nn.BatchNorm2d)
    means = torch.stack([batch.mean((0, 2, 3)) for batch in images]).mean(0)
    variances = torch.stack([batch.var((0, 2, 3)) for batch in images]).mean(0)
    torch.testing.assert_close(norm.running_mean, means)
    torch.testing.assert_close(norm.running_var, variances)
    assert norm.momentum == 0.3
    assert net.training
    assert reestimate_batch_norm(nn.Sequential(nn.LayerNorm(3)), []) == 0
    with pytest.raises(ValueError, match="at least one batch"):
        reestimate_batch_norm(net, [])


def test_an_ensemble_averages_probabilities() -> None:
    models = [model_of(seed) for seed in range(3)]
    images = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = torch.stack([Classifier.of(model).eval()(images).softmax(1) for model in models]).mean(0)
        found = ready(ensemble(models))(images)
    torch.testing.assert_close(found.exp(), expected)
    with pytest.raises(ValueError, match="at least one"):
        ensemble([])


@pytest.mark.parametrize(("count", "lines"), [(2, 1), (4, 4)])
def test_lines_between_neighbours_hold_the_accuracy_of_what_lies_on_them(count: int, lines: int) -> None:
    data = labelled()
    models = [model_of(seed) for seed in range(count)]
    found = connectivity(models, data, Line(points=3)).tensors
    assert found["positions"].tolist() == [0, 0.5, 1]
    assert len(found["pairs"]) == lines
    assert int(found["images"]) == len(data)
    device = torch.device("cpu")
    for (a, b), row in zip(found["pairs"].tolist(), found["accuracy"].tolist(), strict=True):
        middle = interpolate((models[a], models[b]), None, Interpolation(0.5))
        assert row == [accuracy(weights, data, device) for weights in (models[a], middle, models[b])]
    with pytest.raises(ValueError, match="at least two"):
        connectivity(models[:1], data, Line())
    with pytest.raises(ValueError, match="at least 3"):
        Line(points=2)
