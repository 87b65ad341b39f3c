"""CoTTA against a slow restatement, parameter by parameter, and its restoration against the binomial distribution."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from methods.adapters.common.teachers import learnable
from methods.adapters.cotta import Cotta
from methods.views.cotta_views import draw_view, make_view

Nets = Callable[[str], nn.Sequential]


def batch_statistics(net: nn.Module) -> nn.Module:
    model = copy.deepcopy(net).eval().requires_grad_(False)
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.train()
            layer.track_running_stats, layer.running_mean, layer.running_var = False, None, None
    return model


def restated(net: nn.Module, stream: Tensor, config: Cotta.Config, seed: int) -> Tensor:
    """All three models apart, the mean of logits by a running sum, losses in probabilities; without restoration."""
    student, teacher, anchor = (batch_statistics(net) for _ in range(3))
    student.requires_grad_(True)
    if config.optimizer == "sgd":
        optimizer: torch.optim.Optimizer = torch.optim.SGD(
            student.parameters(), lr=config.lr, momentum=config.momentum, nesterov=config.nesterov
        )
    else:
        optimizer = torch.optim.Adam(student.parameters(), lr=config.lr, betas=(config.momentum, 0.999))
    draws = torch.Generator().manual_seed(seed)
    rows = []
    for images in stream:
        with torch.no_grad():
            target = teacher(images)
            if sum(float(row.softmax(0).max()) for row in anchor(images)) / len(images) < config.threshold:
                target = torch.zeros_like(target)
                for _ in range(config.views):
                    target += teacher(make_view(images, draw_view(draws), draws)) / config.views
        q, log_q = student(images).double().softmax(1), student(images).double().log_softmax(1)
        p, log_p = target.double().softmax(1), target.double().log_softmax(1)
        loss = -(p * log_q).sum() / len(images)
        if config.symmetric:
            loss = loss / 2 - (q * log_p).sum() / len(images) / 2
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            for average, value in zip(teacher.parameters(), student.parameters(), strict=True):
                average.copy_(config.teacher_momentum * average + (1 - config.teacher_momentum) * value)
        rows.append(target)
    return torch.stack(rows)


def ready(net: nn.Module, config: Cotta.Config, seed: int = 3) -> Cotta:
    adapter = Cotta(net, config, torch.Generator().manual_seed(seed))
    adapter.prepare()
    return adapter


BASE: dict[str, Any] = {"lr": 0.01, "restore": 0.0, "teacher_momentum": 0.5, "views": 3}
CASES: list[dict[str, Any]] = [
    {"threshold": 0.0},
    {"threshold": 2.0},
    {"threshold": 2.0, "symmetric": False},
    {"threshold": 2.0, "optimizer": "adam", "lr": 1e-3, "symmetric": False},
]


@pytest.mark.parametrize("options", CASES)
@pytest.mark.parametrize("kind", ["bn", "gn", "none"])
def test_equals_the_slow_restatement(make_net: Nets, batches: Tensor, kind: str, options: dict[str, Any]) -> None:
    net, config = make_net(kind), Cotta.Config(**{**BASE, **options})
    adapter = ready(net, config)
    ours = torch.stack([adapter.predict(batch) for batch in batches])
    expected = restated(net, batches, config, seed=3)
    torch.testing.assert_close(ours, expected, atol=5e-5, rtol=0)
    still = restated(net, batches, Cotta.Config(**{**BASE, **options, "lr": 0.0}), seed=3)
    assert float((expected - still).abs().max()) > 1e-2


def test_views_are_averaged_only_where_the_anchor_is_unsure(make_net: Nets, batches: Tensor) -> None:
    net = make_net("gn")
    with torch.no_grad():
        sure = sorted(float(net(batch).softmax(1).amax(1).mean()) for batch in batches)
    config = Cotta.Config(**{**BASE, "threshold": (sure[1] + sure[2]) / 2})
    ours = ready(net, config)
    made: list[int] = []
    view = ours.view
    ours.view = lambda images: (made.append(len(images)), view(images))[1]  # type: ignore[func-returns-value,method-assign]
    logits = torch.stack([ours.predict(batch) for batch in batches])
    assert len(made) == 2 * 3
    torch.testing.assert_close(logits, restated(net, batches, config, seed=3), atol=5e-5, rtol=0)


MUTANTS = [
    {"nesterov": False},
    {"momentum": 0.8},
    {"teacher_momentum": 0.6},
    {"views": 2},
    {"symmetric": False},
    {"threshold": 0.0},
    {"restore": 0.05},
    {"flip": False},
]


@pytest.mark.parametrize("change", MUTANTS)
def test_the_restatement_tells_mutants_apart(make_net: Nets, batches: Tensor, change: dict[str, Any]) -> None:
    net, options = make_net("bn"), {**BASE, "threshold": 2.0}
    adapter = ready(net, Cotta.Config(**{**options, **change}))
    ours = torch.stack([adapter.predict(batch) for batch in batches])
    assert float((ours - restated(net, batches, Cotta.Config(**options), seed=3)).abs().max()) > 5e-4


@pytest.mark.parametrize("probability", [0.001, 0.2, 0.9])
def test_each_weight_returns_with_the_probability_on_its_own(probability: float) -> None:
    model = nn.Sequential(nn.Linear(400, 300), nn.Flatten())
    adapter = ready(model, Cotta.Config(restore=probability))
    weight = adapter.parameters[0]
    hit = torch.zeros_like(weight)
    rounds = 6
    for _ in range(rounds):
        with torch.no_grad():
            weight.copy_(adapter.originals[0] + 1)
        adapter.restore()
        returned = weight.detach() == adapter.originals[0]
        assert torch.equal(weight.detach()[~returned], (adapter.originals[0] + 1)[~returned])
        hit += returned
    n = weight.numel()
    deviation = math.sqrt(rounds * n * probability * (1 - probability))
    assert abs(float(hit.sum()) - rounds * n * probability) < 5 * deviation
    # Rows and columns are hit alike: the variance between them is that of independent draws.
    for dim in (0, 1):
        sums = hit.sum(dim)
        expected = rounds * weight.shape[dim] * probability * (1 - probability)
        assert 0.7 * expected < float(sums.var()) < 1.4 * expected


def test_teacher_and_anchor_return_with_a_reset(make_net: Nets, batches: Tensor) -> None:
    net = make_net("bn")
    adapter = ready(net, Cotta.Config(lr=0.1, restore=0.1, teacher_momentum=0.5, threshold=2.0, views=2))
    first = torch.stack([adapter.predict(batch) for batch in batches])
    assert not torch.equal(adapter.averages[0], net[0].weight)  # type: ignore[arg-type]
    adapter.reset()
    for model in (adapter.model, adapter.teacher, adapter.anchor):
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), net.parameters(), strict=True))
    assert torch.equal(torch.stack([adapter.predict(batch) for batch in batches]), first)


def test_the_anchor_never_moves(make_net: Nets, batches: Tensor) -> None:
    net = make_net("bn")
    adapter = ready(net, Cotta.Config(lr=0.1))
    for batch in batches:
        adapter.predict(batch)
    assert all(torch.equal(a, b) for a, b in zip(adapter.anchor.parameters(), net.parameters(), strict=True))


def test_tokens_and_position_embeddings_are_not_learnt() -> None:
    model = timm.create_model("test_vit", num_classes=10, img_size=32)
    learnt = {id(value) for value in learnable(model)}
    left = {name for name, value in model.named_parameters() if id(value) not in learnt}
    assert left == {"cls_token", "pos_embed"}


@pytest.mark.parametrize(
    "wrong",
    [{"lr": math.nan}, {"teacher_momentum": 1.5}, {"restore": 1.0}, {"threshold": -0.1}, {"views": 0}],
)
def test_options_out_of_range_are_refused_by_name(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"cotta.{next(iter(wrong))}"):
        Cotta.Config(**wrong)
