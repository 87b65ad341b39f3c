"""The objectives as their own papers have them: closed forms, slow restatements, and where gradients go."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from methods.selfsoup.objectives import base, lejepa_official, mmcr_official, mocov3_official
from methods.selfsoup.objectives.lejepa_official import centred_prediction_loss, encode
from methods.selfsoup.objectives.mmcr_official import manifold_loss
from methods.stock import Architecture, Weights, build_encoder
from methods.training import reset
from methods.views import Views

SMALL = Architecture(image_size=32, patch_size=8, dim=16, depth=1, heads=2)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def encoder_and_stock() -> tuple[nn.Module, Weights]:
    encoder = build_encoder(SMALL)
    reset(encoder, seeded())
    return encoder, Weights(SMALL, {f"encoder.{n}": t.clone() for n, t in encoder.state_dict().items()})


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
    with torch.no_grad():
        encoder.get_parameter("norm.weight").mul_(2)
    views = pictures(5, 2)
    loss = objective.loss(encoder, views, seeded())
    average = build_encoder(SMALL)
    average.load_state_dict(stock.part("encoder"))
    with torch.no_grad():
        # The first update takes half of the way, before keys are made.
        average.get_parameter("norm.weight").mul_(1.5)
        keys = [objective.project(average(view)) for view in views]
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
    swapped = objective.loss(encoder, views[::-1], seeded())
    objective.encoder.taken = 10  # no further movement
    assert float(objective.loss(encoder, views, seeded())) == pytest.approx(
        float(objective.loss(encoder, views[::-1], seeded())), rel=1e-5
    )
    assert math.isfinite(float(swapped))


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
