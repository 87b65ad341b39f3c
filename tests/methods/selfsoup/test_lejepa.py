"""LeJEPA against the constants of its Gaussian term, a fine quadrature and closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from methods.nets.weights import Architecture, Weights, build_encoder
from methods.selfsoup.objectives import lejepa
from methods.selfsoup.objectives.lejepa import prediction_loss, random_slices, sigreg

SMALL = Architecture(image_size=16, patch_size=8, dim=16, depth=1, heads=2)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def gaussian(count: int, dim: int = 16, views: int = 2, seed: int = 0) -> Tensor:
    return torch.randn(views, count, dim, generator=seeded(seed))


def slices(dim: int = 16, count: int = 64, seed: int = 9) -> Tensor:
    return random_slices(dim, count, seeded(seed))


@pytest.mark.parametrize("count", [256, 4096])
def test_gaussian_embeddings_give_1_0525_whatever_their_number(count: int) -> None:
    draws = [float(sigreg(gaussian(count, 64, seed=seed), slices(64, 64, seed))) for seed in range(4)]
    assert np.mean(draws) == pytest.approx(1.0525, rel=0.06)


@pytest.mark.parametrize("count", [8, 256])
def test_total_collapse_gives_0_40205_n(count: int) -> None:
    assert float(sigreg(torch.zeros(2, count, 16), slices())) == pytest.approx(0.40205 * count, rel=1e-4)


@pytest.mark.parametrize(("scale", "limit"), [(0.5, 0.1512), (2.0, 0.2361)])
def test_wrong_scales_grow_with_n(scale: float, limit: float) -> None:
    count = 20000
    assert float(sigreg(scale * gaussian(count, 8, 1), slices(8, 16))) / count == pytest.approx(limit, rel=0.03)


def test_other_shapes_of_unit_variance_cost_more() -> None:
    coin = 2.0 * torch.randint(0, 2, (1, 2000, 2), generator=seeded()) - 1
    heavy = torch.from_numpy(np.random.default_rng(0).standard_t(3, (1, 2000, 2)) / math.sqrt(3)).float()
    axes = torch.eye(2)
    usual = float(sigreg(gaussian(2000, 2, 1), axes))
    assert float(sigreg(coin, axes)) > 20 * usual
    assert float(sigreg(heavy, axes)) > 5 * usual


def test_equals_a_fine_quadrature() -> None:
    embeddings, directions = gaussian(50, 4) * 1.3 + 0.2, slices(4, 6)
    t = np.linspace(0, 3, 10001)
    total = []
    for view in embeddings.double().numpy():
        for direction in directions.double().numpy().T:
            ecf = np.exp(1j * np.outer(view @ direction, t)).mean(0)
            density = np.abs(ecf - np.exp(-(t**2) / 2)) ** 2 * np.exp(-(t**2) / 2)
            total.append(50 * 2 * np.trapezoid(density, t))
    assert float(sigreg(embeddings, directions)) == pytest.approx(np.mean(total), rel=2e-3)


def test_rotating_embeddings_is_rotating_slices() -> None:
    embeddings, directions = gaussian(40) + 0.3, slices()
    turn = torch.linalg.qr(torch.randn(16, 16, generator=seeded(4))).Q
    assert float(sigreg(embeddings @ turn, turn.T @ directions)) == pytest.approx(
        float(sigreg(embeddings, directions)), rel=1e-4
    )


def test_views_and_slices_are_averaged_not_pooled() -> None:
    embeddings, directions = gaussian(40, views=3) * torch.tensor([0.5, 1.0, 2.0])[:, None, None], slices()
    apart = [sigreg(view[None], directions) for view in embeddings]
    assert float(sigreg(embeddings, directions)) == pytest.approx(float(torch.stack(apart).mean()), rel=1e-5)
    chunks = [sigreg(embeddings, chunk) for chunk in directions.chunk(4, dim=1)]
    assert float(sigreg(embeddings, directions)) == pytest.approx(float(torch.stack(chunks).mean()), rel=1e-5)
    pooled = sigreg(embeddings.flatten(0, 1)[None], directions)
    assert float(pooled) != pytest.approx(float(sigreg(embeddings, directions)), rel=0.1)


def test_slices_are_unit_and_uniform_on_the_sphere() -> None:
    directions = random_slices(3, 20000, seeded())
    assert torch.allclose(directions.norm(dim=0), torch.ones(20000), atol=1e-5)
    assert torch.allclose(directions @ directions.T / 20000, torch.eye(3) / 3, atol=0.015)
    assert directions.mean(1).abs().max() < 0.03


def test_gaussian_term_is_taken_in_full_precision_under_autocast() -> None:
    embeddings, directions = gaussian(40), slices()
    with torch.autocast("cpu", torch.bfloat16):
        inside = sigreg(embeddings, directions)
    assert torch.equal(inside, sigreg(embeddings, directions))


def test_prediction_loss_is_the_variance_over_views() -> None:
    embeddings = gaussian(7, 5, views=4)
    expected = np.var(embeddings.double().numpy(), axis=0).mean()
    assert float(prediction_loss(embeddings)) == pytest.approx(expected, rel=1e-5)
    assert float(prediction_loss(embeddings + 3)) == pytest.approx(expected, rel=1e-4)
    assert float(prediction_loss(embeddings[:1].expand(4, -1, -1))) == pytest.approx(0, abs=1e-12)


def test_two_views_attract_each_other() -> None:
    embeddings = gaussian(3, 2).requires_grad_()
    prediction_loss(embeddings).backward()  # type: ignore[no-untyped-call]
    # With mu = (p1 + p2) / 2 the loss is |p1 - p2|^2 / (4 n k), so each view is pulled by (p1 - p2) / (2 n k).
    expected = (embeddings[0] - embeddings[1]).detach() / (2 * 3 * 2)
    assert embeddings.grad is not None
    assert torch.allclose(embeddings.grad[0], expected, atol=1e-7)
    assert torch.allclose(embeddings.grad[1], -expected, atol=1e-7)


@pytest.fixture
def encoder() -> nn.Module:
    return build_encoder(SMALL)


@pytest.fixture
def views() -> list[Tensor]:
    return [torch.randn(6, 3, 16, 16, generator=seeded(seed)) for seed in (1, 2, 3)]


@pytest.mark.parametrize("balance", [0.0, 0.05, 1.0])
def test_terms_are_balanced(encoder: nn.Module, views: list[Tensor], balance: float) -> None:
    objective = lejepa.Config(balance, slices=8, projection=4, crops=3).build(Weights(SMALL, {}), seeded())
    embeddings = torch.stack([objective.head(encoder(view)) for view in views])
    directions = random_slices(4, 8, seeded(5))
    expected = (1 - balance) * prediction_loss(embeddings) + balance * sigreg(embeddings, directions)
    assert objective.views == 3
    assert torch.allclose(objective.loss(encoder, views, seeded(5)), expected, rtol=1e-4)


def test_slices_are_redrawn_at_every_step(encoder: nn.Module, views: list[Tensor]) -> None:
    objective = lejepa.Config(1.0, slices=4, crops=3).build(Weights(SMALL, {}), seeded())
    generator = seeded(1)
    first, second = (objective.loss(encoder, views, generator).item() for _ in range(2))
    assert first != second
    assert first == objective.loss(encoder, views, seeded(1)).item()


def test_every_view_carries_gradient(encoder: nn.Module, views: list[Tensor]) -> None:
    objective = lejepa.Config(crops=3).build(Weights(SMALL, {}), seeded())
    for view in views:
        view.requires_grad_()
    objective.loss(encoder, views, seeded()).backward()  # type: ignore[no-untyped-call]
    for view in views:
        assert view.grad is not None
        assert view.grad.abs().max() > 0


@pytest.mark.parametrize("wrong", [{"balance": 1.5}, {"crops": 1}, {"slices": 0}])
def test_impossible_settings_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong)).rstrip("s")):
        lejepa.Config(**wrong)  # type: ignore[arg-type]
