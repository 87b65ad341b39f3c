"""PRIME: random deformations, colour curves and filters of maximum entropy, mixed as in AugMix, for whole batches.

Modas et al. 2022, arXiv:2112.13547, with the draws of its release. As there, the strength of a step (how many modes and
frequencies, which temperature) and its deformation are the same for all images of a batch; which of the three
transforms an image gets, its colour curve and its filter are its own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import conv2d, grid_sample

from methods.data_parallel import Share
from methods.identity import component

CHAINS = 3
DEPTH = 3
TRANSFORMS = 3
KERNEL = 3
SIGMA = 4.0

_FEWEST_MODES = 2
_SCALARS = 7  # uniform numbers of a step, for the whole batch


@component("methods.prime.Strength")
@dataclass(frozen=True)
class Strength:
    """How strong the transforms are.

    modes: most modes of a deformation along each side. frequencies: most frequencies of a colour curve. band: how many
    successive ones a curve has; None for all from the first on. temperature: largest variance of their amplitudes.
    """

    modes: int = 100
    frequencies: int = 100
    band: int | None = None
    temperature: float = 0.01


PUBLISHED = {"cifar": Strength(), "imagenet": Strength(500, 500, 20, 0.05)}
"""The strengths in the configurations of the release."""


class Step(NamedTuple):
    """The random numbers of one step of all chains of n images.

    kinds: int64 [n, CHAINS] on the CPU, which transform. modes: float [2, m, m], amplitudes of the deformation along
    rows and columns before they are weighed; temperature: their variance. frequencies: of the colour curves; curves:
    float [n, CHAINS, 3, frequencies], their amplitudes. kernels: float [n, CHAINS, KERNEL, KERNEL].
    """

    kinds: Tensor
    modes: Tensor
    temperature: float
    frequencies: Sequence[int]
    curves: Tensor
    kernels: Tensor


class Drawn(NamedTuple):
    """The random numbers of one view of n images.

    share: float [n], weight of the chains against the image. weights: float [n, CHAINS], of each chain. depths: int64
    [n, CHAINS] on the CPU, how many steps it has.
    """

    share: Tensor
    weights: Tensor
    depths: Tensor
    steps: tuple[Step, ...]


def draw(count: int, side: int, strength: Strength, generator: torch.Generator, share: Share) -> Drawn:
    """Draw the numbers of one view of `count` images, the rows of this process of a batch, on the generator's device.

    Waits once for the device, since some numbers decide how many others there are.
    """
    whole, device = share.whole(count), generator.device
    columns = 1 + CHAINS * (2 + DEPTH)
    uniforms = torch.rand(DEPTH * _SCALARS + whole * columns, generator=generator, device=device).cpu().double()
    scalars = uniforms[: DEPTH * _SCALARS].view(DEPTH, _SCALARS).tolist()
    rows = uniforms[DEPTH * _SCALARS :].view(whole, columns)
    own = share.own(rows)
    mix, depths, weights, kinds = torch.split(own, [1, CHAINS, CHAINS, CHAINS * DEPTH], dim=1)
    # Dirichlet(1, 1, 1) is three exponentials over their sum; one minus a number of [0, 1) is never zero.
    exponentials = -torch.log1p(-weights) + 1e-12
    chosen = (kinds * TRANSFORMS).long().clamp_(max=TRANSFORMS - 1).view(count, CHAINS, DEPTH)
    return Drawn(
        mix[:, 0].float().to(device, non_blocking=True),
        (exponentials / exponentials.sum(1, keepdim=True)).float().to(device, non_blocking=True),
        1 + (depths * DEPTH).long().clamp_(max=DEPTH - 1),
        tuple(
            _draw_step(chosen[:, :, step], scalars[step], side, strength, generator, share, whole)
            for step in range(DEPTH)
        ),
    )


def _draw_step(
    kinds: Tensor,
    scalars: Sequence[float],
    side: int,
    strength: Strength,
    generator: torch.Generator,
    share: Share,
    whole: int,
) -> Step:
    most, modes, heat, last, variance, first, sigma = scalars
    most = _integer(most, _FEWEST_MODES + 1, strength.modes)
    modes = int(_arcsine(modes) * (most + 1 - _FEWEST_MODES) + _FEWEST_MODES)
    low, high = _temperatures(side, modes)
    last = _integer(last, 1, strength.frequencies)
    frequencies = range(1, last + 1)
    if strength.band is not None:
        start = _integer(first, 1, last)
        frequencies = range(start, min(start + strength.band, last + 1))

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=generator.device)

    deformation = normal(2, modes, modes)
    curves = share.own(normal(whole, CHAINS, 3, len(frequencies)))
    kernels = share.own(normal(whole, CHAINS, KERNEL, KERNEL)) * (SIGMA * sigma)
    # The release takes ceil(3 / 2) for the centre, so a filter also moves the image by one pixel.
    centre = math.ceil(KERNEL / 2)
    kernels[:, :, centre, centre] += 1
    return Step(
        kinds,
        deformation,
        low + _arcsine(heat) * (high - low),
        frequencies,
        curves * math.sqrt(strength.temperature * variance),
        kernels,
    )


def _integer(uniform: float, low: int, high: int) -> int:
    """Return a whole number between both bounds, included."""
    return min(low + int(uniform * (high - low + 1)), high)


def _arcsine(uniform: float) -> float:
    """Turn a uniform number into one of Beta(1/2, 1/2)."""
    return math.sin(math.pi / 2 * uniform) ** 2


def _temperatures(side: int, modes: int) -> tuple[float, float]:
    """Return the variances that move pixels by half a pixel and by as much as leaves no fold; the second is no less."""
    cut = modes + 1e-6
    low = 1 / (math.pi * side**2 * math.log(cut))
    return low, max(low, 4 / (math.pi**3 * cut**2 * math.log(cut)))


@torch.no_grad()
def prime(images: Tensor, drawn: Drawn) -> Tensor:
    """Return one view of each image: float [n, 3, s, s] in [0, 1] to the same.

    It is (1 - m) x + m sum_i w_i x_i for three chains x_i of one to three transforms. Raises ValueError unless images
    are square.
    """
    n, _, height, width = images.shape
    if height != width:
        raise ValueError(f"PRIME deforms square images, not {height} x {width}")
    chains = images.repeat_interleave(CHAINS, dim=0)
    for number, step in enumerate(drawn.steps):
        for kind in range(TRANSFORMS):
            # Selected on the CPU, where the numbers are: a query to the device would wait for it.
            chosen = torch.nonzero(((step.kinds == kind) & (drawn.depths > number)).flatten()).flatten()
            if len(chosen):
                where = chosen.to(images.device, non_blocking=True)
                before = chains.index_select(0, where)
                match kind:
                    case 0:
                        after = deform(before, step.modes, step.temperature)
                    case 1:
                        after = recolour(before, step.frequencies, step.curves.flatten(0, 1).index_select(0, where))
                    case _:
                        after = filtered(before, step.kernels.flatten(0, 1).index_select(0, where))
                chains.index_copy_(0, where, after)
    mixed = torch.einsum("nc,nc...->n...", drawn.weights, chains.view(n, CHAINS, *images.shape[1:]))
    return torch.lerp(images, mixed, drawn.share[:, None, None, None]).clamp_(0, 1)


def deform(pixels: Tensor, modes: Tensor, temperature: float) -> Tensor:
    """Move the pixels of all images alike by a smooth random field of sines (Petrini et al. 2021, arXiv:2105.02468).

    modes: float [2, m, m], standard normal. Mode (i, j) is weighed by 1 / sqrt(i^2 + j^2), those beyond m + 1/2 by 0.
    """
    side, most = pixels.shape[-1], modes.shape[-1]
    numbers = torch.arange(1, most + 1, dtype=pixels.dtype, device=pixels.device)
    radius = (numbers.square() + numbers[:, None].square()).sqrt()
    places = torch.linspace(0, 1, side, dtype=pixels.dtype, device=pixels.device)
    waves = torch.sin(math.pi * places[:, None] * numbers)
    fields = waves @ (modes * ((radius < most + 0.5) / radius)).mT @ waves.mT
    pixel = torch.arange(side, dtype=pixels.dtype, device=pixels.device)
    right, down = (fields * (math.sqrt(temperature) * side)).unbind()
    grid = torch.stack([pixel - right, pixel[:, None] - down], dim=-1) * (2 / (side - 1)) - 1
    return grid_sample(
        pixels, grid.expand(len(pixels), -1, -1, -1), mode="bilinear", padding_mode="border", align_corners=True
    )


def recolour(pixels: Tensor, frequencies: Sequence[int], amplitudes: Tensor) -> Tensor:
    """Change each channel by its own curve, x + sum_k a_k sin(k pi x), clamped; amplitudes [n, 3, frequencies]."""
    moved = pixels.clone()
    for place, frequency in enumerate(frequencies):
        wave = (pixels * frequency).mul_(math.pi).sin_()
        moved.addcmul_(wave, amplitudes[:, :, place, None, None])
    return moved.clamp_(0, 1)


def filtered(pixels: Tensor, kernels: Tensor) -> Tensor:
    """Filter each image by its own kernel [n, KERNEL, KERNEL], the same for all channels, clamped; zero outside."""
    made = conv2d(pixels.transpose(0, 1), kernels[:, None], padding="same", groups=len(pixels))
    return made.transpose(0, 1).clamp(0, 1)
