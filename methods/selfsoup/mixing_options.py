"""The ways to mix the ingredients of a recipe, by name: "greedy", "ties:keep=0.3", "shares:2:1:1"."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

from methods.base import Job, JobFunction, Labelled, Unlabelled, Unsupported, Work
from methods.limits import FractionBelowOne
from methods.nets import flops
from methods.nets.weights import Weights
from methods.soups import mixing, season, simplex, soup
from methods.soups.bn_recalibration import Remeasure, remeasured
from methods.training.finetune import FineTune

CONNECTIVITY = "connectivity"
"""The plan entry for the report of `methods.soups.soup.connectivity`, which is no part of the method."""


@dataclass(frozen=True)
class Mix:
    """The requirements of a way of mixing. `config` is the class of its options, None where it has none.

    data: nothing, held-out labelled images, labelled images (held-out ones if there are any; all others serve encoders,
    which were not trained on their labels), or clean images without labels. stock: whether it takes the stock as first
    input. averages: whether its weights differ from those of every ingredient, so that BatchNorm statistics must be
    measured again. evaluations: how often `count` ingredients are evaluated on the data at most, where that is most of
    the work. of: which weights it can mix: encoders, classifiers, or both.
    """

    function: JobFunction
    config: type | None
    data: Literal["none", "held_out", "labelled", "images"] = "none"
    stock: bool = False
    averages: bool = True
    evaluations: Callable[[int], int] | None = None
    of: Literal["both", "encoders", "classifiers"] = "both"


MIXES: dict[str, Mix] = {
    "uniform": Mix(soup.uniform_soup, None),
    "shares": Mix(soup.mixed_soup, mixing.Weighted),
    "wise": Mix(soup.mixed_soup, mixing.Wise, stock=True),
    "model_stock": Mix(soup.mixed_soup, mixing.ModelStock, stock=True),
    "task_arithmetic": Mix(soup.mixed_soup, mixing.TaskArithmetic, stock=True),
    "ties": Mix(soup.mixed_soup, mixing.Ties, stock=True),
    "greedy": Mix(soup.greedy_soup, soup.Greedy, "held_out", evaluations=lambda count: 2 * count - 1, of="classifiers"),
    "best": Mix(
        soup.best_ingredient, None, "held_out", averages=False, evaluations=lambda count: count, of="classifiers"
    ),
    "learned": Mix(season.learned_soup, season.Schedule, "held_out", of="classifiers"),
    "ensemble": Mix(soup.ensemble, None, averages=False, of="classifiers"),
    "fisher": Mix(soup.fisher_soup, soup.Fisher, "images", of="classifiers"),
    "seasoned": Mix(season.self_seasoned, season.SelfSeasoning, "images", of="encoders"),
    "supervised_seasoned": Mix(season.supervised_seasoned, season.SupervisedSeasoning, "labelled", of="encoders"),
}


@dataclass(frozen=True)
class Mixing(FineTune):
    """Options of fine-tuning several models and of mixing them, added to those of methods.training.finetune.FineTune.

    scales: each model is fine-tuned once at each of these multiples of `lr`; the paper uses four.
    mixes: ways to mix (the keys of MIXES), as "uniform", "greedy", "ties:keep=0.3", or "shares:2:1:1" for fixed
        shares of three ingredients. The first one makes the method's own row, the others make parts "soup:…" beside it;
        "ensemble" averages probabilities and not weights. "simplex:side=7" stands for all 49 mixtures of a grid over
        the shares of three ingredients (see methods.soups.simplex).
    holdout: fraction of the labelled images of each class that is held out from fine-tuning, for the ways that choose.
    select_on: choose by these held-out images, or ("val", as in the papers) by the clean labelled test images of the
        adapt half, which is for parity only: their labels are not available at test time.
    """

    scales: tuple[float, ...] = (1.0,)
    mixes: tuple[str, ...] = ("uniform",)
    holdout: FractionBelowOne = 0.0
    select_on: Literal["holdout", "val"] = "holdout"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check(all(0 <= scale < math.inf for scale in self.scales), "scales", "finite numbers of at least 0")


def selection(source: Labelled, val: Labelled | None, config: Mixing) -> tuple[Labelled, Labelled | None]:
    """Return (images to fine-tune on, images to choose by or None). Raises Unsupported if "val" has no images."""
    if config.select_on == "holdout":
        return source.split(config.holdout) if config.holdout else (source, None)
    if config.holdout:
        raise Unsupported("select_on = val needs no holdout; leave one of them out")
    if val is None:
        raise Unsupported("select_on = val needs clean test images that are not scored; use split disjoint or dev")
    return source, val


def mix_classifiers(
    tuned: Sequence[Job], head: Job, source: Labelled, held_out: Labelled | None, config: Mixing
) -> dict[str, Job]:
    """Return the soup of fine-tuned classifiers, "soup:…" for each further way, and the connectivity of what was mixed.

    `head` is the stock with the linear probe from which all of them started. The connectivity is that on the images
    held out, without data if there are none; a run measures it on images of its own. Raises Unsupported for options
    that contradict one another.
    """
    if not config.mixes or not config.scales:
        raise Unsupported("a soup needs at least one of mixes and scales")
    mixes = every_mix(config.mixes, len(tuned))
    names = ["soup", *(f"soup:{text}" for text in mixes[1:])]
    jobs = [mix_job(text, tuned, head, source, held_out, "classifiers") for text in mixes]
    found = dict(zip(names, jobs, strict=True))
    if len(tuned) > 1:
        found[CONNECTIVITY] = Job(soup.connectivity, soup.Line(), tuple(tuned), held_out, "linear connectivity")
    return found


def every_mix(mixes: Sequence[str], count: int) -> list[str]:
    """Return the ways of mixing `count` ingredients, with each grid in its place as single "shares:…".

    Raises Unsupported for a grid over a number of ingredients that has none.
    """
    try:
        return [one for text in mixes for one in (simplex.expand(text, count) if simplex.is_grid(text) else [text])]
    except ValueError as error:
        raise Unsupported(str(error)) from None


def mix_job(
    text: str,
    ingredients: Sequence[Job],
    stock: Job | Weights,
    source: Labelled,
    held_out: Labelled | None,
    of: Literal["encoders", "classifiers"],
) -> Job:
    """Return the job that mixes ingredients in the way that `text` names.

    `stock` is what all ingredients started from, of the same kind as the ingredients. BatchNorm statistics of the
    mixture are measured again on `source`, never on test images. Raises Unsupported for an unknown way or option, for a
    way that mixes the other kind of weights, and for missing held-out labels.
    """
    name, *pairs = text.split(":")
    if name not in MIXES:
        raise Unsupported(f"there is no way of mixing '{name}'; use one of {', '.join(MIXES)}, simplex")
    mix = MIXES[name]
    if mix.of not in ("both", of):
        order = {"encoders": "soup_then_tune", "classifiers": "tune_then_soup"}[mix.of]
        raise Unsupported(f"'{name}' mixes {mix.of}, not {of}; set selfsoup.order to {order}")
    config = _shares(pairs, len(ingredients), text) if name == "shares" else read_options(mix.config, pairs, text)
    data: Unlabelled | None = None
    if mix.data == "images":
        data = source.without_labels()
    elif mix.data == "labelled" and held_out is None:
        data = source
    elif mix.data != "none":
        if held_out is None:
            raise Unsupported(f"'{name}' chooses by held-out labelled images; set the option holdout, as in 0.1")
        data = held_out
    inputs = (stock, *ingredients) if mix.stock else tuple(ingredients)
    start = _first(stock)
    work = None
    if mix.evaluations is not None and data is not None:
        work = Work(mix.evaluations(len(ingredients)) * len(data) * flops.forward(start.architecture))
    mixed = Job(mix.function, config, inputs, data, f"{text} soup", work=work)
    if not (mix.averages and start.batch_norm):
        return mixed
    how = Remeasure()
    work = Work(min(how.images, len(source)) * flops.forward(start.architecture))
    label = f"{text} soup, BatchNorm measured again"
    return Job(remeasured, how, (mixed,), source.without_labels(), label, work=work)


def _shares(numbers: Sequence[str], count: int, text: str) -> mixing.Weighted:
    """Return the rule of fixed shares, in proportion to the numbers. Raises Unsupported unless each input has one."""
    try:
        found = [float(number) for number in numbers]
        if len(found) == count and min(found) >= 0:
            return mixing.Weighted(tuple(number / sum(found) for number in found))
    except (ValueError, ZeroDivisionError):
        pass
    raise Unsupported(
        f"'{text}' must be 'shares' and {count} numbers of at least 0, one for each ingredient, as in "
        f"shares{':1' * count}"
    )


def _first(part: Job | Weights) -> Weights:
    """Return the weights from which a job started."""
    return part if isinstance(part, Weights) else _first(part.inputs[0])


def read_options(config: type | None, pairs: Sequence[str], text: str) -> Any:
    """Read the options of a way of mixing from "key=value" pairs. Raises Unsupported for an unknown or invalid one."""
    # A switch that was added later defaults to None, which changes no cache key and no random draw.
    known: dict[str, Any] = {
        field.name: bool if field.default is None else type(field.default)
        for field in (fields(config) if config is not None else ())
    }
    values: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or key not in known:
            raise Unsupported(f"no option '{key}' in '{text}'; there are {', '.join(known) or 'none'}, as key=value")
        try:
            values[key] = known[key](float(value))
        except ValueError:
            raise Unsupported(f"'{value}' in '{text}' is not a number") from None
    if config is None:
        return None
    try:
        return config(**values)
    except ValueError as error:
        raise Unsupported(f"{text}: {error}") from None
