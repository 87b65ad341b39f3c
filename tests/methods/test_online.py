"""The top of a model found by structure, against the layers known by name; and the hidden cases of the whole family."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from methods.adapters.come import ComeEata, ComeSar, ComeTent
from methods.adapters.deyo import Deyo
from methods.adapters.eata import Eata
from methods.adapters.eta import Eta
from methods.adapters.rdumb import Rdumb
from methods.adapters.roid import Roid
from methods.adapters.rpl import Rpl
from methods.adapters.sar import Sar
from methods.adapters.tent import Tent
from methods.base import Adapter, Source, SourceBatch, Unsupported
from methods.norms import norm_parameters
from methods.online import below_the_official_top, below_the_top, margin

Nets = Callable[[str], nn.Sequential]


class Normalised(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.inner = nn.ModuleDict({"model": model})

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.inner["model"]((images - 0.5) / 0.5)
        return logits


class WideResNet(nn.Module):
    """The layout of RobustBench's: three named blocks of a `layer` each, and a BatchNorm at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3)

        def stage() -> nn.Module:
            unit = nn.ModuleDict({"bn1": nn.BatchNorm2d(4), "conv1": nn.Conv2d(4, 4, 3)})
            return nn.ModuleDict({"layer": nn.Sequential(unit)})

        self.block1, self.block2, self.block3 = stage(), stage(), stage()
        self.bn1 = nn.BatchNorm2d(4)
        self.fc = nn.Linear(4, 10)


_LAST_THREE = ("blocks.9.", "blocks.10.", "blocks.11.", "norm.")
_LAST_SIX = (*(f"blocks.{number}." for number in range(18, 24)), "norm.")
_LAST_LAYERS = (*(f"encoder.layers.encoder_layer_{number}." for number in (9, 10, 11)), "encoder.ln.")
TOPS: list[tuple[Callable[[], nn.Module], tuple[str, ...]]] = [
    (lambda: timm.create_model("resnet18"), ("layer4.",)),
    (lambda: timm.create_model("resnet50d"), ("layer4.",)),
    (lambda: timm.create_model("resnet101"), ("layer4.",)),
    (lambda: timm.create_model("test_resnet"), ("layer4.",)),
    (lambda: timm.create_model("resnet18", norm_layer="groupnorm"), ("layer4.",)),
    (lambda: timm.create_model("vit_tiny_patch16_224"), _LAST_THREE),
    (lambda: timm.create_model("vit_tiny_patch16_224", qk_norm=True), _LAST_THREE),
    (lambda: timm.create_model("deit_tiny_patch16_224", depth=24), _LAST_SIX),
    (lambda: timm.create_model("convnext_atto"), ("stages.3.", "head.")),
    (lambda: timm.create_model("swin_tiny_patch4_window7_224"), ("layers.3.", "norm.")),
    (lambda: timm.create_model("densenet121"), ("features.denseblock4.", "features.norm5.")),
    (torchvision.models.resnet18, ("layer4.",)),
    (torchvision.models.vit_b_32, _LAST_LAYERS),
    (WideResNet, ("block3.", "bn1.")),
]


@pytest.mark.parametrize(("build", "top"), TOPS)
def test_the_top_is_found_by_structure(build: Callable[[], nn.Module], top: tuple[str, ...]) -> None:
    with torch.device("meta"):
        model = build()
    left_out = norm_parameters(model).keys() - below_the_top(model).keys()
    assert left_out == {name for name in norm_parameters(model) if name.startswith(top)}
    assert left_out


@pytest.mark.parametrize("wrap", [Normalised, nn.DataParallel, lambda model: nn.Sequential(nn.Identity(), model)])
def test_wrapping_and_compiling_change_no_choice(wrap: Callable[[nn.Module], nn.Module]) -> None:
    for name in ("test_resnet", "test_vit"):
        model = timm.create_model(name)
        expected = {id(value) for value in below_the_top(model).values()}
        assert {id(value) for value in below_the_top(wrap(model)).values()} == expected
        assert {id(value) for value in below_the_top(torch.compile(model)).values()} == expected


def test_the_official_names_do_not_reach_beyond_a_dot() -> None:
    with torch.device("meta"):
        deep, wrapped = timm.create_model("deit_tiny_patch16_224", depth=24), Normalised(timm.create_model("resnet18"))
    left_out = norm_parameters(deep).keys() - below_the_official_top(deep).keys()
    last = {f"blocks.{number}" for number in (9, 10, 11)}
    assert {name.split(".norm")[0] for name in left_out} == {*last, "norm.weight", "norm.bias"}
    assert not any("layer4" in name for name in below_the_official_top(wrapped))
    # A deeper transformer keeps the blocks above the twelfth, which is why we go by structure.
    assert "blocks.12.norm1.weight" in below_the_official_top(deep)


def test_models_that_cannot_be_parted_keep_all() -> None:
    single = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    assert below_the_top(single).keys() == {"1.weight", "1.bias"}
    assert below_the_top(nn.LayerNorm(3)).keys() == {"weight", "bias"}
    assert below_the_top(nn.Linear(3, 3)) == {}
    assert below_the_top(nn.Sequential(nn.BatchNorm2d(3), nn.BatchNorm2d(3))).keys() == {"0.weight", "0.bias"}


def test_a_parameter_shared_with_the_top_belongs_to_it() -> None:
    low, high = nn.LayerNorm(4), nn.LayerNorm(4)
    high.weight = low.weight
    assert below_the_top(nn.Sequential(low, nn.Linear(4, 4), high)).keys() == {"0.bias"}


def test_margins_are_fractions_of_the_largest_entropy() -> None:
    assert margin(torch.zeros(2, 1000), 0.4) == pytest.approx(2.763, abs=1e-3)
    with pytest.raises(ValueError, match="at least two"):
        margin(torch.zeros(2, 1), 0.4)


# Options that let much happen in few batches.
FAMILY: list[tuple[type[Adapter], dict[str, Any]]] = [
    (Tent, {"lr": 0.02}),
    (Eta, {"lr": 0.02, "margin": 0.6, "epsilon": 0.95}),
    (Eata, {"lr": 0.02, "margin": 0.6, "epsilon": 0.95, "beta": 1.0}),
    (Rdumb, {"lr": 0.02, "margin": 0.6, "epsilon": 0.95, "interval": 3}),
    (Rpl, {"lr": 0.02}),
    (Sar, {"lr": 0.02, "margin": 0.6, "reset_below": 0.4}),
    (Sar, {"lr": 0.02, "margin": 0.6, "reset_below": 0.4, "official_quirks": True}),
    (Deyo, {"lr": 0.02, "margin": 0.7, "plpd": 0.0}),
    (Deyo, {"lr": 0.02, "margin": 0.7, "plpd": 0.0, "optimizer": "adam"}),
    (ComeTent, {"lr": 0.02}),
    (ComeEata, {"lr": 0.02, "margin": 0.7, "epsilon": 0.95, "beta": 1.0}),
    (ComeSar, {"lr": 0.02, "margin": 0.7}),
]


@pytest.fixture(params=FAMILY, ids=lambda member: f"{member[0].__name__}-{len(member[1])}")
def build(request: pytest.FixtureRequest, batches: Tensor) -> Callable[..., Adapter]:
    cls, options = request.param

    def made(model: nn.Module, seed: int = 0) -> Adapter:
        adapter: Adapter = cls(model, cls.Config(**options), torch.Generator().manual_seed(seed))
        like = next(model.parameters())
        source = Source(lambda number: SourceBatch(batches[number].to(like)), 5)
        adapter.prepare(source if cls.access.source != "none" else None)
        return adapter

    return made


Build = Callable[..., Adapter]


def play(adapter: Adapter, batches: Any) -> Tensor:
    return torch.cat([adapter.predict(batch) for batch in batches])


def state_is_finite(adapter: Adapter) -> bool:
    return all(torch.isfinite(value).all() for value in adapter.model.state_dict().values())


@pytest.mark.parametrize("kind", ["bn", "gn"])
def test_reset_replays_and_resume_goes_on(build: Build, make_net: Nets, batches: Tensor, kind: str) -> None:
    adapter = build(make_net(kind))
    first = play(adapter, batches)
    for _ in range(2):
        adapter.reset()
        assert torch.equal(play(adapter, batches), first)
    adapter.reset()
    play(adapter, batches[:2])
    file = io.BytesIO()
    torch.save(adapter.state_dict(), file)
    file.seek(0)
    other = build(make_net(kind), seed=9)
    play(other, batches[3:])
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(play(other, batches[2:]), first[8:])


@pytest.mark.parametrize("kind", ["bn", "gn"])
def test_something_is_learnt_and_stays_finite(build: Build, make_net: Nets, batches: Tensor, kind: str) -> None:
    adapter = build(make_net(kind))
    before = {name: value.clone() for name, value in adapter.model.state_dict().items()}
    assert torch.isfinite(play(adapter, batches[:2])).all()
    assert any(not torch.equal(value, before[name]) for name, value in adapter.model.state_dict().items())


@pytest.mark.parametrize("kind", ["bn", "gn"])
def test_single_images_and_a_last_batch_of_one(build: Build, make_net: Nets, batches: Tensor, kind: str) -> None:
    adapter = build(make_net(kind))
    parts = [batches[0], batches[1, :1], batches[2, :3], *batches.flatten(0, 1).split(1)]
    assert torch.isfinite(play(adapter, parts)).all()
    assert state_is_finite(adapter)


@pytest.mark.parametrize("kind", ["bn", "gn"])
def test_huge_and_half_precision_logits(build: Build, make_net: Nets, batches: Tensor, kind: str) -> None:
    sharp = make_net(kind)
    last = sharp[-1]
    assert isinstance(last, nn.Linear)
    with torch.no_grad():
        last.weight.mul_(1e4 / sharp(batches[0]).abs().max())
    adapter = build(sharp)
    assert torch.isfinite(play(adapter, batches)).all()
    assert state_is_finite(adapter)
    if kind == "gn":
        half = build(make_net(kind).bfloat16())
        logits = play(half, batches.bfloat16())
        assert logits.dtype == torch.bfloat16
        assert torch.isfinite(logits).all()
        assert state_is_finite(half)


def test_masked_classes_give_no_nan(build: Build, make_net: Nets, batches: Tensor) -> None:
    class Masked(nn.Sequential):
        def forward(self, input: Tensor) -> Tensor:
            logits: Tensor = super().forward(input)  # type: ignore[no-untyped-call]
            hidden = torch.arange(logits.shape[1], device=logits.device) % 3 == 0
            return logits.masked_fill(hidden, -math.inf)

    adapter = build(Masked(*make_net("gn")))
    logits = play(adapter, batches)
    assert torch.equal(logits.isneginf().nonzero()[:, 1].unique(), torch.tensor([0, 3, 6, 9]))
    assert not logits.isnan().any()
    assert state_is_finite(adapter)


def test_models_without_anything_to_adapt_are_refused(build: Build, make_net: Nets) -> None:
    frozen = nn.Sequential(nn.Conv2d(3, 4, 3), FrozenBatchNorm2d(4), nn.Flatten(), nn.LazyLinear(10))
    frozen(torch.rand(1, 3, 32, 32))
    bare = nn.Sequential(nn.BatchNorm2d(3, affine=False), nn.Flatten(), nn.Linear(3 * 32 * 32, 10))
    for model in (make_net("none"), frozen, bare):
        with pytest.raises(Unsupported, match="choose a model with"):
            build(model)


def test_adam_refuses_float16_and_sgd_takes_it(make_net: Nets) -> None:
    half = make_net("gn").half()
    with pytest.raises(Unsupported, match=r"exceed the range of float16; use the model in float32 or bfloat16$"):
        Roid(half, Roid.Config(optimizer="sgd")).prepare()
    with pytest.raises(Unsupported, match="use the model in float32 or bfloat16, or SGD"):
        Tent(half, Tent.Config(optimizer="adam")).prepare()
    Tent(half, Tent.Config(optimizer="sgd")).prepare()
    Tent(half.bfloat16(), Tent.Config(optimizer="adam")).prepare()


def test_a_layer_that_no_image_reaches_is_left_alone(build: Build, make_net: Nets, batches: Tensor) -> None:
    class WithSpare(nn.Sequential):
        def forward(self, input: Tensor) -> Tensor:
            for module in list(self)[1:]:
                input = module(input)
            return input

    with_spare = build(WithSpare(nn.GroupNorm(1, 3), *make_net("gn")))
    assert torch.isfinite(play(with_spare, batches)).all()
    spare = with_spare.model[0]  # type: ignore[index]
    assert torch.equal(spare.weight, torch.ones(3))
    assert torch.equal(spare.bias, torch.zeros(3))


def test_a_layer_used_twice_is_adapted_once(build: Build, make_net: Nets, batches: Tensor) -> None:
    net = make_net("gn")
    shared = nn.GroupNorm(2, 8)
    adapter = build(nn.Sequential(net[0], shared, nn.GELU(), shared, *list(net)[2:]))
    first = play(adapter, batches)
    assert torch.isfinite(first).all()
    adapter.reset()
    assert torch.equal(play(adapter, batches), first)
    parameters = [id(value) for group in adapter.optimizer.param_groups for value in group["params"]]  # type: ignore[attr-defined]
    assert len(parameters) == len(set(parameters))


def test_an_error_in_the_model_is_undone_by_reset(build: Build, make_net: Nets, batches: Tensor) -> None:
    class Tripping(nn.Sequential):
        passes = 0
        trips_at = 0

        def forward(self, input: Tensor) -> Tensor:
            self.passes += 1
            if self.passes == self.trips_at:
                raise ArithmeticError
            logits: Tensor = super().forward(input)  # type: ignore[no-untyped-call]
            return logits

    adapter = build(Tripping(*make_net("gn")))
    first = play(adapter, batches)
    model = adapter.model
    assert isinstance(model, Tripping)
    adapter.reset()
    start = model.passes
    adapter.predict(batches[0])
    last = model.passes
    adapter.reset()
    assert model.passes == start  # what a model counts is reset with it
    # The last pass of a batch: in SAR that is after the climb, with the parameters moved.
    model.trips_at = last
    with pytest.raises(ArithmeticError):
        adapter.predict(batches[0])
    adapter.reset()
    assert torch.equal(play(adapter, batches), first)


def test_gradients_of_an_interrupted_batch_are_forgotten(build: Build, make_net: Nets, batches: Tensor) -> None:
    adapter = build(make_net("gn"))
    first = play(adapter, batches)
    adapter.reset()

    def trip(_: Tensor) -> None:
        raise ArithmeticError

    parameters = [parameter for parameter in adapter.model.parameters() if parameter.requires_grad]
    handle = parameters[0].register_post_accumulate_grad_hook(trip)
    with pytest.raises(ArithmeticError):
        play(adapter, batches)
    handle.remove()
    assert any(parameter.grad is not None for parameter in parameters)
    adapter.reset()
    assert torch.equal(play(adapter, batches), first)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("kind", ["bn", "gn"])
def test_a_gpu_gives_nearly_the_same(build: Build, make_net: Nets, batches: Tensor, kind: str) -> None:
    on_cpu, on_gpu = build(make_net(kind).double()), build(make_net(kind).double().cuda())
    for batch in batches.double():
        torch.testing.assert_close(on_gpu.predict(batch.cuda()).cpu(), on_cpu.predict(batch), rtol=0, atol=1e-6)
    on_gpu.load_state_dict(on_cpu.state_dict())
    ours = on_gpu.predict(batches[0].double().cuda()).cpu()
    torch.testing.assert_close(ours, on_cpu.predict(batches[0].double()), rtol=0, atol=1e-6)
