"""Test-time training: what an image may change, what it costs, and which classifiers are refused."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms.functional import resized_crop

from methods.adapters.ttt import Ttt, TttOnline, find_rotation_head
from methods.base import Adapter, Unsupported
from methods.example_models import example_images, example_model
from methods.nets.weights import Classifier, Ensemble
from methods.views.augmix import _boxes, draw, resized_crops
from methods.views.rotations import all_rotations, rotate


def prepared(cls: type[Ttt] = Ttt, model: nn.Module | None = None, **options: Any) -> Ttt:
    adapter = cls(example_model("layer_norm") if model is None else model, cls.Config(**{"copies": 4, **options}))
    adapter.prepare()
    return adapter


def image(number: int = 0) -> Tensor:
    return example_images(1, 8)[0, number : number + 1]


def with_batch_norm() -> Classifier:
    """A classifier with BatchNorm and a rotation head."""
    model = example_model("layer_norm")
    assert isinstance(model, Classifier)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model.encoder = nn.Sequential(
            nn.Conv2d(3, 16, 3, 4, 1), nn.BatchNorm2d(16), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        )
    return model


def test_rotations_are_those_of_each_image() -> None:
    images = torch.rand(6, 3, 5, 5)
    turns = torch.tensor([0, 1, 2, 3, 1, 0])
    expected = torch.stack([torch.rot90(each, int(turn), (1, 2)) for each, turn in zip(images, turns, strict=True)])
    assert torch.equal(rotate(images, turns), expected)
    every, which = all_rotations(images)
    assert torch.equal(every, rotate(images.repeat(4, 1, 1, 1), which))
    assert which.bincount().tolist() == [6, 6, 6, 6]


def test_a_step_without_views_is_a_step_of_gradient_descent() -> None:
    model = example_model("layer_norm")
    adapter = prepared(lr=0.1, steps=1, copies=1, crop="none", flip=False, rotations="expand")
    slow = copy.deepcopy(model).requires_grad_(True)
    scores = slow.rotation_logits(torch.cat([torch.rot90(image(), turn, (2, 3)) for turn in range(4)]))
    loss = F.cross_entropy(scores, torch.arange(4))
    loss.backward()
    with torch.no_grad():
        for parameter in slow.parameters():
            if parameter.grad is not None:
                parameter -= 0.1 * parameter.grad
        torch.testing.assert_close(adapter.predict(image()), slow(image()))
        assert (slow(image()) - model(image())).abs().max() > 1e-2


@pytest.mark.parametrize("build", [lambda: example_model("layer_norm"), with_batch_norm])
def test_an_image_is_forgotten_or_not(build: Any) -> None:
    images = example_images(1, 8)[0]
    episodic, online = prepared(Ttt, build(), lr=0.1), prepared(TttOnline, build(), lr=0.1)
    first = episodic.predict(images[:3])
    assert not torch.equal(first, prepared(Ttt, build(), lr=0.1).predict(images[:3].flip(0)).flip(0))  # other draws
    fresh = {key: value for key, value in episodic.state_dict().items() if key not in ("generator", "host_draws")}
    episodic.reset()
    episodic.predict(images)
    again = {key: value for key, value in episodic.state_dict().items() if key not in ("generator", "host_draws")}
    assert str(fresh) == str(again)
    online.predict(images[:3])
    assert not torch.equal(online.values()[0], build().state_dict()[next(iter(build().state_dict()))])
    with torch.no_grad():
        assert not torch.equal(online.model(images), build().eval()(images))
        assert torch.equal(episodic.model(images), build().eval()(images))


@pytest.mark.parametrize("cls", [Ttt, TttOnline])
def test_batches_of_any_size_give_the_same_predictions(cls: type[Ttt]) -> None:
    images = example_images(1, 8)[0]
    whole = prepared(cls, lr=0.1).predict(images)
    other = prepared(cls, lr=0.1)
    assert torch.equal(torch.cat([other.predict(part) for part in torch.split(images, 3)]), whole)


def test_an_error_after_the_steps_leaves_the_source() -> None:
    adapter = prepared(lr=0.1)

    def fail(*_: Any) -> None:
        changed = adapter.model.state_dict()
        assert not all(torch.equal(value, changed[name]) for name, value in source.items())
        raise RuntimeError

    source = example_model("layer_norm").state_dict()
    adapter.model.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError):
        adapter.predict(image())
    state = adapter.model.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in source.items())


def test_upright_images_are_left_alone() -> None:
    model, images = example_model("layer_norm").eval(), example_images(1, 8)[0]
    assert isinstance(model, Classifier)
    with torch.no_grad():
        upright = model.rotation_logits(images).softmax(1)[:, 0]
        plain = model(images)
    limit = float(upright.median()) + 1e-6
    adapted = (prepared(lr=0.1, threshold=limit).predict(images) - plain).abs().amax(1) > 1e-3
    assert adapted.tolist() == (upright < limit).tolist()
    assert adapted.any()
    assert not adapted.all()


def test_the_head_may_be_fixed_and_batch_norm_too() -> None:
    for options, still in (({"fix_head": True}, ("rotation.",)), ({"fix_bn": True}, ("running_", "num_batches"))):
        model = with_batch_norm()
        adapter = prepared(TttOnline, model, lr=0.1, **options)
        adapter.predict(image())
        changed = {
            name for name, value in adapter.model.state_dict().items() if not value.equal(model.state_dict()[name])
        }
        assert changed
        assert not any(name.startswith(still) or any(part in name for part in still) for name in changed)
    adapter = prepared(TttOnline, with_batch_norm(), lr=0.1)
    adapter.predict(image())
    assert int(adapter.model.state_dict()["encoder.1.num_batches_tracked"]) == 1


def test_classifiers_without_one_rotation_head_are_refused() -> None:
    members = [example_model("layer_norm") for _ in range(2)]
    for model, count in ((timm.create_model("test_vit"), 0), (Ensemble(members), 2)):  # type: ignore[arg-type]
        with pytest.raises(Unsupported, match=f"this one has {count}; use source_rotation\\+ttt"):
            prepared(model=model)
    wrapped = nn.Sequential(example_model("layer_norm"))
    assert find_rotation_head(wrapped) is wrapped[0]
    with pytest.raises(ValueError, match="has no rotation head; train it with the recipe source_rotation"):
        Classifier(members[0].architecture, 3).rotation_logits(image())  # type: ignore[arg-type]


def test_images_that_are_not_square_are_refused() -> None:
    with pytest.raises(ValueError, match=r"must be square and are \(32, 24\); crop them"):
        prepared().predict(torch.rand(1, 3, 32, 24))


@pytest.mark.parametrize(
    "wrong",
    [{"lr": -1.0}, {"steps": 0}, {"copies": 0}, {"rotations": "all"}, {"crop": "all"}, {"threshold": 1.5}],
)
def test_options_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    for cls in (Ttt, TttOnline):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))} must be"):
            cls.Config(**wrong)


@pytest.mark.parametrize("crop", ["padded", "resized", "none"])
def test_views_are_of_the_image_and_of_its_size(crop: str) -> None:
    adapter = prepared(crop=crop, copies=6, flip=False)
    views = adapter.views(image())
    assert views.shape == (6, 3, 32, 32)
    assert 0 <= float(views.min()) < float(views.max()) <= 1
    same = [torch.equal(view, image()[0]) for view in views]
    assert all(same) if crop == "none" else not any(same)
    mirrored = prepared(crop=crop, copies=32, flip=True).views(image())
    assert 0 < sum(torch.equal(view, image()[0]) for view in mirrored) < 32 or crop != "none"
    assert torch.isfinite(adapter.predict(image())).all()


def test_resized_views_are_those_that_augmix_starts_from() -> None:
    uniforms = draw(2, 3, torch.Generator().manual_seed(0))
    images = example_images(1, 2)[0]
    views = resized_crops(images, uniforms)
    boxes = [resized_crop(images[1], *box, [32, 32], antialias=True) for box in boxes_of(uniforms[1])]
    for number, (view, box) in enumerate(zip(views[1], boxes, strict=True)):
        expected = box.flip(-1) if uniforms[1, number, 0] < 0.5 else box
        assert (view - expected).abs().mean() < 0.01


def boxes_of(uniforms: Tensor) -> list[list[int]]:
    """Top, left, height and width of each crop."""
    return [[int(value) for value in box] for box in zip(*_boxes(uniforms.double(), 32, 32), strict=True)]


def test_defaults_are_the_releases() -> None:
    assert (Ttt.Config().steps, TttOnline.Config().steps) == (10, 1)
    assert issubclass(TttOnline, Adapter)
