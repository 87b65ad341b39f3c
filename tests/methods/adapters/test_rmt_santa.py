"""RMT and SANTA against slow restatements: every vector, class and probability apart, in float64 where it is a loss."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from methods.adapters.common.prototypes import build_projector, class_means, contrast, nearest
from methods.adapters.common.teachers import learnable
from methods.adapters.rmt import Rmt
from methods.adapters.santa import Santa
from methods.base import Adapter, Source, SourceBatch, Unsupported
from methods.nets.feature_head_split import split
from methods.views.cotta_views import draw_view, make_view

Nets = Callable[[str], nn.Sequential]
LABELS = torch.tensor([[0, 1, 2, 3], [4, 5, 6, 7], [8, 8, 1, 3]])


def source_of(batches: Tensor) -> Source:
    return Source(lambda number: SourceBatch(batches[number].flip(-1), LABELS[number]), 3)


def batch_statistics(net: nn.Module) -> nn.Sequential:
    model = copy.deepcopy(net).eval().requires_grad_(False)
    assert isinstance(model, nn.Sequential)
    for layer in model:
        if isinstance(layer, nn.BatchNorm2d):
            layer.train()
            layer.track_running_stats, layer.running_mean, layer.running_var = False, None, None
    return model


def cross(p: Tensor, q: Tensor) -> Tensor:
    """Mean cross-entropy of two predictions, from logits."""
    total = torch.zeros((), dtype=torch.float64)
    for one, other in zip(p.double(), q.double(), strict=True):
        total = total - (one.softmax(0) * other.log_softmax(0)).sum()
    return total / len(p)


def supervised_contrast(vectors: list[list[Tensor]], temperature: float) -> Tensor:
    """vectors[view][image], written out anchor by anchor."""
    flat = [(image, v.double() / v.double().norm()) for view in vectors for image, v in enumerate(view)]
    losses = []
    for i, (image, anchor) in enumerate(flat):
        others = [(j, v) for j, (_, v) in enumerate(flat) if j != i]
        total = torch.stack([torch.exp(anchor @ v / temperature) for _, v in others]).sum()
        positives = [torch.log(torch.exp(anchor @ v / temperature) / total) for j, v in others if flat[j][0] == image]
        losses.append(-torch.stack(positives).mean())
    return torch.stack(losses).mean()


class Restated:
    """Both methods' common parts; `teacher` is RMT's average or SANTA's anchor."""

    def __init__(self, adapter: Adapter, net: nn.Sequential, seed: int) -> None:
        self.config = adapter.config
        self.student, self.teacher = batch_statistics(net), batch_statistics(net)
        self.projector = copy.deepcopy(adapter._projector_at_start)  # type: ignore[attr-defined]
        self.draws = torch.Generator().manual_seed(seed)
        # What building the projector drew.
        for layer in (self.projector[0], self.projector[2]):
            torch.rand(layer.weight.numel(), generator=self.draws), torch.rand(layer.bias.numel(), generator=self.draws)

    def features(self, images: Tensor) -> Tensor:
        features: Tensor = self.student[:-1](images)
        return features

    def means(self, source: Source) -> list[Tensor]:
        found: dict[int, list[Tensor]] = {}
        for images, labels in source:
            assert labels is not None
            for feature, label in zip(self.features(images), labels.tolist(), strict=True):
                found.setdefault(label, []).append(feature)
        return [torch.stack(found[label]).mean(0) for label in sorted(found)]

    def contrast(self, features: Tensor, view: Tensor, means: list[Tensor]) -> Tensor:
        own = []
        for feature in features.detach():
            cosines = [float(feature @ mean / feature.norm() / mean.norm()) for mean in means]
            own.append(means[cosines.index(max(cosines))])
        views = [[self.projector(vector) for vector in each] for each in (own, list(features), list(view))]
        return supervised_contrast(views, self.config.temperature)

    def optimiser(self, values: list[nn.Parameter]) -> torch.optim.Optimizer:
        values = [*values, *self.projector.parameters()]
        if self.config.optimizer == "adam":
            return torch.optim.Adam(values, lr=self.config.lr, betas=(self.config.momentum, 0.999))
        return torch.optim.SGD(values, lr=self.config.lr, momentum=self.config.momentum, nesterov=self.config.nesterov)


def rmt(adapter: Adapter, net: nn.Sequential, source: Source, stream: Tensor, seed: int) -> Tensor:
    own = Restated(adapter, net, seed)
    config, student, teacher = own.config, own.student, own.teacher
    means = own.means(source)
    student.requires_grad_(True)
    optimizer = own.optimiser(list(student.parameters()))

    def follow() -> None:
        with torch.no_grad():
            for average, value in zip(teacher.parameters(), student.parameters(), strict=True):
                average.copy_(config.teacher_momentum * average + (1 - config.teacher_momentum) * value)

    def step(loss: Tensor) -> None:
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        follow()

    replayed = 0
    steps = min(3, config.warm_up_images // 4)
    for number in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = config.lr * (number + 1) / steps
        images = source[replayed % 3].images
        replayed += 1
        taught, said = teacher(images).detach(), student(images)
        step((cross(taught, said) + cross(said, taught)) / 2)
    rows = []
    for images in stream:
        view = make_view(images, draw_view(own.draws), own.draws)
        taught, said, said_of_view = teacher(images).detach(), student(images), student(view)
        loss = (
            cross(taught, said) + cross(said, taught) + cross(taught, said_of_view) + cross(said_of_view, taught)
        ) / 4
        loss = loss + config.contrast_weight * own.contrast(own.features(images), own.features(view), means)
        batch = source[replayed % 3]
        replayed += 1
        assert batch.labels is not None
        log_p = student(batch.images).double().log_softmax(1)
        loss = loss - config.source_weight * sum(log_p[i, c] for i, c in enumerate(batch.labels)) / len(batch.labels)
        rows.append(said.detach() + taught)
        step(loss)
    return torch.stack(rows)


def santa(adapter: Adapter, net: nn.Sequential, source: Source, stream: Tensor, seed: int) -> Tensor:
    own = Restated(adapter, net, seed)
    config, student = own.config, own.student
    means = own.means(source)
    norms = [layer for layer in student if isinstance(layer, nn.BatchNorm2d | nn.GroupNorm | nn.LayerNorm)]
    values = [value for layer in norms for value in (layer.weight, layer.bias)]
    for value in values:
        value.requires_grad_(True)
    optimizer = own.optimiser(values)
    rows = []
    for images in stream:
        view = make_view(images, draw_view(own.draws), own.draws)
        anchored = own.teacher(images)
        said, said_of_view = student(images), student(view)
        loss = (cross(said, anchored) + cross(said_of_view, anchored)) / 2
        loss = loss + config.contrast_weight * own.contrast(own.features(images), own.features(view), means)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        rows.append(said.detach())
    return torch.stack(rows)


RESTATED: dict[type[Adapter], Callable[..., Tensor]] = {Rmt: rmt, Santa: santa}
BASE: dict[type[Adapter], dict[str, Any]] = {
    Rmt: {"lr": 0.01, "teacher_momentum": 0.7, "warm_up_images": 13, "projection": 6},
    Santa: {"lr": 0.02, "projection": 6},
}


def ready(kind: type[Adapter], net: nn.Module, batches: Tensor, config: Any, seed: int = 3) -> Adapter:
    class Kept(kind):  # type: ignore[misc,valid-type]
        """Keeps the projector as it was before anything was learnt."""

        def warm_up(self) -> None:
            self._projector_at_start = copy.deepcopy(self.projector)
            super().warm_up()

    adapter: Adapter = (Kept if kind is Rmt else kind)(net, config, torch.Generator().manual_seed(seed))
    adapter.prepare(source_of(batches))
    if kind is Santa:
        adapter._projector_at_start = copy.deepcopy(adapter.projector)  # type: ignore[attr-defined]
    return adapter


def difference(kind: type[Adapter], net: nn.Sequential, batches: Tensor, ours: Any, restated: Any) -> float:
    """In float64, since BatchNorm on four images makes a step of 0.01 amplify rounding a thousand times."""
    net, batches = net.double(), batches.double()
    adapter = ready(kind, net, batches, ours)
    expected = RESTATED[kind](ready(kind, net, batches, restated), net, source_of(batches), batches, 3)
    return float((torch.stack([adapter.predict(batch) for batch in batches]) - expected).abs().max())


OPTIONS: list[dict[str, Any]] = [
    {},
    {"optimizer": "adam", "lr": 1e-3},
    {"contrast_weight": 3.0, "temperature": 0.5},
]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("net", ["bn", "gn"])
@pytest.mark.parametrize("kind", [Rmt, Santa])
def test_equals_the_slow_restatement(
    make_net: Nets, batches: Tensor, kind: type[Adapter], net: str, options: dict[str, Any]
) -> None:
    config = kind.Config(**{**BASE[kind], **options})
    assert difference(kind, make_net(net), batches, config, config) < 1e-6
    still = kind.Config(**{**BASE[kind], **options, "lr": 0.0})
    assert difference(kind, make_net(net), batches, still, config) > 1e-2


MUTANTS: list[tuple[type[Adapter], dict[str, Any]]] = [
    *((kind, {"nesterov": False}) for kind in (Rmt, Santa)),
    *((kind, {"momentum": 0.8}) for kind in (Rmt, Santa)),
    *((kind, {"contrast_weight": 0.0}) for kind in (Rmt, Santa)),
    *((kind, {"temperature": 0.2}) for kind in (Rmt, Santa)),
    *((kind, {"flip": False}) for kind in (Rmt, Santa)),
    *((kind, {"prototype_images": 4}) for kind in (Rmt, Santa)),
    (Rmt, {"source_weight": 0.0}),
    (Rmt, {"teacher_momentum": 0.8}),
    (Rmt, {"warm_up_images": 0}),
    (Rmt, {"warm_up_images": 8}),
]


@pytest.mark.parametrize(("kind", "change"), MUTANTS)
def test_the_restatement_tells_mutants_apart(
    make_net: Nets, batches: Tensor, kind: type[Adapter], change: dict[str, Any]
) -> None:
    config, changed = kind.Config(**BASE[kind]), kind.Config(**{**BASE[kind], **change})
    assert difference(kind, make_net("bn"), batches, changed, config) > 1e-3


def test_what_each_learns_and_what_stays(make_net: Nets, batches: Tensor) -> None:
    net = make_net("bn")
    for kind in (Rmt, Santa):
        adapter: Any = ready(kind, net, batches, kind.Config(**BASE[kind]))
        for batch in batches:
            adapter.predict(batch)
        moved = {
            name
            for (name, value), old in zip(adapter.model.named_parameters(), net.parameters(), strict=True)
            if not torch.equal(value, old)
        }
        everything = {name for name, _ in net.named_parameters()}
        assert moved == (everything if kind is Rmt else {"1.weight", "1.bias", "4.weight", "4.bias"})
        assert any(
            not torch.equal(a, b)
            for a, b in zip(adapter.projector.parameters(), adapter._projector_at_start.parameters(), strict=True)
        )
        other = adapter.teacher if kind is Rmt else adapter.anchor
        same = [torch.equal(a, b) for a, b in zip(learnable(other), net.parameters(), strict=True)]
        assert not any(same) if kind is Rmt else all(same)


def test_a_reset_returns_to_the_warmed_up_state_and_replays(make_net: Nets, batches: Tensor) -> None:
    adapter: Any = ready(Rmt, make_net("bn"), batches, Rmt.Config(**BASE[Rmt]))
    assert adapter.replayed == 3
    warm = copy.deepcopy(adapter.model.state_dict())
    first = torch.stack([adapter.predict(batch) for batch in batches])
    assert adapter.replayed == 8
    adapter.reset()
    assert adapter.replayed == 3
    assert all(torch.equal(value, warm[name]) for name, value in adapter.model.state_dict().items())
    assert torch.equal(torch.stack([adapter.predict(batch) for batch in batches]), first)


def test_a_warm_up_never_sees_an_image_twice(make_net: Nets, batches: Tensor) -> None:
    assert ready(Rmt, make_net("gn"), batches, Rmt.Config()).replayed == 3  # type: ignore[attr-defined]


def test_class_means_leave_out_classes_without_images(make_net: Nets, batches: Tensor) -> None:
    parts = split(make_net("gn"))
    means = class_means(parts, source_of(batches), 100, "rmt")
    assert means.shape == (9, 32)
    features = parts(batches[2].flip(-1))[0]
    torch.testing.assert_close(means[8], features[:2].mean(0))
    assert class_means(parts, source_of(batches), 4, "rmt").shape == (4, 32)
    picked = nearest(means, 3 * means[[5, 0]])
    assert torch.equal(picked, means[[5, 0]])


def test_contrast_closed_forms() -> None:
    # Two images, each with its views on one axis of its own: e^(1/t) for partners, 1 for the others.
    views = torch.eye(2).expand(3, 2, 2)
    value = float(contrast(views, 0.5))
    assert value == pytest.approx(math.log(2 * math.exp(2) + 3) - 2, rel=1e-5)
    # One image has no others, only its two partners.
    assert float(contrast(torch.ones(3, 1, 4), 0.1)) == pytest.approx(math.log(2), rel=1e-4)


def test_contrast_is_the_mean_over_a_mask_of_partners() -> None:
    for count, n in ((3, 5), (2, 4), (3, 1)):
        views = torch.randn(count, n, 7, generator=torch.Generator().manual_seed(n))
        vectors = nn.functional.normalize(views.flatten(0, 1), dim=1)
        itself = torch.eye(count * n, dtype=torch.bool)
        log_p = (vectors @ vectors.T / 0.1).masked_fill(itself, -torch.inf).log_softmax(1)
        partners = torch.eye(n, dtype=torch.bool).repeat(count, count) & ~itself
        assert torch.equal(contrast(views, 0.1), -log_p[partners].mean())


def test_the_projector_is_drawn_from_the_generator_alone() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    one, other = (build_projector(torch.ones(3, 400), 128, torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    weight = one[0].weight.detach()
    assert torch.equal(weight, other[0].weight)  # type: ignore[arg-type]
    assert float(weight.abs().max()) <= 1 / 20
    assert float(weight.std()) == pytest.approx(1 / 20 / math.sqrt(3), rel=0.02)


@pytest.mark.parametrize("kind", [Rmt, Santa])
def test_what_they_cannot_work_with_is_refused(make_net: Nets, batches: Tensor, kind: type[Adapter]) -> None:
    unlabelled = Source(lambda number: SourceBatch(batches[number]), 3)
    for source in (None, unlabelled, Source(lambda number: SourceBatch(batches[number], LABELS[number]), 0)):
        with pytest.raises(ValueError, match="labelled clean source images"):
            kind(make_net("bn")).prepare(source)
    with pytest.raises(Unsupported, match=r"nn\.Linear"):
        kind(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))).prepare(source_of(batches))


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [
        *((kind, {"contrast_weight": -1.0}) for kind in (Rmt, Santa)),
        *((kind, {"temperature": 0.0}) for kind in (Rmt, Santa)),
        *((kind, {"projection": 0}) for kind in (Rmt, Santa)),
        *((kind, {"prototype_images": 0}) for kind in (Rmt, Santa)),
        (Rmt, {"source_weight": -1.0}),
        (Rmt, {"teacher_momentum": 1.1}),
        (Rmt, {"warm_up_images": -1}),
    ],
)
def test_options_out_of_range_are_refused_by_name(kind: type[Adapter], wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{kind.__name__.lower()}.{next(iter(wrong))}"):
        kind.Config(**wrong)
