"""The list of corruptions and the tables of their parameters."""

from __future__ import annotations

import importlib
import subprocess
import sys

import numpy as np
import pytest

import corruptions
from corruptions.blur import zoom_factors
from corruptions.catalog import ALIASES, ROWS, parameters
from corruptions.tables import PROFILES

NOISE = ["gaussian_noise", "shot_noise", "impulse_noise"]
BLUR = ["defocus_blur", "glass_blur", "motion_blur", "zoom_blur"]
WEATHER = ["snow", "frost", "fog", "brightness"]
DIGITAL = ["contrast", "elastic_transform", "pixelate", "jpeg_compression"]
NOISE = ["gaussian_noise", "shot_noise", "impulse_noise"]
BLUR = ["defocus_blur", "glass_blur", "motion_blur", "zoom_blur"]
WEATHER = ["snow", "frost", "fog", "brightness"]
DIGITAL = ["contrast", "elastic_transform", "pixelate", "jpeg_compression"]
IMAGENET_C = [*NOISE, *BLUR, *WEATHER, *DIGITAL]


def test_listing_and_describing_do_not_load_torch() -> None:
    code = (
        "import sys, corruptions; corruptions.names(); corruptions.describe('fog'); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_suites_are_in_published_order() -> None:
    assert list(corruptions.names("imagenet_c")) == IMAGENET_C
    assert corruptions.names("imagenet_c_extra") == ("speckle_noise", "gaussian_blur", "spatter", "saturate")
    assert set(corruptions.names()) >= {*IMAGENET_C, "saturate"}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_each_row_points_at_its_functions_and_has_five_severities(
    row: corruptions.catalog.Row,
) -> None:
    module = importlib.import_module(f"corruptions.{row.module}")
    assert callable(getattr(module, row.name))
    assert hasattr(module, f"draw_{row.name}") == row.random
    for profile in PROFILES:
        assert len(PROFILES[profile][row.name]) == 5
        assert len({len(parameters(row.name, s, profile)) for s in (0.5, 1, 2, 3, 3.5, 4, 5)}) == 1
        if profile == "digits32" and row.name != "saturate":
            assert len({parameters(row.name, s, profile) for s in range(1, 6)}) == 5


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("elastic", "elastic_transform"),
        ("jpeg", "jpeg_compression"),
        ("Gaussian-Noise", "gaussian_noise"),
        ("fog", "fog"),
    ],
)
def test_aliases_lead_to_published_names(given: str, name: str) -> None:
    assert corruptions.canonical(given) == name
    assert corruptions.describe(given).name == name


def test_every_alias_leads_somewhere() -> None:
    assert {corruptions.canonical(alias) for alias in ALIASES} <= set(corruptions.names())


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(ValueError, match="did you mean 'defocus_blur'"):
        corruptions.canonical("defocused_blur")
    with pytest.raises(ValueError, match="choose from gaussian_noise, "):
        corruptions.canonical("qqqq")
    with pytest.raises(ValueError, match="did you mean 'imagenet_c'"):
        corruptions.names("imagenet-c")
    with pytest.raises(ValueError, match="did you mean 'cifar32'"):
        parameters("fog", 1, "cifar")


@pytest.mark.parametrize(
    ("name", "severity", "expected"),
    [
        ("gaussian_noise", 2.5, (0.15,)),
        ("gaussian_noise", 0.5, (0.04,)),
        ("shot_noise", 1.5, (2 / (1 / 60 + 1 / 25),)),
        ("shot_noise", 0.5, (120,)),
        ("defocus_blur", 4.25, (8.5, 0.5)),
        ("jpeg_compression", 0.5, (55,)),
        ("elastic_transform", 0.5, (244, (999 + 170.8) / 2, 12.2)),
        ("fog", 0.5, (0.75, 2, 256)),
        ("zoom_blur", 0.5, (1.055, 0.01)),
        ("contrast", 5, (0.05,)),
        ("fog", 3, (2.5, 1.7, 256)),
    ],
)
def test_fractions_interpolate_between_neighbours(name: str, severity: float, expected: tuple[float, ...]) -> None:
    assert parameters(name, severity, "imagenet224") == pytest.approx(expected)


@pytest.mark.parametrize("side", [224, 299, 64, 32])
def test_published_zoom_factors(side: int) -> None:
    profile = {224: "imagenet224", 299: "inception299", 64: "tiny64", 32: "cifar32"}[side]
    rows = [parameters("zoom_blur", s, profile) for s in range(1, 6)]
    assert [len(zoom_factors(*row)) for row in rows] == ([12, 16, 11, 13, 11] if side > 64 else [7, 12, 16, 21, 26])
    for stop, step in rows:
        assert zoom_factors(stop, step) == np.arange(1, stop, step).tolist()


@pytest.mark.parametrize(("size", "profile"), [((32, 500), "cifar32"), ((49, 49), "tiny64"), ((97, 97), "imagenet224")])
def test_the_automatic_profile_goes_by_the_shorter_side(size: tuple[int, int], profile: str) -> None:
    assert corruptions.profile_for(*size) == profile
