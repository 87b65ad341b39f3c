"""Closed forms of floating-point operations against torch's counter, and against published figures of a ViT-B/16."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from methods.base import Labelled, Unlabelled
from methods.nets import flops
from methods.nets.weights import Architecture, Classifier, Weights, build_encoder
from methods.selfsoup.objectives import OBJECTIVES
from methods.training.finetune import FineTune, fine_tune, fine_tunings
from methods.training.loop import reset

SMALL = Architecture(image_size=56, patch_size=8, dim=96, depth=3, heads=3, decoder_dim=48, decoder_depth=2)
BASE = Architecture(224, 16, 768, 12, 12, 512, 8, 16)


def counted(function):
    # The counter knows no fused attention on a CPU, so that is taken apart into matrix products.
    counter = FlopCounterMode(display=False)
    with counter, sdpa_kernel(SDPBackend.MATH):
        function()
    return counter.get_total_flops()


@pytest.fixture
def stock():
    encoder = build_encoder(SMALL)
    reset(encoder, torch.Generator().manual_seed(0))
    return Weights(SMALL, {f"encoder.{k}": v.detach() for k, v in encoder.state_dict().items()})


VARIANTS = [(name, {}) for name in sorted(OBJECTIVES)] + [
    ("mae", {"mask_ratio": 0.9, "decoder_depth": 1}),
    ("mae", {"norm_pix": True}),
    ("mocov3", {"symmetric": True, "momentum": 0.9, "key_head": True}),
    ("mocov3_official", {"freeze_patches": False}),
    ("mmcr", {"local": False}),
    ("mmcr_official", {"crops": 3, "momentum": 0.9, "local": 0.5}),
    ("lejepa", {"crops": 4}),
    ("lejepa_official", {"globals_": 1, "locals_": 2}),
]


@pytest.mark.parametrize(("name", "options"), VARIANTS)
def test_an_objective_takes_what_it_says(name, options, stock):
    config = OBJECTIVES[name].Config(**options)
    generator = torch.Generator().manual_seed(0)
    encoder = build_encoder(SMALL)
    objective = config.build(stock, generator)
    objective.prepare(encoder, 10)
    sides = [pipeline.size or SMALL.image_size for pipeline in objective.pipelines(views())]
    batch = [torch.rand(8, 3, side, side, generator=generator) for side in sides]
    total = counted(lambda: objective.loss(encoder, batch, generator).backward())
    assert 8 * config.flops(SMALL) == pytest.approx(total, rel=0.02)


def views():
    from methods.views.ssl_views import Views

    return Views()


def test_a_classifier_forward_takes_what_it_says(stock):
    model = Classifier(SMALL, 10)
    images = torch.rand(4, 3, 56, 56)
    with torch.no_grad():
        total = counted(lambda: model(images))
    assert 4 * (flops.forward(SMALL) + flops.layers((96, 10))) == pytest.approx(total, rel=0.005)
    with flops.counted() as counter, torch.no_grad():
        model(images)
    assert counter.get_total_flops() == total


def test_fine_tuning_takes_what_its_job_says(stock):
    images = torch.randint(0, 256, (24, 3, 56, 56), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    source = Labelled(images, "x", torch.arange(24) % 4, 4)
    job = fine_tunings([stock], stock, source, FineTune(epochs=2, batch_size=10), (1.0,))[0]
    head = Weights(SMALL, {**stock.tensors, "head.weight": torch.zeros(4, 96), "head.bias": torch.zeros(4)})
    generator = torch.Generator().manual_seed(0)
    total = counted(lambda: fine_tune([stock, head], source, job.config, generator))
    assert job.work.steps == 6
    assert job.work.flops == pytest.approx(total, rel=0.02)


def test_a_vit_b_takes_what_is_known_of_it():
    # 17.56 GMAC a forward pass (timm's table for vit_base_patch16_224 says 17.6) without the head.
    assert flops.forward(BASE) == pytest.approx(35.1e9, rel=0.005)
    assert flops.training(BASE) == pytest.approx(105.4e9, rel=0.005)
    assert OBJECTIVES["mae"].Config().flops(BASE) == pytest.approx(58.7e9, rel=0.015)
    assert OBJECTIVES["mocov3"].Config().flops(BASE) == pytest.approx(140.5e9, rel=0.01)
    assert OBJECTIVES["lejepa"].Config().flops(BASE) == pytest.approx(211e9, rel=0.01)


def test_a_pool_smaller_than_a_batch_is_not_counted_as_a_batch(stock):
    from methods.selfsoup.recipe import SoupOptions, ingredient_job, read_ingredient

    pool = Unlabelled(torch.zeros(16, 3, 56, 56, dtype=torch.uint8), "x")
    ingredient = read_ingredient("mae:steps=3:batch=64", SoupOptions())
    assert ingredient_job(ingredient, stock, pool, "x").work.flops == 3 * 16 * OBJECTIVES["mae"].Config().flops(SMALL)
