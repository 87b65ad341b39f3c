"""MEMO against a slow restatement with torch's optimisers, image by image; its episodes, BatchNorm and batches."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from methods.adapters import memo
from methods.adapters.memo import Memo
from methods.base import Unsupported
from methods.nets.weights import Architecture, Classifier
from methods.views.augmix import augmix, draw

Nets = Callable[[str], nn.Sequential]


class PriorBatchNorm(nn.Module):
    """The release's BatchNorm, written out: a share of source statistics, the rest current and unbiased."""

    def __init__(self, layer: nn.BatchNorm2d, prior: int) -> None:
        super().__init__()
        self.layer, self.share = layer, prior / (prior + 1)

    def forward(self, x: Tensor) -> Tensor:
        layer = self.layer
        assert layer.running_mean is not None
        assert layer.running_var is not None
        mean, variance = layer.running_mean, layer.running_var
        if x.shape[0] * x.shape[2] * x.shape[3] > 1:
            current = x.detach()
            mean = self.share * mean + (1 - self.share) * current.mean((0, 2, 3))
            variance = self.share * variance + (1 - self.share) * current.var((0, 2, 3), unbiased=True)
        unit = (x - mean.view(1, -1, 1, 1)) / (variance.view(1, -1, 1, 1) + layer.eps).sqrt()
        return unit * layer.weight.view(1, -1, 1, 1) + layer.bias.view(1, -1, 1, 1)


def restated(net: nn.Sequential, images: Tensor, config: Memo.Config, seed: int) -> Tensor:
    """One fresh copy of the model and one fresh optimiser for every image; the entropy of the mean probability."""
    uniforms = draw(len(images), config.views, torch.Generator().manual_seed(seed))
    rows = []
    for image, numbers in zip(images, uniforms, strict=True):
        model = copy.deepcopy(net).eval().requires_grad_(True)
        for i, layer in enumerate(model):
            if isinstance(layer, nn.BatchNorm2d):
                model[i] = PriorBatchNorm(layer, config.prior)
        kind = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}[config.optimizer]
        optimizer = kind(model.parameters(), lr=config.lr, weight_decay=config.weight_decay)
        views = augmix(image[None], numbers[None], crop=config.crop, flip=config.flip)[0]
        marginal = model(views).double().softmax(1).mean(0)
        loss = -(marginal * marginal.log()).sum()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            rows.append(model(image[None])[0])
    return torch.stack(rows)


def ready(net: nn.Module, config: Memo.Config, seed: int = 0) -> Memo:
    adapter = Memo(net, config, torch.Generator().manual_seed(seed))
    adapter.prepare()
    return adapter


CONFIGS = [
    Memo.Config(lr=0.05, views=8, crop="padded"),
    Memo.Config(lr=0.05, views=5, crop="none", flip=False, weight_decay=0.1),
    Memo.Config(lr=0.01, views=6, crop="resized", optimizer="adamw", weight_decay=0.1),
]


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("kind", ["bn", "gn", "none"])
def test_equals_the_slow_restatement(make_net: Nets, batches: Tensor, kind: str, config: Memo.Config) -> None:
    net = make_net(kind)
    expected = restated(net, batches[0], config, seed=3)
    ours = ready(net, config, seed=3).predict(batches[0])
    with torch.no_grad():
        moved = float((expected - net(batches[0])).abs().max())
    assert moved > 0.05
    # AdamW moves by the sign of a gradient, so a gradient of rounding alone moves a weight by lr either way.
    tolerance = 1e-4 if config.optimizer == "sgd" else 2e-3
    torch.testing.assert_close(ours, expected, atol=tolerance, rtol=0)


MUTANTS = [{"lr": 0.045}, {"views": 7}, {"flip": False}, {"crop": "none"}, {"weight_decay": 0.05}, {"prior": 15}]


@pytest.mark.parametrize("change", MUTANTS)
def test_the_restatement_tells_mutants_apart(make_net: Nets, batches: Tensor, change: dict[str, Any]) -> None:
    net = make_net("bn")
    config = {"lr": 0.05, "views": 8, "crop": "padded", **change}
    ours = ready(net, Memo.Config(**config), seed=3).predict(batches[0])
    assert float((ours - restated(net, batches[0], CONFIGS[0], seed=3)).abs().max()) > 1e-3


class OneStepTooMany(Memo):
    def step(self, parameter: Tensor, gradient: Tensor) -> Tensor:
        return super().step(super().step(parameter, gradient), gradient)


def test_the_restatement_tells_another_step_apart(make_net: Nets, batches: Tensor) -> None:
    adapter = OneStepTooMany(make_net("gn"), CONFIGS[0], torch.Generator().manual_seed(3))
    adapter.prepare()
    expected = restated(make_net("gn"), batches[0], CONFIGS[0], seed=3)
    assert float((adapter.predict(batches[0]) - expected).abs().max()) > 1e-2


def models() -> dict[str, nn.Module]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        stock = Classifier(Architecture(depth=2), 10)
        vit = timm.create_model("test_vit", num_classes=10, img_size=32)
    return {"stock": stock, "test_vit": vit}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("name", ["stock", "test_vit"])
def test_images_together_equal_one_by_one(batches: Tensor, name: str, optimizer: Any) -> None:
    model = models()[name]
    config = Memo.Config(lr=0.05 if optimizer == "sgd" else 1e-4, optimizer=optimizer, views=8, crop="padded")
    together, alone = ready(model, config), ready(model, config)
    alone.together = False
    ours = together.predict(batches[0])
    assert together.together
    torch.testing.assert_close(ours, alone.predict(batches[0]), atol=1e-5 if optimizer == "sgd" else 1e-3, rtol=0)
    with torch.no_grad():
        assert float((ours - model.eval()(batches[0])).abs().max()) > 5e-3


@pytest.mark.parametrize("kind", ["bn", "gn"])
def test_predictions_do_not_depend_on_the_batch_size(
    make_net: Nets, batches: Tensor, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = batches.flatten(0, 1)[:9]
    config = Memo.Config(lr=0.05, views=4, crop="padded")
    whole = ready(make_net(kind), config).predict(images)
    adapter = ready(make_net(kind), config)
    split = torch.cat([adapter.predict(part) for part in torch.split(images, [1, 5, 3])])
    torch.testing.assert_close(split, whole, atol=1e-5, rtol=0)
    monkeypatch.setattr(memo, "VIEW_VALUES", 2 * 4 * images[0].numel())
    torch.testing.assert_close(ready(make_net(kind), config).predict(images), whole, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["bn", "gn"])
def test_nothing_survives_an_image(make_net: Nets, batches: Tensor, kind: str) -> None:
    net = make_net(kind)
    adapter = ready(net, Memo.Config(lr=0.05, views=4, crop="none"))
    adapter.predict(batches[0])
    ours = adapter.model.state_dict()
    assert all(torch.equal(ours[name], value) for name, value in net.state_dict().items())


def test_every_parameter_takes_the_step(make_net: Nets, batches: Tensor) -> None:
    stepped: list[tuple[int, ...]] = []

    class Watched(Memo):
        def step(self, parameter: Tensor, gradient: Tensor) -> Tensor:
            assert gradient.abs().max() > 0
            stepped.append(tuple(parameter.shape))
            return super().step(parameter, gradient)

    net = make_net("gn")
    adapter = Watched(net, Memo.Config(lr=0.05, views=4))
    adapter.prepare()
    adapter.predict(batches[0, :1])
    assert stepped == [tuple(parameter.shape) for parameter in net.parameters()]


def test_a_negative_prior_is_the_source_statistics(make_net: Nets, batches: Tensor) -> None:
    net = make_net("bn")
    source = ready(net, Memo.Config(lr=0.0, views=2, prior=-1)).predict(batches[0])
    with torch.no_grad():
        torch.testing.assert_close(source, net(batches[0]))


def test_batch_norm_of_other_models_is_left_alone(make_net: Nets, batches: Tensor) -> None:
    bystander = make_net("bn")
    with torch.no_grad():
        before = bystander(batches[0])
        ready(make_net("bn"), Memo.Config(views=2, crop="none")).predict(batches[0])
        assert torch.equal(bystander(batches[0]), before)


def test_batch_norm_without_source_statistics_is_refused() -> None:
    with pytest.raises(Unsupported, match="track_running_stats"):
        Memo(nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False))).prepare()


class Branching(nn.Module):
    """Reads a value of its input, which vmap cannot follow."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 10)

    def forward(self, images: Tensor) -> Tensor:
        means = images.mean((2, 3))
        logits: Tensor = self.linear(means)
        return logits * 2 if means.sum() > 0 else logits


def test_a_model_that_vmap_refuses_is_adapted_one_by_one(batches: Tensor) -> None:
    model = Branching()
    config = Memo.Config(lr=0.05, views=4, crop="none")
    adapter, alone = ready(model, config), ready(model, config)
    alone.together = False
    with pytest.warns(UserWarning, match="one image at a time"):
        ours = adapter.predict(batches[0])
    assert torch.equal(ours, alone.predict(batches[0]))


def test_class_masks_hold_before_the_entropy(make_net: Nets, batches: Tensor) -> None:
    class Masked(nn.Sequential):
        def forward(self, input: Tensor) -> Tensor:
            logits: Tensor = super().forward(input)  # type: ignore[no-untyped-call]
            return logits.masked_fill(torch.arange(10) >= 6, -math.inf)

    kept = make_net("gn")
    last = kept[-1]
    assert isinstance(last, nn.Linear)
    few = copy.deepcopy(kept)
    few[-1] = nn.Linear(last.in_features, 6)
    with torch.no_grad():
        few[-1].weight.copy_(last.weight[:6])  # type: ignore[operator]
        few[-1].bias.copy_(last.bias[:6])  # type: ignore[operator]
    config = Memo.Config(lr=0.05, views=4)
    masked = ready(Masked(*kept), config).predict(batches[0])
    torch.testing.assert_close(masked[:, :6], ready(few, config).predict(batches[0]))
    assert (masked[:, 6:] == -math.inf).all()


@pytest.mark.parametrize(
    "wrong",
    [{"lr": -1.0}, {"lr": math.inf}, {"optimizer": "adam"}, {"weight_decay": -0.1}, {"views": 0}, {"crop": "center"}],
)
def test_options_out_of_range_are_refused_by_name(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"memo.{next(iter(wrong))}"):
        Memo.Config(**wrong)


def test_data_parallel_models_are_answered_as_the_model_inside(make_net: Nets, batches: Tensor) -> None:
    """torch.func refuses nn.DataParallel, also in an episode of one image."""
    config = Memo.Config(lr=0.05, views=4, crop="none")
    for kind in ("bn", "gn"):
        plain, parallel = ready(make_net(kind), config), ready(nn.DataParallel(make_net(kind)), config)
        for batch in (batches[0], batches[1, :1]):
            assert torch.equal(parallel.predict(batch), plain.predict(batch))


def test_adamw_leaves_parameters_in_half_precision_without_gradient(make_net: Nets) -> None:
    """In float16 the addend of 1e-8 would be 0, and the step 0 / 0."""
    adapter = ready(make_net("none"), Memo.Config(lr=0.5, optimizer="adamw"))
    values = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float16)
    stepped = adapter.step(values, torch.tensor([0.0, 1e-4, -1e-4], dtype=torch.float16))
    torch.testing.assert_close(stepped, torch.tensor([1.0, 1.5, 3.5], dtype=torch.float16), rtol=0, atol=2e-3)
