"""TENT: golden parity and its sensitivity, one step by hand, the entropy's closed forms, and the awkward batches."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from methods.adapters.tent import Tent
from methods.base import Unsupported
from methods.losses import entropy, marginal_entropy
from methods.norms import use_batch_statistics

RUNS = [
    ("test_resnet", "test_resnet__tent", 2.5e-4),
    ("test_resnet", "test_resnet__tent_lr0.01", 1e-2),
    ("test_vit", "test_vit__tent", 2.5e-4),
    ("test_vit", "test_vit__tent_lr0.01", 1e-2),
]


@pytest.mark.parametrize(("architecture", "run", "lr"), RUNS)
def test_matches_the_official_logits(golden: Any, architecture: str, run: str, lr: float) -> None:
    assert golden.agrees(lambda: Tent(golden.model(architecture), Tent.Config(lr=lr)), run)


class Nesterov(Tent):
    def build_optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters, lr=self.config.lr, momentum=self.config.momentum, nesterov=True)


class AllParameters(Tent):
    def configure(self, source: Any) -> None:
        super().configure(source)
        self.parameters = list(self.model.requires_grad_(True).parameters())
        self.optimizer = self.build_optimizer()


class PredictsAfterTheUpdate(Tent):
    def predict(self, images: Tensor) -> Tensor:
        super().predict(images)
        with torch.no_grad():
            logits: Tensor = self.model(images)
        return logits


MUTANTS = [
    (Nesterov, Tent.Config(lr=1e-2)),
    (AllParameters, Tent.Config(lr=1e-2)),
    (PredictsAfterTheUpdate, Tent.Config(lr=1e-2)),
    (Tent, Tent.Config(lr=1e-2, momentum=0.8)),
    (Tent, Tent.Config(lr=9.9e-3)),
    (Tent, Tent.Config(lr=1e-2, steps=2)),
    (Tent, Tent.Config(lr=1e-2, optimizer="adam")),
]


# One mutant is quick; the others say how sharp the comparison is, which changes with the stored runs only.
@pytest.mark.parametrize(
    ("mutant", "config"),
    [pytest.param(*mutant, marks=() if place == 0 else pytest.mark.slow) for place, mutant in enumerate(MUTANTS)],
)
@pytest.mark.parametrize("architecture", ["test_resnet", "test_vit"])
def test_the_golden_comparison_tells_mutants_apart(
    golden: Any, architecture: str, mutant: type[Tent], config: Tent.Config
) -> None:
    assert not golden.agrees(lambda: mutant(golden.model(architecture), config), f"{architecture}__tent_lr0.01")


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_one_step_by_hand(optimizer: Any) -> None:
    """softmax over an affine LayerNorm: dH/dz_k = -p_k (ln p_k + H), then the chain rule of z = w * x + b."""
    layer = nn.LayerNorm(4).double()
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    adapter = Tent(nn.Sequential(nn.Flatten(), layer), Tent.Config(lr=0.1, optimizer=optimizer))
    adapter.prepare()
    with torch.no_grad():
        unit = (x - x.mean(1, keepdim=True)) / (x.var(1, unbiased=False, keepdim=True) + layer.eps).sqrt()
        p = unit.softmax(1)
        h = -(p * p.log()).sum(1, keepdim=True)
        slope = -p * (p.log() + h) / len(x)
        gradients = [(slope * unit).sum(0), slope.sum(0)]
        # Adam's first step, bias-corrected, is g / (|g| + eps).
        steps = gradients if optimizer == "sgd" else [g / (g.abs() + 1e-8) for g in gradients]
    torch.testing.assert_close(adapter.predict(x[:, :, None, None]), unit)
    torch.testing.assert_close(adapter.parameters[0].detach(), 1 - 0.1 * steps[0])
    torch.testing.assert_close(adapter.parameters[1].detach(), -0.1 * steps[1])


def test_several_steps_return_the_logits_before_the_last_update(
    make_net: Callable[[str], nn.Sequential], batches: Tensor
) -> None:
    single, double = (Tent(make_net("gn"), Tent.Config(lr=0.05, steps=steps)) for steps in (1, 2))
    single.prepare()
    double.prepare()
    single.predict(batches[0])
    assert torch.equal(double.predict(batches[0]), single.predict(batches[0]))


def test_only_normalisation_moves(make_net: Callable[[str], nn.Sequential], batches: Tensor) -> None:
    net = make_net("bn")
    adapter = Tent(net, Tent.Config(lr=0.05))
    adapter.prepare()
    adapter.predict(batches[0])
    ours = adapter.model.state_dict()
    moved = {name for name, value in net.state_dict().items() if not torch.equal(ours[name], value)}
    assert moved == {"1.weight", "1.bias", "4.weight", "4.bias"}


def test_entropy_falls_on_a_repeated_batch(make_net: Callable[[str], nn.Sequential], batches: Tensor) -> None:
    adapter = Tent(make_net("gn"), Tent.Config(lr=0.05))
    adapter.prepare()
    values = [float(entropy(adapter.predict(batches[0])).mean()) for _ in range(6)]
    assert values == sorted(values, reverse=True)


def test_a_last_batch_of_one_does_not_end_the_stream(make_net: Callable[[str], nn.Sequential], batches: Tensor) -> None:
    adapter = Tent(make_net("bn"), Tent.Config(lr=0.01))
    adapter.prepare()
    for batch in (batches[0], batches[1, :1], batches[2]):
        assert torch.isfinite(adapter.predict(batch)).all()


def test_a_model_without_normalisation_is_refused(make_net: Callable[[str], nn.Sequential]) -> None:
    with pytest.raises(Unsupported, match="has none; choose"):
        Tent(make_net("none")).prepare()
    with pytest.raises(Unsupported):
        Tent(nn.Sequential(nn.BatchNorm1d(3, affine=False))).prepare()


def test_inference_mode_is_refused_but_its_tensors_are_welcome(
    make_net: Callable[[str], nn.Sequential], batches: Tensor
) -> None:
    adapter = Tent(make_net("gn"))
    adapter.prepare()
    with torch.inference_mode():
        made_inside = batches[0].clone()
        with pytest.raises(RuntimeError, match="inference_mode"):
            adapter.predict(batches[0])
    assert torch.isfinite(adapter.predict(made_inside)).all()
    # A first layer with gradients has to save the images themselves.
    first = Tent(nn.Sequential(nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(3 * 32 * 32, 10)))
    first.prepare()
    assert torch.isfinite(first.predict(made_inside)).all()


@pytest.mark.parametrize(
    "wrong", [{"lr": -1.0}, {"lr": math.nan}, {"momentum": 1.0}, {"steps": 0}, {"optimizer": "lion"}]
)
def test_options_out_of_range_are_refused_by_name(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"tent.{next(iter(wrong))}"):
        Tent.Config(**wrong)


def test_entropy_closed_forms() -> None:
    p = torch.tensor([0.5, 0.25, 0.125, 0.125], dtype=torch.float64)
    assert float(entropy(p.log())) == pytest.approx(1.75 * math.log(2))
    assert float(entropy(torch.zeros(1000))) == pytest.approx(math.log(1000), rel=1e-5)


@pytest.mark.parametrize("loss", [entropy, lambda z: marginal_entropy(z.expand(4, 3))])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("logits", [[1e4, 0.0, -1e4], [1.0, 2.0, -math.inf], [-1e4, -1e4, -1e4]])
def test_entropy_and_its_gradient_are_finite(
    loss: Callable[[Tensor], Tensor], dtype: torch.dtype, logits: list[float]
) -> None:
    z = torch.tensor(logits, dtype=dtype, requires_grad=True)
    value = loss(z)
    (gradient,) = torch.autograd.grad(value, z)
    assert torch.isfinite(value.detach())
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits_lose_nothing_more(dtype: torch.dtype) -> None:
    z = (torch.randn(4, 1000, generator=torch.Generator().manual_seed(0)) * 4).to(dtype)
    assert torch.equal(entropy(z), entropy(z.float()))
    assert torch.equal(marginal_entropy(z), marginal_entropy(z.float()))


def test_masked_classes_do_not_count() -> None:
    z = torch.tensor([0.3, -math.inf, 1.2, 0.1])
    kept = z[[0, 2, 3]]
    torch.testing.assert_close(entropy(z), entropy(kept))
    torch.testing.assert_close(marginal_entropy(z.expand(5, 4)), entropy(kept))


def test_marginal_entropy_is_the_entropy_of_the_mean_probability() -> None:
    z = torch.randn(6, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 3
    p = z.softmax(1).mean(0)
    torch.testing.assert_close(marginal_entropy(z), -(p * p.log()).sum())


def test_batch_statistics_survive_train_and_eval(make_net: Callable[[str], nn.Sequential], batches: Tensor) -> None:
    net = make_net("bn")
    use_batch_statistics(net)
    outputs = []
    with torch.no_grad():
        for toggle in (net.eval, net.train, net.eval):
            toggle()
            outputs.append(net(batches[0]))
    assert all(torch.equal(output, outputs[0]) for output in outputs)


def test_synchronised_layers_adapt_as_plain_ones_in_one_process(
    make_net: Callable[[str], nn.Sequential], batches: Tensor
) -> None:
    plain = Tent(make_net("bn"), Tent.Config(lr=0.05))
    synchronised = Tent(nn.SyncBatchNorm.convert_sync_batchnorm(make_net("bn")), Tent.Config(lr=0.05))
    plain.prepare()
    synchronised.prepare()
    assert any(isinstance(module, nn.SyncBatchNorm) for module in synchronised.model.modules())
    for batch in batches:
        torch.testing.assert_close(synchronised.predict(batch), plain.predict(batch))
