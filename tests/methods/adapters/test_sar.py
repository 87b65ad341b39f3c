"""SAR against a slow restatement in float64 with returns to the source, with the release's quirks and without."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from methods.adapters.sar import Sar
from methods.base import Unsupported
from methods.online import below_the_official_top, below_the_top

Nets = Callable[[str], nn.Sequential]
LR = 0.05


def slow_sar(net: nn.Module, batches: Tensor, config: Any) -> tuple[Tensor, list[int]]:
    """The logits along the stream and the batches after which it returned to the source; SGD with momentum 0.9."""
    quirks = config.official_quirks
    chosen = below_the_official_top(net) if quirks else below_the_top(net)
    theta = {name: value.detach().clone() for name, value in chosen.items()}
    source = dict(theta)
    velocity: dict[str, Tensor] = {}
    average: float | None = None
    answers, returns = [], []

    def look(parameters: dict[str, Tensor], images: Tensor) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        leaves = {name: value.clone().requires_grad_() for name, value in parameters.items()}
        logits = functional_call(net, leaves, (images,))
        p = logits.exp() / logits.exp().sum(1, keepdim=True)
        return leaves, logits, -(p * p.log()).sum(1)

    def slopes(leaves: dict[str, Tensor], entropies: list[Tensor]) -> dict[str, Tensor]:
        if not entropies:
            return {name: torch.zeros_like(value) for name, value in leaves.items()}
        mean = sum(entropies, torch.zeros(())) / len(entropies)
        return dict(zip(leaves, torch.autograd.grad(mean, list(leaves.values())), strict=True))

    for number, images in enumerate(batches):
        leaves, logits, entropies = look(theta, images)
        answers.append(logits.detach())
        limit = config.margin * math.log(logits.shape[1])
        reliable = [i for i, value in enumerate(entropies.tolist()) if value < limit]
        if reliable or quirks:
            uphill = slopes(leaves, [entropies[i] for i in reliable])
            steepness = math.sqrt(sum(float((slope**2).sum()) for slope in uphill.values()))
            above = {name: value + config.rho * uphill[name] / (steepness + 1e-12) for name, value in theta.items()}
            leaves, _, entropies = look(above, images)
            still = [i for i in reliable if float(entropies[i].detach()) < limit]
            if still:
                loss = sum(float(entropies[i].detach()) for i in still) / len(still)
                average = loss if average is None else 0.9 * average + 0.1 * loss
            if still or quirks:
                for name, slope in slopes(leaves, [entropies[i] for i in still]).items():
                    velocity[name] = 0.9 * velocity[name] + slope if name in velocity else slope
                    theta[name] = theta[name] - LR * velocity[name]
        if average is not None and average < config.reset_below:
            returns.append(number)
            theta = dict(source)
            if not quirks:
                velocity, average = {}, None
    return torch.stack(answers), returns


def stream(batches: Tensor) -> Tensor:
    """Twenty batches of three; the contrast of the images goes up and down."""
    generator = torch.Generator().manual_seed(5)
    images = batches.flatten(0, 1)[torch.randint(20, (60,), generator=generator)].double()
    contrast = 1 + 0.8 * torch.sin(torch.arange(60, dtype=torch.float64) / 5)
    return ((images - 0.5) * contrast[:, None, None, None] + 0.5).view(20, 3, 3, 32, 32)


def exact(make_net: Nets) -> nn.Sequential:
    net = make_net("gn").double()
    last = net[-1]
    assert isinstance(last, nn.Linear)
    with torch.no_grad():
        last.weight.mul_(2)
    return net


def play(adapter: Sar, batches: Tensor) -> Tensor:
    adapter.prepare()
    return torch.stack([adapter.predict(batch) for batch in batches])


SETTINGS = [
    {"margin": 0.4, "reset_below": 0.6},
    {"margin": 0.6, "reset_below": 0.8},
    {"margin": 0.4, "reset_below": 0.5, "rho": 0.2},
    {"margin": 0.4, "reset_below": 0.0, "rho": 0.3},
]


@pytest.mark.parametrize("options", SETTINGS)
@pytest.mark.parametrize("quirks", [False, True])
def test_sar_is_the_slow_restatement(make_net: Nets, batches: Tensor, options: dict[str, float], quirks: bool) -> None:
    config = Sar.Config(lr=LR, official_quirks=quirks, **options)  # type: ignore[arg-type]
    slow, returns = slow_sar(exact(make_net), stream(batches), config)
    torch.testing.assert_close(play(Sar(exact(make_net), config), stream(batches)), slow, rtol=0, atol=1e-8)
    assert (len(returns) > 0) == (options["reset_below"] > 0)
    assert len(returns) < 20


class KeepsMomentum(Sar):
    def reset(self) -> None:
        momentum = self.state_dict()["optimizer"]
        super().reset()
        self.optimizer.load_state_dict(momentum)


class KeepsTheAverage(Sar):
    def reset(self) -> None:
        average = self.average
        super().reset()
        self.average = average


class NeverReturns(Sar):
    def _start_anew(self) -> None:
        pass


@pytest.mark.parametrize("mutant", [KeepsMomentum, KeepsTheAverage, NeverReturns])
def test_a_return_that_keeps_something_is_told_apart(make_net: Nets, batches: Tensor, mutant: type[Sar]) -> None:
    config = Sar.Config(lr=LR, margin=0.4, reset_below=0.6)
    slow, _ = slow_sar(exact(make_net), stream(batches), config)
    assert float((play(mutant(exact(make_net), config), stream(batches)) - slow).abs().max()) > 1e-3


@pytest.mark.parametrize("quirks", [False, True])
def test_where_no_image_is_reliable_only_the_release_moves(make_net: Nets, batches: Tensor, quirks: bool) -> None:
    adapter = Sar(make_net("gn"), Sar.Config(lr=LR, margin=1.0, reset_below=0.0, official_quirks=quirks))
    adapter.prepare()
    adapter.predict(batches[0])
    before = adapter.state_dict()
    object.__setattr__(adapter.config, "margin", 1e-9)
    adapter.predict(batches[1])
    after = adapter.state_dict()
    moved = any(
        not torch.equal(after["model"]["weights"][name], value) for name, value in before["model"]["weights"].items()
    )
    assert moved == quirks
    assert torch.equal(after["average"], before["average"])
    assert all(torch.isfinite(value).all() for value in after["model"]["weights"].values())


def test_parameters_return_from_the_climb_when_the_second_pass_keeps_none(make_net: Nets, batches: Tensor) -> None:
    adapter = Sar(make_net("gn"), Sar.Config(lr=LR, rho=50.0, margin=0.3, reset_below=-1.0))
    net = make_net("gn")
    logits = play(adapter, batches)
    with torch.no_grad():
        assert torch.equal(logits, torch.stack([net(batch) for batch in batches]))
    assert adapter.average.isnan()  # no loss to remember


def test_gradients_that_are_not_finite_leave_no_trace(make_net: Nets, batches: Tensor) -> None:
    adapter = Sar(make_net("gn"), Sar.Config(lr=LR, margin=1.0, reset_below=0.0))
    adapter.prepare()
    handle = adapter.parameters[0].register_hook(lambda slope: slope * math.nan)
    adapter.predict(batches[0])
    handle.remove()
    assert all(torch.isfinite(value).all() for value in adapter.model.state_dict().values())
    assert adapter.average.isnan()
    adapter.predict(batches[1])
    assert torch.isfinite(adapter.average)


def test_a_model_without_normalisation_is_refused(make_net: Nets) -> None:
    with pytest.raises(Unsupported, match="has none; choose"):
        Sar(make_net("none")).prepare()


@pytest.mark.parametrize("wrong", [{"margin": 0.0}, {"rho": -0.1}, {"rho": math.inf}, {"reset_below": math.nan}])
def test_options_out_of_range_are_refused_by_name(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"sar.{next(iter(wrong))} must be"):
        Sar.Config(**wrong)
