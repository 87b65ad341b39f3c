"""`selfsoup`: Self-Souping (Fuller, Green, Shelhamer 2026, arXiv:2602.02890), and the controls beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Literal

from methods.base import Job, Labelled, Recipe, Unlabelled, Unsupported
from methods.finetune import FineTune, fine_tunings
from methods.selfsoup.ingredients import Ingredient, inter_train
from methods.selfsoup.objectives import OBJECTIVES
from methods.soup import uniform_soup
from methods.stock import Weights
from methods.table import Access
from methods.views import Views

Order = Literal["tune_then_soup", "soup_then_tune"]


@dataclass(frozen=True)
class SoupOptions(FineTune):
    """Options of fine-tuning back (those of methods.finetune.FineTune) and of the ingredients.

    ingredients: one entry an ingredient, "objective:key=value:…"; keys are `steps`, `rate` (learning rate), `batch`,
        `area`, `augment` and the options of the objective (mae, mocov3, mmcr, lejepa), as in
        "mae:rate=2e-3:mask_ratio=0.5".
    steps, rate, batch: of the ingredients that do not say their own; so are ssl_area and ssl_augment.
    order: fine-tune each ingredient and average the classifiers (the paper's), or average the encoders and fine-tune
        once.
    ssl_area: smallest area of the random crops that self-supervised views show, as a fraction of the image.
    ssl_augment: whether those views also get 3-Augment and colour jitter 0.3, as in the paper. `flip` is shared.
    """

    ingredients: tuple[str, ...] = ("mae", "mocov3", "mmcr", "lejepa")
    steps: int = 300
    rate: float = 1e-3
    batch: int = 128
    order: Order = "tune_then_soup"
    ssl_area: float = 0.08
    ssl_augment: bool = True


class SelfSoup(Recipe):
    """Inter-train copies of one stock on unlabelled shifted images, fine-tune each back on clean ones, average.

    Equation of section 3: theta = 1 / (N M) sum_j sum_i FT(SSL(stock, X_i), X_j, Y_j), with N = 1. Every fine-tuning
    starts from the linear-probe head of the stock, so that heads can be averaged. Parts: the soup and each ingredient.
    """

    access: ClassVar[Access] = Access(source="labelled", test="pool", state="offline", backprop="full")
    pool = "shifted"
    search: ClassVar[Mapping[str, Sequence[Any]]] = {
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

    def plan(self, stock: Weights, source: Labelled, pool: Unlabelled | None) -> dict[str, Job]:
        return cook(stock, source, given(pool), self.config)


class CleanSelfSoup(Recipe):
    """The recipe of selfsoup, cooked on all clean train images without labels instead of shifted ones.

    What remains is the effect of more self-supervision and of souping.
    """

    access: ClassVar[Access] = Access()
    pool = "clean"
    search: ClassVar[Mapping[str, Sequence[Any]]] = SelfSoup.search

    @dataclass(frozen=True)
    class Config(SoupOptions):
        """Those of selfsoup."""

    def plan(self, stock: Weights, source: Labelled, pool: Unlabelled | None) -> dict[str, Job]:
        return {"": next(iter(cook(stock, source, given(pool), self.config).values()))}


class SingleIngredient(Recipe):
    """One MAE ingredient given the self-supervised compute of the whole soup: is it the soup or only more training?"""

    access: ClassVar[Access] = SelfSoup.access
    pool = "shifted"
    search: ClassVar[Mapping[str, Sequence[Any]]] = SelfSoup.search

    @dataclass(frozen=True)
    class Config(SoupOptions):
        """Those of selfsoup."""

    def plan(self, stock: Weights, source: Labelled, pool: Unlabelled | None) -> dict[str, Job]:
        config = self.config
        parsed = [read_ingredient(text, config) for text in config.ingredients]
        steps = round(sum(item.steps * item.cost for item in parsed))
        first = next((text for text in config.ingredients if text.startswith("mae")), "mae")
        single = replace(read_ingredient(first, config), steps=steps)
        trained = Job(inter_train, single, (stock,), given(pool), f"one MAE ingredient, {steps} steps")
        return {"": fine_tunings([trained], stock, source, config, (1.0,))[0]}


def given(pool: Unlabelled | None) -> Unlabelled:
    """The pool. Raises Unsupported where there is none."""
    if pool is None:
        raise Unsupported("a Self-Soup is trained on unlabelled images; run it on a shift that gives an adapt half")
    return pool


def cook(stock: Weights, source: Labelled, pool: Unlabelled, config: SoupOptions) -> dict[str, Job]:
    """The jobs of a Self-Soup on any pool: the soup first, then each ingredient fine-tuned alone."""
    trained = [
        Job(inter_train, read_ingredient(text, config), (stock,), pool, f"ingredient {text}")
        for text in config.ingredients
    ]
    tuned = fine_tunings(trained, stock, source, config, (1.0,) * len(trained))
    if config.order == "tune_then_soup":
        soup = Job(uniform_soup, None, tuple(tuned), None, "self-soup")
    else:
        mixed = Job(uniform_soup, None, tuple(trained), None, "mixed encoders")
        soup = fine_tunings([mixed], stock, source, config, (1.0,))[0]
    return {"soup": soup} | {f"ingredient:{text}": job for text, job in zip(config.ingredients, tuned, strict=True)}


def read_ingredient(text: str, config: SoupOptions) -> Ingredient:
    """Read "mae:rate=2e-3:mask_ratio=0.5". Raises Unsupported for an unknown objective or key."""
    name, *pairs = text.split(":")
    if name not in OBJECTIVES:
        raise Unsupported(f"no objective '{name}' in ingredient '{text}'; there are {', '.join(OBJECTIVES)}")
    objective = OBJECTIVES[name].Config
    values = dict(_pair(pair, text) for pair in pairs)
    own = {field.name for field in fields(objective)}
    known = own | {"steps", "rate", "batch", "area", "augment"}
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
        views=views,
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
