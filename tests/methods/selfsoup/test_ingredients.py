"""The training loop, inter-training and pre-training: schedules in closed form, what may be seen, what comes out."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, replace
from itertools import islice, pairwise, repeat
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from methods.base import Labelled, Unlabelled
from methods.nets.weights import Architecture, Weights, build_encoder
from methods.selfsoup.ingredients import Ingredient, inter_train
from methods.selfsoup.objectives import OBJECTIVES, base, mae, mmcr, mocov3
from methods.selfsoup.pretraining import Pretraining, pretrain
from methods.training.loop import Batches, ParameterGroup, schedule, train
from methods.views.ssl_views import Views

SMALL = Architecture(image_size=16, patch_size=8, dim=16, depth=1, heads=2, decoder_dim=8, decoder_heads=2)
CPU = torch.device("cpu")


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pool_of(count: int = 24, size: int = 16) -> Unlabelled:
    # Pictures of one colour and a little noise: a masked autoencoder learns them quickly.
    colours = 255 * torch.rand(count, 3, 1, 1, generator=seeded(5))
    noise = 20 * torch.rand(count, 3, size, size, generator=seeded(6))
    return Unlabelled((0.9 * colours + noise).to(torch.uint8), "colours")


@pytest.fixture(scope="module")
def pool() -> Unlabelled:
    return pool_of()


@pytest.fixture(scope="module")
def stock(pool: Unlabelled) -> Weights:
    return pretrain((), pool, Pretraining(SMALL, steps=3, batch_size=8), seeded())


def narrow(name: str) -> Any:
    """An objective; heads of thousands of features, as the official ones have, take seconds."""
    return OBJECTIVES[name].Config(**({"hidden": 32, "out": 16} if name.endswith("official") else {}))


def same(one: Weights, other: Weights) -> bool:
    return one.digest == other.digest


# The loop. AdamW under a constant gradient moves each parameter by exactly the learning rate at every step (Kingma and
# Ba 2015, section 2.1), so a linear loss shows the schedule from outside.


def path_of(groups: list[tuple[float, float]], steps: int, weight_decay: float = 0.0) -> list[Tensor]:
    """Positions of one parameter a group before each step and after the last, under a loss of slope one."""
    parameters = [nn.Parameter(torch.ones(1, dtype=torch.float64)) for _ in groups]
    seen: list[Tensor] = []

    def loss(_: None) -> Tensor:
        seen.append(torch.cat([p.detach().clone() for p in parameters]))
        return torch.cat(list(parameters)).sum()

    train(
        loss,
        repeat(None),
        [ParameterGroup([p], lr, warmup) for p, (lr, warmup) in zip(parameters, groups, strict=True)],
        steps=steps,
        weight_decay=weight_decay,
    )
    return [*seen, torch.cat([p.detach() for p in parameters])]


def rates_of(path: list[Tensor]) -> Tensor:
    return torch.stack([before - after for before, after in pairwise(path)])


def test_encoder_and_head_warm_up_apart_then_follow_a_cosine_to_zero() -> None:
    steps, lr, head_lr = 200, 0.01, 0.02
    rates = rates_of(path_of([(lr, 0.1), (head_lr, 0.01)], steps))
    for column, (peak, rise) in enumerate([(lr, 20), (head_lr, 2)]):
        ours = rates[:, column] / peak
        assert float(ours[0]) == pytest.approx(1e-6, rel=1e-3)
        assert float(ours[rise]) == pytest.approx(1, rel=1e-5)
        assert float(ours[rise // 2]) == pytest.approx(0.5, rel=1e-4)
        assert float(ours[rise + (steps - rise) // 2]) == pytest.approx(0.5, rel=1e-4)
        assert float(ours[-1]) < 1e-4
        assert int(ours.argmax()) == rise


@pytest.mark.parametrize(("steps", "warmup"), [(1000, 0.1), (30, 0.01), (2, 0.1), (1, 0.1), (10, 1.0), (290, 0.1)])
def test_schedule_equals_torch_s_own_schedulers(steps: int, warmup: float) -> None:
    rise = max(1, round(warmup * 1000) * steps // 1000)
    parameter = nn.Parameter(torch.zeros(1))
    optimiser = torch.optim.SGD([parameter], lr=1.0)
    up = torch.optim.lr_scheduler.LinearLR(optimiser, 1e-6, 1.0, rise)
    down = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, max(1, steps - rise))
    both = torch.optim.lr_scheduler.SequentialLR(optimiser, [up, down], [rise])
    theirs = []
    for _ in range(steps):
        theirs.append(optimiser.param_groups[0]["lr"])
        optimiser.step()
        both.step()
    assert schedule(steps, warmup) == pytest.approx(theirs, rel=1e-6, abs=1e-9)


def test_weight_decay_is_decoupled() -> None:
    path = path_of([(0.01, 0.1)], 50, weight_decay=0.5)
    position = 1.0
    for factor, seen in zip(schedule(50, 0.1), path, strict=False):
        assert float(seen) == pytest.approx(position, rel=1e-6)
        position = position * (1 - 0.01 * factor * 0.5) - 0.01 * factor


def test_losses_of_all_steps_come_back() -> None:
    parameter = nn.Parameter(torch.zeros(1))
    losses = train(
        lambda value: parameter.sum() * 0 + value, map(torch.tensor, [3.0, 1.0, 2.0, 9.0]),
        [ParameterGroup([parameter], 1, 0)], steps=3, weight_decay=0,
    )  # fmt: skip
    assert losses.tolist() == [3, 1, 2]


def test_a_stopped_run_is_the_beginning_of_the_whole_run() -> None:
    def losses(stop: int | None) -> list[float]:
        parameter = nn.Parameter(torch.ones(1))
        group = [ParameterGroup([parameter], 0.1, 0.1)]
        return train(
            lambda _: parameter.square().sum(), repeat(None), group, steps=40, weight_decay=0, stop=stop
        ).tolist()  # fmt: skip

    assert len(losses(None)) == len(losses(99)) == 40
    assert losses(7) == losses(None)[:7]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("step", [0, 7, 150])
def test_a_loss_that_is_not_finite_is_named(bad: float, step: int) -> None:
    parameter = nn.Parameter(torch.zeros(1))
    values = (torch.tensor(bad if count == step else 1.0) for count in range(10_000))
    group = [ParameterGroup([parameter], 1, 0)]
    with pytest.raises(FloatingPointError, match=f"step {step};"):
        train(lambda value: parameter.sum() * 0 + value, values, group, steps=step + 500, weight_decay=0)
    # A run that has diverged stops early instead of using up its steps.
    assert 10_000 - len(list(values)) < step + 150


def test_a_loss_that_is_not_finite_is_named_in_a_short_run_too() -> None:
    parameter = nn.Parameter(torch.zeros(1))
    values = map(torch.tensor, [1.0, 1.0, math.nan, 1.0, 1.0])
    with pytest.raises(FloatingPointError, match="step 2;"):
        train(
            lambda value: parameter.sum() * 0 + value,
            values,
            [ParameterGroup([parameter], 1, 0)],
            steps=5,
            weight_decay=0,
        )


def test_a_gradient_that_is_not_finite_is_noticed_at_the_last_step() -> None:
    parameter = nn.Parameter(torch.zeros(1))
    with pytest.raises(FloatingPointError, match="parameters"):
        train(
            lambda _: parameter.sum().sqrt(), repeat(None), [ParameterGroup([parameter], 1, 0)], steps=1, weight_decay=0
        )


def test_impossible_training_is_refused() -> None:
    parameter = nn.Parameter(torch.zeros(1))
    with pytest.raises(ValueError, match="at least one step"):
        train(lambda _: parameter.sum(), repeat(None), [ParameterGroup([parameter], 1, 0)], steps=0, weight_decay=0)
    with pytest.raises(ValueError, match="bf16"):
        train(
            lambda _: parameter.sum(),
            repeat(None),
            [ParameterGroup([parameter], 1, 0)],
            steps=1,
            weight_decay=0,
            bf16=True,
        )


@pytest.mark.parametrize(("drop_last", "a_round"), [(True, [4, 4]), (False, [4, 4, 2])])
def test_batches_visit_every_image_once_an_epoch(drop_last: bool, a_round: list[int]) -> None:
    stream = Batches(10, 4, seeded(), CPU, drop_last=drop_last)
    epochs = [list(islice(stream, len(a_round))) for _ in range(300)]
    counts: Counter[int] = Counter()
    for epoch in epochs:
        assert [len(batch) for batch in epoch] == a_round
        images = torch.cat(epoch).tolist()
        assert len(set(images)) == len(images)
        counts.update(images)
    assert len({tuple(torch.cat(epoch).tolist()) for epoch in epochs}) == 300
    # What is left out differs from epoch to epoch: each image is seen in about sum(a_round) / 10 of them.
    assert all(abs(count - 30 * sum(a_round)) < 35 for count in counts.values())


def test_a_pool_smaller_than_a_batch_is_one_batch() -> None:
    for batch in islice(Batches(3, 8, seeded(), CPU, drop_last=True), 5):
        assert sorted(batch.tolist()) == [0, 1, 2]


# Inter-training.


@pytest.mark.parametrize("name", OBJECTIVES)
def test_an_ingredient_is_the_encoder_alone_and_has_moved(name: str, stock: Weights, pool: Unlabelled) -> None:
    before = Weights(stock.architecture, stock.tensors).digest
    config = Ingredient(narrow(name), steps=3, batch_size=8)
    ingredient = inter_train([stock], pool, config, seeded())
    assert set(ingredient.tensors) == {key for key in stock.tensors if key.startswith("encoder.")}
    assert ingredient.architecture == stock.architecture
    assert Weights(stock.architecture, stock.tensors).digest == before
    for key, tensor in ingredient.tensors.items():
        frozen = key.endswith("pos_embed") or (name == "mocov3_official" and ".patch_embed." in key)
        assert torch.equal(tensor, stock.tensors[key]) == frozen, key


@pytest.mark.parametrize("name", OBJECTIVES)
def test_ingredients_start_bit_by_bit_from_the_stock(name: str, stock: Weights, pool: Unlabelled) -> None:
    config = Ingredient(narrow(name), steps=2, batch_size=8, lr=0.0)
    ingredient = inter_train([stock], pool, config, seeded())
    assert same(ingredient, Weights(SMALL, {f"encoder.{k}": v for k, v in stock.part("encoder").items()}))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_seed_decides_everything(name: str, stock: Weights, pool: Unlabelled) -> None:
    config = Ingredient(narrow(name), steps=2, batch_size=8)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        one = inter_train([stock], pool, config, seeded(4))
        torch.manual_seed(2)
        again = inter_train([stock], pool, config, seeded(4))
    assert same(one, again)
    assert not same(one, inter_train([stock], pool, config, seeded(5)))


@pytest.mark.parametrize(
    "change",
    [
        {"steps": 3},
        {"batch_size": 7},
        {"lr": 2e-3},
        {"weight_decay": 0.5},
        {"warmup": 1.0},
        {"head_warmup": 1.0},
        {"views": Views(jitter=0.0)},
        {"objective": mae.Config(mask_ratio=0.5)},
        {"objective": mae.Config(norm_pix=True)},
    ],
)
def test_every_option_of_an_ingredient_counts(change: dict[str, Any], stock: Weights, pool: Unlabelled) -> None:
    # Two warm-up steps at least, or the peak is never reached.
    config = Ingredient(steps=4, batch_size=8, warmup=0.5, head_warmup=0.5)
    one, other = (inter_train([stock], pool, each, seeded()) for each in (config, replace(config, **change)))
    assert not same(one, other)


@pytest.mark.parametrize(
    "change",
    [
        {"steps": 3},
        {"batch_size": 7},
        {"lr": 1e-2},
        {"weight_decay": 0.5},
        {"betas": (0.5, 0.6)},
        {"warmup": 1.0},
        {"mask_ratio": 0.5},
        {"norm_pix": True},
        {"views": Views(jitter=0.0)},
        {"stop": 1},
    ],
)
def test_every_option_of_pretraining_counts(change: dict[str, Any], pool: Unlabelled) -> None:
    config = Pretraining(SMALL, steps=4, batch_size=8, warmup=0.5)
    one, other = (pretrain((), pool, each, seeded()) for each in (config, replace(config, **change)))
    assert not same(one, other)


def test_half_precision_is_asked_for_on_a_gpu_only(stock: Weights, pool: Unlabelled) -> None:
    with pytest.raises(ValueError, match="bf16"):
        inter_train([stock], pool, Ingredient(bf16=True), seeded())
    with pytest.raises(ValueError, match="bf16"):
        pretrain((), pool, Pretraining(SMALL, bf16=True), seeded())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_training_happens_where_the_generator_is(name: str, bf16: bool, stock: Weights, pool: Unlabelled) -> None:
    config = Ingredient(narrow(name), steps=3, batch_size=8, bf16=bf16)
    for images in (pool.images, pool.images.cuda()):
        ingredient = inter_train([stock], Unlabelled(images, "pool"), config, torch.Generator("cuda").manual_seed(0))
        assert all(tensor.device == CPU and tensor.isfinite().all() for tensor in ingredient.tensors.values())
        assert not torch.equal(ingredient.tensors["encoder.norm.bias"], stock.tensors["encoder.norm.bias"])


@dataclass(frozen=True)
class Spy:
    """An objective from outside the package: inter_train knows only its interface."""

    seen: list[list[Tensor]]
    views: int = 3
    cost: float = 1.0

    def build(self, stock: Weights, generator: torch.Generator) -> base.Objective:
        return SpyObjective(self)


class SpyObjective(base.Objective):
    def __init__(self, spy: Spy) -> None:
        super().__init__()
        self.seen = spy.seen
        self.views = spy.views
        self.scale = nn.Parameter(torch.ones(()))

    def loss(self, encoder: nn.Module, views: Any, generator: torch.Generator) -> Tensor:
        self.seen.append([view.clone() for view in views])
        out: Tensor = encoder(views[0]).square().mean() * self.scale
        return out


def test_an_objective_gets_as_many_normalised_views_as_it_asks_for(stock: Weights, pool: Unlabelled) -> None:
    spy = Spy([])
    plain = Views((1.0, 1.0), (1.0, 1.0), flip=False, three_augment=False, jitter=0.0)
    inter_train([stock], pool, Ingredient(spy, steps=6, batch_size=8, views=plain), seeded())
    assert [len(views) for views in spy.seen] == [3] * 6
    mean, std = torch.tensor(SMALL.mean).view(3, 1, 1), torch.tensor(SMALL.std).view(3, 1, 1)
    expected = (pool.images / 255 - mean) / std
    for epoch in (spy.seen[:3], spy.seen[3:]):
        images = torch.cat([views[0] for views in epoch])
        distance = (images[:, None] - expected).flatten(2).abs().amax(2)
        assert sorted(distance.argmin(1).tolist()) == list(range(24))
        assert distance.amin(1).max() < 1e-4
    assert all(torch.equal(views[0], views[2]) for views in spy.seen)


def test_views_of_one_image_differ(stock: Weights, pool: Unlabelled) -> None:
    spy = Spy([])
    inter_train([stock], pool, Ingredient(spy, steps=1, batch_size=8), seeded())
    first, second, third = spy.seen[0]
    assert not torch.equal(first, second)
    assert not torch.equal(second, third)


def test_labels_are_never_seen(stock: Weights, pool: Unlabelled) -> None:
    labelled = Labelled(pool.images, "labelled", torch.zeros(24, dtype=torch.int64), 2)
    with pytest.raises(TypeError, match="never sees labels"):
        inter_train([stock], labelled, Ingredient(steps=1), seeded())
    with pytest.raises(TypeError, match="never sees labels"):
        pretrain((), labelled, Pretraining(SMALL, steps=1), seeded())
    inter_train([stock], labelled.without_labels(), Ingredient(steps=1), seeded())


@pytest.mark.parametrize("config", [mocov3.Config(), mmcr.Config(), OBJECTIVES["lejepa"].Config()])
def test_one_image_cannot_be_compared_with_others(config: base.Config, stock: Weights, pool: Unlabelled) -> None:
    with pytest.raises(ValueError, match="at least 2"):
        inter_train([stock], pool, Ingredient(config, steps=1, batch_size=1), seeded())
    with pytest.raises(ValueError, match="at least 2"):
        inter_train([stock], Unlabelled(pool.images[:1], "one"), Ingredient(config, steps=1), seeded())
    inter_train([stock], Unlabelled(pool.images[:1], "one"), Ingredient(steps=1), seeded())


def test_images_of_another_size_are_refused(stock: Weights) -> None:
    with pytest.raises(ValueError, match="24 x 24"):
        inter_train([stock], pool_of(4, 24), Ingredient(steps=1), seeded())


def test_divergence_is_an_error_not_a_result(stock: Weights, pool: Unlabelled) -> None:
    with pytest.raises(FloatingPointError):
        inter_train([stock], pool, Ingredient(steps=60, batch_size=8, lr=1e30), seeded())


def test_the_decoder_of_the_stock_is_where_it_left_off(pool: Unlabelled) -> None:
    plain = Views((1.0, 1.0), (1.0, 1.0), flip=False, three_augment=False, jitter=0.0)
    config = Pretraining(SMALL, steps=150, batch_size=24, lr=5e-3, views=plain)
    stock = pretrain((), pool, config, seeded())
    bare = Weights(SMALL, {key: tensor for key, tensor in stock.tensors.items() if key.startswith("encoder.")})

    def first_loss(weights: Weights) -> float:
        spied: list[float] = []

        @dataclass(frozen=True)
        class Loud(mae.Config):
            def build(self, stock: Weights, generator: torch.Generator) -> mae.MaskedAutoencoding:
                objective = super().build(stock, generator)
                loss = objective.loss

                def loud(*arguments: Any) -> Tensor:
                    value = loss(*arguments)
                    spied.append(value.item())
                    return value

                objective.loss = loud  # type: ignore[method-assign, assignment]
                return objective

        inter_train([weights], pool, Ingredient(Loud(), steps=1, batch_size=24, views=plain), seeded(3))
        return spied[0]

    assert first_loss(stock) < 0.5 * first_loss(bare)


# Pre-training.


def test_pretraining_gives_an_encoder_and_a_decoder_and_learns(pool: Unlabelled) -> None:
    config = Pretraining(SMALL, batch_size=24)
    short, long = (pretrain((), pool, replace(config, steps=steps, lr=5e-3), seeded()) for steps in (1, 120))
    assert {key.partition(".")[0] for key in long.tensors} == {"encoder", "decoder"}

    def error(weights: Weights) -> float:
        encoder = build_encoder(SMALL)
        encoder.load_state_dict(weights.part("encoder"))
        objective = mae.Config().build(weights, seeded())
        mean, std = torch.tensor(SMALL.mean).view(3, 1, 1), torch.tensor(SMALL.std).view(3, 1, 1)
        with torch.no_grad():
            return float(objective.loss(encoder, [(pool.images / 255 - mean) / std], seeded(8)))

    assert error(long) < 0.5 * error(short)


def test_pretraining_follows_its_generator_alone(pool: Unlabelled) -> None:
    config = Pretraining(SMALL, steps=1, batch_size=8)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        one = pretrain((), pool, config, seeded(4))
        torch.manual_seed(2)
        again = pretrain((), pool, config, seeded(4))
    assert same(one, again)
    assert not same(one, pretrain((), pool, config, seeded(5)))


def test_initial_weights_are_glorot(pool: Unlabelled) -> None:
    wide = replace(SMALL, dim=64, heads=2)
    stock = pretrain((), pool, Pretraining(wide, steps=1, batch_size=8, lr=0.0), seeded())
    for key, fan_in, fan_out in [
        ("encoder.patch_embed.proj.weight", 192, 64),
        ("encoder.blocks.0.attn.qkv.weight", 64, 192),
        ("encoder.blocks.0.mlp.fc1.weight", 64, 256),
        ("decoder.embed.weight", 64, 8),
    ]:
        bound = math.sqrt(6 / (fan_in + fan_out))
        assert 0.95 * bound < float(stock.tensors[key].abs().max()) <= bound, key
    assert 0.01 < float(stock.tensors["encoder.cls_token"].std()) < 0.03
    assert float(stock.tensors["encoder.norm.weight"].min()) == 1
    assert float(stock.tensors["encoder.blocks.0.mlp.fc1.bias"].abs().max()) == 0


def test_pretraining_starts_from_nothing(stock: Weights, pool: Unlabelled) -> None:
    with pytest.raises(ValueError, match="inter_train"):
        pretrain([stock], pool, Pretraining(SMALL, steps=1), seeded())


def test_parts_of_a_batch_make_the_step_of_the_whole(stock: Weights, pool: Unlabelled) -> None:
    """Two weights trained on a mean of squares: the gradient of equal parts is that of the batch."""
    generator = torch.Generator().manual_seed(0)
    batches = [[torch.rand(12, 2, generator=generator)] for _ in range(6)]
    found = []
    for parts in (1, 3):
        weight = nn.Parameter(torch.ones(2))
        losses = train(
            lambda batch, weight=weight: (batch[0] @ weight).square().mean(),
            batches,
            [ParameterGroup([weight], 0.1, 0.5)],
            steps=6,
            weight_decay=0.1,
            accumulate=parts,
        )
        found.append((weight.detach(), losses))
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="cannot be cut into 5"):
        train(
            lambda batch: batch[0].sum(),
            batches,
            [ParameterGroup([weight], 0.1, 0.5)],
            steps=1,
            weight_decay=0,
            accumulate=5,
        )


def test_what_cannot_be_cut_is_refused(stock: Weights, pool: Unlabelled) -> None:
    official = OBJECTIVES["mocov3_official"].Config(hidden=8, out=8)
    for config, sentence in (
        (Ingredient(official, steps=1, batch_size=8, accumulate=2), "once a step"),
        (Ingredient(mocov3.Config(), steps=1, batch_size=8, accumulate=8), "at least 2, not 1"),
    ):
        with pytest.raises(ValueError, match=sentence):
            inter_train([stock], pool, config, torch.Generator().manual_seed(0))
    moved = inter_train(
        [stock], pool, Ingredient(steps=2, batch_size=8, accumulate=2), torch.Generator().manual_seed(0)
    )
    assert moved.digest != stock.digest


@pytest.mark.slow
def test_compiled_training_is_the_same_training(stock: Weights, pool: Unlabelled) -> None:
    plain, compiled = (
        inter_train([stock], pool, Ingredient(steps=3, batch_size=8, compile=way), torch.Generator().manual_seed(0))
        for way in (None, True)
    )
    assert plain.tensors.keys() == compiled.tensors.keys()
    for name, tensor in plain.tensors.items():
        torch.testing.assert_close(compiled.tensors[name], tensor, rtol=1e-4, atol=1e-4)
