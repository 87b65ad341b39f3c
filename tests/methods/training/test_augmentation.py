"""Augmentation in fine-tuning: what the network sees, what it is asked for, and what `source` does not notice."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import methods.training.finetune
from bench.core.components import name_of
from bench.training.job_cache import described, draw_key, job_key
from methods.base import Job, Labelled
from methods.data_parallel import DataParallelGroup, Share
from methods.identity import component
from methods.nets.weights import Architecture, Classifier, Weights, build_encoder
from methods.recipes import prime
from methods.recipes.augmix import AugMix, AugMixing
from methods.recipes.prime import Prime
from methods.recipes.source import SourceOnly
from methods.recipes.three_augment import ThreeAugment
from methods.selfsoup.ingredients import tensors_of
from methods.training.augmentation import Augmentation, consistent
from methods.training.finetune import FineTune, Repeat, fine_tune, fine_tunings
from methods.training.loop import reset
from methods.views.prime import PUBLISHED

SMALL = Architecture(image_size=16, patch_size=8, dim=16, depth=1, heads=2)
LARGER = replace(SMALL, image_size=96)
RECIPES: dict[str, Any] = {"augmix": AugMix, "three_augment": ThreeAugment, "prime": Prime}
AUGMENTATIONS: dict[str, Augmentation] = {
    "augmix": AugMixing(),
    "prime": prime.PrimeMixing(),
    "prime large": prime.PrimeMixing(strength=PUBLISHED["imagenet"]),
}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def stock(architecture: Architecture = SMALL) -> Weights:
    encoder = build_encoder(architecture)
    reset(encoder, seeded())
    return Weights(architecture, tensors_of(encoder, "encoder"))


def task(count: int = 40, side: int = 16) -> Labelled:
    """Noise whose brightness indicates the class."""
    labels = torch.arange(count) % 3
    noise = torch.randint(0, 60, (count, 3, side, side), generator=seeded())
    return Labelled((noise + 80 * labels[:, None, None, None]).to(torch.uint8), "task", labels, 3)


@component("tests.Inverted")
@dataclass(frozen=True)
class Inverted(Augmentation):
    """The negative of each image, without random numbers."""

    title: ClassVar[str] = "negatives"

    def augment(self, images: Tensor, count: int, generator: torch.Generator, share: Share) -> Tensor:
        return (1 - images)[:, None].expand(-1, count, -1, -1, -1)


Watched = tuple[list[tuple[Tensor, Tensor]], list[Tensor], Classifier]


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Run two steps of a fine-tuning without changing the network: batches, losses and the network."""

    def run(config: FineTune) -> Watched:
        models: list[Classifier] = []
        seen: Watched = ([], [], None)  # type: ignore[assignment]

        class Kept(Classifier):
            def __init__(self, *args: Any, **named: Any) -> None:
                super().__init__(*args, **named)
                models.append(self)

        def train(loss: Any, stream: Any, groups: Any, **rest: Any) -> None:
            for _ in range(2):
                seen[0].append(next(stream))
                seen[1].append(loss(seen[0][-1]).detach())

        monkeypatch.setattr(methods.training.finetune, "train", train)
        monkeypatch.setattr(methods.training.finetune, "Classifier", Kept)
        fine_tune([stock()], task(), config, seeded(4))
        return seen[0], seen[1], models[-1]

    return run


def test_the_network_sees_the_view_of_source_and_its_augmentations(watch: Any) -> None:
    plain, losses, _ = watch(FineTune(batch_size=8))
    assert plain[0][0].shape == (8, 3, 16, 16)
    batches, both, model = watch(Repeat(batch_size=8, augmentation=Inverted()))
    for (views, labels), (images, same), value, alone in zip(batches, plain, both, losses, strict=True):
        assert torch.equal(labels, same)
        assert views.shape == (8, 3, 3, 16, 16)
        assert torch.equal(views[:, 0], images)
        assert torch.equal(views[:, 1], 1 - images)
        assert torch.equal(views[:, 2], 1 - images)
        p = model(views.flatten(0, 1)).softmax(1).view(8, 3, 3).double()
        middle = p.mean(1, keepdim=True)
        divergence = (p * (p / middle).log()).sum(2).mean()
        assert torch.allclose(value.double(), alone.double() + 12 * divergence, atol=1e-6)
        assert divergence > 1e-4
    single, losses, model = watch(Repeat(batch_size=8, augmentation=Inverted(jsd=False)))
    views, labels = single[0]
    assert torch.equal(views, 1 - plain[0][0][:, None])
    assert torch.allclose(losses[0], F.cross_entropy(model(views[:, 0]), labels), atol=1e-6)


def test_smoothing_counts_for_the_first_view_alone() -> None:
    logits, labels = torch.randn(9, 5, generator=seeded()), torch.arange(3)
    apart = F.cross_entropy(logits[:3], labels, label_smoothing=0.1) - F.cross_entropy(logits[:3], labels)
    smoothed = consistent(logits, labels, 3, 0.1) - consistent(logits, labels, 3)
    assert torch.allclose(smoothed, apart, atol=1e-5)


def test_equal_views_are_consistent_and_certain_ones_finite() -> None:
    logits, labels = 200 * torch.randn(4, 5, generator=seeded()), torch.arange(4)
    assert torch.allclose(consistent(logits.repeat(3, 1), labels, 3), F.cross_entropy(logits, labels))
    torn = torch.cat([logits, -logits, logits.roll(1, 1)]).requires_grad_()
    value = consistent(torn, labels, 3)
    value.backward()  # type: ignore[no-untyped-call]
    assert torch.isfinite(value)
    assert torn.grad is not None
    assert torch.isfinite(torn.grad).all()


@pytest.mark.parametrize("jsd", [True, False])
@pytest.mark.parametrize("name", list(AUGMENTATIONS))
def test_views_are_in_range_drawn_from_the_generator_and_leave_images_alone(name: str, jsd: bool) -> None:
    augmentation = replace(AUGMENTATIONS[name], jsd=jsd)
    images = task().images.float() / 255
    before = images.clone()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        views = augmentation(images, seeded(), Share())
        torch.manual_seed(2)
        again = augmentation(images, seeded(), Share())
    assert torch.equal(images, before)
    assert views.shape == (40, 3 if jsd else 1, 3, 16, 16)
    assert views.dtype == torch.float32
    assert torch.equal(views, again)
    assert 0 <= views.min() < views.max() <= 1
    assert not torch.equal(views, augmentation(images, seeded(1), Share()))
    own = views[:, 1:] if jsd else views
    moved = (own - images[:, None]).abs().mean((2, 3, 4))
    assert (moved > 1e-3).float().mean() > 0.7
    assert moved.mean() < 0.5


@dataclass(frozen=True)
class Pair(DataParallelGroup):
    """One of two processes, without the other."""

    number: int = 0

    @property
    def size(self) -> int:
        return 2

    @property
    def rank(self) -> int:
        return self.number


@pytest.mark.parametrize("name", list(AUGMENTATIONS))
@pytest.mark.parametrize(("count", "parts"), [(40, 1), (40, 4), (39, 1)])
def test_processes_make_the_views_of_the_whole_batch(name: str, count: int, parts: int) -> None:
    augmentation = AUGMENTATIONS[name]
    images = task(count).images.float() / 255
    whole = augmentation(images, seeded(), Share(total=count // parts, parts=parts))
    for number in range(2):
        share = Pair(None, number).share(count, parts)
        generator = seeded()
        assert torch.allclose(augmentation(share.own(images), generator, share), share.own(whole), atol=1e-6)
        after = seeded()
        augmentation(images, after, Share(total=count // parts, parts=parts))
        assert torch.equal(generator.get_state(), after.get_state())


@pytest.mark.parametrize("name", list(RECIPES))
def test_a_recipe_is_one_fine_tuning_that_learns(name: str) -> None:
    cls = RECIPES[name]
    config = cls.Config(epochs=6, batch_size=20, lr=5e-3)
    parts = cls(config).plan(stock(), task(60), None)
    assert list(parts) == [""]
    job = parts[""]
    head = job.inputs[1]
    assert isinstance(head, Job)
    plain = SourceOnly(SourceOnly.Config(epochs=6, batch_size=20, lr=5e-3)).plan(stock(), task(60), None)[""]
    assert job.config != plain.config
    assert job.work is not None
    assert plain.work is not None
    assert job.work.steps == plain.work.steps
    assert job.work.flops == plain.work.flops * (job.config.augmentation.passes if job.config.augmentation else 1)
    tuned = job.function(
        [stock(), head.function([stock()], head.data, head.config, seeded())], job.data, job.config, seeded()
    )
    fresh = task(60)
    with torch.no_grad():
        predicted = Classifier.of(tuned).eval()(fresh.images / 255).argmax(1)
    assert (predicted == fresh.labels).float().mean() > 0.9


def test_options_that_were_published_for_the_size_of_the_images() -> None:
    def mixing(architecture: Architecture, **options: Any) -> Any:
        images = task(side=architecture.image_size)
        return AugMix(AugMix.Config(**options)).plan(stock(architecture), images, None)[""].config.augmentation

    assert mixing(SMALL) == AugMixing(True, 3.0)
    assert mixing(LARGER) == AugMixing(True, 1.0)
    assert mixing(LARGER, severity=2.0, jsd=False) == AugMixing(False, 2.0)
    for severity in (0.0, 11.0):
        with pytest.raises(ValueError, match=r"augmix.severity must be None or in \[0.1, 10\]"):
            AugMix.Config(severity=severity)


def test_strengths_and_losses_of_prime_are_those_of_the_release() -> None:
    def mixing(architecture: Architecture, **options: Any) -> Any:
        images = task(side=architecture.image_size)
        return Prime(Prime.Config(**options)).plan(stock(architecture), images, None)[""].config.augmentation

    assert mixing(SMALL) == prime.PrimeMixing(True, PUBLISHED["cifar"])
    assert mixing(LARGER) == prime.PrimeMixing(False, PUBLISHED["imagenet"])
    assert mixing(LARGER, strength="cifar") == prime.PrimeMixing(True, PUBLISHED["cifar"])
    assert mixing(SMALL, strength="imagenet", jsd=True) == prime.PrimeMixing(True, PUBLISHED["imagenet"])
    with pytest.raises(ValueError, match=r'prime.strength must be None or "cifar" or "imagenet"'):
        Prime.Config(strength="digits")  # type: ignore[arg-type]


def test_three_augment_is_in_the_views_and_cannot_be_left_out() -> None:
    job = ThreeAugment().plan(stock(), task(), None)[""]
    assert (job.config.views.three_augment, job.config.views.jitter) == (True, 0.3)
    assert job.config.augmentation is None
    with pytest.raises(ValueError, match=r"three_augment.three_augment must be true \(run source"):
        ThreeAugment.Config(three_augment=False)


def test_an_augmentation_is_part_of_the_key_and_none_changes_none() -> None:
    def job(augmentation: Augmentation | None) -> Job:
        return fine_tunings([stock()], stock(), task(), FineTune(), (1.0,), augmentation)[0]

    keys = [job_key(job(each), 0) for each in (None, AugMixing(), AugMixing(jsd=False), AugMixing(severity=1.0))]
    draws = [draw_key(job(each), 0) for each in (None, AugMixing(), AugMixing(jsd=False), AugMixing(severity=1.0))]
    assert len(set(keys)) == len(set(draws)) == 4
    # A training without augmentation has the description that it had before there were any.
    assert "augmentation" not in described(job(None).config, name_of)
