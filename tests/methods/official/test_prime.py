"""PRIME, held against amodas/PRIME-augmentations: whole views from the same draws, and the loss of its training."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
import torch
from official_streams import release
from official_values import Instead, OfficialValues, Queue, Values, hold
from torch import Tensor, nn

from methods.data_parallel import Share
from methods.recipes.prime import PrimeMixing
from methods.views import prime as views_module
from methods.views.prime import PUBLISHED, Drawn, draw, prime

SIDE = 16
COUNT = 6
FOLDER = "PRIME-augmentations"

# What the release does to shapes with einops, which this project does not install, by pattern.
SHAPES: dict[str, Callable[..., Tensor]] = {
    "b c h w -> c b h w": lambda x: x.permute(1, 0, 2, 3),
    "c b h w -> b c h w": lambda x: x.permute(1, 0, 2, 3),
    "b h w -> b (h w)": lambda x: x.flatten(1),
    "b (h w) -> b () h w": lambda x, h: x.unflatten(1, (h, -1))[:, None],
    "b c h w -> b c (h w)": lambda x: x.flatten(2),
    " b c (h w) -> b c h w": lambda x, b, c, h, w: x.view(b, c, h, w),
    "b c h w -> m b c h w": lambda x, m: x.expand(m, *x.shape),
    "m b c h w -> (m b) c h w": lambda x: x.flatten(0, 1),
    "(m b) c h w -> m b c h w": lambda x, m: x.unflatten(0, (m, -1)),
}


def reshaped(tensor: Tensor, pattern: str, **sizes: int) -> Tensor:
    return SHAPES[pattern](tensor, **sizes)


STAND_INS: dict[str, Any] = {
    "einops": {
        "rearrange": reshaped,
        "repeat": reshaped,
        "parse_shape": lambda x, names: dict(zip(names.split(), x.shape, strict=True)),
    },
    "opt_einsum": {"contract": torch.einsum},
}


class Given:
    """A distribution that gives numbers in order."""

    def __init__(self, queue: Queue) -> None:
        self.sample = queue


class Float:
    """`torch.FloatTensor([1])`, whose uniform number is given."""

    def __init__(self, queue: Queue) -> None:
        self.queue = queue

    def uniform_(self, low: float, high: float) -> Tensor:
        return torch.tensor(low + (high - low) * self.queue())


def pictures() -> Tensor:
    generator = torch.Generator().manual_seed(3)
    coarse = torch.rand(COUNT, 3, 5, 5, generator=generator)
    return nn.functional.interpolate(coarse, SIDE, mode="bicubic").clamp(0, 1)


class Noted:
    """What our draws drew, in the order in which they did: uniform numbers and normal ones."""

    def __init__(self, kind: str) -> None:
        self.uniforms: list[Tensor] = []
        self.normals: list[Tensor] = []
        generator = torch.Generator().manual_seed({"cifar": 3, "imagenet": 5}[kind])

        def rand(*shape: int, **_: Any) -> Tensor:
            self.uniforms.append(torch.rand(*shape, generator=generator))
            return self.uniforms[-1]

        def randn(*shape: int, **_: Any) -> Tensor:
            self.normals.append(torch.randn(*shape, generator=generator))
            return self.normals[-1]

        with mock.patch.object(views_module, "torch", Instead(torch, rand=rand, randn=randn)):
            self.drawn: Drawn = draw(COUNT, SIDE, PUBLISHED[kind], torch.Generator(), Share())


def official_views(kind: str) -> Values:
    """The release with the numbers that we drew: integers and betas from our uniform numbers, normals as they are."""
    noted = Noted(kind)
    scalars = noted.uniforms[0][:21].double().view(3, 7).tolist()
    rows = noted.uniforms[0][21:].double().view(COUNT, 16)
    colour, diffeo, filters, whole = (
        release(FOLDER, f"utils.{name}", STAND_INS)
        for name in ("color_jitter", "diffeomorphism", "rand_filter", "prime")
    )
    assert (whole.GeneralizedPRIMEModule.__init__.__defaults__) == (3, -1, False, 3)
    config = PUBLISHED[kind]

    most_modes, frequencies = Queue("largest numbers of modes", []), Queue("frequencies", [])
    uniform, sigma = Queue("temperatures", []), Queue("sigmas", [])
    normals = Queue("normals of deformations", []), Queue("of colours", []), Queue("of filters", [])
    beta_cut, beta_heat = Queue("modes", []), Queue("temperatures of deformations", [])

    def between(u: float, low: int, high: int) -> Tensor:
        return torch.tensor([low + math.floor(u * (high - low))])

    def chain_major(x: Tensor) -> Tensor:
        return x.transpose(0, 1).flatten(0, 1)

    for (most, modes, heat, last, variance, first, width), step in zip(scalars, range(3), strict=True):
        most_modes.numbers.append(between(most, 3, config.modes + 1))
        beta_cut.numbers.append(torch.tensor(math.sin(math.pi / 2 * modes) ** 2))
        beta_heat.numbers.append(torch.tensor(math.sin(math.pi / 2 * heat) ** 2))
        largest = between(last, 1, config.frequencies + 1)
        frequencies.numbers += [largest, *([] if config.band is None else [between(first, 1, int(largest) + 1)])]
        uniform.numbers.append(variance)
        sigma.numbers.append(width)
        deformation, curves, kernels = noted.normals[3 * step : 3 * step + 3]
        normals[0].numbers += [*deformation]
        normals[1].numbers.append(chain_major(curves))
        normals[2].numbers.append(chain_major(kernels))

    modules = {
        diffeo: Instead(torch, randint=most_modes, randn=normals[0]),
        colour: Instead(torch, randint=frequencies, randn=normals[1], FloatTensor=lambda _: Float(uniform)),
        filters: Instead(torch, randn=normals[2], FloatTensor=lambda _: Float(sigma)),
    }
    kinds = Queue("kinds", [chain_major(step.kinds) for step in noted.drawn.steps])
    depths = Queue("depths", [chain_major(noted.drawn.depths) - 1])
    exponentials = -torch.log1p(-rows[:, 4:7])
    weights = Queue("weights", [(exponentials / exponentials.sum(1, keepdim=True)).float()])
    shares = Queue("shares", [rows[:, :1].float()])
    whole.torch = Instead(torch, randint=lambda *_, **__: (depths if depths.numbers else kinds)())
    whole.Dirichlet, whole.Beta = (lambda queue=queue, **_: Given(queue) for queue in (weights, shares))

    deformer = diffeo.Diffeo(1.0, 1.0, 1.0, 1.0, 2, config.modes, 1.0, stochastic=True)
    for beta in (deformer.betaT, deformer.betacut):
        assert (float(beta.concentration0), float(beta.concentration1)) == (0.5, 0.5)
    deformer.betaT, deformer.betacut = Given(beta_heat), Given(beta_cut)
    painter = colour.RandomSmoothColor(config.frequencies, config.temperature, config.band, stochastic=True)
    filterer = filters.RandomFilter(3, 4.0, stochastic=True)
    for module, instead in modules.items():
        module.torch = instead
    assert set(noted.drawn.steps[0].kinds.flatten().tolist()) == {0, 1, 2}
    assert set(noted.drawn.depths.flatten().tolist()) == {1, 2, 3}
    module = whole.GeneralizedPRIMEModule(
        nn.Identity(), whole.PRIMEAugModule([deformer, painter, filterer]), no_jsd=True
    )
    made = module(pictures())
    for queue in (
        most_modes,
        frequencies,
        uniform,
        sigma,
        *normals,
        beta_cut,
        beta_heat,
        kinds,
        depths,
        weights,
        shares,
    ):
        queue.end()
    return {"views": made}


def our_views(kind: str) -> Values:
    return {"views": prime(pictures(), Noted(kind).drawn)}


VALUES = [
    OfficialValues(
        f"prime-views-{kind}",
        f"amodas/PRIME-augmentations/utils, with the settings of config/{kind}10_cfg.py"
        if kind == "cifar"
        else "amodas/PRIME-augmentations/utils, with the settings of config/imagenet_cfg.py",
        ("deformation, colour and filter", "depths 1 to 3", "all frequencies" if kind == "cifar" else "a band of 20"),
        lambda kind=kind: official_views(kind),  # type: ignore[misc]
        lambda kind=kind: our_views(kind),  # type: ignore[misc]
        tolerance=1e-4,
        levels=True,
    )
    for kind in ("cifar", "imagenet")
]


@pytest.mark.parametrize("values", VALUES, ids=lambda values: values.name)
def test_views_are_those_of_the_release(values: OfficialValues) -> None:
    hold(values)


def test_views_of_a_fine_tuning_are_these(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = [Noted("cifar").drawn, Noted("imagenet").drawn]
    monkeypatch.setattr("methods.recipes.prime.draw", Queue("views", drawn))
    views = PrimeMixing()(pictures(), torch.Generator(), Share())
    assert torch.equal(views, torch.stack([pictures(), *(prime(pictures(), each) for each in drawn)], dim=1))


MUTANTS: dict[str, Callable[..., Any]] = {
    "deform": lambda pixels, modes, heat: views_module.recolour(pixels, (), torch.zeros(len(pixels), 3, 0)),
    "recolour": lambda pixels, frequencies, curves: pixels,
    "filtered": lambda pixels, kernels: pixels,
    "_arcsine": lambda uniform: uniform,
    "_temperatures": lambda side, modes: (0.0, 4 / (math.pi**3 * modes**2 * math.log(modes + 1e-6))),
    "_integer": lambda uniform, low, high: low + int(uniform * (high - low)),
}


@pytest.mark.parametrize("kind", range(2))
@pytest.mark.parametrize("name", list(MUTANTS))
def test_a_wrong_part_is_told(name: str, kind: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(views_module, name, MUTANTS[name])
    assert not VALUES[kind].agrees(VALUES[kind].ours(), VALUES[kind].stored())


@pytest.mark.parametrize(("name", "value"), [("SIGMA", 3.0), ("_FEWEST_MODES", 3)])
def test_a_wrong_number_is_told(name: str, value: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(views_module, name, value)
    assert not VALUES[0].agrees(VALUES[0].ours(), VALUES[0].stored())


def test_images_must_be_square() -> None:
    with pytest.raises(ValueError, match="square"):
        prime(torch.rand(COUNT, 3, SIDE, 20), Noted("cifar").drawn)
