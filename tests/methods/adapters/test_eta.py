"""ETA, EATA and RDumb against slow restatements in float64, image by image, and their awkward batches."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from methods.adapters.eata import Eata
from methods.adapters.eta import Eta
from methods.adapters.rdumb import Rdumb
from methods.base import Adapter, Source, SourceBatch, Unsupported
from methods.norms import norm_parameters

Nets = Callable[[str], nn.Sequential]
LR = 0.05
FILTERS = [(0.4, 0.5), (0.6, 0.7), (0.6, 0.3), (1.0, 2.0)]


def entropy_of(p: Tensor) -> Tensor:
    return -sum((value * value.log() for value in p), torch.zeros((), dtype=p.dtype))


def slow_eta(
    net: nn.Module,
    batches: Tensor,
    *,
    margin: float,
    epsilon: float,
    fisher: dict[str, Tensor] | None = None,
    beta: float = 0.0,
) -> tuple[Tensor, list[int]]:
    """The logits along the stream and how many images of each batch were learnt from; SGD with momentum 0.9."""
    theta = {name: value.detach().clone() for name, value in norm_parameters(net).items()}
    source = dict(theta)
    velocity: dict[str, Tensor] = {}
    mean: Tensor | None = None
    answers, counts = [], []
    for images in batches:
        leaves = {name: value.clone().requires_grad_() for name, value in theta.items()}
        logits = functional_call(net, leaves, (images,))
        answers.append(logits.detach())
        probabilities = [row.exp() / row.exp().sum() for row in logits]
        limit = margin * math.log(logits.shape[1])
        chosen = [p for p in probabilities if entropy_of(p) < limit]
        if mean is not None:
            old = mean
            chosen = [p for p in chosen if abs(float((old @ p / (old.norm() * p.norm())).detach())) < epsilon]
        counts.append(len(chosen))
        if not chosen:
            continue
        fresh = sum(p.detach() for p in chosen) / len(chosen)
        mean = fresh if mean is None else 0.9 * mean + 0.1 * fresh
        loss = sum(entropy_of(p) * math.exp(limit - float(entropy_of(p.detach()))) for p in chosen) / len(chosen)
        for name, weight in (fisher or {}).items():
            loss = loss + beta * (weight * (leaves[name] - source[name]) ** 2).sum()
        for name, slope in zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True):
            velocity[name] = 0.9 * velocity[name] + slope if name in velocity else slope
            theta[name] = theta[name] - LR * velocity[name]
    return torch.stack(answers), counts


def slow_fisher(net: nn.Module, batches: list[Tensor]) -> dict[str, Tensor]:
    names = norm_parameters(net)
    total = {name: torch.zeros_like(value) for name, value in names.items()}
    for images in batches:
        leaves = {name: value.detach().clone().requires_grad_() for name, value in names.items()}
        p = functional_call(net, leaves, (images,)).softmax(1)
        loss = -sum(row.max().log() for row in p) / len(images)
        for name, slope in zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True):
            total[name] += slope**2 / len(batches)
    return total


def play(adapter: Adapter, batches: Tensor, source: Source | None = None) -> Tensor:
    adapter.prepare(source)
    return torch.stack([adapter.predict(batch) for batch in batches])


def exact(make_net: Nets) -> nn.Sequential:
    """In float64, and sure enough of some images that the filters part them."""
    net = make_net("gn").double()
    last = net[-1]
    assert isinstance(last, nn.Linear)
    with torch.no_grad():
        last.weight.mul_(2)
    return net


def drifting(batches: Tensor) -> Tensor:
    """Ten batches of four whose images differ enough for the filters to part them."""
    generator = torch.Generator().manual_seed(3)
    order = torch.randperm(40, generator=generator) % 20
    images = batches.flatten(0, 1)[order].double()
    contrast = torch.linspace(0.4, 1.6, 40, dtype=torch.float64)[torch.randperm(40, generator=generator)]
    return ((images - 0.5) * contrast[:, None, None, None] + 0.5).view(10, 4, 3, 32, 32)


@pytest.mark.parametrize(("margin", "epsilon"), FILTERS)
def test_eta_is_the_slow_restatement(make_net: Nets, batches: Tensor, margin: float, epsilon: float) -> None:
    stream = drifting(batches)
    slow, counts = slow_eta(exact(make_net), stream, margin=margin, epsilon=epsilon)
    config = Eta.Config(lr=LR, margin=margin, epsilon=epsilon)
    torch.testing.assert_close(play(Eta(exact(make_net), config), stream), slow, rtol=0, atol=1e-9)
    assert sum(counts) > 4


def test_the_restated_streams_hold_batches_with_none_one_some_and_all_images_kept(
    make_net: Nets, batches: Tensor
) -> None:
    seen = set()
    for margin, epsilon in FILTERS:
        seen |= set(slow_eta(exact(make_net), drifting(batches), margin=margin, epsilon=epsilon)[1])
    assert {0, 1, 2, 4} <= seen


@pytest.mark.parametrize("beta", [0.5, 5.0])
def test_eata_is_the_slow_restatement(make_net: Nets, batches: Tensor, beta: float) -> None:
    stream = drifting(batches)
    clean = [batches[0].double(), batches[1].double(), batches[2, :1].double()]
    fisher = slow_fisher(exact(make_net), clean)
    slow, _ = slow_eta(exact(make_net), stream, margin=0.6, epsilon=0.9, fisher=fisher, beta=beta)
    source = Source(lambda number: SourceBatch(batches[number].double()), 5)
    config = Eata.Config(lr=LR, margin=0.6, epsilon=0.9, beta=beta, fisher_images=9)
    adapter = Eata(exact(make_net), config)
    torch.testing.assert_close(play(adapter, stream, source), slow, rtol=0, atol=1e-9)
    for ours, theirs in zip(adapter.fisher, fisher.values(), strict=True):
        torch.testing.assert_close(ours, theirs)
    without, _ = slow_eta(exact(make_net), stream, margin=0.6, epsilon=0.9)
    assert float((slow - without).abs().max()) > 1e-3


def test_the_regulariser_pulls_back_to_the_source(make_net: Nets, batches: Tensor) -> None:
    source = Source(lambda number: SourceBatch(batches[number]), 5)

    def moved(beta: float) -> float:
        adapter = Eata(make_net("gn"), Eata.Config(lr=1e-3, momentum=0.0, margin=1.0, epsilon=2.0, beta=beta))
        play(adapter, batches.repeat(4, 1, 1, 1, 1), source)
        pairs = zip(adapter.fisher, adapter.parameters, adapter.anchor, strict=True)
        return sum(float((fisher * (now.detach() - then) ** 2).sum()) for fisher, now, then in pairs)

    assert moved(1000.0) < 0.5 * moved(0.0)


def test_eata_without_source_says_what_to_do(make_net: Nets) -> None:
    for source in (None, Source(lambda number: SourceBatch(torch.zeros(0, 3, 32, 32)), 0)):
        with pytest.raises(ValueError, match="use eta"):
            Eata(make_net("gn")).prepare(source)
    with pytest.raises(Unsupported):
        Eata(make_net("none")).prepare(Source(lambda number: SourceBatch(torch.rand(4, 3, 32, 32)), 1))


def test_fisher_images_that_the_source_cannot_give_are_done_without(make_net: Nets, batches: Tensor) -> None:
    read: list[int] = []

    def batch(number: int) -> SourceBatch:
        read.append(number)
        return SourceBatch(batches[number])

    Eata(make_net("bn"), Eata.Config(fisher_images=2000)).prepare(Source(batch, 5))
    assert read == [0, 1, 2, 3, 4]
    read.clear()
    Eata(make_net("bn"), Eata.Config(fisher_images=8)).prepare(Source(batch, 5))
    assert read == [0, 1]


@pytest.mark.parametrize("kind", ["bn", "gn"])
def test_where_no_image_is_kept_nothing_moves_not_even_by_momentum(make_net: Nets, batches: Tensor, kind: str) -> None:
    adapter = Eta(make_net(kind), Eta.Config(lr=LR, margin=1.0, epsilon=2.0))
    adapter.prepare()
    adapter.predict(batches[0])
    before = adapter.state_dict()
    object.__setattr__(adapter.config, "margin", 1e-9)
    adapter.predict(batches[1])
    after = adapter.state_dict()
    assert all(
        torch.equal(after["model"]["weights"][name], value) for name, value in before["model"]["weights"].items()
    )
    assert torch.equal(after["mean"], before["mean"])
    for place, state in before["optimizer"]["state"].items():
        assert torch.equal(after["optimizer"]["state"][place]["momentum_buffer"], state["momentum_buffer"])


def test_the_mean_waits_for_the_first_reliable_image(make_net: Nets, batches: Tensor) -> None:
    adapter = Eta(make_net("gn"), Eta.Config(lr=LR, margin=1e-9))
    first = play(adapter, batches)
    net = make_net("gn")
    with torch.no_grad():
        assert torch.equal(first, torch.stack([net(batch) for batch in batches]))
    assert adapter.mean.numel() == 0


@pytest.mark.parametrize("interval", [1, 3])
def test_rdumb_is_eta_begun_anew_on_every_stretch(make_net: Nets, batches: Tensor, interval: int) -> None:
    stream = drifting(batches)
    options: dict[str, Any] = {"lr": LR, "margin": 1.0, "epsilon": 0.9}
    ours = play(Rdumb(exact(make_net), Rdumb.Config(**options, interval=interval)), stream)
    stretches = [play(Eta(exact(make_net), Eta.Config(**options)), part) for part in stream.split(interval)]
    assert torch.equal(ours, torch.cat(stretches))
    whole = play(Eta(exact(make_net), Eta.Config(**options)), stream)
    assert float((ours - whole).abs().max()) > 1e-3


@pytest.mark.parametrize("kept", ["optimizer", "mean"])
def test_a_return_that_keeps_something_is_told_apart(make_net: Nets, batches: Tensor, kept: str) -> None:
    class Keeping(Rdumb):
        def reset(self) -> None:
            value = self.state_dict()[kept]
            super().reset()
            self.load_state_dict({**self.state_dict(), kept: value})

    stream = drifting(batches)
    config = Rdumb.Config(lr=LR, margin=1.0, epsilon=0.9, interval=3)
    right, wrong = (play(cls(exact(make_net), config), stream) for cls in (Rdumb, Keeping))
    assert torch.equal(right[:3], wrong[:3])
    assert float((right - wrong).abs().max()) > 1e-3


def test_rdumb_counts_along_a_resumed_stream(make_net: Nets, batches: Tensor) -> None:
    config = Rdumb.Config(lr=LR, margin=1.0, epsilon=2.0, interval=3)
    whole = play(Rdumb(make_net("gn"), config), batches)
    first, second = Rdumb(make_net("gn"), config), Rdumb(make_net("gn"), config)
    play(first, batches[:2])
    second.prepare()
    second.load_state_dict(first.state_dict())
    rest = torch.stack([second.predict(batch) for batch in batches[2:]])
    assert torch.equal(rest, whole[2:])


@pytest.mark.parametrize(
    ("adapter", "wrong"),
    [
        (Eta, {"margin": 0.0}),
        (Eta, {"margin": 1.5}),
        (Eta, {"epsilon": 0.0}),
        (Eta, {"lr": math.inf}),
        (Eata, {"beta": -1.0}),
        (Eata, {"beta": math.nan}),
        (Eata, {"fisher_images": 0}),
        (Eata, {"epsilon": math.nan}),
        (Rdumb, {"interval": 0}),
    ],
)
def test_options_out_of_range_are_refused_by_name(adapter: type[Adapter], wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{adapter.__name__.lower()}.{next(iter(wrong))} must be"):
        adapter.Config(**wrong)
