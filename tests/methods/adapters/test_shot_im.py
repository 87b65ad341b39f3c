"""SHOT-IM: the loss in closed form, and a restatement with Adam and the gradient of the loss written out by hand."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from methods.adapters.shot_im import ShotIM, information
from methods.base import Unsupported

Nets = Callable[[str], nn.Sequential]


def test_sure_and_diverse_is_lowest() -> None:
    sure = torch.full((4, 4), -torch.inf).fill_diagonal_(0.0)
    assert float(information(sure)) == pytest.approx(math.log(0.25 + 1e-5))
    assert float(information(torch.zeros(4, 4))) == pytest.approx(math.log(4) + math.log(0.25 + 1e-5), abs=1e-6)
    assert float(information(sure[:1].expand(4, 4))) == pytest.approx(0.0, abs=1e-4)


def slope(logits: Tensor) -> Tensor:
    """d loss / d logits: of p_i = softmax(z_i), H_i and m = mean p, for L = mean H + sum m log(m + e)."""
    n, classes = logits.shape
    p = logits.softmax(1)
    mean = p.mean(0)
    outer = [math.log(float(m) + 1e-5) + float(m) / (float(m) + 1e-5) for m in mean]
    gradient = torch.zeros_like(logits)
    for i in range(n):
        entropy = -sum(float(p[i, c]) * math.log(float(p[i, c])) for c in range(classes))
        average = sum(float(p[i, c]) * outer[c] for c in range(classes))
        for c in range(classes):
            own = -float(p[i, c]) * (math.log(float(p[i, c])) + entropy)
            gradient[i, c] = (own + float(p[i, c]) * (outer[c] - average)) / n
    return gradient


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("kind", ["bn", "gn", "none"])
def test_is_the_restatement(make_net: Nets, batches: Tensor, kind: str, steps: int) -> None:
    lr = 1e-3
    # In double precision: the first steps of Adam are signs, which rounding of a gradient near zero would turn.
    batches = batches.double()
    net = make_net(kind).double()
    adapter = ShotIM(net, ShotIM.Config(lr, steps))
    adapter.prepare()
    own = list(net[:-1].parameters())
    first = [torch.zeros_like(parameter) for parameter in own]
    second = [torch.zeros_like(parameter) for parameter in own]
    head = [parameter.detach().clone() for parameter in net[-1].parameters()]
    time = 0
    for batch in batches:
        for _ in range(steps):
            logits = net(batch)
            grads = torch.autograd.grad(logits, own, slope(logits.detach()))
            time += 1
            with torch.no_grad():
                for i, (parameter, grad) in enumerate(zip(own, grads, strict=True)):
                    first[i] = 0.9 * first[i] + 0.1 * grad
                    second[i] = 0.999 * second[i] + 0.001 * grad**2
                    size = (second[i] / (1 - 0.999**time)).sqrt() + 1e-8
                    parameter -= lr * first[i] / (1 - 0.9**time) / size
        torch.testing.assert_close(adapter.predict(batch), logits.detach(), rtol=1e-5, atol=1e-6)
    ours = list(adapter.model[-1].parameters())  # type: ignore[index]
    assert all(torch.equal(mine, before) for mine, before in zip(ours, head, strict=True))


def test_a_lone_head_and_wrong_options_are_refused() -> None:
    with pytest.raises(Unsupported, match="no parameters there"):
        ShotIM(nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 4))).prepare()
    for options in ({"lr": -1.0}, {"steps": 0}):
        with pytest.raises(ValueError, match=r"shot_im\."):
            ShotIM.Config(**options)  # type: ignore[arg-type]


def test_a_model_in_float16_is_refused_since_adam_fails_there(make_net: Callable[[str], nn.Sequential]) -> None:
    with pytest.raises(Unsupported, match="use the model in float32 or bfloat16"):
        ShotIM(make_net("gn").half()).prepare()
    ShotIM(make_net("gn").bfloat16()).prepare()
