"""What adapting costs, as ratios taken in one run; absolute times are for reading, never for passing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image, ImageOps
from pytest_benchmark.fixture import BenchmarkFixture
from scipy.stats import binom
from torch import Tensor, nn
from torchvision.transforms import functional as vision

from bench.core.conditions import CLEAN
from bench.core.import_object import load_object
from bench.evaluation.evaluate import Evaluation, evaluate
from bench.evaluation.protocols import parse_protocol, plan_stream
from bench.shifts import load_shift
from bench.shifts.data_root import Reading
from methods import METHODS
from methods.adapters.memo import Memo
from methods.adapters.plain import Plain
from methods.base import Adapter, Source, SourceBatch
from methods.nets.weights import Architecture, Classifier
from methods.views.augmix import augmix, draw

pytestmark = pytest.mark.slow

IMAGES = torch.rand(16, 3, 64, 64, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(16)
OPEN = {"margin": 1.0, "epsilon": 2.0}
OPTIONS: dict[str, dict[str, Any]] = {
    "eta": OPEN,
    "rdumb": OPEN,
    "eata": {**OPEN, "beta": 1.0, "fisher_images": 16},
    "come_eata": {**OPEN, "beta": 1.0, "fisher_images": 16},
    "deyo": {"margin": 1.0, "plpd": -1.0},
    "sar": {"margin": 1.0, "reset_below": 0.0},
    "come_sar": {"margin": 1.0, "reset_below": 0.0},
    "dua": {"images": 0, "views": 4},
    "cotta": {"threshold": 1e-9},
    "petal": {"threshold": 1e-9, "posterior_epochs": 3},
    "rotta": {"capacity": 16, "update_every": 16},
    "note": {"capacity": 16, "update_every": 16},
    "sotta": {"capacity": 16, "update_every": 16, "confidence": 0.0},
    "rmt": {"warm_up_images": 0},
    "adacontrast": {"queue": 4096, "bank_start": 16},
    "foa": {"population": 27},
    "ttt_pp": {"queue": 32},
}
"""Options by which a batch costs the most it can: every image is learnt from, every batch leads to an update."""

# Seconds a batch over those of a plain forward pass: what each method may cost at most on a ResNet-18 with BatchNorm,
# of 64-pixel images in batches of 16, and on a small transformer 1.1 times what the authors' releases took there.
LIMITS: list[tuple[str, str, float]] = [
    *(
        ("resnet18", name, limit)
        for name, limit in {
            "bn": 1.4,
            "bn_alpha": 2.0,
            "bn_ema": 2.6,
            "dua": 9.0,
            "lame": 1.3,
            "t3a": 1.3,
            "shot_im": 6.0,
            "tent": 2.2,
            "eta": 2.5,
            "eata": 2.5,
            "rdumb": 2.5,
            "rpl": 2.5,
            "come_tent": 2.5,
            "come_eata": 2.6,
            "sar": 4.6,
            "come_sar": 4.8,
            "deyo": 3.5,
            "cotta": 9.0,
            "petal": 12.0,
            "rotta": 7.0,
            "note": 7.0,
            "sotta": 7.0,
            "roid": 3.6,
            "cmf": 4.7,
            "santa": 7.0,
            "adacontrast": 12.0,
            "rmt": 16.0,
            "actmad": 6.0,
            "ttt_pp": 16.0,
        }.items()
    ),
    ("vit_tiny_patch16_224", "tent", 2.6),
    ("vit_tiny_patch16_224", "sar", 5.3),
    ("vit_tiny_patch16_224", "foa", 38.0),
]


class Projecting(nn.Module):
    """A network of timm with a projection head."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network, width = network, network.num_features
        self.projection = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 128))

    def features(self, images: Tensor) -> Tensor:
        features: Tensor = self.network.forward_head(self.network.forward_features(images), pre_logits=True)
        return features

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(images)
        return logits


def ready(adapter: Adapter) -> Adapter:
    adapter.prepare(_source(adapter.access.source))
    return adapter


def _source(declared: str) -> Source | None:
    if declared == "none":
        return None
    labels = LABELS if declared == "labelled" else None
    # Two parts of a queue that differ.
    return Source(lambda number: SourceBatch(IMAGES.roll(number, 2), labels), 4)


def seconds(action: Callable[[], Any]) -> float:
    """Processor time, since everything here computes on one thread and the machine may have other work."""
    start = process_time()
    action()
    return process_time() - start


def ratios(one: Callable[[], Any], other: Callable[[], Any], pairs: int) -> np.ndarray:
    """Seconds of `one` over those of `other`, pair by pair, the two taking turns; the first pair warms up."""
    found = [seconds(one) / seconds(other) for _ in range(pairs + 1)]
    return np.array(found[1:])


def test_every_method_is_in_the_table() -> None:
    adapters = {name for name, row in METHODS.items() if row.kind == "adapter"}
    # The cost of MEMO, below, and of test-time training is in views an image; eata_val is eata on other images.
    others = {"memo", "ttt", "ttt_online", "ttt_mae", "ttt_mae_online", "eata_val"}
    assert {name for _, name, _ in LIMITS} | others == adapters


@pytest.mark.parametrize(("architecture", "name", "limit"), LIMITS)
def test_a_batch_costs_a_few_forwards(benchmark: BenchmarkFixture, architecture: str, name: str, limit: float) -> None:
    torch.set_num_threads(1)
    size: dict[str, Any] = {"img_size": 64} if architecture.startswith("vit") else {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: nn.Module = timm.create_model(architecture, num_classes=1000, **size).eval()
    cls: type[Adapter] = load_object(METHODS[name].path)
    if cls.needs == "source_contrast":
        model = Projecting(model)
    method, plain = ready(cls(model, cls.Config(**OPTIONS.get(name, {})))), ready(Plain(model))
    pairs = 15 if limit < 10 else 7
    factor = float(np.median(ratios(lambda: method.predict(IMAGES), lambda: plain.predict(IMAGES), pairs)))
    benchmark.extra_info["times a plain forward"] = round(factor, 2)
    benchmark.pedantic(method.predict, (IMAGES,), rounds=2)
    assert factor <= limit


def test_memo_adapts_to_a_batch_faster_together_than_one_by_one(benchmark: BenchmarkFixture) -> None:
    torch.set_num_threads(1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Classifier(Architecture(), 10).eval()
    images = torch.rand(64, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    config = Memo.Config(views=8, crop="padded", flip=False)
    together, alone = Memo(model, config), Memo(model, config)
    for adapter in (together, alone):
        adapter.prepare()
    alone.together = False
    factor = float(np.median(ratios(lambda: alone.predict(images), lambda: together.predict(images), 3)))
    benchmark.extra_info["one by one / together"] = round(factor, 2)
    benchmark.pedantic(together.predict, (images,), rounds=2)
    assert factor > 1.1


# The release's operations on one picture at a time, as anybody would write them with PIL (level in 0.1 .. 1, sign).
def _warped(*matrix: float) -> Callable[[Image.Image], Image.Image]:
    warp, bilinear = Image.Transform.AFFINE, Image.Resampling.BILINEAR
    return lambda picture: picture.transform(picture.size, warp, matrix, resample=bilinear, fillcolor=128)


PLAIN_OPERATIONS: list[Callable[[Image.Image, float, int], Image.Image]] = [
    lambda p, u, s: ImageOps.autocontrast(p),
    lambda p, u, s: ImageOps.equalize(p),
    lambda p, u, s: ImageOps.posterize(p, 4),
    lambda p, u, s: p.rotate(s * int(3 * u), resample=Image.Resampling.BILINEAR, fillcolor=128),
    lambda p, u, s: ImageOps.solarize(p, 256 - int(25.6 * u)),
    lambda p, u, s: _warped(1, s * 0.03 * u, 0, 0, 1, 0)(p),
    lambda p, u, s: _warped(1, 0, 0, s * 0.03 * u, 1, 0)(p),
    lambda p, u, s: _warped(1, 0, s * int(u * p.width / 30), 0, 1, 0)(p),
    lambda p, u, s: _warped(1, 0, 0, 0, 1, s * int(u * p.height / 30))(p),
]


def plain_augmix(picture: Image.Image, rng: np.random.Generator) -> Tensor:
    """One AugMix view as the release makes it: a crop, three chains, each picture a normalised tensor, their mix."""

    def tensor(image: Image.Image) -> Tensor:
        normalised: Tensor = vision.normalize(vision.to_tensor(image), [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
        return normalised

    side = picture.width
    crop = int(side * rng.uniform(0.3, 1.0))
    top, left = rng.integers(side - crop + 1, size=2)
    start = vision.resized_crop(picture, int(top), int(left), crop, crop, [side, side])
    start = vision.hflip(start) if rng.random() < 0.5 else start
    weights, share = rng.dirichlet([1.0] * 3), float(rng.beta(1, 1))
    mixed = torch.zeros(3, side, side)
    for weight in weights:
        image = start
        for _ in range(rng.integers(1, 4)):
            operation = PLAIN_OPERATIONS[rng.integers(len(PLAIN_OPERATIONS))]
            image = operation(image, rng.uniform(0.1, 1.0), int(rng.choice([-1, 1])))
        mixed += float(weight) * tensor(image)
    return share * tensor(start) + (1 - share) * mixed


def views_at_224() -> tuple[Tensor, Tensor, Image.Image]:
    """One picture, uniform numbers for 32 views of it, and the same picture for PIL."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(1, 3, 14, 14, generator=generator)
    smooth = nn.functional.interpolate(coarse, 224, mode="bicubic") + 0.1 * torch.rand(1, 3, 224, 224)
    image = smooth.clamp(0, 1).mul(255).round()
    return image / 255, draw(1, 32, generator), vision.to_pil_image(image[0].to(torch.uint8))


def test_augmentation_does_not_dominate_memo(benchmark: BenchmarkFixture) -> None:
    """On one thread of a CPU it costs a small part of a forward pass of the views, which MEMO follows by a backward.

    PIL's loops, one picture at a time, are as fast there; on a GPU they are not (below).
    """
    torch.set_num_threads(1)
    image, uniforms, picture = views_at_224()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Plain(timm.create_model("resnet18").eval())
    rng = np.random.default_rng(0)
    views = image.expand(32, -1, -1, -1)
    share = float(np.median(ratios(lambda: augmix(image, uniforms), lambda: model.predict(views), 7)))
    one_by_one = lambda: [plain_augmix(picture, rng) for _ in range(32)]  # noqa: E731
    gain = float(np.median(ratios(one_by_one, lambda: augmix(image, uniforms), 7)))
    benchmark.extra_info["augmentation / forward of the views"] = round(share, 2)
    benchmark.extra_info["PIL one by one / ours"] = round(gain, 2)
    benchmark.pedantic(augmix, (image, uniforms), rounds=3)
    assert share < 0.3
    assert gain > 0.8


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_augmentation_on_a_gpu_is_many_times_faster_than_pil() -> None:
    image, uniforms, picture = views_at_224()
    images, numbers = image.cuda().expand(8, -1, -1, -1), uniforms.expand(8, -1, -1)
    rng = np.random.default_rng(0)

    def ours() -> None:
        augmix(images, numbers)
        torch.cuda.synchronize()

    gains = [8 * wall(lambda: [plain_augmix(picture, rng) for _ in range(32)]) / wall(ours) for _ in range(6)]
    assert float(np.median(gains[1:])) >= 5


def wall(action: Callable[[], Any]) -> float:
    start = perf_counter()
    action()
    return perf_counter() - start


FACTORY = """
import timm, torch

def build():
    torch.manual_seed(0)
    net = timm.create_model("resnet18", num_classes=10)
    return torch.nn.Sequential(torch.nn.Upsample(size=64), net).eval()
"""


def test_a_run_takes_hardly_longer_than_a_bare_loop(benchmark: BenchmarkFixture, tmp_path: Path) -> None:
    """A ResNet-18 at 64 pixels that only predicts, which is where everything around it weighs the most."""
    torch.set_num_threads(1)
    (tmp_path / "net.py").write_text(FACTORY)
    model = f"{tmp_path / 'net.py'}:build"
    shift = load_shift("digits-c")
    ids = shift.ids("test")[:320]
    segments = tuple(plan_stream(parse_protocol("reset_each_shift"), (CLEAN,), ids, shift.labels(ids), 0))
    job = Evaluation(
        method="plain",
        shift="digits-c",
        reading=Reading(),
        weights=None,
        model=model,
        adapter="methods.adapters.plain:Plain",
        config=None,
        seed=0,
        segments=segments,
        clean=None,
        batch_size=64,
        precision="fp32",
        device="cpu",
    )
    batches = torch.split(shift.images(segments[0].ids, CLEAN), 64)
    net = load_object(model)()

    def bare() -> None:
        adapter = Plain(net)
        adapter.prepare()
        for batch in batches:
            adapter.predict(batch.float() / 255)

    found = np.sort(ratios(lambda: evaluate(job), bare, 31))
    # The 97.5 % bound of a median from the order of values alone, whatever their distribution.
    upper = float(found[int(binom.ppf(0.975, len(found), 0.5))])
    benchmark.extra_info["median of a run / bare loop"] = round(float(np.median(found)), 3)
    benchmark.extra_info["upper bound"] = round(upper, 3)
    benchmark.pedantic(evaluate, (job,), rounds=1)
    assert upper <= 1.05
