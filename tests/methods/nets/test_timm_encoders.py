"""Networks of timm as encoders: tokens against timm's own forward pass, costs against torch's counter, objectives."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import timm
import torch
from timm.layers.mlp import SwiGLUPacked
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from methods.base import Checkpointer, Labelled, Unlabelled
from methods.nets import flops, vit
from methods.nets.timm_encoders import TimmArchitecture, outline
from methods.nets.weights import Classifier, Weights
from methods.norms import batch_norm_layers
from methods.selfsoup.ingredients import Ingredient, inter_train, tensors_of
from methods.selfsoup.objectives import OBJECTIVES, base, mae
from methods.training.finetune import FineTune, fine_tune, fine_tunings
from methods.views.ssl_views import Views

SIDE = 64
NORMAL = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}


def architecture(name: str, side: int = SIDE, **more: Any) -> TimmArchitecture:
    return TimmArchitecture(name, side, resize=side, **NORMAL, **more)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def stock_of(name: str, side: int = SIDE) -> Weights:
    shape = architecture(name, side)
    return Weights(shape, tensors_of(shape.initial(seeded()), "encoder"))


def lively(network: nn.Module) -> nn.Module:
    """The network without zeros among its numbers, because initial zeros hide the effect of a term."""
    with torch.no_grad():
        for number, parameter in enumerate(network.parameters()):
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=seeded(number)))
    return network.eval()


SMALL: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2, "num_classes": 0}
FAMILIES: dict[str, dict[str, Any]] = {
    "ViT with learnt positions": {},
    "DINOv2 with registers": {
        "reg_tokens": 4,
        "no_embed_class": True,
        "init_values": 1e-1,
        "mlp_layer": SwiGLUPacked,
        "mlp_ratio": 2.0,
    },
    "registers with positions": {"reg_tokens": 2},
    "DeiT III": {"no_embed_class": True, "init_values": 0.3},
    "CLIP": {"pre_norm": True, "norm_layer": nn.LayerNorm, "act_layer": "quick_gelu"},
    "SigLIP": {"class_token": False, "global_pool": "map"},
    "averaged": {"global_pool": "avg"},
    "without bias, with norms of queries and keys": {"qkv_bias": False, "qk_norm": True},
    "without positions": {"pos_embed": "none"},
    "norm in the embedding": {"embed_norm_layer": nn.LayerNorm},
}


@pytest.mark.parametrize("family", FAMILIES)
def test_visible_tokens_are_those_of_timm(family: str) -> None:
    network = lively(VisionTransformer(**{**SMALL, **FAMILIES[family]}))
    assert vit.is_plain(network)
    assert isinstance(network, VisionTransformer)
    images = torch.randn(3, 3, 32, 32, generator=seeded())
    patches = mae.patchify(images, 8)
    count = network.num_prefix_tokens
    with torch.no_grad():
        every = network.forward_features(images)
        order = mae.random_order(3, 16, seeded(1))
        ours = vit.encode_visible(network, patches, order)
        torch.testing.assert_close(ours[:, :count], every[:, :count], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(ours[:, count:], vit.pick(every[:, count:], order), rtol=1e-4, atol=1e-5)
        # Some patches only: all tokens before the first block by timm, and then the hidden ones taken out.
        tokens = network._pos_embed(network.patch_embed(images))
        some = order[:, :5]
        seen = torch.cat([tokens[:, :count], vit.pick(tokens[:, count:], some)], dim=1)
        expected = network.norm(network.blocks(network.norm_pre(seen)))
        torch.testing.assert_close(vit.encode_visible(network, patches, some), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_images_of_other_sizes_are_seen_as_by_timm_with_dynamic_sizes(family: str) -> None:
    options = {**SMALL, **FAMILIES[family]}
    network = lively(VisionTransformer(**options))
    dynamic = VisionTransformer(**options, dynamic_img_size=True).eval()
    dynamic.load_state_dict(network.state_dict())
    for side in (16, 32, 48):
        images = torch.randn(2, 3, side, side, generator=seeded())
        with torch.no_grad():
            torch.testing.assert_close(vit.encode(network, images), dynamic(images), rtol=1e-4, atol=1e-5)


def test_networks_whose_patches_cannot_be_left_out_are_told_apart() -> None:
    plain = ["test_vit", "test_vit2", "test_vit3", "test_vit4", "vit_small_patch14_reg4_dinov2"]
    others = [
        "test_resnet",
        "test_vit_relpos",
        "test_convnext",
        "vit_small_r26_s32_224",
        "deit_tiny_distilled_patch16_224",
    ]
    for name in (*plain, *others):
        shape = architecture(name, 224)
        assert (shape.tokens > 0) == (name in plain)
        assert shape.dim == outline(shape)(torch.empty(1, 3, 224, 224, device="meta")).shape[1]
    dino = architecture("vit_small_patch14_reg4_dinov2", 224)
    assert (dino.tokens, dino.patch_size, dino.prefix, dino.dim) == (256, 14, 5, 384)
    assert (dino.decoder_dim, dino.decoder_depth, dino.decoder_heads) == (256, 8, 8)


@pytest.mark.parametrize("name", ["test_resnet", "test_vit3", "test_convnext"])
def test_a_network_is_that_of_timm_and_its_numbers_come_from_the_generator(name: str) -> None:
    shape = architecture(name, 160)
    before = torch.get_rng_state()
    one, same, other = (shape.initial(seeded(seed)).eval() for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    network = timm.create_model(name, num_classes=0).eval()
    network.load_state_dict(one.state_dict())
    images = torch.randn(2, 3, 160, 160, generator=seeded())
    with torch.no_grad():
        assert torch.equal(one(images), network(images))
        assert torch.equal(one(images), same(images))
        assert not torch.equal(one(images), other(images))


def test_nothing_is_left_to_chance_in_training() -> None:
    for name in ("test_vit_relpos", "swin_tiny_patch4_window7_224"):
        network = architecture(name, 224).initial(seeded()).train()
        images = torch.randn(2, 3, 224, 224, generator=seeded())
        with torch.no_grad():
            assert torch.equal(network(images), network(images))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"name": "hf-hub:somebody/net"}, "no network"),
        ({"name": "local-dir:/tmp"}, "no network"),
        ({"name": "resnet1"}, "no network"),
        ({"name": "../resnet18"}, "no network"),
        ({"name": "resnet18\n"}, "no network"),
        ({"image_size": 0}, "image_size"),
        ({"image_size": 10**6, "resize": 10**6}, "image_size"),
        ({"resize": 32}, "resize"),
        ({"std": (0.0, 1.0, 1.0)}, "std"),
        ({"mean": (math.nan, 0.0, 0.0)}, "mean"),
        ({"options": (("pretrained", True),)}, "'pretrained' is no option"),
        ({"options": (("checkpoint_path", "x.pth"),)}, "'checkpoint_path' is no option"),
        ({"options": (("reg_tokens", 10**9),)}, "reg_tokens"),
    ],
)
def test_what_timm_does_not_know_is_refused(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        replace(architecture("test_resnet"), **change)


def test_what_cannot_be_built_or_seen_is_said() -> None:
    with pytest.raises(ValueError, match="cannot build test_resnet"):
        architecture("test_resnet", options=(("class_token", True),)).build()
    with pytest.raises(ValueError, match="takes no images of 3 px"):
        _ = architecture("vgg11", 3).dim
    with pytest.raises(ValueError, match="use an objective whose views have one size"):
        architecture("test_vit_relpos", 160).smaller(0.5)
    with pytest.raises(ValueError, match="test_convnext takes no images of 27 px"):
        architecture("test_convnext", 64).smaller(3 / 7)


# Costs.

COSTED = ["test_resnet", "test_efficientnet", "test_byobnet", "test_vit", "test_vit3", "test_vit4"]


def counted(function: Any) -> float:
    with flops.counted() as counter:
        function()
    return counter.get_total_flops()


# Two networks for each objective are quick, so that each network meets some and MAE a refusal; other pairs are slow.
@pytest.mark.parametrize(
    ("objective", "name"),
    [
        pytest.param(objective, name, marks=() if (place - number) % 3 == 0 else pytest.mark.slow)
        for place, objective in enumerate(sorted(OBJECTIVES))
        for number, name in enumerate(COSTED)
    ],
)
def test_an_objective_takes_what_it_says(name: str, objective: str) -> None:
    stock = stock_of(name)
    config = OBJECTIVES[objective].Config()
    if objective == "mae" and not stock.architecture.tokens:
        with pytest.raises(ValueError, match=r"take the objectives mocov3, mmcr or lejepa"):
            config.flops(stock.architecture)
        return
    generator = seeded()
    encoder = stock.architecture.build()
    made = config.build(stock, generator)
    made.prepare(encoder, 10)
    sides = [pipeline.size or SIDE for pipeline in made.pipelines(Views())]
    batch = [torch.rand(4, 3, side, side, generator=generator) for side in sides]
    total = counted(lambda: made.loss(encoder, batch, generator).backward())  # type: ignore[no-untyped-call]
    assert 4 * config.flops(stock.architecture) == pytest.approx(total, rel=0.02)


@pytest.mark.parametrize("name", ["resnet10t", "vit_tiny_patch16_224"])
def test_fine_tuning_takes_what_its_job_says(name: str) -> None:
    stock = stock_of(name)
    source = labelled(24)
    job = fine_tunings([stock], stock, source, FineTune(epochs=2, batch_size=12), (1.0,))[0]
    width = stock.architecture.dim
    head = Weights(
        stock.architecture, {**stock.tensors, "head.weight": torch.zeros(4, width), "head.bias": torch.zeros(4)}
    )
    total = counted(lambda: fine_tune([stock, head], source, job.config, seeded()))
    assert job.work is not None
    assert job.work.flops == pytest.approx(total, rel=0.02)
    assert (
        flops.forward(stock.architecture) < flops.training(stock.architecture) < 3 * flops.forward(stock.architecture)
    )


# Training.


def pictures(count: int, side: int = SIDE) -> Tensor:
    colours = 255 * torch.rand(count, 3, 1, 1, generator=seeded(5))
    noise = 40 * torch.rand(count, 3, side, side, generator=seeded(6))
    return (0.8 * colours + noise).to(torch.uint8)


def labelled(count: int, classes: int = 4) -> Labelled:
    images = pictures(count)
    order = images.float().mean((1, 2, 3)).argsort().argsort()
    return Labelled(images, f"pictures {count}", order * classes // count, classes)


class Losses(Checkpointer):
    """A checkpointer that only records losses."""

    def load(self) -> None:
        return None

    def due(self) -> bool:
        return False

    def save(self, state: dict[str, Any]) -> None:
        raise AssertionError

    def finished(self, losses: Tensor) -> None:
        self.losses = losses


# Each objective on one kind of network, and the refusal; the other pairs are slow.
_QUICK = {
    ("mae", "test_vit3"),
    ("mae", "test_resnet"),
    ("mocov3", "test_resnet"),
    ("mmcr", "test_vit3"),
    ("lejepa", "test_resnet"),
    ("mmcr_official", "test_vit3"),
}


@pytest.mark.parametrize(
    ("objective", "name"),
    [
        pytest.param(*pair, marks=() if pair in _QUICK else pytest.mark.slow)
        for pair in product(sorted(OBJECTIVES), ["test_vit3", "test_resnet"])
    ],
)
def test_every_objective_trains_every_kind_of_network(name: str, objective: str) -> None:
    stock = stock_of(name)
    pool = Unlabelled(pictures(16), "pictures")
    small: dict[str, Any] = {"hidden": 32, "out": 16} if objective.endswith("official") else {}
    config = OBJECTIVES[objective].Config(**small)
    views = Views((0.6, 1.0), three_augment=False, jitter=0.1)
    options = Ingredient(config, steps=30, batch_size=16, lr=1e-3, views=views)
    if objective == "mae" and not stock.architecture.tokens:
        with pytest.raises(
            ValueError, match=r"no tokens of single patches; take the objectives mocov3, mmcr or lejepa"
        ):
            inter_train([stock], pool, options, seeded())
        return
    keep = Losses()
    made = inter_train([stock], pool, options, seeded(), keep)
    assert float(keep.losses[-5:].mean()) < float(keep.losses[:5].mean())
    assert made.tensors.keys() == stock.tensors.keys()
    moved = [key for key in made.tensors if not torch.equal(made.tensors[key], stock.tensors[key])]
    assert len(moved) > 0.8 * len(stock.tensors)
    if batch_norm_layers(stock.architecture.build()):
        assert all(key in moved for key in made.tensors if key.endswith(("running_mean", "num_batches_tracked")))
    if objective == "mae":
        assert "encoder.pos_embed" in moved  # learnt positions are learnt on


def test_the_moving_average_takes_the_statistics_of_batch_norm_along() -> None:
    encoder = stock_of("test_resnet").architecture.initial(seeded())
    average = base.Momentum(encoder, 0.75, 0)
    with torch.no_grad():
        for layer in batch_norm_layers(encoder):
            assert layer.running_mean is not None
            layer.running_mean.fill_(4.0)
    average.update(encoder)
    for layer in batch_norm_layers(average.average):
        assert layer.running_mean is not None
        torch.testing.assert_close(layer.running_mean, torch.ones_like(layer.running_mean))
        assert layer.training  # keys are normalised by their own batch, as in training
    images = torch.randn(4, 3, SIDE, SIDE, generator=seeded())
    assert torch.isfinite(average(images)).all()
    assert not any(parameter.requires_grad for parameter in average.parameters())


def test_a_last_batch_of_one_image_does_not_end_a_fine_tuning() -> None:
    """At 32 px the last map of this network has one pixel, of which one image has no variance."""
    shape = architecture("test_resnet", 32)
    stock = Weights(shape, tensors_of(shape.initial(seeded()), "encoder"))
    data = labelled(9)
    small = Labelled(data.images[:, :, :32, :32], "small", data.labels, data.classes)  # type: ignore[index]
    made = fine_tune([stock, stock], small, FineTune(epochs=2, batch_size=4), seeded())
    assert all(torch.isfinite(tensor).all() for tensor in made.tensors.values())
    assert int(made.tensors["encoder.bn1.num_batches_tracked"]) > 0
    with torch.no_grad():
        assert Classifier.of(made).eval()(torch.rand(1, 3, 32, 32)).shape == (1, 4)
