"""The manifold-capacity objective against bounds, closed forms and batched singular values."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from methods.nets.weights import Architecture, Weights, build_encoder
from methods.selfsoup.objectives import mmcr
from methods.selfsoup.objectives.mmcr import capacity_loss

SMALL = Architecture(image_size=16, patch_size=8, dim=16, depth=1, heads=2)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rows(count: int = 12, dim: int = 8, seed: int = 0) -> Tensor:
    return torch.randn(count, dim, generator=seeded(seed))


@pytest.mark.parametrize(("count", "dim"), [(6, 16), (16, 6), (8, 8)])
def test_bound_is_attained_by_orthonormal_centroids(count: int, dim: int) -> None:
    bound = -math.sqrt(min(count, dim) / count)
    # Orthogonal columns with rows of length one: a tight frame where there are more images than dimensions.
    angles = 2 * math.pi * torch.arange(count)[:, None] * torch.arange(1, dim // 2 + 1) / count
    frame = torch.cat([angles.cos(), angles.sin()], 1) if count > dim else torch.linalg.qr(rows(dim, dim)).Q[:count]
    assert float(capacity_loss(frame, frame, local=False)) == pytest.approx(bound, rel=1e-5)
    for seed in range(5):
        views = rows(count, dim, seed), rows(count, dim, seed + 100)
        assert float(capacity_loss(*views, local=False)) > bound


@pytest.mark.parametrize("count", [2, 9, 128])
def test_collapse(count: int) -> None:
    one = rows(1).expand(count, -1)
    assert float(capacity_loss(one, one, local=False)) == pytest.approx(-1 / math.sqrt(count), rel=1e-5)


def test_equals_the_definition_by_singular_values() -> None:
    first, second = rows(seed=1).double(), rows(seed=2).double()
    units = F.normalize(first, dim=1), F.normalize(second, dim=1)
    centroids = (units[0] + units[1]) / 2
    expected = -torch.linalg.matrix_norm(centroids, "nuc") / 12
    assert float(capacity_loss(first, second, local=False)) == pytest.approx(float(expected), rel=1e-5)
    pairs = [torch.linalg.matrix_norm(torch.stack(pair), "nuc") for pair in zip(*units, strict=True)]
    expected = expected + torch.stack(pairs).mean()
    assert float(capacity_loss(first, second, local=True)) == pytest.approx(float(expected), rel=1e-5)


def test_local_term_lies_between_root_two_and_two() -> None:
    first, second = rows(2, 4), torch.zeros(2, 4)
    second[0], second[1] = first[0], torch.tensor([-first[1, 1], first[1, 0], 0, 0])
    first[1, 2:] = 0
    local = float(capacity_loss(first, second, local=True) - capacity_loss(first, second, local=False))
    assert local == pytest.approx((math.sqrt(2) + 2) / 2, abs=1e-3)


@pytest.mark.parametrize("local", [False, True])
def test_invariances(local: bool) -> None:
    first, second = rows(seed=1), rows(seed=2)
    loss = float(capacity_loss(first, second, local=local))
    turn = torch.linalg.qr(rows(8, 8, seed=3)).Q
    order = torch.randperm(12, generator=seeded())
    assert float(capacity_loss(first @ turn, second @ turn, local=local)) == pytest.approx(loss, rel=1e-5)
    assert float(capacity_loss(first[order], second[order], local=local)) == pytest.approx(loss, rel=1e-5)
    assert float(capacity_loss(first * 5, second / 3, local=local)) == pytest.approx(loss, rel=1e-5)
    assert float(capacity_loss(first[order], second, local=local)) != pytest.approx(loss, rel=1e-3)


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("apart", [1e-2, 1e-3, 1e-4, 1e-6])
def test_nearly_equal_views_have_the_exact_local_term_and_slope(apart: float, sign: float) -> None:
    """Against singular values in float64, where two views are at a small angle, or nearly opposite."""
    base, aside = (F.normalize(rows(40, 8, seed), dim=1) for seed in (3, 4))
    given = (base, sign * base + apart * aside)

    def local(views: tuple[Tensor, ...], term: Callable[..., Tensor]) -> tuple[float, Tensor]:
        own = views[0].clone().requires_grad_()
        value = term(own, views[1])
        value.backward()
        assert own.grad is not None
        return float(value), own.grad.double()

    def ours(first: Tensor, second: Tensor) -> Tensor:
        return capacity_loss(first, second, local=True) - capacity_loss(first, second, local=False)

    def exact(first: Tensor, second: Tensor) -> Tensor:
        units = torch.stack([F.normalize(first, dim=1), F.normalize(second, dim=1)], 1)
        return torch.linalg.svdvals(units).sum(1).mean()

    value, slope = local(given, ours)
    expected, exact_slope = local(tuple(view.double() for view in given), exact)
    assert value == pytest.approx(expected, abs=1e-6)
    # The direction between two vectors of float32 is known to about 1e-7 / apart.
    assert float((slope - exact_slope).norm() / exact_slope.norm()) < 1e-4 + 3e-7 / apart


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("local", [False, True])
def test_gradient_is_finite_where_views_agree_or_oppose(local: bool, sign: float) -> None:
    for given in (rows(), torch.eye(8)[:6]):  # cosines of about one, and of exactly one
        views = given.requires_grad_()
        capacity_loss(views, sign * views.detach(), local=local).backward()  # type: ignore[no-untyped-call]
        assert views.grad is not None
        assert torch.isfinite(views.grad).all()


@pytest.fixture
def parts() -> tuple[nn.Module, mmcr.ManifoldCapacity, list[Tensor]]:
    encoder = build_encoder(SMALL)
    objective = mmcr.Config().build(Weights(SMALL, {}), seeded())
    return encoder, objective, [torch.randn(6, 3, 16, 16, generator=seeded(seed)) for seed in (1, 2)]


@pytest.mark.parametrize("local", [False, True])
def test_both_views_pass_through_the_head(
    parts: tuple[nn.Module, mmcr.ManifoldCapacity, list[Tensor]], local: bool
) -> None:
    encoder, _, (first, second) = parts
    objective = mmcr.Config(local).build(Weights(SMALL, {}), seeded())
    expected = capacity_loss(objective.head(encoder(first)), objective.head(encoder(second)), local=local)
    assert torch.allclose(objective.loss(encoder, [first, second], seeded()), expected)


def test_second_branch_has_no_gradient(parts: tuple[nn.Module, mmcr.ManifoldCapacity, list[Tensor]]) -> None:
    encoder, objective, (first, second) = parts
    first.requires_grad_()
    second.requires_grad_()
    objective.loss(encoder, [first, second], seeded()).backward()  # type: ignore[no-untyped-call]
    assert second.grad is None
    assert first.grad is not None
    target = objective.head(encoder(second)).detach()
    loss = capacity_loss(objective.head(encoder(first)), target, local=True)
    expected = torch.autograd.grad(loss, list(objective.head.parameters()))
    for parameter, gradient in zip(objective.head.parameters(), expected, strict=True):
        assert parameter.grad is not None
        assert torch.allclose(parameter.grad, gradient, atol=1e-6)


def test_works_in_half_precision_which_singular_values_lack() -> None:
    first, second = rows(seed=1), rows(seed=2)
    with torch.autocast("cpu", torch.bfloat16):
        loss = capacity_loss(first.bfloat16(), second.bfloat16(), local=True)
    assert loss.dtype == torch.float32
    assert float(loss) == pytest.approx(float(capacity_loss(first, second, local=True)), rel=0.02)
