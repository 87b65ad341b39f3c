"""AugMix, held against google-research/augmix: operations, views from the same draws, and the loss of its training."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from official_streams import on_cpu, release
from official_values import Instead, OfficialValues, Queue, Values, arguments, hold
from PIL import Image
from torch import Tensor, nn

from methods.data_parallel import Share
from methods.recipes.augmix import AugMixing
from methods.training.augmentation import consistent
from methods.views import augmix
from methods.views.augmix import OPERATIONS, UNIFORMS, Fill

SIDE = 16
VIEWS = 3
LEVEL = 1 / 255
# The one random number that each operation of the release takes besides its level: which way it goes.
SIGNED = ("rotate", "shear_x", "shear_y", "translate_x", "translate_y")


def script(name: str, side: int = SIDE) -> ModuleType:
    with arguments(*([] if name == "cifar" else ["clean", "corrupted"])):
        module = release("augmix", name)
    module.augmentations.IMAGE_SIZE = side
    return module


def pictures() -> Tensor:
    """Four pictures with 8-bit values: smooth, noisy, dark with an edge, of few values."""
    generator = torch.Generator().manual_seed(3)
    coarse = torch.rand(2, 3, 5, 5, generator=generator)
    smooth = nn.functional.interpolate(coarse, SIDE, mode="bicubic").clamp(0, 1)
    noise = torch.rand(2, 3, SIDE, SIDE, generator=generator)
    dark = torch.where(torch.arange(SIDE) < SIDE // 3, 0.1 * noise[0], 0.3 + 0.2 * smooth[1])
    return (torch.stack([smooth[0], noise[1], dark, (4 * smooth[1]).round() / 4]) * 255).round() / 255


def to_pil(image: Tensor) -> Image.Image:
    return Image.fromarray(image.mul(255).round().byte().permute(1, 2, 0).contiguous().numpy())


def to_tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255


@contextmanager
def given(module: ModuleType, rows: list[list[float]], severity: float) -> Iterator[Callable[[], None]]:
    """Let the release's views draw the numbers of these rows (methods.views.augmix), view after view."""
    weights: list[Any] = []
    shares: list[float] = []
    depths: list[int] = []
    kinds: list[int] = []
    uniforms: list[float] = []
    for row in rows:
        exponentials = -np.log1p(-np.array(row[24:27]))
        weights.append(exponentials / exponentials.sum())
        shares.append(1 - row[23])
        for chain in range(3):
            depths.append(1 + int(3 * row[27 + chain]))
            for step in range(depths[-1]):
                kind, level, sign = row[30 + 9 * chain + 3 * step :][:3]
                kinds.append(int(9 * kind))
                name = list(OPERATIONS)[kinds[-1]]
                if name not in ("autocontrast", "equalize"):
                    uniforms.append(0.1 + (severity - 0.1) * level)
                uniforms += [sign] * (name in SIGNED)
    queues = {
        name: Queue(name, numbers)
        for name, numbers in {"dirichlet": weights, "beta": shares, "randint": depths, "kinds": kinds}.items()
    }
    uniform = Queue("uniforms", uniforms)

    def choice(operations: list[Any]) -> Any:
        names = {operation.__name__: operation for operation in operations}
        assert names.keys() == OPERATIONS.keys()
        return names[list(OPERATIONS)[queues["kinds"]()]]

    draws = SimpleNamespace(
        **{name: queues[name] for name in ("dirichlet", "beta", "randint")},
        choice=choice,
        uniform=uniform,
        random=uniform,
    )
    instead = Instead(np, random=draws)

    def end() -> None:
        for queue in (*queues.values(), uniform):
            queue.end()

    with mock.patch.object(module, "np", instead), mock.patch.object(module.augmentations, "np", instead):
        yield end


def uniforms(views: int, seed: int) -> Tensor:
    return torch.rand(len(pictures()), views, UNIFORMS, generator=torch.Generator().manual_seed(seed))


def official_views(name: str, severity: float) -> Values:
    module = script(name)
    assert module.args.mixture_width == 3
    assert module.args.mixture_depth == -1
    assert module.args.aug_severity == severity
    drawn = uniforms(VIEWS, int(severity) + 30).double()
    taken = 1 + (3 * drawn[..., 27:30]).long()
    steps = drawn[..., 30:].unflatten(-1, (3, 3, 3))[torch.arange(3) < taken[..., None]]
    kinds = (9 * steps[:, 0]).long()
    assert set(taken.flatten().tolist()) == {1, 2, 3}
    assert set(kinds.tolist()) == set(range(9))
    coarse = (kinds == list(OPERATIONS).index("posterize")) & (0.1 + (severity - 0.1) * steps[:, 1] >= 2.5)
    assert bool(coarse.any()) == (severity > 1)
    made = []
    for image, rows in zip(pictures(), drawn.tolist(), strict=True):
        with given(module, rows, severity) as end:
            made.append(torch.stack([module.aug(to_pil(image), to_tensor) for _ in rows]))
            end()
    return {"views": torch.stack(made)}


def our_views(severity: float) -> Values:
    mixing = AugMixing(severity=severity)
    with mock.patch("methods.recipes.augmix.draw", return_value=uniforms(VIEWS, int(severity) + 30)):
        return {"views": mixing.augment(pictures(), VIEWS, torch.Generator(), Share())}


class Small(nn.Module):
    """A classifier whose numbers depend on every pixel, with BatchNorm, whose statistics are those of all views."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.body = nn.Sequential(nn.Conv2d(3, 8, 5, stride=3), nn.BatchNorm2d(8), nn.Tanh(), nn.Flatten())
            self.head = nn.Linear(8 * 4 * 4, 10)
            with torch.no_grad():
                self.head.weight.mul_(6)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.body(images))
        return logits


def batch() -> tuple[list[Tensor], Tensor]:
    generator = torch.Generator().manual_seed(8)
    clean = torch.rand(6, 3, SIDE, SIDE, generator=generator)
    others = [(clean + 0.5 * torch.randn(clean.shape, generator=generator)).clamp(0, 1) for _ in range(2)]
    return [clean, *others], torch.arange(6)


class Noted:
    """Stands where an optimiser and a schedule do."""

    def zero_grad(self) -> None: ...

    def step(self) -> None: ...


def official_loss(name: str, jsd: bool) -> Values:
    module = script(name)
    model = Small()
    images, targets = batch()
    module.args.no_jsd = not jsd
    module.accuracy = lambda *_, **__: (0.0, 0.0)  # that of imagenet.py fails on a tensor with strides
    given: Any = images if jsd else images[1]
    extra = [Noted()] if name == "cifar" else []
    with on_cpu():
        result = module.train(model, [(given, targets)], Noted(), *extra)
    # Their average over batches starts at zero, with a tenth of the loss (CIFAR) or nine tenths (ImageNet).
    loss = result / 0.1 if name == "cifar" else result[0] / 0.9
    return {"loss": torch.tensor(loss), "slope": slope(model)}


def our_loss(jsd: bool) -> Values:
    model = Small()
    images, targets = batch()
    given = images if jsd else images[1:2]
    loss = consistent(model(torch.cat(given)), targets, len(given))
    loss.backward()  # type: ignore[no-untyped-call]
    return {"loss": loss.detach(), "slope": slope(model)}


def slope(model: nn.Module) -> Tensor:
    kernel = model.get_submodule("body.0").weight.grad
    assert isinstance(kernel, Tensor)
    return kernel


# One level of difference in a rotation or shear is more after a threshold or an equalisation, in few pixels.
VALUES = [
    OfficialValues(
        f"augmix-views-{name}",
        f"google-research/augmix/{name}.py, augmentations.py",
        ("all nine operations", "depths 1 to 3", *(["posterising to three bits"] if severity > 1 else [])),
        lambda name=name, severity=severity: official_views(name, severity),  # type: ignore[misc]
        lambda severity=severity: our_views(severity),  # type: ignore[misc]
        tolerance=1.01 * LEVEL,
        often=1e-3,
        levels=True,
    )
    for name, severity in (("cifar", 3.0), ("imagenet", 1.0))
] + [
    OfficialValues(
        f"augmix-loss-{name}-{'jsd' if jsd else 'plain'}",
        f"google-research/augmix/{name}.py",
        ("consistency of three views" if jsd else "--no-jsd",),
        lambda name=name, jsd=jsd: official_loss(name, jsd),  # type: ignore[misc]
        lambda jsd=jsd: our_loss(jsd),  # type: ignore[misc]
        tolerance=1e-5,
    )
    for name, jsd in (("cifar", True), ("cifar", False), ("imagenet", True))
]


@pytest.mark.parametrize("values", VALUES, ids=lambda values: values.name)
def test_values_are_those_of_the_release(values: OfficialValues) -> None:
    hold(values)


MUTANTS: dict[str, Callable[[Tensor, Tensor, Tensor, Fill], Tensor]] = {
    "posterize": lambda p, level, sign, fill: augmix.posterize(p, level.clamp(max=1), sign, fill),
    "solarize": lambda p, level, sign, fill: augmix.solarize(p, level + 1, sign, fill),
    "autocontrast": lambda p, level, sign, fill: augmix.equalize(p, level, sign, fill),
    "equalize": lambda p, level, sign, fill: augmix.autocontrast(p, level, sign, fill),
    **{
        name: lambda p, level, sign, fill, name=name: getattr(augmix, name)(p, level, -sign, fill)  # type: ignore[misc]
        for name in SIGNED
    },
}


@pytest.mark.parametrize("name", [*OPERATIONS])
def test_a_wrong_operation_is_told(name: str) -> None:
    expected = VALUES[0].stored()
    with mock.patch.dict(OPERATIONS, {name: MUTANTS[name]}):
        assert not VALUES[0].agrees(our_views(3.0), expected)


@pytest.mark.parametrize("change", [{"severity": 2.5}, {"fill": augmix.FILL}, {"flip": True}])
def test_a_wrong_setting_is_told(change: dict[str, Any]) -> None:
    def changed(*images: Tensor, **settings: Any) -> Tensor:
        return augmix.augmix(*images, **{**settings, **change})

    with mock.patch("methods.recipes.augmix.augmix", changed):
        assert not VALUES[0].agrees(our_views(3.0), VALUES[0].stored())


@pytest.mark.parametrize(("name", "value"), [("_WEIGHT", 4.0), ("_SMALLEST", 0.2)])
def test_a_wrong_loss_is_told(name: str, value: float) -> None:
    expected = VALUES[2].stored()
    with mock.patch(f"methods.training.augmentation.{name}", value):
        assert not VALUES[2].agrees(our_loss(True), expected)
