"""TTT++: what a step follows, what the queue holds, what it needs of the source, and what it refuses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision.transforms import functional as tv

from methods.adapters.ttt_pp import TttPp
from methods.base import Source, SourceBatch, Unsupported
from methods.conformance import Case
from methods.example_models import example_images, example_model
from methods.nets.weights import Architecture, Classifier
from methods.views.simclr_views import simclr_view
from methods.views.ssl_views import crop_boxes

QUIET = {"lr": 0.0, "queue": 6, "encoder_scale": 1.0, "projection_scale": 1.0}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def source(images: Tensor) -> Source:
    return Source(lambda number: SourceBatch(images[number]), len(images))


def prepared(batches: int = 3, **options: Any) -> TttPp:
    adapter = TttPp(example_model("source_contrast"), TttPp.Config(**(QUIET | options)), seeded(1))
    adapter.prepare(source(example_images(5, 4)[:batches]))
    return adapter


def test_the_moments_are_those_of_numpy_without_the_first_part() -> None:
    adapter = prepared(5)
    draws = seeded(1)
    images = torch.cat([simclr_view(batch, draws, colours=False) for batch in example_images(5, 4)])
    with torch.no_grad():
        every = adapter.network.features(images)
        spaces = [every, adapter.network.projection(every)]
    for features, target in zip(spaces, adapter.targets, strict=True):
        parts = features.double().numpy()[:18].reshape(3, 6, -1)  # whole parts of the queue's size
        others = parts[1:].reshape(12, -1)
        np.testing.assert_allclose(target["mean"], others.mean(0), rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(target["covariance"], np.cov(others.T), rtol=1e-3, atol=1e-7)
        usual = [((np.cov(parts[0].T) - np.cov(part.T)) ** 2).mean() for part in parts[1:]]
        np.testing.assert_allclose(target["usual_of_covariance"], np.mean(usual), rtol=1e-3)
        usual = [((parts[0].mean(0) - part.mean(0)) ** 2).mean() for part in parts[1:]]
        np.testing.assert_allclose(target["usual_of_mean"], np.mean(usual), rtol=1e-3)


def test_source_images_end_where_the_options_say() -> None:
    assert torch.equal(prepared(5, source_images=12).targets[0]["mean"], prepared(3).targets[0]["mean"])


@pytest.mark.parametrize("sizes", [(2, 2, 2, 2, 2), (2, 1, 3, 2, 2, 1)])
def test_the_queue_holds_the_last_features_and_counts_once_it_is_full(sizes: tuple[int, ...]) -> None:
    adapter = prepared(queue=6)
    past: list[Tensor] = []
    for number, size in enumerate(sizes):
        features = torch.full((size, 8), float(number + 1), requires_grad=True)
        sample = adapter.with_queue(0, features)
        earlier = sum(len(each) for each in past)
        past.insert(0, features.detach())
        held = torch.cat(past)[: 6 - size]
        full = earlier >= 6 - size
        assert torch.equal(sample.detach(), torch.cat([features.detach(), held]) if full else features.detach())
        sample.sum().backward()  # type: ignore[no-untyped-call]
        assert features.grad is not None
        assert torch.equal(features.grad, torch.ones_like(features))
        adapter.queued = min(adapter.queued + size, 6)


def test_a_queue_of_less_than_two_batches_is_not_used() -> None:
    adapter = prepared(queue=6)
    adapter.queued = 6
    assert len(adapter.with_queue(0, torch.ones(4, 8))) == 4
    assert len(adapter.with_queue(0, torch.ones(3, 8))) == 6


def test_a_batch_above_the_queue_is_taken_whole_and_its_first_images_are_kept() -> None:
    adapter = prepared(queue=6)
    features = torch.arange(9.0)[:, None].expand(9, 8).clone().requires_grad_()
    assert adapter.with_queue(0, features) is features
    assert torch.equal(adapter.queues[0], features[:6].detach())
    assert not adapter.queues[0].requires_grad
    adapter.align(example_images(1, 9)[0])
    assert adapter.queued == 6
    assert len(adapter.with_queue(0, torch.ones(2, 8))) == 6


def test_moments_at_those_of_the_source_are_left_alone() -> None:
    """Its own gradient vanishes where the batch has the moments of the source."""
    adapter = prepared(contrast=False, queue=4)
    batch = example_images(1, 4)[0]
    with torch.no_grad():
        for target, features in zip(adapter.targets, adapter.spaces(batch), strict=True):
            target["mean"], target["covariance"] = features.mean(0), torch.cov(features.T)
    adapter.align(batch)
    aligned = max(float(each.grad.abs().max()) for each in adapter.parameters if each.grad is not None)
    assert aligned < 1e-2
    for target in adapter.targets:
        target["mean"] = target["mean"] + 0.1
    adapter.align(batch)
    assert max(float(each.grad.abs().max()) for each in adapter.parameters if each.grad is not None) > 10 * aligned


def test_scales_weigh_each_space() -> None:
    def gradient(**options: float) -> Tensor:
        adapter = prepared(contrast=False, queue=4, **options)
        adapter.align(example_images(1, 4)[0])
        return torch.cat([each.grad.flatten() for each in adapter.network.features.parameters()])

    first, second = gradient(projection_scale=0.0), gradient(encoder_scale=0.0)
    together = gradient(encoder_scale=0.5, projection_scale=2.0)
    torch.testing.assert_close(together, 0.5 * first + 2 * second, rtol=1e-3, atol=1e-3 * float(together.abs().max()))


@pytest.mark.parametrize(
    ("options", "passes"),
    [
        ({}, 3),
        ({"contrast": False}, 2),
        ({"projection_scale": 0.0}, 2),
        ({"encoder_scale": 0.0, "projection_scale": 0.0}, 1),
    ],
)
def test_averages_move_once_for_each_loss(options: dict[str, Any], passes: int) -> None:
    adapter = prepared(**options)
    adapter.predict(example_images(1, 4)[0])
    assert {int(value) for name, value in adapter.model.state_dict().items() if name.endswith("tracked")} == {
        passes + 4
    }


def test_one_image_has_no_covariance_and_nothing_to_be_told_apart_from() -> None:
    adapter = prepared(lr=0.1)
    before = [parameter.detach().clone() for parameter in adapter.parameters]
    adapter.predict(example_images(1, 1)[0])
    assert all(torch.equal(*pair) for pair in zip(before, adapter.parameters, strict=True))


@pytest.mark.parametrize("fixed", [True, False])
def test_the_head_learns_only_if_it_may(fixed: bool) -> None:
    adapter = TttPp(
        example_model("source_contrast"), TttPp.Config(**(QUIET | {"lr": 1e-3, "fix_head": fixed})), seeded()
    )
    adapter.prepare(source(example_images(3, 4)))
    before = {name: value.clone() for name, value in adapter.model.state_dict().items()}
    adapter.predict(example_images(1, 4)[0])
    moved = {
        name.partition(".")[0] for name, value in adapter.model.state_dict().items() if (value != before[name]).any()
    }
    assert moved == {"features"} | (set() if fixed else {"projection"})


def test_images_of_the_stream_may_have_another_size_than_the_source() -> None:
    images = example_images(1, 4)[0].repeat(1, 1, 2, 2)
    assert torch.isfinite(prepared().predict(images)).all()


def test_it_learns_on_what_the_recipe_trains() -> None:
    model = Classifier(Architecture(image_size=32, patch_size=16, dim=16, depth=1, heads=2), 10, ["projection"])
    adapter = TttPp(model, TttPp.Config(**QUIET), seeded())
    adapter.prepare(source(example_images(3, 4)))
    assert adapter.predict(example_images(1, 4)[0]).shape == (4, 10)


def test_too_few_source_images_and_constant_features_are_refused() -> None:
    with pytest.raises(ValueError, match=r"parts of 7 clean source images .* was given 12; give at least 14 or lower"):
        prepared(queue=7)
    with pytest.raises(ValueError, match=r"parts of 6 .* was given 0"):
        prepared(0)
    model = example_model("source_contrast")
    nn.init.zeros_(model.projection[-1].weight)  # type: ignore[union-attr, index, arg-type]
    with pytest.raises(ValueError, match="source features that do not vary"):
        TttPp(model, TttPp.Config(**QUIET)).prepare(source(example_images(3, 4)))


def test_classifiers_without_one_projection_head_are_refused() -> None:
    one = example_model("source_contrast")
    for model, count in ((example_model("batch_norm"), 0), (nn.ModuleList([one, example_model("source_contrast")]), 2)):
        with pytest.raises(Unsupported, match=f"this one has {count}; use source_contrast\\+ttt_pp"):
            TttPp(model, TttPp.Config(**QUIET)).prepare(source(example_images(3, 4)))
    assert Case(TttPp, TttPp.Config(**QUIET), "source_contrast").build(nn.Sequential(one)).network is not one


@pytest.mark.parametrize(
    "wrong",
    [
        {"lr": -1.0},
        {"momentum": 1.0},
        {"temperature": 0.0},
        {"encoder_scale": float("inf")},
        {"projection_scale": -1.0},
        {"queue": 0},
        {"source_images": 3},
        {"contrast": False, "encoder_scale": 0.0, "projection_scale": 0.0},
    ],
)
def test_options_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=rf"\.{next(iter(wrong))} must be"):
        TttPp.Config(**wrong)


@pytest.mark.parametrize(("height", "width"), [(24, 24), (17, 30)])
def test_views_are_torchvisions_operations_one_after_the_other(height: int, width: int) -> None:
    images = torch.rand(40, 3, height, width, generator=seeded())
    views = simclr_view(images, seeded(5), jitter=0.3)
    plain = simclr_view(images, seeded(5), colours=False, flip=False)
    draws = torch.rand(7 + 40, 40, generator=seeded(5))
    mirrored, jittered, grayed, brightness, contrast, saturation, hue = draws[:7].tolist()
    boxes = torch.stack(crop_boxes(draws[7:], height, width, (0.2, 1.0), (3 / 4, 4 / 3)), dim=1).int().tolist()
    for i, box in enumerate(boxes):
        picture = tv.resized_crop(images[i], *box, [height, width], tv.InterpolationMode.BILINEAR, antialias=True)
        torch.testing.assert_close(plain[i], picture, atol=1e-5, rtol=0)
        if jittered[i] < 0.8:
            picture = tv.adjust_brightness(picture, 1 + 0.3 * (2 * brightness[i] - 1))
            picture = tv.adjust_contrast(picture, 1 + 0.3 * (2 * contrast[i] - 1))
            picture = tv.adjust_saturation(picture, 1 + 0.3 * (2 * saturation[i] - 1))
            picture = tv.adjust_hue(picture, 0.075 * (2 * hue[i] - 1))
        if grayed[i] < 0.2:
            picture = tv.rgb_to_grayscale(picture, 3)
        picture = tv.hflip(picture) if mirrored[i] < 0.5 else picture
        torch.testing.assert_close(views[i], picture, atol=3e-5, rtol=0)
