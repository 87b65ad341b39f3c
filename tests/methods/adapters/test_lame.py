"""LAME: golden parity, a slow restatement with loops, and batches that have no neighbours."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from methods.adapters.lame import Lame, correct, knn, linear, rbf
from methods.base import Unsupported


class Probabilities(Lame):
    """The golden file holds probabilities, of which ours are the logarithm."""

    def predict(self, images: Tensor) -> Tensor:
        return super().predict(images).exp()


@pytest.mark.parametrize("model", ["test_resnet", "test_vit"])
def test_matches_the_official_probabilities(golden: Any, model: str) -> None:
    assert golden.difference(Probabilities(golden.model(model)), f"{model}__lame") <= 1e-4


@pytest.mark.parametrize("config", [Lame.Config(neighbours=4), Lame.Config(affinity="knn"), Lame.Config(steps=1)])
@pytest.mark.parametrize("model", ["test_resnet", "test_vit"])
def test_other_options_would_fail_the_golden_comparison(golden: Any, model: str, config: Lame.Config) -> None:
    assert golden.difference(Probabilities(golden.model(model), config), f"{model}__lame") > 1e-3


def unit_features(n: int, dim: int = 4) -> Tensor:
    features = torch.randn(n, dim, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return features / features.norm(dim=1, keepdim=True)


def slow_affinity(features: Tensor, kind: str, k: int) -> list[list[float]]:
    rows = features.tolist()
    n = len(rows)
    distance = [[math.dist(a, b) for b in rows] for a in rows]
    if kind == "linear":
        return [[sum(x * y for x, y in zip(a, b, strict=True)) for b in rows] for a in rows]
    if kind == "rbf":
        deviation = sum(sorted(row)[min(k, n) - 1] for row in distance) / n
        return [[math.exp(-(d**2) / (2 * deviation**2)) for d in row] for row in distance]
    others = [sorted((j for j in range(n) if j != i), key=distance[i].__getitem__)[:k] for i in range(n)]
    return [[float(j in others[i]) for j in range(n)] for i in range(n)]


@pytest.mark.parametrize("k", [2, 5, 50])
@pytest.mark.parametrize(("kind", "ours"), [("rbf", rbf), ("knn", knn), ("linear", linear)])
def test_affinities_are_the_slow_ones(kind: str, ours: Callable[[Tensor, int], Tensor], k: int) -> None:
    features = unit_features(7)
    expected = torch.tensor(slow_affinity(features, kind, k), dtype=torch.float64)
    torch.testing.assert_close(ours(features, k), expected)


def slow_correction(p: list[list[float]], w: list[list[float]], steps: int) -> list[list[float]]:
    n, classes = len(p), len(p[0])
    y = [[value / sum(row) for value in row] for row in p]
    energy = math.inf
    for step in range(steps):
        pull = [[sum(w[i][j] * y[j][c] for j in range(n)) for c in range(classes)] for i in range(n)]
        weight = [[(p[i][c] + 1e-10) * math.exp(pull[i][c]) for c in range(classes)] for i in range(n)]
        y = [[value / sum(row) for value in row] for row in weight]
        new = sum(
            y[i][c] * (math.log(y[i][c]) - math.log(p[i][c] + 1e-10) - pull[i][c])
            for i in range(n)
            for c in range(classes)
        )
        if step > 1 and abs(new - energy) <= 1e-8 * abs(energy):
            break
        energy = new
    return y


@pytest.mark.parametrize("steps", [1, 2, 7, 100])
def test_the_fixed_point_is_the_slow_one(steps: int) -> None:
    generator = torch.Generator().manual_seed(5)
    p = torch.randn(6, 5, generator=generator, dtype=torch.float64).mul(2).softmax(dim=1)
    w = rbf(unit_features(6), 3)
    expected = torch.tensor(slow_correction(p.tolist(), w.tolist(), steps), dtype=torch.float64)
    ours = correct(p, w, steps)
    torch.testing.assert_close(ours.exp(), expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(ours.softmax(dim=1), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("factor", "stationary"), [(0.5, True), (1.0, False)])
def test_the_fixed_point_is_stationary_for_half_of_the_affinities(factor: float, stationary: bool) -> None:
    """The objective of the paper has the whole sum, for which its own update is not stationary."""
    p = torch.rand(9, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64).softmax(1)
    affinity = rbf(unit_features(9), 5)
    y = correct(p, affinity, 1000).requires_grad_()
    assigned = y.softmax(1)
    energy = (assigned * (assigned.log() - p.log())).sum() - factor * (affinity * (assigned @ assigned.T)).sum()
    (slope,) = torch.autograd.grad(energy, y)
    assert (slope.abs().max() < 1e-3) == stationary


def test_without_neighbours_the_prediction_stays(make_net: Callable[[str], nn.Sequential], batches: Tensor) -> None:
    net = make_net("gn")
    adapter = Lame(net, Lame.Config(affinity="knn"))
    adapter.prepare()
    with torch.no_grad():
        torch.testing.assert_close(adapter.predict(batches[0, :1]).exp(), net(batches[0, :1]).softmax(dim=1))


@pytest.mark.parametrize("affinity", ["rbf", "knn", "linear"])
@pytest.mark.parametrize("k", [1, 4, 99])
def test_one_image_equal_images_and_many_neighbours_stay_finite(
    make_net: Callable[[str], nn.Sequential], batches: Tensor, affinity: Any, k: int
) -> None:
    adapter = Lame(make_net("gn"), Lame.Config(affinity, k))
    adapter.prepare()
    for images in (batches[0, :1], batches[0], batches[0, :1].expand(5, -1, -1, -1), torch.zeros(3, 3, 32, 32)):
        log_y = adapter.predict(images)
        assert torch.isfinite(log_y).all()
        torch.testing.assert_close(log_y.exp().sum(dim=1), torch.ones(len(images)))


def test_an_island_is_pulled_by_itself_alone() -> None:
    assert torch.equal(rbf(unit_features(5), 1), torch.eye(5, dtype=torch.float64))


def test_a_batch_is_judged_alone(make_net: Callable[[str], nn.Sequential], batches: Tensor) -> None:
    adapter = Lame(make_net("bn"))
    adapter.prepare()
    first = adapter.predict(batches[0])
    adapter.predict(batches[1])
    assert torch.equal(adapter.predict(batches[0]), first)


def test_options_out_of_range_are_refused() -> None:
    for options in ({"affinity": "cosine"}, {"neighbours": 0}, {"steps": 0}):
        with pytest.raises(ValueError, match=r"lame\."):
            Lame.Config(**options)  # type: ignore[arg-type]


def test_a_model_without_linear_head_is_refused() -> None:
    with pytest.raises(Unsupported, match="runs none"):
        Lame(nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())).prepare()
