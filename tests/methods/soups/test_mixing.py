"""Every way of mixing weights against closed forms and a restatement with loops."""

from __future__ import annotations

import itertools
import math
from functools import reduce
from operator import add

import pytest
import torch
from torch import Tensor

from methods.soups.mixing import MIXERS, ModelStock, TaskArithmetic, Ties, Uniform, Weighted, Wise


def some(count: int, *shape: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(*shape, generator=generator) for _ in range(count)]


START = torch.randn(4, 5, generator=torch.Generator().manual_seed(9))


def test_equal_shares_of_every_kind_are_the_uniform_soup() -> None:
    tensors = some(4, 4, 5)
    uniform = Uniform().mix(tensors)
    assert torch.equal(Wise(1.0).mix(tensors, START), uniform)
    assert torch.equal(Wise(0.0).mix(tensors, START), START)
    torch.testing.assert_close(Weighted((0.25,) * 4).mix(tensors), uniform, rtol=0, atol=1e-7)
    torch.testing.assert_close(TaskArithmetic(0.25).mix(tensors, START), uniform, rtol=0, atol=1e-6)
    torch.testing.assert_close(Ties(keep=1.0).mix(tensors[:1], START), tensors[0], rtol=0, atol=1e-6)


@pytest.mark.parametrize("count", [3, 7, 33])
def test_a_soup_of_one_model_many_times_is_that_model(count: int) -> None:
    tensor = some(1, 50)[0]
    copies = [tensor.clone() for _ in range(count)]
    assert torch.equal(Uniform().mix(copies), tensor)
    assert torch.equal(Weighted((1 / count,) * (count - 1) + (1 - (count - 1) / count,)).mix(copies), tensor)
    torch.testing.assert_close(ModelStock().mix(copies, torch.zeros(50)), tensor, rtol=1e-6, atol=0)


def test_order_changes_no_bit() -> None:
    tensors = some(16, 1000)
    for order in ([*range(15, -1, -1)], [3, 1, *range(4, 16), 0, 2]):
        assert torch.equal(Uniform().mix([tensors[i] for i in order]), Uniform().mix(tensors))


def test_the_sum_is_divided_once() -> None:
    """Their mean lies exactly between two float32 numbers and goes to the even one; shares of it may not, by order.

    Each step of that sum is rounded: `sum` of Python 3.12 and later corrects itself, whatever the order.
    """
    values = [0.5607265830039978, 1.948197364807129, 1.2288914918899536, 1.8773515224456787, 1.4876911640167236]
    found = {
        float(Uniform().mix([torch.tensor([value]) for value in order])) for order in itertools.permutations(values)
    }
    assert found == {1.4205715656280518}
    assert (
        len({float(torch.tensor(reduce(add, (v / 5 for v in order)))) for order in itertools.permutations(values)}) == 2
    )


def test_model_stock_follows_the_angle() -> None:
    """Two displacements at a right angle cancel to the stock; at 60 degrees t = 2 cos / (cos + 1) = 2 / 3."""
    start = torch.zeros(2)
    east = torch.tensor([1.0, 0.0])
    assert torch.equal(ModelStock().mix([east, torch.tensor([0.0, 1.0])], start), start)
    tilted = torch.tensor([0.5, math.sqrt(3) / 2])
    torch.testing.assert_close(ModelStock().mix([east, tilted], start), 2 / 3 * (east + tilted) / 2)
    assert torch.equal(ModelStock().mix([start, start], start), start)


def test_ties_entry_by_entry() -> None:
    tensors = some(3, 4, 5)
    keep, scale = 0.4, 0.7
    expected = START.double().clone().flatten()
    moves = [(t.double() - START.double()).flatten() for t in tensors]
    trimmed = []
    for move in moves:
        largest = sorted(range(20), key=lambda i, m=move: -abs(m[i]))[: round(keep * 20)]
        trimmed.append([float(move[i]) if i in largest else 0.0 for i in range(20)])
    for i in range(20):
        column = [row[i] for row in trimmed]
        total = sum(column)
        agreeing = [v for v in column if v * total > 0]
        expected[i] += scale * (sum(agreeing) / len(agreeing) if agreeing else 0.0)
    torch.testing.assert_close(Ties(keep, scale).mix(tensors, START).flatten().double(), expected, rtol=0, atol=1e-6)


def test_weights_are_checked() -> None:
    with pytest.raises(ValueError, match="sum to 1"):
        Weighted((0.5, 0.6))
    with pytest.raises(ValueError, match="2 weights for 3"):
        Weighted((0.5, 0.5)).mix(some(3, 2))
    with pytest.raises(ValueError, match="finite"):
        Weighted((math.nan, 1.0))
    Weighted((1.5, -0.5)).mix(some(2, 2))  # an extrapolation is meant


def test_rules_that_measure_from_the_stock_ask_for_it() -> None:
    for rule in MIXERS.values():
        if rule is not Weighted and rule().needs_stock:
            with pytest.raises(ValueError, match="stock"):
                rule().mix(some(2, 3), None)


def test_the_type_of_the_inputs_is_kept() -> None:
    for rule, dtype in itertools.product(
        (Uniform(), Wise(), ModelStock(), TaskArithmetic(), Ties(), Weighted((0.5, 0.5))),
        (torch.float32, torch.float64),
    ):
        mixed = rule.mix([t.to(dtype) for t in some(2, 4, 5)], START.to(dtype))
        assert mixed.dtype == dtype
        assert torch.isfinite(mixed).all()


def test_empty_and_scalar_tensors() -> None:
    for rule in (Uniform(), Wise(), ModelStock(), TaskArithmetic(), Ties()):
        assert rule.mix([torch.ones(()), torch.zeros(())], torch.zeros(())).shape == ()
        assert rule.mix([torch.ones(0), torch.zeros(0)], torch.zeros(0)).shape == (0,)


def test_the_mean_of_a_large_tensor_is_that_of_all_its_parts() -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(3, 70_001, generator=generator).T for _ in range(3)]
    found = Uniform().mix(tensors)
    assert found.shape == tensors[0].shape
    assert torch.equal(found, torch.stack(tensors).double().mean(0).float())
