"""3-Augment and colour jitter, held against facebookresearch/deit."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from official_streams import release
from official_values import OfficialValues, Queue, Values, hold
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import ColorJitter

from methods.data_parallel import Share
from methods.recipes.three_augment import ThreeAugment
from methods.views.ssl_views import Views

SIDE = 24
KINDS = ("gray_scale", "Solarization", "GaussianBlur")
LEVEL = 1 / 255


def pictures() -> Tensor:
    """Smooth and noisy pictures, uint8 [12, 3, SIDE, SIDE]."""
    generator = torch.Generator().manual_seed(3)
    coarse = torch.rand(12, 3, 6, 6, generator=generator)
    smooth = nn.functional.interpolate(coarse, SIDE, mode="bicubic")
    noisy = smooth + 0.1 * torch.randn(smooth.shape, generator=generator)
    return noisy.clamp(0, 1).mul(255).round().byte()


def views() -> Views:
    """Our views without crop and flip."""
    config = ThreeAugment.Config(flip=False, area=1.0)
    return Views((1.0, 1.0), (1.0, 1.0), flip=False, three_augment=config.three_augment, jitter=config.jitter)


def official(kind: int) -> Values:
    module = release(
        "deit",
        "augment",
        {
            "timm.data.transforms": {
                name: lambda *_, **__: lambda image: image
                for name in ("_pil_interp", "RandomResizedCropAndInterpolation", "ToNumpy", "ToTensor")
            }
        },
    )
    _, _, choice, jitter, to_tensor, _ = module.new_data_aug_generator(
        SimpleNamespace(input_size=SIDE, src=False, color_jitter=ThreeAugment.Config().jitter)
    ).transforms
    assert [type(each).__name__ for each in choice.transforms] == list(KINDS)
    blur = choice.transforms[2]
    assert (blur.radius_min, blur.radius_max) == views().blur
    assert (jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue) == (*3 * [(0.7, 1.3)], None)
    drawn = views()._draw(12, SIDE, SIDE, torch.Generator().manual_seed(7), Share())
    chosen = (drawn.chosen == kind).nonzero()[:, 0].tolist()
    assert len(chosen) >= 3
    uniform = Queue("radii", [float(drawn.deviation[each]) for each in chosen] if KINDS[kind] == "GaussianBlur" else [])
    made = []
    for each in chosen:
        order = [torch.arange(4), *(float(factor) for factor in drawn.factors[:, each]), None]
        picture: Any = Image.fromarray(pictures()[each].permute(1, 2, 0).contiguous().numpy())
        draws = SimpleNamespace(random=lambda: 0.5, uniform=uniform)
        with (
            mock.patch.object(module, "random", draws),
            mock.patch.object(ColorJitter, "get_params", return_value=order),
        ):
            made.append(to_tensor(jitter(choice.transforms[kind](picture))))
    uniform.end()
    assert np.array(picture).dtype == np.uint8
    return {"views": torch.stack(made)}


def ours(kind: int, **changes: Any) -> Values:
    drawn = views()._draw(12, SIDE, SIDE, torch.Generator().manual_seed(7), Share())
    return {"views": replace(views(), **changes)(pictures(), torch.Generator().manual_seed(7))[drawn.chosen == kind]}


# PIL rounds to whole levels after each step, and saturation magnifies what is off. Its blur sums boxes.
VALUES = [
    OfficialValues(
        f"three-augment-{name.lower()}",
        "facebookresearch/deit/augment.py, torchvision",
        (name, "colour jitter"),
        lambda kind=kind: official(kind),  # type: ignore[misc]
        lambda kind=kind: ours(kind),  # type: ignore[misc]
        tolerance=levels * LEVEL,
        often=often,
        levels=True,
    )
    for kind, (name, levels, often) in enumerate(zip(KINDS, (3.0, 4.0, 8.0), (0.0, 0.0, 0.01), strict=True))
]


@pytest.mark.parametrize("values", VALUES, ids=lambda values: values.name)
def test_views_are_those_of_the_release(values: OfficialValues) -> None:
    hold(values)


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        *((kind, {"three_augment": False}) for kind in range(3)),
        *((kind, {"jitter": 0.2}) for kind in range(3)),
        (2, {"blur": (0.1, 1.5)}),
    ],
)
def test_wrong_views_are_told(kind: int, change: dict[str, Any]) -> None:
    assert not VALUES[kind].agrees(ours(kind, **change), VALUES[kind].stored())
