"""Recipes on a network with BatchNorm: its statistics are measured again on clean train images, and on no others."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from methods.adapters.tent import Tent
from methods.base import Job, Labelled, Recipe, Unlabelled
from methods.nets.timm_encoders import TimmArchitecture
from methods.nets.weights import Architecture, Classifier, Ensemble, Weights, ready
from methods.recipes.supervised_soup import SupervisedSoup
from methods.selfsoup.ingredients import tensors_of
from methods.selfsoup.mixing_options import CONNECTIVITY, MIXES
from methods.selfsoup.recipe import CleanSelfSoup, ContinuedSoup, SelfSoup, SingleIngredient
from methods.soups.bn_recalibration import Remeasure, remeasured
from methods.soups.soup import Greedy, Line, accuracy, connectivity, greedy_soup, uniform_soup

CNN = TimmArchitecture("test_resnet", 32, (0.5, 0.4, 0.3), (0.3, 0.25, 0.2), 32)
VIT = Architecture(image_size=32, patch_size=8, dim=16, depth=1, heads=2, decoder_dim=8, decoder_heads=2)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def stock_of(shape: TimmArchitecture | Architecture) -> Weights:
    return Weights(shape, tensors_of(shape.initial(seeded()), "encoder"))


def pixels(count: int, seed: int, dark: float = 1.0) -> Tensor:
    colours = 160 * torch.rand(count, 3, 1, 1, generator=seeded(seed))
    return (dark * (colours + 90 * torch.rand(count, 3, 32, 32, generator=seeded(seed + 1)))).to(torch.uint8)


def labelled(count: int = 40) -> Labelled:
    images = pixels(count, 0)
    return Labelled(images, "source", images.float().mean((2, 3)).argmax(1), 3)


POOL = Unlabelled(pixels(24, 10, dark=0.2), "pool")
QUICK = {"ingredients": ("mocov3", "lejepa"), "steps": 2, "batch": 8, "epochs": 1, "batch_size": 10}


def plan(kind: type[Recipe], shape: TimmArchitecture | Architecture = CNN, **options: Any) -> dict[str, Job]:
    given = QUICK if kind is not SupervisedSoup else {"epochs": 1, "batch_size": 10}
    return kind(kind.Config(**(given | options))).plan(stock_of(shape), labelled(), POOL)  # type: ignore[call-arg]


def cook(job: Job, done: dict[int, Weights]) -> Weights:
    if id(job) not in done:
        inputs = [part if isinstance(part, Weights) else cook(part, done) for part in job.inputs]
        done[id(job)] = job.function(inputs, job.data, job.config, seeded())
    return done[id(job)]


def every_job(job: Job | Weights) -> list[Job]:
    return [job, *(j for part in job.inputs for j in every_job(part))] if isinstance(job, Job) else []


def statistics(weights: Weights, images: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """What goes into each BatchNorm while all normalise with the batch: mean and unbiased variance, by layer."""
    model = Classifier.of(weights).train()
    seen: dict[str, tuple[Tensor, Tensor]] = {}

    def note(name: str) -> Any:
        def hook(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            seen[name] = inputs[0].mean((0, 2, 3)), inputs[0].var((0, 2, 3))

        return hook

    for name, layer in model.named_modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.register_forward_pre_hook(note(name))
    with torch.no_grad():
        model(images.float() / 255)
    return seen


def assert_measured(weights: Weights, images: Tensor) -> None:
    found = statistics(weights, images)
    assert len(found) > 3
    for name, (mean, variance) in found.items():
        torch.testing.assert_close(weights.tensors[f"{name}.running_mean"], mean, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(weights.tensors[f"{name}.running_var"], variance, rtol=1e-4, atol=1e-5)
        assert weights.tensors[f"{name}.num_batches_tracked"].item() == 1


@pytest.mark.parametrize("kind", [SelfSoup, CleanSelfSoup, ContinuedSoup, SupervisedSoup])
def test_a_soup_has_the_statistics_of_clean_train_images(kind: type[Recipe]) -> None:
    done: dict[int, Weights] = {}
    parts = plan(kind)
    soup = cook(parts["soup"], done)
    assert_measured(soup, labelled().images[:])
    measuring = parts["soup"]
    assert type(measuring.data) is Unlabelled
    assert measuring.data.digest == "unlabelled:source"
    (mixed,) = (done[id(job)] for job in every_job(measuring) if job.function is uniform_soup)
    for name, tensor in soup.tensors.items():
        if "running" not in name and "tracked" not in name:
            assert torch.equal(tensor, mixed.tensors[name])


def test_the_order_of_encoders_first_measures_before_what_follows() -> None:
    done: dict[int, Weights] = {}
    soup = cook(plan(SelfSoup, order="no_tune")["soup"], done)
    assert_measured(soup, labelled().images[:])
    tuned = plan(SelfSoup, order="soup_then_tune")["soup"]
    assert isinstance(tuned.inputs[0], Job)
    assert tuned.inputs[0].function is remeasured


@pytest.mark.parametrize("order", ["tune_then_soup", "soup_then_tune"])
def test_every_way_of_mixing_works_on_a_cnn(order: str) -> None:
    kind = "classifiers" if order == "tune_then_soup" else "encoders"
    quick = {
        "learned": ":epochs=1:batch_size=4",
        "seasoned": ":epochs=1:batch_size=8",
        "supervised_seasoned": ":draws=3",
        "shares": ":2:1",
    }
    mixes = tuple(name + quick.get(name, "") for name, mix in MIXES.items() if mix.of in ("both", kind))
    parts = plan(SelfSoup, mixes=mixes, holdout=0.2, order=order)
    done: dict[int, Weights] = {}
    images = torch.rand(3, 3, 32, 32, generator=seeded())
    for name, job in parts.items():
        weights = cook(job, done)
        if name == CONNECTIVITY:
            continue
        with torch.no_grad():
            assert torch.isfinite(ready(weights)(images)).all(), name
        again = job.function is remeasured
        if order == "tune_then_soup":
            assert again == (name.startswith("soup") and not name.startswith(("soup:best", "soup:ensemble")))


def test_networks_without_batch_norm_are_not_measured() -> None:
    parts = plan(SelfSoup, VIT, ingredients=("mocov3", "mae"))
    assert not [job for part in parts.values() for job in every_job(part) if job.function is remeasured]
    weights = stock_of(VIT)
    assert remeasured([weights], POOL, Remeasure(), seeded()) is weights
    trainings = [job for job in every_job(parts["soup"]) if job.resumable]
    assert all(job.shared for job in trainings)
    # BatchNorm would see a part of each batch in each of several processes.
    parts = plan(SelfSoup, lockstep=True)
    trainings = [job for job in every_job(parts["soup"]) if job.resumable]
    assert trainings
    assert not any(job.shared for job in trainings)


def test_equal_batches_in_an_order_of_their_own() -> None:
    weights = Weights(CNN, {**stock_of(CNN).tensors, "head.weight": torch.ones(3, 96), "head.bias": torch.zeros(3)})
    data = labelled(45)
    one = remeasured([weights], data, Remeasure(batch_size=20), seeded())
    assert int(one.tensors["encoder.bn1.num_batches_tracked"]) == 2
    same = remeasured([weights], data, Remeasure(batch_size=20), seeded())
    other = remeasured([weights], data, Remeasure(batch_size=20), seeded(1))
    assert one.digest == same.digest != other.digest
    some = remeasured([weights], data, Remeasure(images=20, batch_size=10), seeded())
    assert int(some.tensors["encoder.bn1.num_batches_tracked"]) == 2
    for wrong, sentence in (
        (Unlabelled(pixels(1, 0), "x"), "single image"),
        (Unlabelled(pixels(4, 0)[..., :8], "x"), "32"),
    ):
        with pytest.raises(ValueError, match=sentence):
            remeasured([weights], wrong, Remeasure(), seeded())


def stretched(weights: Weights, by: float) -> Weights:
    """The same function: what enters a BatchNorm is multiplied, and so is what that expects."""
    tensors = dict(weights.tensors)
    for name, factor in (("conv1.6.weight", by), ("bn1.running_mean", by), ("bn1.running_var", by**2)):
        tensors[f"encoder.{name}"] = tensors[f"encoder.{name}"] * factor
    return Weights(weights.architecture, tensors)


def test_mixtures_are_judged_with_statistics_of_their_own() -> None:
    """Stretched by 1 and by 5, a network stays the same; so does their mean, stretched by 3, but its variance is 9
    times the first one's and not (1 + 25) / 2.
    """
    generator = seeded(3)
    base = stock_of(CNN)
    classifier = Classifier(CNN, 3)
    classifier.encoder.load_state_dict(base.part("encoder"))
    with torch.no_grad():
        classifier.head.weight.normal_(generator=generator)
        classifier.head.bias.zero_()
    data = labelled(60)
    one = remeasured([classifier.weights()], data, Remeasure(), seeded())
    model = Classifier.of(one).eval()
    with torch.no_grad():
        labels = model(data.images[:].float() / 255).argmax(1)
    data = Labelled(data.images, "own labels", labels, 3)
    other = stretched(one, 5.0)
    cpu = torch.device("cpu")
    assert accuracy(one, data, cpu) == accuracy(other, data, cpu) == 1
    averaged = uniform_soup([one, other])
    assert accuracy(averaged, data, cpu) < 1
    assert accuracy(remeasured([averaged], data, Remeasure(), seeded()), data, cpu) == 1
    line = connectivity([one, other], data, Line(5), seeded())
    assert torch.equal(line.tensors["accuracy"], torch.ones(1, 5, dtype=torch.float64))
    chosen = greedy_soup([one, other], data, Greedy(), seeded())
    assert chosen.digest == averaged.digest


def test_the_single_ingredient_of_a_cnn_is_the_first_of_the_soup() -> None:
    parts = plan(SingleIngredient)
    job = next(job for job in every_job(parts[""]) if job.function.__name__ == "inter_train")
    assert type(job.config.objective).__module__.endswith("mocov3")
    assert job.config.steps > 2
    with pytest.raises(ValueError, match="take the objectives mocov3, mmcr or lejepa"):
        plan(SelfSoup, ingredients=("mae",))


def test_tent_and_ensembles_run_on_what_was_cooked() -> None:
    done: dict[int, Weights] = {}
    parts = plan(SelfSoup, mixes=("uniform", "ensemble"))
    images = torch.rand(8, 3, 32, 32, generator=seeded())
    soup = ready(cook(parts["soup"], done))
    assert isinstance(soup, Classifier)
    with torch.no_grad():
        soup.head.weight.mul_(0.01)  # no class is certain yet
    adapter = Tent(soup, Tent.Config(lr=0.1, optimizer="sgd"))
    adapter.prepare()
    first = adapter.predict(images)
    assert not torch.equal(first, adapter.predict(images))
    together = ready(cook(parts["soup:ensemble"], done))
    assert isinstance(together, Ensemble)
    assert together.passes == 2
    with torch.no_grad():
        assert torch.isfinite(together(images)).all()


def test_a_network_of_timm_is_what_the_cooked_tensors_belong_to() -> None:
    done: dict[int, Weights] = {}
    soup = cook(plan(SupervisedSoup)["soup"], done)
    network = timm.create_model("test_resnet", num_classes=3).eval()
    encoder = soup.part("encoder")
    network.load_state_dict({**encoder, "fc.weight": soup.tensors["head.weight"], "fc.bias": soup.tensors["head.bias"]})
    images = torch.rand(4, 3, 32, 32, generator=seeded())
    normal = (images - torch.tensor(CNN.mean).view(3, 1, 1)) / torch.tensor(CNN.std).view(3, 1, 1)
    with torch.no_grad():
        torch.testing.assert_close(ready(soup)(images), network(normal), rtol=1e-4, atol=1e-5)
