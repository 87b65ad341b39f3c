"""Properties of every method of the table besides the rules of the conformance suite."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from bench.core.import_object import load_object
from bench.settings.methods import described
from methods import METHODS, PLAIN
from methods.base import Adapter, Source
from methods.conformance import Case, play
from methods.example_models import SPECIAL, example_images, example_model, fitting_example

ROWS = [PLAIN, *(row for row in METHODS.values() if row.kind == "adapter")]

BATCH_NORM_ALONE = ("bn", "bn_alpha", "bn_ema", "dua", "note")


def case_of(row: Any, model: str | None = None) -> Case:
    cls: type[Adapter] = load_object(row.path)
    likely = "layer_norm" if row.name == "foa" else fitting_example(row.needs)
    return Case(cls, cls.Config(**cls.checked_with), model or likely)


@pytest.fixture(params=ROWS, ids=lambda row: row.name)
def row(request: pytest.FixtureRequest) -> Any:
    return request.param


def test_does_something_and_only_the_plain_one_nothing(row: Any) -> None:
    case = case_of(row)
    with torch.no_grad():
        untouched = example_model(case.model)(case.stream.flatten(0, 1))
    difference = float((case.answers - untouched).abs().max())
    assert (difference < 1e-5) if row is PLAIN else (difference > 1e-2)


def test_inference_mode_works_or_is_refused_in_words(row: Any) -> None:
    case = case_of(row)
    adapter = case.build()
    with torch.inference_mode():
        if row.access.backprop == "none":
            assert torch.isfinite(adapter.predict(case.stream[0])).all()
        else:
            with pytest.raises(RuntimeError, match=r"inference_mode\(\) forbids"):
                adapter.predict(case.stream[0])
        images = case.stream[0]
    assert torch.equal(case.build().predict(images), case.answers[:4])


def test_the_row_in_the_table_is_true_and_the_options_are_documented(row: Any) -> None:
    adapter = load_object(row.path)
    assert issubclass(adapter, Adapter)
    assert adapter.access == row.access
    assert adapter.needs == row.needs
    assert row.citation or row is PLAIN
    assert row is PLAIN or adapter.tested_against in ("golden", "restatement")
    shown = "\n" + described(row).about_options  # by bench show, bases first
    assert all(shown.count(f"\n{field.name}:") == 1 for field in fields(adapter.Config))


def test_source_images_are_asked_for_exactly_by_those_who_declare_them(row: Any) -> None:
    adapter = load_object(row.path)
    config, model = adapter.Config(**adapter.checked_with), case_of(row).model
    supported, reason = adapter.supports(example_model(model), config, None)
    assert supported == (row.access.source == "none"), reason

    def read(number: int) -> Any:
        raise AssertionError("read")

    if row.access.source == "none":
        assert adapter.supports(example_model(model), config, Source(read, 3))[0]


def test_two_seeds_differ_only_where_something_is_drawn(row: Any) -> None:
    case = case_of(row)
    other = play(case.build(seed=1), case.stream)
    draws = {
        "actmad",
        "adacontrast",
        "cmf",
        "cotta",
        "deyo",
        "dua",
        "foa",
        "memo",
        "note",
        "petal",
        "rmt",
        "roid",
        "rotta",
        "santa",
        "sotta",
        "ttt",
        "ttt_mae",
        "ttt_mae_online",
        "ttt_online",
        "ttt_pp",
    }
    assert torch.equal(other, case.answers) == (row.name not in draws)


@pytest.mark.parametrize("size", [24, 40])
def test_other_sizes_of_images_than_those_of_papers(row: Any, size: int) -> None:
    if row.name in ("foa", "actmad") or row.needs:
        pytest.skip("a transformer, or moments, of one size")
    case = case_of(row, "group_norm" if row.name not in BATCH_NORM_ALONE else None)
    images = example_images(1, 4)[0][..., :24, :24] if size == 24 else example_images(1, 4)[0].repeat(1, 1, 2, 2)
    assert torch.isfinite(case.build().predict(images[..., :size, :size])).all()


class Turning(nn.Module):
    """A classifier of timm with a head that tells rotations."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network, self.rotation = network, nn.Linear(network.num_features, 4)

    def rotation_logits(self, images: Tensor) -> Tensor:
        features = self.network.forward_head(self.network.forward_features(images), pre_logits=True)
        logits: Tensor = self.rotation(features)
        return logits

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(images)
        return logits


def test_stochastic_depth_and_dropout_stay_off(row: Any) -> None:
    """A transformer in training mode, as a caller may hand it over, whose drawn layers would change every answer."""
    if row.name in BATCH_NORM_ALONE:
        pytest.skip("adapts BatchNorm alone")
    if row.needs in SPECIAL:
        pytest.skip("needs more than a transformer")
    options = {"num_classes": 10, "img_size": 32, "drop_rate": 0.5, "drop_path_rate": 0.5}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = timm.create_model("test_vit", **options).train()
        if row.needs:
            model = Turning(model)
    case = case_of(row, "layer_norm")
    torch.manual_seed(1)
    first = play(case.build(model), case.stream)
    torch.manual_seed(2)
    assert torch.equal(play(case.build(model), case.stream), first)
