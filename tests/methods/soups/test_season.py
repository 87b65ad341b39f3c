"""Seasoning: its gradient against autograd through the mixture, its losses against closed forms."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import methods.soups.season
from methods.base import Labelled, Unlabelled
from methods.nets.weights import Architecture, Classifier, Weights
from methods.soups.season import (
    Mixture,
    Schedule,
    SelfSeasoning,
    SupervisedSeasoning,
    layer_of,
    learn_coefficients,
    learned_soup,
    nearest_neighbour_accuracy,
    neighbour_entropy,
    search_coefficients,
    self_seasoned,
    supervised_seasoned,
)

SMALL = Architecture(image_size=16, patch_size=8, dim=16, depth=2, heads=2, decoder_dim=8)


def net(seed: int) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.LayerNorm(8), nn.Linear(8, 3)).double()


def through_autograd(
    module: nn.Module, ingredients: list[dict[str, Tensor]], shares: Tensor, x: Tensor, y: Tensor, layerwise: bool
) -> Tensor:
    names = list(ingredients[0])
    layers = list(dict.fromkeys(layer_of(name) if layerwise else "" for name in names))
    mixed = {
        name: sum(
            shares[layers.index(layer_of(name) if layerwise else ""), i] * own[name]
            for i, own in enumerate(ingredients)
        )
        for name in names
    }
    loss = F.cross_entropy(torch.func.functional_call(module, mixed, (x,)), y)
    return torch.autograd.grad(loss, shares)[0]


@pytest.mark.parametrize("layerwise", [False, True])
def test_gradient_equals_autograd_through_the_mixture(layerwise: bool) -> None:
    ingredients = [{k: v.detach().clone() for k, v in net(seed).state_dict().items()} for seed in range(4)]
    module = net(0)
    mixture = Mixture(module, ingredients, layerwise=layerwise)
    assert len(mixture.layers) == (3 if layerwise else 1)
    generator = torch.Generator().manual_seed(1)
    shares = torch.rand(len(mixture.layers), 4, generator=generator, dtype=torch.float64).softmax(1)
    x = torch.randn(10, 6, generator=generator, dtype=torch.float64)
    y = torch.randint(0, 3, (10,), generator=generator)
    mixture.write(shares)
    found = mixture.gradient(F.cross_entropy(module(x), y))
    expected = through_autograd(net(0), ingredients, shares.clone().requires_grad_(), x, y, layerwise)
    assert (found - expected).abs().max() <= 1e-9
    assert found.abs().max() > 1e-3
    assert all(p.grad is None for p in module.parameters())


def test_a_tied_parameter_counts_once() -> None:
    class Tied(nn.Module):
        def __init__(self, seed: int) -> None:
            super().__init__()
            self.one = net(seed)[0]
            self.two = self.one

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.one(x) + self.two(x)
            return out

    module = Tied(0)
    ingredients = [dict(Tied(seed).state_dict()) for seed in range(2)]
    mixture = Mixture(module, ingredients)
    mixture.write(torch.tensor([[0.5, 0.5]]))
    x = torch.ones(1, 6, dtype=torch.float64)
    found = mixture.gradient(module(x).sum())
    expected = [sum(2 * (own["one.weight"].sum(), own["one.bias"].sum())[i] for i in range(2)) for own in ingredients]
    torch.testing.assert_close(found[0], torch.stack(expected))


def test_identical_ingredients_leave_the_shares_equal() -> None:
    module = net(0)
    own = {k: v.detach().clone() for k, v in module.state_dict().items()}
    mixture = Mixture(module, [own, own, own])
    x, y = torch.randn(8, 6, dtype=torch.float64), torch.zeros(8, dtype=torch.int64)
    shares = learn_coefficients(mixture, lambda _: F.cross_entropy(module(x), y), lambda: iter([0]), Schedule(epochs=3))
    torch.testing.assert_close(shares, torch.full((1, 3), 1 / 3, dtype=torch.float64))


def test_the_best_corner_is_found() -> None:
    """The target is the function of ingredient 2 itself, so all weight must go there."""
    ingredients = [{k: v.detach().clone() for k, v in net(seed).state_dict().items()} for seed in range(3)]
    x = torch.randn(64, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    target = net(2)(x).detach()
    module = net(0)
    mixture = Mixture(module, ingredients)
    shares = learn_coefficients(
        mixture, lambda _: F.mse_loss(module(x), target), lambda: iter(range(3)), Schedule(epochs=60)
    )
    assert shares[0, 2] > 0.95
    torch.testing.assert_close(shares.sum(1), torch.ones(1, dtype=torch.float64))


def test_best_epoch_is_judged_after_its_updates() -> None:
    """A loss that rises with every call: the first epoch must win, with the shares of its end."""
    module = net(0)
    ingredients = [{k: v.detach().clone() for k, v in net(seed).state_dict().items()} for seed in range(2)]
    mixture = Mixture(module, ingredients)
    calls: list[int] = []

    def loss(_: int) -> Tensor:
        calls.append(1)
        return module(torch.ones(1, 6, dtype=torch.float64)).sum() * 0 + float(len(calls))

    learn_coefficients(mixture, loss, lambda: iter([0]), Schedule(epochs=2))
    assert len(calls) == 4


def test_divergence_and_empty_epochs_are_errors() -> None:
    module = net(0)
    mixture = Mixture(module, [dict(net(1).state_dict())])
    x = torch.full((1, 6), math.nan, dtype=torch.float64)
    with pytest.raises(FloatingPointError, match="not finite"):
        learn_coefficients(mixture, lambda _: module(x).sum(), lambda: iter([0]), Schedule(epochs=1))
    with pytest.raises(ValueError, match="no batch"):
        learn_coefficients(mixture, lambda _: module(x).sum(), lambda: iter(()), Schedule(epochs=1))
    with pytest.raises(ValueError, match="at least one ingredient"):
        Mixture(net(0), [])


def test_neighbour_entropy_bounds() -> None:
    same = torch.ones(9, 4)
    torch.testing.assert_close(neighbour_entropy(same, neighbours=5), torch.tensor(math.log(5)))
    torch.testing.assert_close(neighbour_entropy(same, neighbours=50), torch.tensor(math.log(8)))
    spread = torch.randn(40, 8, generator=torch.Generator().manual_seed(0))
    assert 0 < float(neighbour_entropy(spread)) < math.log(16)


def test_neighbour_entropy_by_loops() -> None:
    features = torch.randn(12, 5, generator=torch.Generator().manual_seed(2)).double()
    total = 0.0
    for i in range(12):
        cosines = sorted(
            (float(F.cosine_similarity(features[i], features[j], dim=0)) for j in range(12) if j != i), reverse=True
        )[:4]
        weights = [math.exp(c / 0.07) for c in cosines]
        total -= sum(w / sum(weights) * math.log(w / sum(weights)) for w in weights)
    assert float(neighbour_entropy(features, 4, 0.07)) == pytest.approx(total / 12, abs=1e-9)


def test_nearest_neighbours_by_loops() -> None:
    generator = torch.Generator().manual_seed(4)
    features, labels = torch.randn(30, 6, generator=generator), torch.randint(0, 3, (30,), generator=generator)
    right = 0
    for i in range(30):
        near = sorted((j for j in range(30) if j != i), key=lambda j: -F.cosine_similarity(features[i], features[j], 0))
        votes = [0.0] * 3
        for j in near[:5]:
            votes[int(labels[j])] += math.exp(float(F.cosine_similarity(features[i], features[j], 0)) / 0.07)
        right += votes.index(max(votes)) == int(labels[i])
    assert nearest_neighbour_accuracy(features, labels, 3, neighbours=5) == pytest.approx(right / 30)


def classifiers(count: int) -> list[Weights]:
    made = []
    for seed in range(count):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = Classifier(SMALL, 3)
        with torch.no_grad():
            model.encoder.cls_token.normal_(generator=torch.Generator().manual_seed(seed))
        made.append(model.weights())
    return made


def images(count: int = 24) -> Labelled:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, 3, 16, 16), generator=generator, dtype=torch.uint8)
    return Labelled(pixels, "images", torch.arange(count) % 3, 3)


@pytest.mark.parametrize("layerwise", [False, True])
def test_learned_soup_lowers_the_loss(layerwise: bool) -> None:
    inputs, data = classifiers(3), images()
    schedule = Schedule(epochs=8, batch_size=24, layerwise=layerwise)
    soup = learned_soup(inputs, data, schedule, torch.Generator().manual_seed(0))

    def loss(weights: Weights) -> float:
        model = Classifier.of(weights).eval()
        with torch.no_grad():
            return float(F.cross_entropy(model(data.images.float() / 255), data.labels))

    from methods.soups.soup import uniform_soup

    assert loss(soup) < loss(uniform_soup(inputs))
    assert soup.tensors.keys() == inputs[0].tensors.keys()


def test_seasoned_encoders_hold_the_encoder_alone() -> None:
    inputs, data = classifiers(3), images()
    config = SelfSeasoning(epochs=2, batch_size=12, neighbours=4)
    soup = self_seasoned(inputs, Unlabelled(data.images, "pool"), config, torch.Generator().manual_seed(0))
    again = self_seasoned(inputs, Unlabelled(data.images, "pool"), config, torch.Generator().manual_seed(0))
    assert soup.tensors.keys() == {n for n in inputs[0].tensors if n.startswith("encoder.")}
    assert soup.digest == again.digest
    found = supervised_seasoned(
        inputs, data, SupervisedSeasoning(draws=5, neighbours=3), torch.Generator().manual_seed(0)
    )
    assert found.tensors.keys() == soup.tensors.keys()


def test_measuring_from_the_stock_changes_no_step() -> None:
    """theta_i - theta_0 for theta_i moves every dot product alike, which the softmax cancels; steps sum to 0."""
    ingredients = [{k: v.detach().clone() for k, v in net(seed).state_dict().items()} for seed in range(4)]
    start = {name: tensor.detach().clone() for name, tensor in net(9).state_dict().items()}
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(10, 6, generator=generator, dtype=torch.float64)
    y = torch.randint(0, 3, (10,), generator=generator)
    shares = torch.tensor([[0.1, 0.2, 0.3, 0.4]], dtype=torch.float64)
    module = net(0)
    mixture = Mixture(module, ingredients)
    mixture.write(shares)
    whole = mixture.gradient(F.cross_entropy(module(x), y))
    moves = [{name: own[name] - start[name] for name in own} for own in ingredients]
    from_start = Mixture(net(0), moves)
    for name, gradient in zip(
        start, torch.autograd.grad(F.cross_entropy(module(x), y), module.parameters()), strict=True
    ):
        for number, move in enumerate(moves):
            from_start.dots[0, number] += (gradient * move[name]).sum()
    steps = [shares * (slope - (shares * slope).sum(1, keepdim=True)) for slope in (whole, from_start.dots)]
    torch.testing.assert_close(steps[0], steps[1], rtol=1e-9, atol=1e-12)
    assert abs(float(steps[0].sum())) < 1e-12
    assert (whole - from_start.dots).std() < 1e-9


def test_blocks_of_images_change_nothing_and_bound_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    features = torch.randn(101, 8, generator=torch.Generator().manual_seed(1))
    labels = torch.randint(0, 7, (101,), generator=torch.Generator().manual_seed(2))
    whole = nearest_neighbour_accuracy(features, labels, 7, neighbours=9)
    largest: list[int] = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            largest.extend(value.numel() for value in tree_leaves(out) if isinstance(value, torch.Tensor))
            return out

    for at_once in (10, 2000, 5000):
        monkeypatch.setattr(methods.soups.season, "_AT_ONCE", at_once)
        largest.clear()
        with Watch():
            assert nearest_neighbour_accuracy(features, labels, 7, neighbours=9) == whole
        assert max(largest) <= max(features.numel(), at_once + 101)


def test_more_neighbours_than_images_are_all_the_others() -> None:
    generator = torch.Generator().manual_seed(4)
    features, labels = torch.randn(9, 6, generator=generator), torch.randint(0, 3, (9,), generator=generator)
    everyone = nearest_neighbour_accuracy(features, labels, 3, neighbours=8)
    assert nearest_neighbour_accuracy(features, labels, 3, neighbours=100) == everyone
    renamed = torch.tensor([2, 0, 1])[labels]
    assert nearest_neighbour_accuracy(features, renamed, 3, neighbours=100) == everyone


def test_every_step_and_the_choice_of_the_epoch_by_ordinary_means() -> None:
    """Autograd through the mixture, torch's Adam and its cosine; a rate so high that the last epoch is not the best."""
    ingredients = [{k: v.detach().clone() for k, v in net(seed).state_dict().items()} for seed in range(3)]
    generator = torch.Generator().manual_seed(5)
    batches = [torch.randn(10, 6, generator=generator, dtype=torch.float64) for _ in range(2)]
    targets = [torch.randint(0, 3, (10,), generator=generator) for _ in range(2)]
    schedule = Schedule(epochs=9, lr=4.0, last_lr=1.0)
    logits = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    adam = torch.optim.Adam([logits], lr=schedule.lr)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(adam, schedule.epochs, eta_min=schedule.last_lr)

    def loss(x: Tensor, y: Tensor) -> Tensor:
        shares = logits.softmax(0)
        mixed = {name: sum(shares[i] * own[name] for i, own in enumerate(ingredients)) for name in ingredients[0]}
        return F.cross_entropy(torch.func.functional_call(net(0), mixed, (x,)), y)

    values, ends = [], []
    for _ in range(schedule.epochs):
        for x, y in zip(batches, targets, strict=True):
            adam.zero_grad()
            loss(x, y).backward()  # type: ignore[no-untyped-call]
            adam.step()
        cosine.step()
        values.append(float(sum(loss(x, y).detach() for x, y in zip(batches, targets, strict=True))))
        ends.append(logits.detach().softmax(0))
    best = values.index(min(values))
    assert 0 < best < schedule.epochs - 1
    module = net(0)
    found = learn_coefficients(
        Mixture(module, ingredients),
        lambda batch: F.cross_entropy(module(batch[0]), batch[1]),
        lambda: iter(list(zip(batches, targets, strict=True))),
        schedule,
    )
    torch.testing.assert_close(found[0], ends[best], rtol=1e-8, atol=1e-10)
    for name, parameter in module.state_dict().items():
        mixed = sum(ends[best][i] * own[name] for i, own in enumerate(ingredients))
        torch.testing.assert_close(parameter, mixed)


def test_random_search_takes_the_best_draw() -> None:
    """One ingredient shows the classes, the other hides them: the more of the first, the more neighbours are right."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(60) % 3
    pixels = torch.randint(0, 40, (60, 3, 2, 2), generator=generator)
    pixels[:, 0] += 15 * labels[:, None, None]
    pixels[:, 1] += 200 * torch.randint(0, 2, (60, 1, 1), generator=generator)
    data = Labelled(pixels.to(torch.uint8), "x", labels, 3)
    module = nn.Linear(12, 2, bias=False)
    shows, hides = torch.zeros(2, 12), torch.zeros(2, 12)
    shows[0, :4], shows[1, 8:], hides[0, 4:8], hides[1, 8:] = 1.0, 0.5, 1.0, 0.5
    mixture = Mixture(module, [{"weight": shows}, {"weight": hides}])

    def score(row: Tensor) -> float:
        mixture.write(row[None])
        with torch.no_grad():
            found = module(data.images.float().flatten(1) / 255)
        return nearest_neighbour_accuracy(found, labels, 3, neighbours=5)

    config = SupervisedSeasoning(draws=12, neighbours=5)
    draws = torch.empty(12, 2, dtype=torch.float64).exponential_(generator=torch.Generator().manual_seed(7))
    draws[0] = 1
    draws = draws / draws.sum(1, keepdim=True)
    scores = [score(row) for row in draws]
    chosen = search_coefficients(
        mixture, lambda images: module(images.flatten(1)), data, config, torch.Generator().manual_seed(7)
    )
    assert torch.equal(chosen[0], draws[scores.index(max(scores))])
    assert max(scores) > scores[0] > min(scores)


def test_the_shares_come_with_the_soup() -> None:
    inputs, data = classifiers(3), images()
    schedule = Schedule(epochs=2, batch_size=24, layerwise=True)
    soup = learned_soup(inputs, data, schedule, torch.Generator().manual_seed(0))
    assert "head" in soup.shares
    for name, tensor in soup.tensors.items():
        if tensor.is_floating_point():
            row = soup.shares[layer_of(name)]
            assert sum(row) == pytest.approx(1)
            mixed = sum(share * own.tensors[name].double() for share, own in zip(row, inputs, strict=True))
            torch.testing.assert_close(tensor.double(), mixed, rtol=1e-6, atol=1e-7)
