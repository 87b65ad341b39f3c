"""COME and RPL: closed forms of their losses and gradients, and that the hosts use them where the papers say."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from methods.adapters.come import ComeEata, ComeSar, ComeTent, opinion_entropy
from methods.adapters.eata import Eata
from methods.adapters.rpl import Rpl, generalised_cross_entropy
from methods.adapters.sar import Sar
from methods.adapters.tent import Tent
from methods.base import Adapter, Source, SourceBatch

Nets = Callable[[str], nn.Sequential]


def opinion(x: list[float]) -> list[float]:
    """Beliefs and the uncertainty by the definition of subjective logic: evidence exp(x), prior weight C."""
    strength = sum(math.exp(value) for value in x) + len(x)
    return [math.exp(value) / strength for value in x] + [len(x) / strength]


# What the release adds to each belief and to the uncertainty.
SMALL = 1e-7

LOGITS = [
    [0.0, 0.0, 0.0],
    [1.0, -2.0, 0.5, 3.0],
    [5.0, 4.9],
    [-1.0, -1.5, -2.0],
    [0.1 * i for i in range(20)],
]


@pytest.mark.parametrize("logits", LOGITS)
def test_opinion_entropy_by_definition(logits: list[float]) -> None:
    q = opinion(logits)
    assert math.fsum(q) == pytest.approx(1)
    expected = -math.fsum((value + SMALL) * math.log(value + SMALL) for value in q)
    assert float(opinion_entropy(torch.tensor(logits, dtype=torch.float64))) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("logits", LOGITS[1:])
def test_its_gradient_by_hand_is_across_the_logits(logits: list[float]) -> None:
    """dH/dx_k = -q_k (ln q_k - sum_j q_j ln q_j); then the part along x is taken out, since the length is held."""
    q = opinion(logits)
    mean = math.fsum(value * math.log(value + SMALL) for value in q)
    slope = torch.tensor([-value * (math.log(value + SMALL) - mean) for value in q[:-1]], dtype=torch.float64)
    x = torch.tensor(logits, dtype=torch.float64, requires_grad=True)
    (ours,) = torch.autograd.grad(opinion_entropy(x), x)
    unit = x.detach() / x.detach().norm()
    torch.testing.assert_close(ours, slope - (slope @ unit) * unit)
    assert float(ours @ unit) == pytest.approx(0, abs=1e-12)


def test_the_mean_over_rows_has_the_gradient_of_each() -> None:
    x = torch.randn(5, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    (together,) = torch.autograd.grad(opinion_entropy(x).sum(), x)
    for row, slope in zip(x, together, strict=True):
        (alone,) = torch.autograd.grad(opinion_entropy(row), row, retain_graph=True)
        torch.testing.assert_close(slope, alone)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("logits", [[1e4, 0.0, -1e4], [1.0, 2.0, -math.inf], [-1e4] * 3, [0.0] * 3])
def test_opinion_entropy_and_its_gradient_are_finite(dtype: torch.dtype, logits: list[float]) -> None:
    z = torch.tensor(logits, dtype=dtype, requires_grad=True)
    value = opinion_entropy(z)
    (gradient,) = torch.autograd.grad(value, z)
    assert torch.isfinite(value.detach())
    assert torch.isfinite(gradient).all()


def test_masked_classes_hold_no_belief() -> None:
    masked = opinion_entropy(torch.tensor([0.3, -math.inf, 1.2, 0.1]))
    # The prior weight still counts all four classes.
    q = [math.exp(value) for value in (0.3, 1.2, 0.1)] + [4.0]
    expected = -sum(value / sum(q) * math.log(value / sum(q)) for value in q)
    assert float(masked) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("come", "host"), [(ComeTent, Tent), (ComeEata, Eata), (ComeSar, Sar)])
def test_hosts_differ_in_their_uncertainty_alone(
    make_net: Nets, batches: Tensor, come: type[Adapter], host: type[Adapter]
) -> None:
    class Swapped(host):  # type: ignore[misc, valid-type]
        def uncertainty(self, logits: Tensor) -> Tensor:
            return opinion_entropy(logits)

    options = {"lr": 0.05} if host is Tent else {"lr": 0.05, "margin": 1.0}
    source = Source(lambda number: SourceBatch(batches[number]), 5)

    def play(adapter: type[Adapter]) -> Tensor:
        built = adapter(make_net("gn"), host.Config(**options))
        built.prepare(source if built.access.source != "none" else None)
        return torch.stack([built.predict(batch) for batch in batches])

    assert torch.equal(play(come), play(Swapped))
    assert float((play(come) - play(host)).abs().max()) > 1e-3


def test_generalised_cross_entropy_closed_forms() -> None:
    p = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]], dtype=torch.float64)
    labels = torch.tensor([0, 1])
    ours = generalised_cross_entropy(p.log(), labels, 0.8)
    assert ours.tolist() == pytest.approx([(1 - 0.5**0.8) / 0.8, (1 - 0.1**0.8) / 0.8])
    assert generalised_cross_entropy(p.log(), labels, 1.0).tolist() == pytest.approx([0.5, 0.9])
    nearly = generalised_cross_entropy(p.log(), labels, 1e-9)
    assert nearly.tolist() == pytest.approx([-math.log(0.5), -math.log(0.1)], rel=1e-6)


def test_rpl_one_step_by_hand() -> None:
    """d/dz_k of (1 - p_y^q) / q is -p_y^q ([k = y] - p_k), then the chain rule of an affine LayerNorm."""
    layer = nn.LayerNorm(4).double()
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    adapter = Rpl(nn.Sequential(nn.Flatten(), layer), Rpl.Config(lr=0.1, q=0.7))
    adapter.prepare()
    unit = (x - x.mean(1, keepdim=True)) / (x.var(1, unbiased=False, keepdim=True) + layer.eps).sqrt()
    p = unit.softmax(1)
    top = p.max(1, keepdim=True)
    slope = -(top.values**0.7) * (torch.nn.functional.one_hot(top.indices[:, 0], 4) - p) / 3
    torch.testing.assert_close(adapter.predict(x[:, :, None, None]), unit)
    torch.testing.assert_close(adapter.parameters[0].detach(), 1 - 0.1 * (slope * unit).sum(0))
    torch.testing.assert_close(adapter.parameters[1].detach(), -0.1 * slope.sum(0))


@pytest.mark.parametrize("q", [0.0, 1.1, math.nan])
def test_q_out_of_range_is_refused_by_name(q: float) -> None:
    with pytest.raises(ValueError, match=r"rpl\.q must be"):
        Rpl.Config(q=q)
