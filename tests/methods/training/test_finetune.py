"""Linear probe against scikit-learn, and fine-tuning: sources of head and encoder, and the number of steps."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor
from torch.nn import functional as F

import methods.training.finetune
from methods.base import Job, Labelled, Unlabelled
from methods.nets.weights import Architecture, Classifier, Weights, build_encoder
from methods.selfsoup.ingredients import tensors_of
from methods.training.finetune import FineTune, Probe, fine_tune, fine_tunings, linear_probe, probe
from methods.training.loop import reset

SMALL = Architecture(image_size=16, patch_size=8, dim=16, depth=1, heads=2)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def stock_of(seed: int = 0) -> Weights:
    encoder = build_encoder(SMALL)
    reset(encoder, seeded(seed))
    return Weights(SMALL, tensors_of(encoder, "encoder"))


def task(count: int = 50, seed: int = 0) -> Labelled:
    """Noise whose brightness indicates the class."""
    labels = torch.arange(count) % 3
    noise = torch.randint(0, 60, (count, 3, 16, 16), generator=seeded(seed))
    return Labelled((noise + 80 * labels[:, None, None, None]).to(torch.uint8), f"task {seed}", labels, 3)


def cloud(count: int = 200, dim: int = 6) -> tuple[Tensor, Tensor]:
    labels = torch.arange(count) % 4
    centres = torch.randn(4, dim, generator=seeded(1))
    scales = torch.logspace(-2, 2, dim)
    return (centres[labels] + torch.randn(count, dim, generator=seeded(2))) * scales + 7, labels


@pytest.mark.parametrize("l2", [1e-1, 1e-3])
def test_probe_equals_scikit_learn_on_standardised_features(l2: float) -> None:
    features, labels = cloud()
    weight, bias = linear_probe(features, labels, 4, l2=l2)
    raw = features.double().numpy()
    standard = (raw - raw.mean(0)) / (raw.std(0) + 1e-5)
    theirs = LogisticRegression(C=1 / (l2 * len(raw)), tol=1e-10, max_iter=5000).fit(standard, labels.numpy())
    ours = torch.softmax(F.linear(features, weight, bias), 1).numpy()
    assert np.allclose(ours, theirs.predict_proba(standard), atol=2e-4)
    assert weight.shape == (4, 6)
    assert bias.shape == (4,)
    assert weight.dtype == torch.float32


def test_folding_leaves_logits_equal() -> None:
    features, labels = cloud()
    raw = features.double()
    mean, deviation = raw.mean(0), raw.std(0, unbiased=False) + 1e-5
    weight, bias = linear_probe(features, labels, 4)
    standard_weight, standard_bias = linear_probe((raw - mean) / deviation, labels, 4)
    inside = F.linear((raw - mean) / deviation, standard_weight.double(), standard_bias.double())
    outside = F.linear(raw, weight.double(), bias.double())
    # The second standardisation divides by 1 + 1e-5 instead of 1.
    assert torch.allclose(outside, inside, atol=1e-3)


def test_a_constant_feature_is_harmless() -> None:
    features, labels = cloud()
    extended = torch.cat([features, torch.full((len(features), 1), 0.3)], 1)
    weight, bias = linear_probe(features, labels, 4)
    longer, same_bias = linear_probe(extended, labels, 4)
    assert torch.isfinite(longer).all()
    assert torch.allclose(F.linear(extended, longer, same_bias), F.linear(features, weight, bias), atol=1e-3)


def test_probe_needs_a_penalty() -> None:
    with pytest.raises(ValueError, match="l2"):
        linear_probe(*cloud(), 4, l2=0.0)


def test_probe_job_keeps_the_encoder_and_adds_a_head() -> None:
    stock, data = stock_of(), task()
    result = probe([stock], data, Probe(), seeded())
    assert all(torch.equal(tensor, result.tensors[name]) for name, tensor in stock.tensors.items())
    assert set(result.tensors) == set(stock.tensors) | {"head.weight", "head.bias"}
    model = Classifier.of(result).eval()
    with torch.no_grad():
        features = model.features(data.images / 255)
        assert (model(data.images / 255).argmax(1) == data.labels).float().mean() > 0.9
    weight, bias = linear_probe(features, data.labels, 3)
    assert torch.allclose(weight, result.tensors["head.weight"], rtol=1e-3, atol=1e-4)
    assert torch.allclose(bias, result.tensors["head.bias"], rtol=1e-3, atol=1e-3)


def test_probe_leaves_the_decoder_behind() -> None:
    stock = Weights(SMALL, dict(stock_of().tensors) | {"decoder.pred.bias": torch.zeros(3)})
    assert not probe([stock], task(), Probe(), seeded()).part("decoder")


def test_the_head_is_the_stock_s_and_the_encoder_the_ingredient_s() -> None:
    stock, ingredient, data = stock_of(0), stock_of(1), task()
    still = FineTune(epochs=1, lr=0.0)
    head = probe([stock], data, Probe(still.probe_l2), seeded())
    for source in (stock, head):
        tuned = fine_tune([ingredient, source], data, still, seeded())
        assert set(tuned.tensors) == set(head.tensors)
        for name, tensor in tuned.tensors.items():
            expected = head if name.startswith("head.") else ingredient
            assert torch.equal(tensor, expected.tensors[name]), name
    alone = fine_tune([ingredient], data, still, seeded())
    own = probe([ingredient], data, Probe(still.probe_l2), seeded())
    assert alone.digest == own.digest
    assert alone.digest != tuned.digest


def test_fine_tuning_learns_and_trains_the_whole_network() -> None:
    stock, data = stock_of(), task(90)
    # A head of zeros, so that what is learnt is learnt here.
    blank = Weights(SMALL, dict(stock.tensors) | {"head.weight": torch.zeros(3, 16), "head.bias": torch.zeros(3)})
    tuned = fine_tune([stock, blank], data, FineTune(epochs=12, batch_size=16, lr=3e-3), seeded())
    fresh = task(60, seed=9)
    with torch.no_grad():
        predicted = Classifier.of(tuned).eval()(fresh.images / 255).argmax(1)
    assert (predicted == fresh.labels).float().mean() > 0.9
    for name, tensor in stock.tensors.items():
        assert torch.equal(tensor, tuned.tensors[name]) == name.endswith("pos_embed"), name
    assert stock.digest == stock_of().digest


@pytest.mark.parametrize(
    "change",
    [
        {"epochs": 1},
        {"batch_size": 7},
        {"lr": 2e-3},
        {"weight_decay": 0.5},
        {"warmup": 1.0},
        {"probe_l2": 0.5},
        {"label_smoothing": 0.1},
        {"area": 0.5},
        {"flip": False},
        {"three_augment": True},
        {"jitter": 0.2},
    ],
)
def test_every_option_counts(change: dict[str, Any]) -> None:
    config = FineTune(epochs=2, batch_size=16)
    one, other = (fine_tune([stock_of()], task(), each, seeded()) for each in (config, replace(config, **change)))
    assert one.digest != other.digest


def test_half_precision_is_asked_for_on_a_gpu_only() -> None:
    with pytest.raises(ValueError, match="bf16"):
        fine_tune([stock_of()], task(), FineTune(bf16=True), seeded())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_gives_the_head_that_a_cpu_gives() -> None:
    generator = torch.Generator("cuda").manual_seed(0)
    ours, reference = (probe([stock_of()], task(), Probe(), each) for each in (generator, seeded()))
    for name, tensor in reference.tensors.items():
        assert torch.allclose(ours.tensors[name], tensor, rtol=1e-2, atol=1e-3), name
    tuned = fine_tune([stock_of(), ours], task(), FineTune(epochs=1), generator)
    assert all(tensor.device.type == "cpu" and tensor.isfinite().all() for tensor in tuned.tensors.values())


def test_the_seed_decides_everything() -> None:
    config = FineTune(epochs=1, batch_size=16)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        one = fine_tune([stock_of()], task(), config, seeded(4))
        torch.manual_seed(2)
        again = fine_tune([stock_of()], task(), config, seeded(4))
    assert one.digest == again.digest
    assert one.digest != fine_tune([stock_of()], task(), config, seeded(5)).digest


@pytest.mark.parametrize(("count", "batch_size", "steps"), [(50, 16, 3 * 4), (48, 16, 3 * 3), (10, 128, 3)])
def test_an_epoch_sees_every_image(count: int, batch_size: int, steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    batches: list[tuple[Tensor, Tensor]] = []

    def watch(loss: Any, stream: Any, groups: Any, *, steps: int, **rest: Any) -> None:
        batches.extend(next(stream) for _ in range(steps))

    monkeypatch.setattr(methods.training.finetune, "train", watch)
    data = task(count)
    plain = FineTune(epochs=3, batch_size=batch_size, area=1.0, flip=False)
    fine_tune([stock_of()], data, plain, seeded())
    assert len(batches) == steps
    brightness = data.images.float().mean((1, 2, 3)) / 255
    for epoch in range(3):
        part = batches[epoch * steps // 3 : (epoch + 1) * steps // 3]
        images, labels = (torch.cat(each) for each in zip(*part, strict=True))
        nearest = (images.mean((1, 2, 3))[:, None] - brightness).abs().argmin(1)
        assert torch.equal(data.labels[nearest], labels)
        assert len(images) == count


def test_label_smoothing_pulls_confidence_down() -> None:
    data, stock = task(), stock_of()

    def confidence(smoothing: float) -> float:
        config = FineTune(epochs=20, batch_size=50, lr=1e-2, label_smoothing=smoothing)
        tuned = Classifier.of(fine_tune([stock], data, config, seeded())).eval()
        with torch.no_grad():
            logits = tuned(data.images / 255)
        return float(logits.softmax(1).amax(1).mean())

    assert confidence(0.5) < 0.8 < 0.9 < confidence(0.0)


def test_only_labelled_images_are_learnt_from() -> None:
    data = task()
    pool: Any = data.without_labels()
    for function, config in ((fine_tune, FineTune(epochs=1)), (probe, Probe())):
        for wrong in (pool, None):
            with pytest.raises(TypeError, match="labelled"):
                function([stock_of()], wrong, config, seeded())  # type: ignore[arg-type]


def test_a_head_for_other_classes_is_refused() -> None:
    head = probe([stock_of()], task(), Probe(), seeded())
    four = Labelled(task().images, "four", torch.arange(50) % 4, 4)
    with pytest.raises(ValueError, match="3 classes and the data has 4"):
        fine_tune([stock_of(), head], four, FineTune(epochs=1), seeded())


def test_images_of_another_size_are_refused() -> None:
    big = Labelled(torch.zeros(4, 3, 24, 24, dtype=torch.uint8), "big", torch.zeros(4, dtype=torch.int64), 1)
    head = Weights(SMALL, {"head.weight": torch.zeros(1, 16), "head.bias": torch.zeros(1)})
    with pytest.raises(ValueError, match="24 x 24"):
        fine_tune([stock_of(), head], big, FineTune(epochs=1), seeded())
    with pytest.raises(ValueError, match="24 x 24"):
        probe([stock_of()], big, Probe(), seeded())


@dataclass(frozen=True)
class More(FineTune):
    """Options of a recipe that fine-tunes."""

    steps: int = 7


def test_fine_tunings_share_one_head_and_nothing_of_the_recipe_but_fine_tuning() -> None:
    stock, data = stock_of(), task()
    trained = Job(probe, Probe(), (stock,), data, "an ingredient")
    jobs = fine_tunings([trained, stock, stock], stock, data, More(lr=0.1, epochs=5), (1.0, 0.5, 0.5))
    assert [job.inputs[0] for job in jobs] == [trained, stock, stock]
    assert len({id(job.inputs[1]) for job in jobs}) == 1
    head = jobs[0].inputs[1]
    assert isinstance(head, Job)
    assert head.inputs == (stock,)
    assert [job.config.lr for job in jobs] == [0.1, 0.05, 0.05]
    assert jobs[0].config == fine_tunings([trained], stock, data, FineTune(lr=0.1, epochs=5), (1.0,))[0].config
    # Repeats of the same fine-tuning must not be taken for one.
    assert jobs[1].config != jobs[2].config
    assert all(job.data is data for job in jobs)
    with pytest.raises(ValueError, match="shorter"):
        fine_tunings([trained, stock], stock, data, FineTune(), (1.0,))


def test_jobs_run() -> None:
    stock, data = stock_of(), task()
    job = fine_tunings([stock], stock, data, FineTune(epochs=1), (1.0,))[0]
    head = job.inputs[1]
    assert isinstance(head, Job)
    assert isinstance(data, Unlabelled)
    weights = head.function([stock], head.data, head.config, seeded())
    assert "head.bias" in job.function([stock, weights], job.data, job.config, seeded()).tensors
