"""Joint training: no ingredient's weights depend on the others, and every image is read once."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from methods.base import Labelled, Unlabelled, Unsupported
from methods.nets.weights import Architecture, Classifier, Weights, build_encoder
from methods.selfsoup.ingredients import Ingredient, view_batches
from methods.selfsoup.joint_training import Member, Together, inter_train_together, member
from methods.selfsoup.objectives import OBJECTIVES
from methods.selfsoup.recipe import SelfSoup
from methods.training.loop import Batches, schedule

SMALL = Architecture(image_size=16, patch_size=8, dim=16, depth=1, heads=2, decoder_dim=8, decoder_heads=2)
STEPS = 5


def stock() -> Weights:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Classifier(SMALL, 3).weights()


def pool() -> Unlabelled:
    generator = torch.Generator().manual_seed(1)
    return Unlabelled(torch.randint(0, 256, (20, 3, 16, 16), generator=generator, dtype=torch.uint8), "pool")


def ingredient(name: str, lr: float = 1e-3) -> Ingredient:
    return Ingredient(OBJECTIVES[name].Config(), steps=STEPS, batch_size=8, lr=lr)


def trained(*ingredients: Ingredient) -> list[Weights]:
    row = inter_train_together([stock()], pool(), Together(ingredients, 8), torch.Generator().manual_seed(3))
    return [member([row], None, Member(number)) for number in range(len(ingredients))]


@pytest.mark.parametrize("other", ["mae", "mocov3", "mmcr", "lejepa"])
def test_an_ingredient_does_not_depend_on_its_neighbours(other: str) -> None:
    alone = trained(ingredient("mae"))[0]
    first, second = trained(ingredient("mae"), ingredient(other, 3e-3))
    assert first.digest == alone.digest
    assert second.digest != first.digest
    assert trained(ingredient("mmcr"), ingredient(other, 3e-3))[1].digest == second.digest


def test_equals_a_loop_of_its_own() -> None:
    """One MAE ingredient by an AdamW that knows of nothing else, on the same images and draws."""
    generator = torch.Generator().manual_seed(3)
    seeds = [int(torch.randint(2**62, (), generator=generator)) for _ in range(3)]
    shared, _, draws = (torch.Generator().manual_seed(seed) for seed in seeds)
    config = ingredient("mae", 2e-3)
    encoder = build_encoder(SMALL)
    encoder.load_state_dict(stock().part("encoder"))
    objective = config.objective.build(stock(), draws)
    trainable = [[p for p in module.parameters() if p.requires_grad] for module in (encoder, objective)]
    optimiser = torch.optim.AdamW([{"params": part} for part in trainable], weight_decay=0.01)
    order = Batches(20, 8, shared, torch.device("cpu"), drop_last=True)
    stream = view_batches(stock(), pool(), config.views, objective, order, draws)
    rates = [schedule(STEPS, 0.1), schedule(STEPS, 0.01)]
    for step in range(STEPS):
        for group, rate in zip(optimiser.param_groups, rates, strict=True):
            group["lr"] = 2e-3 * rate[step]
        objective.loss(encoder, next(stream), draws).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        optimiser.zero_grad()
    found = trained(ingredient("mmcr"), config)[1]
    for name, tensor in encoder.state_dict().items():
        torch.testing.assert_close(found.tensors[f"encoder.{name}"], tensor, rtol=1e-4, atol=1e-6)


def test_every_image_is_read_once_for_all() -> None:
    class Counted:
        dtype, ndim, device = torch.uint8, 4, torch.device("cpu")

        def __init__(self, images: Tensor) -> None:
            self.images, self.shape, self.reads = images, images.shape, 0

        def __len__(self) -> int:
            return len(self.images)

        def __getitem__(self, rows: Tensor | slice) -> Tensor:
            self.reads += 1
            return self.images[rows]

    images = Counted(pool().images[:])
    row = Together((ingredient("mae"), ingredient("mmcr"), ingredient("lejepa")), 8)
    inter_train_together([stock()], Unlabelled(images, "pool"), row, torch.Generator().manual_seed(0))
    assert images.reads == STEPS


def test_what_cannot_keep_step_is_refused() -> None:
    source = Labelled(pool().images, "source", torch.arange(20) % 3, 3)
    for options, sentence in (
        ({"ingredients": ("mae", "mae:steps=7")}, "one number of steps"),
        ({"ingredients": ("mae", "mmcr:batch=4")}, "one batch size"),
        ({"ingredients": ("mae",), "accumulate": 2}, "whole batches"),
    ):
        with pytest.raises(Unsupported, match=sentence):
            SelfSoup(SelfSoup.Config(lockstep=True, **options)).plan(stock(), source, pool())  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="never sees labels"):
        inter_train_together([stock()], source, Together((ingredient("mae"),), 8), torch.Generator().manual_seed(0))
    plan = SelfSoup(SelfSoup.Config(lockstep=True, ingredients=("mae", "mmcr"))).plan(stock(), source, pool())
    rows = {id(job.inputs[0].inputs[0]) for name, job in plan.items() if name.startswith("ingredient")}  # type: ignore[union-attr]
    assert len(rows) == 1
