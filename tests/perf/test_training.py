"""What training costs beside the arithmetic that nobody can avoid: tokens, views and the loop, as ratios of one run."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from time import process_time

import numpy as np
import pytest
import torch
from official_streams import release
from PIL import Image
from pytest_benchmark.fixture import BenchmarkFixture
from scipy.stats import t as student
from torch import Tensor, nn
from torchvision import transforms

from bench.execution.checkpointing import FileCheckpointer
from bench.execution.progress_files import ProgressWriter
from methods.base import Unlabelled
from methods.nets import vit
from methods.nets.weights import Architecture, Normalise, Weights, build_encoder
from methods.selfsoup.ingredients import Ingredient, inter_train
from methods.selfsoup.objectives import mae
from methods.training.loop import ParameterGroup, Progress, reset, schedule, train
from methods.views.ssl_views import Views

pytestmark = pytest.mark.slow
OFFICIAL = os.environ.get("SOUPBENCH_OFFICIAL")


def paired(one: Callable[[], object], other: Callable[[], object], pairs: int) -> list[float]:
    """Processor seconds of `other` over those of `one`, done in turn, so that noise meets both alike."""
    ratios = []
    for number in range(pairs):
        seconds = {}
        for function in (one, other) if number % 2 else (other, one):
            start = process_time()
            function()
            seconds[function] = process_time() - start
        ratios.append(seconds[other] / seconds[one])
    return ratios


def test_an_encoder_that_sees_a_quarter_of_the_patches_is_three_times_as_fast(benchmark: BenchmarkFixture) -> None:
    """Forward and backward of the encoder alone, 64 patches, of which 16 are visible."""
    torch.set_num_threads(1)
    shape = Architecture(image_size=32, patch_size=4, dim=64, depth=4, heads=4)
    encoder = build_encoder(shape)
    generator = torch.Generator().manual_seed(0)
    reset(encoder, generator)
    patches = mae.patchify(torch.rand(64, 3, 32, 32, generator=generator), 4)
    order = mae.random_order(64, 64, generator)
    kept = mae.visible_patches(64, 0.75)

    def step(seen: int) -> None:
        vit.encode_visible(encoder, patches, order[:, :seen]).square().mean().backward()  # type: ignore[no-untyped-call]
        encoder.zero_grad()

    step(64)
    ratio = float(np.median(paired(lambda: step(kept), lambda: step(64), 9)))
    benchmark.extra_info["times as fast"] = ratio
    benchmark.pedantic(step, (kept,), rounds=1)
    sys.stderr.write(f"\nencoder on 25 % of the patches: {ratio:.2f}x the rate on all\n")
    assert ratio >= 3


@pytest.mark.skipif(OFFICIAL is None, reason="SOUPBENCH_OFFICIAL names no checkouts")
@pytest.mark.parametrize("ratio", [0.75, 0.9])
def test_a_step_of_the_masked_autoencoder_against_the_authors_own(ratio: float, benchmark: BenchmarkFixture) -> None:
    """Forward, backward and AdamW of antofuller/self_soupervision's `MAE` and of ours; two blocks of ViT-B, 8 images.

    Random weights, 224 px, one thread, float32; a decoder of one block, in both as wide as the release fixes it. Each
    with the optimiser of its training: theirs is the plain one, ours the fused one.
    """
    torch.set_num_threads(1)
    shape = Architecture(224, 16, 768, 2, 12, decoder_dim=512, decoder_depth=1, decoder_heads=16, pool="token")
    encoder, generator = build_encoder(shape), torch.Generator().manual_seed(0)
    reset(encoder, generator)
    stock = Weights(shape, {f"encoder.{name}": value.clone() for name, value in encoder.state_dict().items()})
    objective = mae.Config(mask_ratio=ratio, decoder_depth=1).build(stock, generator)
    models = release("selfsoup", "models")
    theirs = models.MAE(models.ViT(depth=2), models.MAEDecoder(decoder_depth=1))
    images = torch.randn(8, 3, 224, 224, generator=generator)

    def stepping(modules: Sequence[nn.Module], loss: Callable[[], Tensor], fused: bool) -> Callable[[], None]:
        own = [p for module in modules for p in module.parameters() if p.requires_grad]
        optimiser = torch.optim.AdamW(own, lr=1e-5, weight_decay=0.01, fused=fused)

        def step() -> None:
            loss().backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)

        return step

    ours = stepping([encoder, objective], lambda: objective.loss(encoder, [images], generator), fused=True)
    official = stepping([theirs], lambda: theirs(images, ratio), fused=False)
    ours(), official()
    share = float(np.median(paired(official, ours, 9)))
    benchmark.extra_info["of the authors' step"] = share
    benchmark.pedantic(ours, rounds=1)
    sys.stderr.write(f"\nMAE step, {ratio:.0%} masked: {share:.2f} of the authors' own\n")
    assert share <= 0.9


@pytest.mark.parametrize(("side", "count", "least"), [(32, 128, 5.0), (224, 32, 2.5)])
def test_views_of_a_batch_against_pictures_one_by_one(
    side: int, count: int, least: float, benchmark: BenchmarkFixture
) -> None:
    """The whole pipeline of DeiT III from pixels to floats, torchvision's on PIL images against ours, on one core."""
    torch.set_num_threads(1)
    pipeline = transforms.Compose(
        [
            transforms.RandomResizedCrop(side, (0.08, 1.0), interpolation=transforms.InterpolationMode.BICUBIC),
            transforms.RandomHorizontalFlip(),
            transforms.RandomChoice(
                [
                    transforms.Grayscale(3),
                    transforms.RandomSolarize(128, p=1.0),
                    transforms.GaussianBlur(9, (0.1, 2.0)),
                ]
            ),
            transforms.ColorJitter(0.3, 0.3, 0.3),
            transforms.ToTensor(),
        ]
    )
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, 3, side, side), generator=generator, dtype=torch.uint8)
    pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in pixels]
    views = Views()

    def batched() -> Tensor:
        return views(pixels, generator)

    def one_by_one() -> Tensor:
        return torch.stack([pipeline(picture) for picture in pictures])

    batched(), one_by_one()
    ratio = float(np.median(paired(batched, one_by_one, 9)))
    benchmark.extra_info["times as fast"] = ratio
    benchmark.pedantic(batched, rounds=1)
    sys.stderr.write(f"\n3-Augment at {side} px: {ratio:.1f}x torchvision on PIL\n")
    assert ratio >= least


def bare(model: nn.Module, batches: Sequence[Tensor]) -> None:
    """A loop with nothing in it but the step."""
    parameters = list(model.parameters())
    optimiser = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.01, fused=True)
    factors = schedule(len(batches), 0.1)
    for factor, batch in zip(factors, batches, strict=True):
        optimiser.param_groups[0]["lr"] = 1e-3 * factor
        model(batch).square().mean().backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)


@pytest.mark.parametrize("watched", [False, True])
def test_the_loop_adds_little_to_a_bare_one(benchmark: BenchmarkFixture, watched: bool, tmp_path: Path) -> None:
    """Upper 95 % bound of the mean overhead over 40 pairs of 20 steps of a small transformer, one thread.

    `watched`: with checkpoints, and with word of where it is for people.
    """
    torch.set_num_threads(1)
    shape = Architecture(image_size=32, patch_size=4, dim=64, depth=4, heads=4)
    encoder = build_encoder(shape)
    generator = torch.Generator().manual_seed(0)
    reset(encoder, generator)
    batches = [torch.rand(32, 3, 32, 32, generator=generator) for _ in range(20)]
    trained = [p for p in encoder.parameters() if p.requires_grad]

    def ours() -> Tensor:
        loss = lambda batch: encoder(batch).square().mean()  # noqa: E731
        kept = Progress(checkpointer, [encoder], generator) if watched else None
        return train(loss, batches, [ParameterGroup(trained, 1e-3, 0.1)], steps=20, weight_decay=0.01, progress=kept)

    writer = ProgressWriter(tmp_path / "x.now", "x")
    checkpointer = FileCheckpointer(tmp_path / "x.pt", report=partial(writer.step, 20))
    bare(encoder, batches)
    ours()
    logs = np.log(paired(lambda: bare(encoder, batches), ours, 40))
    mean, error = logs.mean(), logs.std(ddof=1) / math.sqrt(len(logs))
    upper = math.exp(mean + float(student.ppf(0.95, len(logs) - 1)) * error) - 1
    benchmark.extra_info["overhead"] = math.exp(mean) - 1
    benchmark.pedantic(ours, rounds=1)
    name = "training loop, watched" if watched else "training loop"
    sys.stderr.write(f"\n{name}: {math.exp(mean) - 1:+.1%} over a bare one, at most {upper:+.1%} (95 %)\n")
    assert upper <= 0.05


def test_a_whole_ingredient_adds_little_to_a_bare_loop(benchmark: BenchmarkFixture) -> None:
    """Order, images, views, loss, schedule and checks of `inter_train` against the same arithmetic written plainly."""
    torch.set_num_threads(1)
    shape = Architecture(image_size=32, patch_size=4, dim=64, depth=4, heads=4, decoder_dim=32, decoder_heads=4)
    encoder = build_encoder(shape)
    reset(encoder, torch.Generator().manual_seed(0))
    stock = Weights(shape, {f"encoder.{name}": value.clone() for name, value in encoder.state_dict().items()})
    images = torch.randint(0, 256, (512, 3, 32, 32), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    config, steps = Ingredient(mae.Config(), steps=8, batch_size=64), 8

    def whole() -> object:
        return inter_train([stock], Unlabelled(images, "pool"), config, torch.Generator().manual_seed(0))

    def plain() -> None:
        generator = torch.Generator().manual_seed(0)
        own = build_encoder(shape)
        own.load_state_dict(stock.part("encoder"))
        objective = config.objective.build(stock, generator)
        normalise = Normalise(shape.mean, shape.std)
        groups = [[p for p in part.parameters() if p.requires_grad] for part in (own, objective)]
        optimiser = torch.optim.AdamW([{"params": group} for group in groups], lr=1e-3, weight_decay=0.01, fused=True)
        batches = torch.randperm(512, generator=generator).split(64)
        for rows, factor in zip(batches, schedule(steps, 0.1), strict=True):
            for group in optimiser.param_groups:
                group["lr"] = 1e-3 * factor
            objective.loss(own, [normalise(config.views(images[rows], generator))], generator).backward()
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)

    assert steps == 512 // 64
    plain(), whole()
    logs = np.log(paired(plain, whole, 25))
    mean, error = logs.mean(), logs.std(ddof=1) / math.sqrt(len(logs))
    benchmark.extra_info["overhead"] = math.exp(mean) - 1
    benchmark.pedantic(whole, rounds=1)
    sys.stderr.write(f"\nwhole ingredient: {math.exp(mean) - 1:+.1%} over a bare loop, +- {2 * error:.1%}\n")
    assert math.exp(mean) <= 1.03
