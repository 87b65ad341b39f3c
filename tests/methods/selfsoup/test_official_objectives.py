"""The objectives as their own papers have them: closed forms, slow restatements, and where gradients go."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from methods.nets.vit import encode
from methods.nets.weights import Architecture, Weights, build_encoder
from methods.selfsoup.objectives import base, lejepa_official, mmcr_official, mocov3_official
from methods.selfsoup.objectives.lejepa import random_slices, sigreg
from methods.selfsoup.objectives.lejepa_official import centred_prediction_loss
from methods.selfsoup.objectives.mmcr_official import manifold_loss
from methods.training.loop import reset
from methods.views.ssl_views import Views

SMALL = Architecture(image_size=32, patch_size=8, dim=16, depth=1, heads=2)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def encoder_and_stock() -> tuple[nn.Module, Weights]:
    encoder = build_encoder(SMALL)
    reset(encoder, seeded())
    return encoder, Weights(SMALL, {f"encoder.{n}": t.clone() for n, t in encoder.state_dict().items()})


def shake(*modules: nn.Module) -> None:
    """Move all parameters, each entry by itself: a common factor would vanish in the next norm."""
    with torch.no_grad():
        for number, parameter in enumerate(p for module in modules for p in module.parameters()):
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=seeded(number)))


def pictures(count: int, views: int, side: int = 32) -> list[Tensor]:
    return [torch.randn(count, 3, side, side, generator=seeded(i)) for i in range(views)]


@pytest.mark.parametrize("steps", [0, 5])
def test_moving_average_by_hand(steps: int) -> None:
    online = nn.Linear(2, 2)
    average = base.Momentum(online, 0.9, steps)
    expected = online.weight.detach().clone()
    for step in range(5):
        with torch.no_grad():
            online.weight += 1
        average.update(online)
        share = 0.1 * ((1 + math.cos(math.pi * step / steps)) / 2 if steps else 1)
        expected = (1 - share) * expected + share * online.weight.detach()
    torch.testing.assert_close(average.average.weight, expected)
    again = base.Momentum(nn.Linear(2, 2), 0.9, steps)
    again.load_state_dict(average.state_dict())
    assert again.taken == 5
    assert not any(p.requires_grad for p in average.parameters())


def test_contrast_by_hand_and_its_gradients() -> None:
    encoder, stock = encoder_and_stock()
    config = mocov3_official.Config(hidden=8, out=6, momentum=0.5)
    objective = config.build(stock, seeded())
    objective.prepare(encoder, 10)
    project = copy.deepcopy(objective.project)
    shake(encoder, objective.project)
    views = pictures(5, 2)
    loss = objective.loss(encoder, views, seeded())
    average = build_encoder(SMALL)
    average.load_state_dict(stock.part("encoder"))
    with torch.no_grad():
        # The first update takes half of the way, before keys are made.
        for moved, online in ((average, encoder), (project, objective.project)):
            for new, own in zip(moved.parameters(), online.parameters(), strict=True):
                new.lerp_(own, 0.5)
        keys = [project(average(view)) for view in views]
        queries = [objective.predict(objective.project(encoder(view))) for view in views]
    expected = 0.0
    for own, other in ((0, 1), (1, 0)):
        q, k = F.normalize(queries[own], dim=1), F.normalize(keys[other], dim=1)
        for i in range(5):
            scores = [float(q[i] @ k[j]) / 0.2 for j in range(5)]
            expected += 2 * 0.2 * (math.log(sum(map(math.exp, scores))) - scores[i]) / 5
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-3)
    loss.backward()  # type: ignore[no-untyped-call]
    assert encoder.get_parameter("patch_embed.proj.weight").grad is None
    assert encoder.get_parameter("norm.weight").grad is not None
    assert all(p.grad is None for p in objective.encoder.parameters())
    two_ways = []
    for order in (views, views[::-1]):
        objective.encoder.taken = objective.projected.taken = 10  # no further movement
        two_ways.append(float(objective.loss(encoder, order, seeded()).detach()))
    assert two_ways[0] == pytest.approx(two_ways[1], rel=1e-5)


def test_manifold_closed_forms() -> None:
    basis = torch.linalg.qr(torch.randn(8, 8, generator=seeded())).Q
    same = torch.stack([basis, basis])
    assert float(manifold_loss(same, None, local=0, divide=True)) == pytest.approx(-1, abs=1e-5)
    assert float(manifold_loss(same, None, local=0, divide=False)) == pytest.approx(-8, abs=1e-4)
    collapsed = torch.ones(2, 9, 4)
    assert float(manifold_loss(collapsed, None, local=0, divide=True)) == pytest.approx(-1 / 3, abs=1e-5)
    pair = torch.tensor([[[1.0, 0.0]], [[0.6, 0.8]]])
    local, none = (float(manifold_loss(pair, None, local=weight, divide=False)) for weight in (1, 0))
    assert local - none == pytest.approx(math.sqrt(1.6) + math.sqrt(0.4), abs=1e-5)
    two = torch.cat([pair, torch.tensor([[[0.0, 1.0]], [[0.0, 1.0]]])], 1)
    of_two = float(manifold_loss(two, None, local=1, divide=False) - manifold_loss(two, None, local=0, divide=False))
    assert of_two == pytest.approx((math.sqrt(1.6) + math.sqrt(0.4) + math.sqrt(2)) / 2, abs=1e-5)
    averaged = manifold_loss(same, -same, local=0, divide=False)
    assert float(averaged) == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_manifold_trains_on_all_views(momentum: float) -> None:
    encoder, stock = encoder_and_stock()
    objective = mmcr_official.Config(crops=3, momentum=momentum, hidden=8, out=5, local=0.1).build(stock, seeded())
    objective.prepare(encoder, 10)
    views = [view.requires_grad_() for view in pictures(4, 3)]
    objective.loss(encoder, views, seeded()).backward()  # type: ignore[no-untyped-call]
    assert all(view.grad is not None and float(view.grad.abs().sum()) > 0 for view in views)


@pytest.mark.parametrize("momentum", [0.0, 0.75])
def test_manifold_by_hand_and_where_its_gradient_goes(momentum: float) -> None:
    """Centroids of the online views and of an average that has moved first and that no gradient reaches."""
    encoder, stock = encoder_and_stock()
    config = mmcr_official.Config(momentum=momentum, hidden=8, out=5, local=0.5)
    objective = config.build(stock, seeded())
    objective.prepare(encoder, 10)
    body, head = copy.deepcopy(encoder), copy.deepcopy(objective.project)
    shake(encoder, objective.project)
    views = pictures(6, 2)
    objective.loss(encoder, views, seeded()).backward()  # type: ignore[no-untyped-call]
    found = {name: p.grad.clone() for name, p in encoder.named_parameters() if p.grad is not None}
    with torch.no_grad():
        for moved, online in ((body, encoder), (head, objective.project)):
            for new, own in zip(moved.parameters(), online.parameters(), strict=True):
                new.lerp_(own, 1 - momentum)
        kept = F.normalize(head(body(torch.cat(views))), dim=1).unflatten(0, (2, 6))
    encoder.zero_grad()
    unit = F.normalize(objective.project(encoder(torch.cat(views))), dim=1).unflatten(0, (2, 6))
    centroids = (unit.mean(0) + kept.mean(0)) / 2 if momentum else unit.mean(0)
    pairs = torch.stack([torch.linalg.matrix_norm(unit[:, image], "nuc") for image in range(6)])
    (0.5 * pairs.mean() - torch.linalg.matrix_norm(centroids, "nuc")).backward()
    assert found
    for name, gradient in found.items():
        own = encoder.get_parameter(name).grad
        assert own is not None
        torch.testing.assert_close(gradient, own, rtol=1e-3, atol=1e-5)
    assert not momentum or all(p.grad is None for p in objective.average.parameters())


def test_heads_have_the_published_layers() -> None:
    def layers(module: nn.Module) -> list[str]:
        return [type(part).__name__ for part in module.children()]

    _, stock = encoder_and_stock()
    contrast = mocov3_official.Config(hidden=8, out=6).build(stock, seeded())
    hidden = ["Linear", "BatchNorm1d", "ReLU"]
    assert layers(contrast.project) == [*hidden, *hidden, "Linear", "BatchNorm1d"]
    assert layers(contrast.predict) == [*hidden, "Linear", "BatchNorm1d"]
    norms = [part for part in contrast.modules() if isinstance(part, nn.BatchNorm1d)]
    assert [norm.affine for norm in norms] == [True, True, False, True, False]
    manifold = mmcr_official.Config(hidden=8, out=6).build(stock, seeded())
    assert layers(manifold.project) == [*hidden, *hidden, "Linear"]
    predictive = lejepa_official.Config(hidden=8, out=6).build(stock, seeded())
    assert layers(predictive.project) == [*hidden, *hidden, "Linear"]
    linear = [part for part in predictive.project.children() if isinstance(part, nn.Linear)]
    assert [part.bias is not None for part in linear] == [False, False, True]
    for module in (contrast, manifold):
        assert all(part.bias is None for part in module.modules() if isinstance(part, nn.Linear))
    small = base.small_head(4, 3, seeded())
    given = torch.randn(5, 4, generator=seeded())
    first, last = (part for part in small.children() if isinstance(part, nn.Linear))
    assert first.out_features == 16
    by_hand = last(first(given) * 0.5 * (1 + torch.erf(first(given) / math.sqrt(2))))
    torch.testing.assert_close(small(given), by_hand)


def test_prediction_by_hand_with_gradient_through_the_centre() -> None:
    encoder, stock = encoder_and_stock()
    shake(encoder)
    config = lejepa_official.Config(0.2, globals_=2, locals_=3, hidden=8, out=4, slices=16)
    objective = config.build(stock, seeded())
    views = [*pictures(6, 2), *pictures(6, 3, 16)]
    loss = objective.loss(encoder, views, seeded(5))
    grads = torch.autograd.grad(loss, list(objective.project.parameters()), retain_graph=True)
    features = torch.cat([encoder(torch.cat(views[:2])), encode(encoder, torch.cat(views[2:]))])
    embeddings = objective.project(features).unflatten(0, (5, 6))
    centre = (embeddings[0] + embeddings[1]) / 2
    prediction = sum((view - centre).square().mean() for view in embeddings) / 5
    expected = 0.8 * prediction + 0.2 * sigreg(embeddings, random_slices(4, 16, seeded(5)))
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-6)
    for own, other in zip(grads, torch.autograd.grad(expected, list(objective.project.parameters())), strict=True):
        torch.testing.assert_close(own, other, rtol=1e-3, atol=1e-5)
    # One global and one small view: all of the loss is their distance, which pulls the centre too.
    pair = torch.randn(2, 3, 4, generator=seeded()).requires_grad_()
    centred_prediction_loss(pair, 1).backward()  # type: ignore[no-untyped-call]
    assert pair.grad is not None
    torch.testing.assert_close(pair.grad[0], 2 * (pair[0] - pair[1]).detach() / 24)


def test_views_show_their_parts_of_the_image() -> None:
    _, stock = encoder_and_stock()
    objective = lejepa_official.Config(local_smallest=0.1, global_area=0.4, hidden=8, out=4).build(stock, seeded())
    given = Views((0.9, 1.0), flip=False, three_augment=False, jitter=0.2)
    made = objective.pipelines(given)
    assert [view.scale for view in made] == [(0.4, 1.0)] * 2 + [(0.1, 0.4)] * 6
    assert [view.size for view in made] == [None] * 2 + [16] * 6
    assert all((view.flip, view.three_augment, view.jitter) == (False, False, 0.2) for view in made)


def test_only_global_views_make_the_centre() -> None:
    embeddings = torch.randn(5, 4, 3, generator=seeded()).double()
    total = 0.0
    for n in range(4):
        centre = (embeddings[0, n] + embeddings[1, n]) / 2
        total += sum(float(((embeddings[v, n] - centre) ** 2).sum()) for v in range(5))
    assert float(centred_prediction_loss(embeddings, 2)) == pytest.approx(total / (5 * 4 * 3))
    moved = embeddings + torch.randn(4, 3, generator=seeded(1)).double()
    torch.testing.assert_close(centred_prediction_loss(moved, 2), centred_prediction_loss(embeddings, 2))


def test_encoding_at_full_size_is_the_encoder_and_small_sizes_work() -> None:
    encoder, _ = encoder_and_stock()
    full = pictures(3, 1)[0]
    torch.testing.assert_close(encode(encoder, full), encoder(full))
    assert encode(encoder, pictures(3, 1, 16)[0]).shape == (3, 16)


def test_local_views_are_small() -> None:
    _, stock = encoder_and_stock()
    objective = lejepa_official.Config(hidden=8, out=4, slices=16).build(stock, seeded())
    images = torch.randint(0, 256, (6, 3, 32, 32), generator=seeded(), dtype=torch.uint8)
    made = [pipeline(images, seeded(i)) for i, pipeline in enumerate(objective.pipelines(Views(three_augment=False)))]
    assert [tuple(view.shape[2:]) for view in made] == [(32, 32)] * 2 + [(16, 16)] * 6
    encoder, _ = encoder_and_stock()
    assert torch.isfinite(objective.loss(encoder, made, seeded()))


def test_shrinking_crops_equal_pils() -> None:
    """The whole image to half its side: Pillow's bicubic with antialiasing."""
    from PIL import Image

    images = torch.randint(0, 256, (1, 3, 32, 32), generator=seeded(), dtype=torch.uint8)
    views = Views((1.0, 1.0), (1.0, 1.0), flip=False, three_augment=False, jitter=0.0, size=12)
    ours = views(images, seeded())[0]
    picture = Image.fromarray(images[0].permute(1, 2, 0).numpy()).resize((12, 12), Image.Resampling.BICUBIC)
    theirs = torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1) / 255
    assert float((ours - theirs).abs().max()) <= 1.51 / 255
