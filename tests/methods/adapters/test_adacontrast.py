"""AdaContrast against a slow restatement, image by image; its strong views against torchvision."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.transforms import functional as tv

from methods.adapters.adacontrast import AdaContrast
from methods.base import Unsupported
from methods.views.moco_views import strong_view
from methods.views.ssl_views import Views, crop_boxes, gaussian_blur, resample, resampling, turn_hue

Nets = Callable[[str], nn.Sequential]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def train_norms(model: nn.Module, training: bool) -> None:
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.train(training)


def unit(vector: Tensor) -> Tensor:
    return vector.double() / vector.double().norm()


def restated(net: nn.Sequential, stream: Tensor, config: AdaContrast.Config, seed: int) -> Tensor:
    """Banks and queue as lists of single images, losses image by image in float64."""
    student, teacher = copy.deepcopy(net).eval(), copy.deepcopy(net).eval()
    student.requires_grad_(True)
    teacher.requires_grad_(False)
    optimizer = torch.optim.SGD(
        student.parameters(), config.lr, config.momentum, weight_decay=config.weight_decay, nesterov=config.nesterov
    )
    draws = seeded(seed)
    weaken = Views((0.765625, 0.765625), (1, 1), True, three_augment=False, jitter=0)
    queue: list[tuple[Tensor, int]] = []
    bank: list[tuple[Tensor, Tensor]] = []
    rows = []
    place, oldest = 0, 0
    for images in stream:
        train_norms(student, True)
        train_norms(teacher, True)
        weak = weaken(images.float() * 255, draws).double()
        with torch.no_grad():
            features = student[:-1](weak)
            logits = student[-1](features)
        if not queue:
            vectors = torch.randn(config.queue, features.shape[1], generator=draws)
            labels = torch.randint(10, (config.queue,), generator=draws)
            queue = [(unit(vector), int(label)) for vector, label in zip(vectors, labels, strict=True)]
        named = []
        for feature, row in zip(features, logits, strict=True):
            if len(bank) < config.bank_start:
                named.append(int(row.argmax()))
                continue
            ranked = sorted(bank, key=lambda entry: -float(unit(feature) @ unit(entry[0])))
            named.append(int(torch.stack([p for _, p in ranked[: config.neighbours]]).mean(0).argmax()))
        view, other = strong_view(images, draws), strong_view(images, draws)
        with torch.no_grad():
            for average, value in zip(teacher.parameters(), student.parameters(), strict=True):
                average.copy_(config.teacher_momentum * average + (1 - config.teacher_momentum) * value)
            keys = [unit(key) for key in teacher[:-1](other)]
        places = [(place + i) % config.queue for i in range(len(images))]
        for where, name in zip(places, named, strict=True):
            queue[where] = (queue[where][0], name)
        features = student[:-1](view)
        probabilities = student[-1](features).double().softmax(1)
        loss = torch.zeros((), dtype=torch.float64)
        for feature, p, key, name in zip(features, probabilities, keys, named, strict=True):
            loss = loss - p[name].log() / len(images)
            kept = [torch.exp(unit(feature) @ k / config.temperature) for k, label in queue if label != name]
            mine = torch.exp(unit(feature) @ key / config.temperature)
            loss = loss - config.contrast_weight * torch.log(mine / (mine + sum(kept))) / len(images)
        mean = probabilities.mean(0)
        loss = loss + config.diversity_weight * (mean * (mean + 1e-8).log()).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        for where, key, name in zip(places, keys, named, strict=True):
            queue[where] = (key, name)
        place = (place + len(images)) % config.queue
        with torch.no_grad():
            features = teacher[:-1](weak)
            new = list(zip(features, teacher[-1](features).double().softmax(1), strict=True))
            if len(bank) < config.queue:
                bank = [*bank, *new]
            else:
                for i, entry in enumerate(new):
                    bank[(oldest + i) % len(bank)] = entry
            oldest = (oldest + len(new)) % len(bank)
            train_norms(student, False)
            rows.append(student(images))
    return torch.stack(rows)


def ready(net: nn.Module, config: AdaContrast.Config, seed: int = 3) -> AdaContrast:
    adapter = AdaContrast(net, config, seeded(seed))
    adapter.prepare()
    return adapter


def difference(net: nn.Sequential, batches: Tensor, ours: AdaContrast.Config, theirs: AdaContrast.Config) -> float:
    net, batches = net.double(), batches.double()
    adapter = ready(net, ours)
    found = torch.stack([adapter.predict(batch) for batch in batches])
    return float((found - restated(net, batches, theirs, 3)).abs().max())


BASE: dict[str, Any] = {
    "lr": 0.01,
    "teacher_momentum": 0.6,
    "queue": 11,
    "bank_start": 7,
    "neighbours": 3,
    "temperature": 0.2,
    "weight_decay": 0.01,
}


@pytest.mark.parametrize("options", [{}, {"queue": 100}, {"bank_start": 1, "neighbours": 50}, {"contrast_weight": 0.0}])
@pytest.mark.parametrize("net", ["bn", "gn", "none"])
def test_equals_the_slow_restatement(make_net: Nets, batches: Tensor, net: str, options: dict[str, Any]) -> None:
    config = AdaContrast.Config(**{**BASE, **options})
    assert difference(make_net(net), batches, config, config) < 1e-6
    still = AdaContrast.Config(**{**BASE, **options, "lr": 0.0})
    assert difference(make_net(net), batches, still, config) > 1e-2


MUTANTS: list[dict[str, Any]] = [
    {"nesterov": False},
    {"momentum": 0.8},
    {"weight_decay": 0.0},
    {"teacher_momentum": 0.7},
    {"queue": 12},
    {"bank_start": 11},
    {"neighbours": 1},
    {"temperature": 0.3},
    {"contrast_weight": 0.5},
    {"diversity_weight": 0.0},
    {"flip": False},
]


@pytest.mark.parametrize("change", MUTANTS)
def test_the_restatement_tells_mutants_apart(make_net: Nets, batches: Tensor, change: dict[str, Any]) -> None:
    config, changed = AdaContrast.Config(**BASE), AdaContrast.Config(**{**BASE, **change})
    assert difference(make_net("bn"), batches, changed, config) > 1e-3


def test_what_is_kept_is_bounded_and_returns_with_a_reset(make_net: Nets, batches: Tensor) -> None:
    adapter = ready(make_net("bn"), AdaContrast.Config(**BASE))
    first = torch.stack([adapter.predict(batch) for batch in batches])
    assert len(adapter.keys) == len(adapter.key_labels) == 11
    assert len(adapter.bank) == len(adapter.bank_probabilities) == 12  # three batches
    assert not any(module.training for module in adapter.model.modules())
    adapter.reset()
    assert adapter.keys.numel() == 0
    assert torch.equal(torch.stack([adapter.predict(batch) for batch in batches]), first)


def test_a_batch_larger_than_the_queue_and_one_where_no_other_label_is_queued(make_net: Nets, batches: Tensor) -> None:
    adapter = ready(make_net("gn"), AdaContrast.Config(queue=3, bank_start=1))
    for batch in (batches.flatten(0, 1), batches[0, :1].expand(4, -1, -1, -1), batches[0, :1]):
        assert torch.isfinite(adapter.predict(batch)).all()
    assert len(adapter.keys) == 3
    assert len(adapter.bank) == 20  # the first batch


def test_models_it_cannot_work_with_are_refused() -> None:
    with pytest.raises(Unsupported, match="track_running_stats"):
        ready(
            nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False), nn.Flatten(), nn.Linear(3 * 32 * 32, 10)),
            AdaContrast.Config(),
        )


@pytest.mark.parametrize(
    "wrong",
    [
        {"weight_decay": math.inf},
        {"teacher_momentum": -0.1},
        {"queue": 0, "bank_start": 1},
        {"bank_start": 20000},
        {"neighbours": 0},
        {"temperature": 0.0},
        {"contrast_weight": -1.0},
        {"diversity_weight": -1.0},
    ],
)
def test_options_out_of_range_are_refused_by_name(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"adacontrast.{next(iter(wrong))}"):
        AdaContrast.Config(**wrong)


@pytest.mark.parametrize("turn", [-0.5, -0.1, 0.0, 0.03, 0.1, 0.5])
def test_hue_is_torchvisions(turn: float) -> None:
    images = torch.rand(4, 3, 9, 9, generator=seeded())
    images[0, :, :3] = images[0, :1, :3]  # gray
    images[1, 1] = images[1, 0]  # ties
    ours = turn_hue(images, torch.full((4,), turn))
    torch.testing.assert_close(ours, tv.adjust_hue(images, turn), atol=2e-5, rtol=0)


def test_strong_views_are_torchvisions_operations_one_after_the_other() -> None:
    images = torch.rand(40, 3, 24, 28, generator=seeded())
    views = strong_view(images, seeded(5))
    draws = torch.rand(9 + 40, 40, generator=seeded(5))
    jittered, grayed, blurred, mirrored, brightness, contrast, saturation, hue, sigma = draws[:9].tolist()
    top, left, tall, wide = crop_boxes(draws[9:], 24, 28, (0.2, 1.0), (3 / 4, 4 / 3))
    crops = resample(images, resampling(top, tall, 24), resampling(left, wide, 28)).clamp(0, 1)
    for i, picture in enumerate(crops):
        if jittered[i] < 0.8:
            picture = tv.adjust_brightness(picture, 1 + 0.4 * (2 * brightness[i] - 1))
            picture = tv.adjust_contrast(picture, 1 + 0.4 * (2 * contrast[i] - 1))
            picture = tv.adjust_saturation(picture, 1 + 0.4 * (2 * saturation[i] - 1))
            picture = tv.adjust_hue(picture, 0.1 * (2 * hue[i] - 1))
        if grayed[i] < 0.2:
            picture = tv.rgb_to_grayscale(picture, 3)
        if blurred[i] < 0.5:
            deviation = torch.tensor([0.1 + 1.9 * sigma[i]])
            picture = gaussian_blur(deviation, 24)[0] @ picture @ gaussian_blur(deviation, 28)[0].T
        picture = tv.hflip(picture) if mirrored[i] < 0.5 else picture
        torch.testing.assert_close(views[i], picture.clamp(0, 1), atol=3e-5, rtol=0)
    assert not torch.equal(strong_view(images, seeded(5), flip=False), views)
