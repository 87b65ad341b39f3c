"""Averaging weights: exactness, what is refused, and that it is weights, not predictions, that are averaged."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import permutations

import pytest
import torch
from torch import Tensor, nn

from methods.nets.weights import Architecture, Classifier, Weights, build_encoder
from methods.selfsoup.ingredients import tensors_of
from methods.soups.soup import Interpolation, interpolate, uniform_soup
from methods.training.loop import reset

SMALL = Architecture(image_size=16, patch_size=8, dim=16, depth=1, heads=2)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def model_of(seed: int, spread: float = 1.0) -> Weights:
    generator = seeded(seed)
    tensors = {
        "encoder.a": torch.randn(50, 7, generator=generator)
        * 10.0 ** torch.randint(-3, 3, (50, 7), generator=generator),
        "encoder.empty": torch.zeros(0, 3),
        "encoder.scalar": torch.randn((), generator=generator),
        "head.weight": spread * torch.randn(3, 4, generator=generator, dtype=torch.float64),
    }
    return Weights(SMALL, tensors)


def bits(weights: Weights) -> str:
    return weights.digest


@pytest.mark.parametrize("count", [1, 2, 3, 7, 33])
def test_identical_models_come_back_bit_by_bit(count: int) -> None:
    model = model_of(0)
    assert bits(uniform_soup([model] * count)) == bits(model)


def test_order_does_not_matter_to_a_bit() -> None:
    models = [model_of(seed) for seed in range(4)]
    single = [Weights(SMALL, {k: v for k, v in m.tensors.items() if v.dtype == torch.float32}) for m in models]
    assert len({bits(uniform_soup(order)) for order in permutations(single)}) == 1


def test_soup_is_the_mean_rounded_once() -> None:
    models = [model_of(seed) for seed in range(7)]
    soup = uniform_soup(models)
    for name in ("encoder.a", "encoder.scalar"):
        for index in range(max(1, soup.tensors[name].numel())):
            column = [float(model.tensors[name].flatten()[index]) for model in models]
            exact = torch.tensor(math.fsum(column) / 7, dtype=torch.float64).float()
            assert soup.tensors[name].flatten()[index] == exact
    assert soup.tensors["head.weight"].dtype == torch.float64
    assert soup.tensors["encoder.empty"].shape == (0, 3)


def test_soup_of_soups_is_the_soup() -> None:
    models = [model_of(seed) for seed in range(4)]
    halves = [uniform_soup(models[:2]), uniform_soup(models[2:])]
    for name, tensor in uniform_soup(halves).tensors.items():
        assert torch.allclose(tensor, uniform_soup(models).tensors[name], rtol=1e-5, atol=1e-6)


def test_ingredients_are_left_alone() -> None:
    models = [with_tensor("encoder.index", torch.tensor([1, 2]), seed) for seed in range(2)]
    before = [{name: tensor.clone() for name, tensor in model.tensors.items()} for model in models]
    for soup in (uniform_soup(models), uniform_soup(models[:1])):
        for tensor in soup.tensors.values():
            tensor.add_(1)
    for model, old in zip(models, before, strict=True):
        assert all(torch.equal(model.tensors[name], old[name]) for name in old)


def with_tensor(name: str, tensor: Tensor, seed: int = 0) -> Weights:
    return Weights(SMALL, dict(model_of(seed).tensors) | {name: tensor})


def test_counters_take_the_largest_and_other_integers_must_agree() -> None:
    name = "encoder.bn.num_batches_tracked"
    soup = uniform_soup([with_tensor(name, torch.tensor(count), count) for count in (3, 9, 5)])
    assert soup.tensors[name].item() == 9
    assert soup.tensors[name].dtype == torch.int64
    same = uniform_soup([with_tensor("encoder.index", torch.tensor([1, 2]), seed) for seed in (0, 1)])
    assert same.tensors["encoder.index"].tolist() == [1, 2]
    for values in ([1, 2], [True, False]):
        differ = [with_tensor("encoder.index", torch.tensor(each), 0) for each in (values, values[::-1])]
        with pytest.raises(ValueError, match=r"encoder\.index.* 0 and 1"):
            uniform_soup(differ)


@pytest.mark.parametrize(
    ("name", "tensor", "sentence"),
    [
        ("encoder.a", torch.zeros(7, 50), r"encoder\.a of ingredient 1 is .*\(7, 50\)"),
        ("encoder.a", torch.zeros(50, 7, dtype=torch.float64), r"encoder\.a of ingredient 1 is torch\.float64"),
        ("encoder.a", torch.full((50, 7), math.nan), r"encoder\.a of ingredient 1 is not finite"),
        ("encoder.a", torch.full((50, 7), -math.inf), r"encoder\.a of ingredient 1 is not finite"),
        ("module.encoder.a", torch.zeros(3), r"ingredient 1 lacks \[\] and has \['module\.encoder\.a'\]"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(name: str, tensor: Tensor, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        uniform_soup([model_of(0), with_tensor(name, tensor)])


def test_missing_tensors_other_architectures_and_nothing_are_refused() -> None:
    model = model_of(0)
    fewer = Weights(SMALL, {name: tensor for name, tensor in model.tensors.items() if name != "head.weight"})
    with pytest.raises(ValueError, match=r"ingredient 1 lacks \['head\.weight'\]"):
        uniform_soup([model, fewer])
    with pytest.raises(ValueError, match="architecture"):
        uniform_soup([model, Weights(replace(SMALL, pool="token"), model.tensors)])
    with pytest.raises(ValueError, match="at least one"):
        uniform_soup([])


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_half_precision_storage_is_refused(kind: torch.dtype) -> None:
    halves = [with_tensor("encoder.a", model_of(seed).tensors["encoder.a"].to(kind)) for seed in (0, 1)]
    with pytest.raises(ValueError, match="store float32"):
        uniform_soup(halves)


def test_the_first_ingredient_is_looked_at_too() -> None:
    with pytest.raises(ValueError, match="ingredient 0 is not finite"):
        uniform_soup([with_tensor("encoder.a", torch.full((50, 7), math.nan)), model_of(0)])


def test_interpolation_reaches_both_ends_and_meets_the_soup() -> None:
    models = [model_of(0), model_of(1)]
    for position, expected in ((0.0, models[0]), (1.0, models[1]), (0.5, uniform_soup(models))):
        between = interpolate(models, None, Interpolation(position), None)
        assert all(torch.equal(tensor, expected.tensors[name]) for name, tensor in between.tensors.items())
    quarter = interpolate(models, None, Interpolation(0.25), None).tensors["encoder.a"]
    assert torch.allclose(quarter, 0.75 * models[0].tensors["encoder.a"] + 0.25 * models[1].tensors["encoder.a"])
    with pytest.raises(ValueError, match="two models, not 3"):
        interpolate([*models, models[0]], None, Interpolation(), None)


def encoder_of(seed: int) -> dict[str, Tensor]:
    encoder = build_encoder(SMALL)
    reset(encoder, seeded(seed))
    return tensors_of(encoder, "encoder")


def test_linear_models_commute_with_averaging() -> None:
    # Classifiers that differ in their last, linear layer alone: logits of the soup are the mean of the logits.
    images = torch.rand(9, 3, 16, 16, generator=seeded())
    heads = [
        {"head.weight": torch.randn(5, 16, generator=seeded(seed)), "head.bias": torch.randn(5, generator=seeded(seed))}
        for seed in range(3)
    ]
    models = [Weights(SMALL, encoder_of(0) | head) for head in heads]
    with torch.no_grad():
        mean = torch.stack([Classifier.of(model).eval()(images) for model in models]).mean(0)
        soup = Classifier.of(uniform_soup(models)).eval()(images)
    assert torch.allclose(soup, mean, atol=1e-5)


def test_averaging_with_a_permuted_copy_of_itself_hurts() -> None:
    """Equal functions, other weights: an ensemble of predictions would not notice, a soup must."""
    points = 4 * torch.rand(500, 2, generator=seeded()) - 2
    labels = (points.floor().sum(1) % 2).long()  # a checkerboard
    net = nn.Sequential(nn.Linear(2, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU(), nn.Linear(48, 2))
    reset(net, seeded())
    optimiser = torch.optim.Adam(net.parameters(), lr=0.01)
    for _ in range(400):
        optimiser.zero_grad()
        nn.functional.cross_entropy(net(points), labels).backward()  # type: ignore[no-untyped-call]
        optimiser.step()

    def logits(weights: Weights) -> Tensor:
        with torch.no_grad():
            out: Tensor = torch.func.functional_call(net, weights.part("encoder"), points)
        return out

    def accuracy(weights: Weights) -> float:
        return float((logits(weights).argmax(1) == labels).float().mean())

    model = Weights(SMALL, tensors_of(net, "encoder"))
    first, second = torch.randperm(48, generator=seeded(1)), torch.randperm(48, generator=seeded(2))
    tensors = dict(model.tensors)
    for layer, order in (("0", first), ("2", second)):
        for name in (f"encoder.{layer}.weight", f"encoder.{layer}.bias"):
            tensors[name] = tensors[name][order]
    tensors["encoder.2.weight"] = tensors["encoder.2.weight"][:, first]
    tensors["encoder.4.weight"] = tensors["encoder.4.weight"][:, second]
    copy = Weights(SMALL, tensors)

    assert torch.allclose(logits(copy), logits(model), atol=1e-3)
    assert accuracy(model) > 0.95
    assert accuracy(uniform_soup([model, copy])) < 0.75
