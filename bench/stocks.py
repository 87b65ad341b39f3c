"""`bench stock`: make the stock that everything starts from, by a seeded and documented recipe."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from bench.devices import pick_device
from bench.errors import nearest
from bench.fingerprint import environment
from bench.models import save_weights
from bench.output import print_text
from bench.registry import plain_values
from bench.shifts import load_shift
from bench.trial import CLEAN
from bench.workers import set_threads
from methods.base import Unlabelled
from methods.pretrain import Pretraining, pretrain
from methods.selfsoup.objectives import mae
from methods.stock import Architecture, Normalise, Weights, build_encoder
from methods.views import Views

DIGITS = Pretraining(
    architecture=Architecture(
        dim=64, depth=4, heads=4, decoder_dim=32, decoder_heads=4, mean=(0.3,) * 3, std=(0.36,) * 3
    ),
    steps=8000,
    batch_size=128,
    lr=2e-3,
    views=Views(scale=(0.5, 1.0), flip=False, three_augment=False, jitter=0.0),
)

CHECK_STEPS = 20

_STOCKS: dict[str, tuple[str, Pretraining]] = {"digits": ("digits-c", DIGITS)}


def pretrain_stock(
    name: str, seed: int = 0, steps: int | None = None, device: str = "cpu"
) -> tuple[Weights, dict[str, object]]:
    """Weights of a stock and the facts of where they come from.

    Only clean train images of the shift are used, without labels: never dev or test ones. Raises UsageError for an
    unknown name.
    """
    shift_name, recipe = _STOCKS[nearest(name, _STOCKS, "stock")]
    if steps is not None:
        recipe = replace(recipe, steps=steps)
    shift = load_shift(shift_name)
    ids = shift.ids("train")
    data = Unlabelled(shift.images(ids, CLEAN), shift.digest(ids, CLEAN))

    def train(stop: int | None) -> Weights:
        return pretrain((), data, replace(recipe, stop=stop), torch.Generator(device=device).manual_seed(seed))

    weights = train(None)
    facts: dict[str, object] = {
        "command": f"bench stock {name} --seed {seed}" + (f" --steps {steps}" if steps is not None else ""),
        "recipe": plain_values(recipe),
        "images": f"{len(ids)} clean train images of {shift_name}, without labels",
        "data": data.digest,
        "digest": weights.digest,
        "check": check(train(CHECK_STEPS), data),
        "licence": "Apache-2.0; the digits are CC BY 4.0, doi:10.24432/C50P49",
        "environment": {key: value for key, value in environment().items() if key not in ("git", "dirty")},
    }
    return weights, facts


def check(weights: Weights, data: Unlabelled) -> dict[str, object]:
    """What a short training can be compared by: its digest, and its loss on the first 64 images with a fixed mask."""
    objective = mae.Config().build(weights, torch.Generator().manual_seed(0))
    encoder = build_encoder(weights.architecture)
    encoder.load_state_dict(weights.part("encoder"))
    normalise = Normalise(weights.architecture.mean, weights.architecture.std)
    with torch.no_grad():
        images = normalise(data.images[:64].float() / 255)
        loss = objective.loss(encoder, [images], torch.Generator().manual_seed(0))
    return {"digest": weights.digest, "loss": float(loss)}


def make_stock(
    name: str, out: Path, seed: int, steps: int | None, device: str, say: Callable[[str], None] = print_text
) -> None:
    """Pretrain and write a stock; ends with the line that uses it."""
    set_threads(1)
    start = time.perf_counter()
    weights, facts = pretrain_stock(name, seed, steps, pick_device(device))
    save_weights(out, weights, facts)
    size = out.stat().st_size / 1000
    say(f"{out}: {size:.0f} kB, {weights.digest}, {time.perf_counter() - start:.0f} s")
    say(f"use it: bench run --method source,selfsoup --shift {_STOCKS[name][0]} --stock {out}")
