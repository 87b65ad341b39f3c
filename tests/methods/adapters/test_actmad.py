"""ActMAD: a slow restatement, batches and sources of odd sizes, and what it refuses."""

from __future__ import annotations

import copy
import re

import pytest
import torch
from torch import Tensor, nn

from methods.adapters.actmad import ActMad
from methods.base import Adapter, Source, SourceBatch, Unsupported
from methods.example_models import example_images, example_model
from methods.views.padded_crops import PaddedCrops, crop_padded, draw_crops


def source_of(batches: list[Tensor]) -> Source:
    return Source(lambda number: SourceBatch(batches[number]), len(batches))


def clean(count: int = 3, size: int = 4) -> list[Tensor]:
    return list(example_images(count, size).flip(-1))


def prepared(model: nn.Module, batches: list[Tensor] | None = None, **options: object) -> ActMad:
    adapter = ActMad(model, ActMad.Config(**options))
    adapter.prepare(source_of(clean() if batches is None else batches))
    return adapter


def maps(model: nn.Module, images: Tensor, kind: type[nn.Module]) -> list[Tensor]:
    """The outputs of all layers of one kind, each by a pass of its own."""
    found = []
    for layer in [module for module in model.modules() if isinstance(module, kind)]:
        seen: list[Tensor] = []
        handle = layer.register_forward_hook(lambda layer, inputs, output, seen=seen: seen.append(output.clone()))
        model(images)
        handle.remove()
        found += seen
    return found


@pytest.mark.parametrize(("name", "kind"), [("layer_norm", nn.LayerNorm), ("batch_norm", nn.BatchNorm2d)])
def test_steps_follow_a_slow_restatement(name: str, kind: type[nn.Module]) -> None:
    model, stream = example_model(name), example_images(3, 4)
    adapter = prepared(model, lr=0.05)
    slow = copy.deepcopy(model).eval().requires_grad_(True)
    with torch.no_grad():
        of_source = [maps(slow, images, kind) for images in clean()]
    momenta: dict[str, Tensor] = {}
    for images in stream:
        loss = torch.zeros(())
        for number, map_ in enumerate(maps(slow, images, kind)):
            mean = sum(batch[number].sum(0) / 4 for batch in of_source) / 3
            variance = sum((batch[number] - batch[number].mean(0)).square().sum(0) / 3 for batch in of_source) / 3
            own = (map_ - map_.mean(0)).square().sum(0) / 3
            loss = loss + (map_.mean(0) - mean).abs().mean() / 2 + (own - variance).abs().mean() / 2
        slopes = torch.autograd.grad(loss, list(slow.parameters()), allow_unused=True)
        with torch.no_grad():
            for (key, value), slope in zip(slow.named_parameters(), slopes, strict=True):
                if slope is None:
                    continue
                slope = slope + 5e-4 * value
                momenta[key] = 0.9 * momenta[key] + slope if key in momenta else slope
                value -= 0.05 * (slope + 0.9 * momenta[key])
            expected = slow(images)
        torch.testing.assert_close(adapter.predict(images), expected, rtol=1e-4, atol=1e-4)
    assert (expected - model.eval()(images)).abs().max() > 0.1


def test_it_lowers_the_distance_to_the_source() -> None:
    adapter = prepared(example_model("batch_norm"), lr=1e-3)
    images = example_images(1, 8)[0]
    before = float(adapter.distance(adapter.moments(images)).detach())
    for _ in range(10):
        adapter.predict(images)
    assert float(adapter.distance(adapter.moments(images)).detach()) < 0.9 * before


def test_maps_after_activations_in_place_only_where_asked() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(3600, 10)
    )
    plain, quirky = (prepared(model, official_quirks=official) for official in (False, True))
    assert float(plain.source_moments[0][0].min()) < 0 <= float(quirky.source_moments[0][0].min())


def test_one_image_changes_nothing() -> None:
    adapter = prepared(example_model("batch_norm"), lr=1.0)
    adapter.predict(example_images(1, 1)[0])
    assert not adapter.changed()
    adapter.predict(example_images(1, 2)[0])
    assert adapter.changed()


def test_source_images_are_read_up_to_their_number_and_single_ones_left_out() -> None:
    batches = clean(3, 4)
    model = example_model("batch_norm")
    whole = prepared(model, batches)
    for other, options in (
        ([*batches, batches[0][:1]], {}),  # a last image alone, which has no variance
        ([*batches, batches[0]], {"source_images": 12}),
        ([*batches, batches[0]], {"source_images": 13}),
    ):
        found = prepared(model, other, **options)
        assert all(
            torch.equal(ours, theirs)
            for pairs in zip(found.source_moments, whole.source_moments, strict=True)
            for ours, theirs in zip(*pairs, strict=True)
        )
    with pytest.raises(ValueError, match="at least two source images in a batch; give a larger source"):
        prepared(model, [batches[0][:1]])


def test_a_layer_that_runs_twice_has_two_maps() -> None:
    assert len(prepared(example_model("shared_norms")).source_moments) == 3


def test_test_images_of_another_size_are_refused() -> None:
    adapter = prepared(example_model("group_norm"))
    with pytest.raises(ValueError, match="do not have the size of the source images; give both in one size"):
        adapter.predict(example_images(1, 4)[0][..., :24, :24])


class Together(nn.Module):
    """A normalisation of what is no map for each image."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(10)

    def forward(self, images: Tensor) -> Tensor:
        summary: Tensor = self.norm(images.mean((0, 1, 2))[None, :10])
        return images.mean((1, 2))[:, :10] + summary


def test_models_without_maps_are_refused() -> None:
    with pytest.raises(Unsupported, match="this model has none; choose a model with BatchNorm"):
        prepared(example_model("no_norm"))
    with pytest.raises(Unsupported, match=re.escape("puts out [1, 10] for 4 images; choose a model")):
        prepared(Together())


@pytest.mark.parametrize(
    "wrong", [{"padding": -1}, {"source_images": 1}, {"weight_decay": -1.0}, {"lr": float("nan")}, {"momentum": 1.0}]
)
def test_options_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"actmad.{next(iter(wrong))} must be"):
        ActMad.Config(**wrong)


def test_a_view_is_drawn_for_the_step_and_not_for_the_prediction() -> None:
    model, images = example_model("batch_norm"), example_images(1, 4)[0]
    adapter = prepared(model, lr=0.0, padding=4, flip=True)
    torch.testing.assert_close(adapter.predict(images), model.eval()(images).detach())
    view = adapter.view(images)
    assert view.shape == images.shape
    assert not torch.equal(view, images)
    plain: Adapter = prepared(model)
    assert isinstance(plain, ActMad)
    assert plain.view(images) is images


def test_crops_are_those_of_slices() -> None:
    images = torch.rand(40, 3, 6, 8)
    crops = draw_crops(40, 2, torch.Generator().manual_seed(0), flip=True)
    made = crop_padded(images, crops, 2)
    for number, (top, left, mirrored) in enumerate(zip(*(each.tolist() for each in crops), strict=True)):
        expected = nn.functional.pad(images[number], [2] * 4)[:, top : top + 6, left : left + 8]
        assert torch.equal(made[number], expected.flip(-1) if mirrored else expected)
    assert {*crops.top.tolist()} == {*crops.left.tolist()} == set(range(5))
    assert 0 < int(crops.mirrored.sum()) < 40
    still = PaddedCrops(crops.top, crops.left, torch.zeros(40, dtype=torch.bool))
    again = draw_crops(40, 2, torch.Generator().manual_seed(0), flip=False)
    assert all(torch.equal(one, other) for one, other in zip(still, again, strict=True))
