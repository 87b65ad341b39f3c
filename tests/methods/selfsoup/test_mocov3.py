"""The contrastive objective against closed forms, invariances and a slow restatement."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from methods.nets.weights import Architecture, Weights, build_encoder
from methods.selfsoup.objectives import mocov3
from methods.selfsoup.objectives.mocov3 import info_nce

SMALL = Architecture(image_size=16, patch_size=8, dim=16, depth=1, heads=2)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rows(count: int = 12, dim: int = 8, seed: int = 0) -> Tensor:
    return torch.randn(count, dim, generator=seeded(seed), dtype=torch.float32)


@pytest.mark.parametrize(("count", "temperature"), [(64, 0.2), (2, 1.0), (128, 0.1)])
def test_collapse_gives_2_t_ln_n(count: int, temperature: float) -> None:
    one = rows(1).expand(count, -1)
    assert float(info_nce(one, one, temperature)) == pytest.approx(2 * temperature * math.log(count), rel=1e-5)


@pytest.mark.parametrize(("count", "temperature"), [(64, 0.2), (5, 1.0)])
def test_aligned_orthonormal_rows(count: int, temperature: float) -> None:
    basis = torch.linalg.qr(rows(count, count)).Q
    expected = 2 * temperature * math.log(1 + (count - 1) * math.exp(-1 / temperature))
    assert float(info_nce(basis, basis, temperature)) == pytest.approx(expected, rel=1e-4)


def test_published_constants_at_64_images() -> None:
    one, basis = torch.ones(64, 3), torch.eye(64)
    assert float(info_nce(one, one, 0.2)) == pytest.approx(1.66355, abs=1e-5)
    assert float(info_nce(basis, basis, 0.2)) == pytest.approx(0.14153, abs=1e-5)


def test_equals_the_definition() -> None:
    queries, keys = rows(seed=1).double(), rows(seed=2).double()
    total = 0.0
    for i, query in enumerate(queries):
        scores = [float(query @ key / query.norm() / key.norm()) / 0.3 for key in keys]
        total -= scores[i] - math.log(sum(math.exp(score) for score in scores))
    assert float(info_nce(queries, keys, 0.3)) == pytest.approx(2 * 0.3 * total / len(queries), rel=1e-5)


def test_invariances() -> None:
    queries, keys = rows(seed=1), rows(seed=2)
    loss = float(info_nce(queries, keys, 0.2))
    turn = torch.linalg.qr(rows(8, 8, seed=3)).Q
    order = torch.randperm(12, generator=seeded())
    lengths = torch.rand(12, 1, generator=seeded()) + 0.5
    assert float(info_nce(queries @ turn, keys @ turn, 0.2)) == pytest.approx(loss, rel=1e-5)
    assert float(info_nce(queries * lengths, keys * 3, 0.2)) == pytest.approx(loss, rel=1e-5)
    assert float(info_nce(queries[order], keys[order], 0.2)) == pytest.approx(loss, rel=1e-5)
    assert float(info_nce(queries[order], keys, 0.2)) != pytest.approx(loss, rel=1e-3)


@pytest.fixture
def parts() -> tuple[nn.Module, mocov3.Contrast, list[Tensor]]:
    encoder = build_encoder(SMALL)
    objective = mocov3.Config(0.2).build(Weights(SMALL, {}), seeded())
    return encoder, objective, [torch.randn(6, 3, 16, 16, generator=seeded(seed)) for seed in (1, 2)]


def test_keys_are_the_bare_encoder(parts: tuple[nn.Module, mocov3.Contrast, list[Tensor]]) -> None:
    encoder, objective, (first, second) = parts
    expected = info_nce(objective.head(encoder(first)), encoder(second), 0.2)
    assert torch.allclose(objective.loss(encoder, [first, second], seeded()), expected)
    assert not torch.allclose(objective.loss(encoder, [second, first], seeded()), expected, rtol=1e-4)


def test_no_gradient_reaches_the_key_branch(parts: tuple[nn.Module, mocov3.Contrast, list[Tensor]]) -> None:
    encoder, objective, (first, second) = parts
    first.requires_grad_()
    second.requires_grad_()
    objective.loss(encoder, [first, second], seeded()).backward()  # type: ignore[no-untyped-call]
    assert second.grad is None
    assert first.grad is not None
    assert first.grad.abs().max() > 0
    keys = encoder(second).detach()
    expected = torch.autograd.grad(info_nce(objective.head(encoder(first)), keys, 0.2), encoder.cls_token)[0]  # type: ignore[arg-type]
    assert torch.allclose(encoder.cls_token.grad, expected, atol=1e-7)  # type: ignore[arg-type]


def test_head_is_a_small_mlp_drawn_from_the_generator() -> None:
    one, same, other = (mocov3.Config().build(Weights(SMALL, {}), seeded(seed)).head for seed in (1, 1, 2))
    assert [tuple(p.shape) for p in one.parameters()] == [(64, 16), (64,), (16, 64), (16,)]
    first = [next(head.parameters()) for head in (one, same, other)]
    assert torch.equal(first[0], first[1])
    assert not torch.equal(first[0], first[2])


def test_loss_is_taken_in_full_precision_under_autocast() -> None:
    queries, keys = rows(seed=1), rows(seed=2)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(info_nce(queries, keys, 0.1), info_nce(queries, keys, 0.1).float())
        inside = info_nce(queries, keys, 0.1)
    assert torch.equal(inside, info_nce(queries, keys, 0.1))


def test_temperature_must_be_positive() -> None:
    with pytest.raises(ValueError, match="temperature"):
        mocov3.Config(0.0)


@pytest.mark.parametrize("key_head", [None, True])
@pytest.mark.parametrize("symmetric", [None, True])
@pytest.mark.parametrize("momentum", [None, 0.25])
def test_what_was_left_out_can_be_brought_back(
    parts: tuple[nn.Module, mocov3.Contrast, list[Tensor]],
    symmetric: bool | None,
    momentum: float | None,
    key_head: bool | None,
) -> None:
    encoder, _, views = parts
    start = copy.deepcopy(encoder)
    config = mocov3.Config(0.2, symmetric=symmetric, momentum=momentum, key_head=key_head)
    objective = config.build(Weights(SMALL, {}), seeded())
    first_head = copy.deepcopy(objective.head)
    objective.prepare(encoder, 8)
    with torch.no_grad():
        for parameter in (*encoder.parameters(), *objective.head.parameters()):
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=seeded(3)))
    body, head = copy.deepcopy(encoder), copy.deepcopy(objective.head)
    if momentum is not None:  # the average has gone three quarters of the way when keys are made
        for average, then in ((body, start), (head, first_head)):
            for new, old in zip(average.parameters(), then.parameters(), strict=True):
                new.data.copy_(old + (1 - momentum) * (new - old))
    expected = torch.zeros(())
    for own, other in ((0, 1), (1, 0))[: 2 if symmetric else 1]:
        keys = body(views[other])
        keys = head(keys) if key_head else keys
        expected = expected + info_nce(objective.head(encoder(views[own])), keys, 0.2)
    loss = objective.loss(encoder, views, seeded())
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
    swapped = config.build(Weights(SMALL, {}), seeded())
    swapped.prepare(encoder, 8)
    two_ways = [float(swapped.loss(encoder, order, seeded()).detach()) for order in (views, views[::-1])]
    assert (two_ways[0] == pytest.approx(two_ways[1], rel=1e-5)) == bool(symmetric)
    assert objective.once_a_step == (momentum is not None)


def test_momentum_must_be_a_share() -> None:
    with pytest.raises(ValueError, match="momentum"):
        mocov3.Config(momentum=1.5)
