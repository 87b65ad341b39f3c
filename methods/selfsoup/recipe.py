"""`selfsoup`: Self-Souping (Fuller, Green, Shelhamer 2026, arXiv:2602.02890), and its control recipes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Literal

import torch

from methods.base import Job, Labelled, Recipe, Unlabelled, Unsupported, Work
from methods.identity import component
from methods.limits import Count, FiniteNotNegative, FractionAboveZero
from methods.nets.weights import Weights
from methods.selfsoup.ingredients import Ingredient, inter_train
from methods.selfsoup.joint_training import Member, Together, inter_train_together, member
from methods.selfsoup.mixing_options import Mixing, every_mix, mix_classifiers, mix_job, selection
from methods.selfsoup.objectives import OBJECTIVES
from methods.training.finetune import fine_tunings, join, probe_of, refuse_cut
from methods.training.heads import Head, headed
from methods.views.ssl_views import Views

STOCK = "stock"
"""The ingredient that is the stock itself."""
Order = Literal["tune_then_soup", "soup_then_tune", "no_tune", "tune_first"]
ShiftPool = Literal["mixed", "per_corruption", "leave_one_family_out"]


@dataclass(frozen=True)
class SoupOptions(Mixing):
    """Options of fine-tuning back and mixing (see methods.selfsoup.mixing_options.Mixing) and of the ingredients.

    ingredients: one entry for each ingredient, "objective:key=value:…"; keys are `steps`, `rate` (learning rate),
        `batch`, `area`, `augment`, `decay` (weight decay, 0.01), `warmup` and `head_warmup` (fractions of the steps,
        0.1 and 0.01) and the options of the objective (mae, mocov3, mmcr, lejepa), as in
        "mae:rate=2e-3:mask_ratio=0.5". "stock" adds the stock itself, not trained further, as an ingredient.
    steps, rate, batch: of the ingredients that do not set their own; likewise ssl_area and ssl_augment.
    order: fine-tune each ingredient and mix the classifiers (tune_then_soup, the paper's), mix the encoders and
        fine-tune once (soup_then_tune), mix the encoders under the stock's linear-probe head and do not fine-tune back
        (no_tune), or fine-tune the stock once, inter-train copies of it and mix them under its head (tune_first).
    shift_pool: the training images of the ingredients: every shifted condition in one pool (mixed, the paper's), the
        scored condition alone, one soup for each (per_corruption: the corruption must be known), or all families of
        corruptions but the scored one (leave_one_family_out: measures transfer).
    lockstep: train all ingredients together on the same images, each decoded and corrupted once (they then need one
        length and batch size, and the memory of all), and not as separate jobs.
    also_on: further shifts on whose adapt half (all of their corruptions, at the severities of the run) each ingredient
        is trained as well, beside that of the run: the soup is the union of all. Only selfsoup does this.
    head: put a linear probe ("probe") or nearest neighbours ("knn", section 4.5) on the mixed encoders and on each
        ingredient, and fine-tune nothing; the order is then soup_then_tune. None to fine-tune back.
    ssl_area: smallest area of the random crops in self-supervised views, as a fraction of the image.
    ssl_augment: whether those views also get 3-Augment and colour jitter 0.3, as in the paper. `flip` is shared.
    """

    ingredients: tuple[str, ...] = ("mae", "mocov3", "mmcr", "lejepa")
    steps: Count = 300
    rate: FiniteNotNegative = 1e-3
    batch: Count = 128
    order: Order = "tune_then_soup"
    shift_pool: ShiftPool = "mixed"
    lockstep: bool = False
    ssl_area: FractionAboveZero = 0.08
    ssl_augment: bool = True
    also_on: tuple[str, ...] | None = None
    head: Literal["probe", "knn"] | None = None

    later: ClassVar[tuple[str, ...]] = ("also_on", "head")


class SelfSoup(Recipe):
    """Inter-train copies of one stock on unlabelled shifted images, fine-tune each back on clean ones, average.

    Equation of section 3: theta = 1 / (N M) sum_j sum_i FT(SSL(stock, X_i), X_j, Y_j), with N = 1. Every fine-tuning
    starts from the linear-probe head of the stock, so that heads can be averaged. Parts: the soup and each ingredient.
    """

    pool = "shifted"
    search = {
        "lr": (1e-3, 2e-3, 3e-3, 4e-3),
        "order": ("tune_then_soup", "soup_then_tune"),
        "ingredients": (
            ("mae", "mocov3:augment=1", "mmcr:augment=1", "lejepa:augment=1"),
            ("mae", "mae:mask_ratio=0.5", "mae:rate=2e-3", "mae:rate=2e-3:mask_ratio=0.5"),
            ("mae", "mae:mask_ratio=0.5", "mae:rate=2e-3", "mmcr:rate=5e-4:augment=1"),
        ),
    }

    @dataclass(frozen=True)
    class Config(SoupOptions):
        """Options of the whole recipe."""

    def plan(
        self,
        stock: Weights,
        source: Labelled,
        pool: Unlabelled | None,
        val: Labelled | None = None,
        others: Mapping[str, Unlabelled] | None = None,
    ) -> dict[str, Job]:
        """`others`: the pools of the shifts that `also_on` names, by name."""
        return cook(stock, source, given(pool), self.config, val, others)


class CleanSelfSoup(Recipe):
    """The recipe of selfsoup on all clean train images without labels instead of shifted ones.

    It isolates the effect of more self-supervision and of souping. Parts: the soup and its other mixes.
    """

    pool = "clean"
    search = SelfSoup.search

    @dataclass(frozen=True)
    class Config(SoupOptions):
        """Options of selfsoup."""

    def plan(
        self, stock: Weights, source: Labelled, pool: Unlabelled | None, val: Labelled | None = None
    ) -> dict[str, Job]:
        parts = cook(stock, source, given(pool), self.config, val)
        return {name: job for name, job in parts.items() if not name.startswith("ingredient:")}


class DiverseCleanSoup(CleanSelfSoup):
    """The soup of section 4.2 of the paper: ingredients of three algorithms, on all clean train images without labels.

    The paper's gains of +3.5 (ImageNet-C) and +7 (LAION-C) are those of selfsoup over this soup. MAE hides 90 % of the
    patches and keeps one block of the decoder; MoCo v3 has temperature 1, MMCR the global and the local term.
    """

    @dataclass(frozen=True)
    class Config(SoupOptions):
        """Options of a Self-Soup; those of selfsoup do not apply."""

        ingredients: tuple[str, ...] = (
            "mae:mask_ratio=0.9:decoder_depth=1",
            "mocov3:temperature=1",
            "mmcr:local=1",
        )


class ContinuedSoup(Recipe):
    """One self-supervised run on clean train images, fine-tuned as often as all ingredients of the soup are, averaged.

    The baseline "continued SSL + supervised" (section 4): ingredients that differ only in their fine-tuning.
    """

    pool = "clean"
    search = SelfSoup.search

    @dataclass(frozen=True)
    class Config(SoupOptions):
        """Options of selfsoup; only the first of its ingredients is trained."""

    def plan(
        self, stock: Weights, source: Labelled, pool: Unlabelled | None, val: Labelled | None = None
    ) -> dict[str, Job]:
        config = self.config
        check(config)
        if config.head is not None:
            raise Unsupported("continued_ssl_soup averages fine-tunings; with a head, run ssl_clean")
        source, held_out = selection(source, val, config)
        text = next((text for text in config.ingredients if text != STOCK), None)
        if text is None:
            raise Unsupported("continued_ssl_soup trains the first of its ingredients; name one beside 'stock'")
        trained = ingredient_job(read_ingredient(text, config), stock, given(pool), f"ingredient {text}, clean")
        scales = tuple(scale for scale in config.scales for _ in config.ingredients)
        tuned = fine_tunings([trained] * len(scales), stock, source, config, scales)
        return mix_classifiers(tuned, probe_of(stock, source, config), source, held_out, config)


class SingleIngredient(Recipe):
    """One MAE ingredient with the self-supervised compute of the whole soup: separates souping from more training.

    If the stock cannot be a masked autoencoder, the first of the ingredients takes the place of MAE.
    """

    pool: ClassVar[Literal["none", "clean", "shifted"]] = "shifted"
    search = SelfSoup.search

    @dataclass(frozen=True)
    class Config(SoupOptions):
        """Options of selfsoup."""

    def plan(
        self, stock: Weights, source: Labelled, pool: Unlabelled | None, val: Labelled | None = None
    ) -> dict[str, Job]:
        config = self.config
        check(config)
        if config.also_on and self.pool == "shifted":
            raise Unsupported("one ingredient is trained on one pool; run selfsoup_single without also_on")
        source, _ = selection(source, val, config)
        parsed = [read_ingredient(text, config) for text in config.ingredients if text != STOCK]
        others = [text for text in config.ingredients if text != STOCK]
        usual = "mae" if stock.architecture.tokens or not others else others[0]
        first = next((text for text in others if text.startswith("mae")), usual)
        single = read_ingredient(first, config)
        steps = round(sum(item.steps * item.cost for item in parsed) / single.cost)
        single = replace(single, steps=steps)
        name = "MAE" if first.startswith("mae") else first
        trained = ingredient_job(single, stock, given(pool), f"one {name} ingredient, {steps} steps")
        if config.head is not None:
            return {"": headed(trained, stock, source, config.head, config.probe_l2)}
        return {"": fine_tunings([trained], stock, source, config, (1.0,))[0]}


class CleanSingleIngredient(SingleIngredient):
    """The single ingredient on clean images: the same self-supervised compute without shift and soup."""

    pool = "clean"


def check(config: SoupOptions) -> None:
    """Raise Unsupported for options that leave nothing to train or mix, and for an ingredient named twice."""
    if not config.ingredients or not config.mixes or not config.scales:
        raise Unsupported("selfsoup needs at least one of ingredients, mixes and scales")
    twice = next((text for text in config.ingredients if config.ingredients.count(text) > 1), None)
    if twice is not None:
        raise Unsupported(
            f"ingredient '{twice}' is named twice and would give the same weights twice; change one of its options"
        )
    if config.head is not None and config.order != "soup_then_tune":
        raise Unsupported(f"head = {config.head} is put on mixed encoders; set order to soup_then_tune, as --head does")


def given(pool: Unlabelled | None) -> Unlabelled:
    """Return the pool. Raises Unsupported for None."""
    if pool is None:
        raise Unsupported("a Self-Soup is trained on unlabelled images; run it on a shift that gives an adapt half")
    return pool


def cook(
    stock: Weights,
    source: Labelled,
    pool: Unlabelled,
    config: SoupOptions,
    val: Labelled | None = None,
    others: Mapping[str, Unlabelled] | None = None,
) -> dict[str, Job]:
    """Return the jobs of a Self-Soup on any pool: the soup, other ways to mix it, and each ingredient fine-tuned alone.

    The ingredients are also trained on each of the `others`, and are then named "… on SHIFT". Raises Unsupported for
    options that contradict one another.
    """
    check(config)
    source, held_out = selection(source, val, config)
    if config.order == "tune_first":
        first = fine_tunings([stock], stock, source, config, (config.scales[0],))[0]
        start = Job(encoder_and_decoder, None, (first, stock), None, "the stock fine-tuned")
        named = union_of(config, stock, pool, others or {}, start)
        tuned = {
            f"ingredient:{text}": Job(join, None, (job, first), None, f"{text} under the head of the fine-tuned stock")
            for text, job in named.items()
        }
        return mix_classifiers(list(tuned.values()), first, source, held_out, config) | tuned
    named = union_of(config, stock, pool, others or {})
    trained = list(named.values())
    if config.head is not None:
        return _under_heads(config.head, named, stock, source, held_out, config)
    head = probe_of(stock, source, config)
    tuned = {}
    for scale in config.scales if config.order != "no_tune" else ():
        mark = "" if len(config.scales) == 1 else f"@{scale:g}"
        jobs = fine_tunings(trained, stock, source, config, (scale,) * len(trained))
        tuned |= {f"ingredient:{text}{mark}": job for text, job in zip(named, jobs, strict=True)}
    if config.order == "tune_then_soup":
        return mix_classifiers(list(tuned.values()), head, source, held_out, config) | tuned
    soups = []
    mixes = every_mix(config.mixes, len(trained))
    for text in mixes:
        mixed = mix_job(text, trained, stock, source, held_out, "encoders")
        if config.order == "no_tune":
            soups.append(Job(join, None, (mixed, head), None, f"{text} soup under the stock's head"))
        else:
            soups += fine_tunings([mixed], stock, source, config, (config.scales[0],))
    if config.order == "no_tune":
        tuned = {
            f"ingredient:{text}": Job(join, None, (job, head), None, f"{text} under the stock's head")
            for text, job in named.items()
        }
    names = ["soup", *(f"soup:{text}" for text in mixes[1:])]
    return dict(zip(names, soups, strict=True)) | tuned


def _under_heads(
    head: Head,
    named: Mapping[str, Job],
    stock: Weights,
    source: Labelled,
    held_out: Labelled | None,
    config: SoupOptions,
) -> dict[str, Job]:
    """Return the mixed encoders and each ingredient, all as they are, under a head of its own for each."""
    mixes = every_mix(config.mixes, len(named))
    names = ["soup", *(f"soup:{text}" for text in mixes[1:])]
    encoders = [mix_job(text, list(named.values()), stock, source, held_out, "encoders") for text in mixes]
    found = dict(zip(names, encoders, strict=True)) | {f"ingredient:{text}": job for text, job in named.items()}
    return {name: headed(job, stock, source, head, config.probe_l2) for name, job in found.items()}


def union_of(
    config: SoupOptions,
    stock: Weights,
    pool: Unlabelled,
    others: Mapping[str, Unlabelled],
    start: Job | Weights | None = None,
) -> dict[str, Job]:
    """Return the jobs that make the ingredients on the pool and on each of the others, by name.

    The stock itself is an ingredient at most once. Raises Unsupported as `ingredient_jobs` does.
    """
    named = dict(zip(config.ingredients, ingredient_jobs(config, stock, pool, start), strict=True))
    trained = replace(config, ingredients=tuple(text for text in config.ingredients if text != STOCK))
    for shift, images in others.items():
        jobs = ingredient_jobs(trained, stock, images, start)
        named |= {f"{text} on {shift}": job for text, job in zip(trained.ingredients, jobs, strict=True)}
    return named


def ingredient_jobs(
    config: SoupOptions, stock: Weights, pool: Unlabelled, start: Job | Weights | None = None
) -> list[Job]:
    """Return the jobs that make all ingredients from `start`, by default the stock.

    Raises Unsupported for ingredients that cannot be trained in lockstep.
    """
    start = stock if start is None else start
    itself = Job(encoder_alone, None, (start,), None, "the stock itself")
    read = {text: read_ingredient(text, config) for text in config.ingredients if text != STOCK}
    jobs = {text: ingredient_job(own, stock, pool, f"ingredient {text}", start) for text, own in read.items()}
    if config.lockstep and jobs:
        together = Together(tuple(read.values()), next(iter(read.values())).batch_size)
        work = Work(sum(job.work.flops for job in jobs.values() if job.work), next(iter(read.values())).steps)
        label = f"{len(read)} ingredients in lockstep"
        shared = not stock.batch_norm
        row = Job(inter_train_together, together, (start,), pool, label, resumable=True, work=work, shared=shared)
        jobs = {
            text: Job(member, Member(number), (row,), None, job.label)
            for number, (text, job) in enumerate(jobs.items())
        }
    return [jobs.get(text, itself) for text in config.ingredients]


def ingredient_job(
    config: Ingredient, stock: Weights, pool: Unlabelled, label: str, start: Job | Weights | None = None
) -> Job:
    """Return the job that makes one ingredient from `start`, by default the stock."""
    flops = config.objective.flops(stock.architecture) * min(config.batch_size, len(pool)) * config.steps
    refuse_cut(config.accumulate, min(config.batch_size, len(pool)), "batch")
    inputs = (stock if start is None else start,)
    work = Work(flops, config.steps)
    return Job(inter_train, config, inputs, pool, label, resumable=True, work=work, shared=not stock.batch_norm)


@component("methods.selfsoup.recipe.encoder_alone")
def encoder_alone(
    inputs: Sequence[Weights], data: None = None, config: None = None, generator: torch.Generator | None = None
) -> Weights:
    """Return only the encoder of the weights, as an ingredient has it; a job function."""
    body = inputs[0]
    return Weights(body.architecture, {n: t for n, t in body.tensors.items() if n.startswith("encoder.")})


@component("methods.selfsoup.recipe.encoder_and_decoder")
def encoder_and_decoder(
    inputs: Sequence[Weights], data: None = None, config: None = None, generator: torch.Generator | None = None
) -> Weights:
    """Return the encoder of `inputs[0]` with the decoder of `inputs[1]`, if any: a stock; a job function."""
    body, stock = inputs
    decoder = {name: tensor for name, tensor in stock.tensors.items() if name.startswith("decoder.")}
    return Weights(body.architecture, {**encoder_alone([body]).tensors, **decoder})


def read_ingredient(text: str, config: SoupOptions) -> Ingredient:
    """Read "mae:rate=2e-3:mask_ratio=0.5". Raises Unsupported for an unknown objective or key."""
    name, *pairs = text.split(":")
    if name not in OBJECTIVES:
        raise Unsupported(f"no objective '{name}' in ingredient '{text}'; use one of {', '.join(OBJECTIVES)}")
    objective = OBJECTIVES[name].Config
    values = dict(_pair(pair, text) for pair in pairs)
    own = {field.name for field in fields(objective)}
    known = own | {"steps", "rate", "batch", "area", "augment", "decay", "warmup", "head_warmup"}
    for key in values.keys() - known:
        raise Unsupported(f"no option '{key}' in ingredient '{text}'; there are {', '.join(sorted(known))}")
    augment = bool(values.get("augment", config.ssl_augment))
    area = float(values.get("area", config.ssl_area))
    views = Views((area, 1.0), flip=config.flip, three_augment=augment, jitter=0.3 if augment else 0.0)
    return Ingredient(
        objective=objective(**{key: value for key, value in values.items() if key in own}),
        steps=int(values.get("steps", config.steps)),
        batch_size=int(values.get("batch", config.batch)),
        lr=float(values.get("rate", config.rate)),
        weight_decay=float(values.get("decay", Ingredient.weight_decay)),
        warmup=float(values.get("warmup", Ingredient.warmup)),
        head_warmup=float(values.get("head_warmup", Ingredient.head_warmup)),
        views=views,
        bf16=config.bf16,
        accumulate=config.accumulate,
        compile=config.compile,
    )


def _pair(pair: str, text: str) -> tuple[str, Any]:
    key, equals, value = pair.partition("=")
    if not equals:
        raise Unsupported(f"'{pair}' in ingredient '{text}' is not key=value")
    try:
        number = float(value)
    except ValueError:
        raise Unsupported(f"'{value}' in ingredient '{text}' is not a number") from None
    return key, int(number) if value.lstrip("-").isdigit() else number
