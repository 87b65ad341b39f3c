"""Budgets of a shift, the options that follow from them and from the size of the stock, and what is shown of them."""

from __future__ import annotations

import ast
import math
from dataclasses import dataclass
from typing import Any

import pytest

from bench.cli.catalogue import _method, _shift, print_one
from bench.cli.fact_sheet import as_json_values
from bench.core.errors import UsageError
from bench.planning.training_cost import TrainingCost, cost_of, expected_cost, in_time, published_setting
from bench.settings.method_options import MethodOptions
from bench.settings.methods import build_config, options_of, parse_method, plain_values
from bench.settings.run_spec import make_spec
from bench.settings.shift_options import budget_of, budgets_of
from bench.settings.stock_size import BASE, SMALL, rate_at
from bench.shifts import SHIFTS, find_row
from bench.shifts.catalog import Family
from methods import METHODS

HEADLINE = {"method": "selfsoup", "shift": "imagenet-c"}


@dataclass(frozen=True)
class Data:
    name: str
    family: Family = "imagenet"
    classes: int = 1000


def chosen(method: str, shift: str, weights: int = BASE, **changes: Any) -> Any:
    spec = make_spec({"method": method, "shift": shift, **changes})
    options = MethodOptions(spec, Data(shift, find_row(shift).family), "ln", "cpu", weights)
    return options.config(METHODS[method])


def test_the_default_is_the_paper_and_every_budget_is_valid() -> None:
    assert budget_of("imagenet-c", None) == budget_of("imagenet-c", "paper")
    having = [name for name in SHIFTS if budgets_of(name)]
    assert {"imagenet-c", "imagenet-c-gen", "laion-c", "laion-c-gen"} <= set(having)
    assert not {"digits-c", "cifar10-c", "fashion-c", "imagenet-r", "imagenet-real", "tiny-imagenet-c"} & set(having)
    for shift in having:
        assert list(budgets_of(shift)) == ["paper", "short", "smoke"]
        for budget in budgets_of(shift).values():
            for method, options in budget.options.items():
                build_config(METHODS[method], options)
    assert budgets_of("imagenet-c")["paper"].settings == {}


def test_short_is_a_tenth_of_the_paper() -> None:
    paper, short = (budgets_of("imagenet-c")[name].options for name in ("paper", "short"))
    for method in ("selfsoup", "selfsoup_diverse_clean", "source", "supervised_soup"):
        for option, value in paper[method].items():
            tenth = value // 10 if option in ("steps", "epochs") else value
            assert short[method][option] == tenth, (method, option)


def test_a_shift_without_budgets_refuses_one_in_a_sentence() -> None:
    for shift in ("digits-c", "folder:/somewhere"):
        with pytest.raises(UsageError, match=r"--budget short: .* has no budgets; leave it out") as caught:
            make_spec({"method": "selfsoup", "shift": shift, "budget": "short"})
        assert "\n" not in str(caught.value)
    with pytest.raises(UsageError, match="did you mean 'short'"):
        make_spec({**HEADLINE, "budget": "shor"})


def test_settings_of_a_budget_are_under_those_of_the_run() -> None:
    spec = make_spec({**HEADLINE, "budget": "smoke"})
    assert (spec.labels, spec.limit) == (2, 16)
    spec = make_spec({**HEADLINE, "budget": "smoke", "labels": 0})
    assert (spec.labels, spec.limit) == (0, 16)
    assert make_spec(HEADLINE).limit is None


def test_options_set_by_hand_are_over_the_budget() -> None:
    config = chosen("selfsoup", "imagenet-c", budget="short", set={"selfsoup": {"steps": 7}})
    assert (config.steps, config.epochs, config.batch) == (7, 1, 128)
    config = chosen("selfsoup_single", "imagenet-c", budget="short")
    assert config.steps == 10_000
    assert chosen("augmix", "imagenet-c", set={"source": {"epochs": 3}}).epochs == 3
    augmix = chosen("augmix", "imagenet-c")
    assert (augmix.lr, augmix.epochs, augmix.three_augment, augmix.jitter) == (1e-4, 10, False, 0.0)
    assert chosen("tent_pool", "laion-c").scales == (0.6, 0.8, 1.0, 1.5)


def test_rates_fall_with_the_size_of_the_stock_where_a_shift_has_no_options() -> None:
    small, base = chosen("selfsoup", "folder:x", SMALL), chosen("selfsoup", "folder:x", BASE)
    assert (small.lr, small.rate) == (1e-3, 1e-3)
    assert (base.lr, base.rate) == (1e-4, 2.2e-5)
    assert 1e-4 < chosen("source", "folder:x", 22_000_000).lr < 1e-3
    assert chosen("tent_pool", "folder:x").rate == 1e-4  # of TENT, not of an ingredient
    assert chosen("selfsoup", "cifar10-c").lr == 1e-3
    assert chosen("selfsoup", "digits-c", BASE).lr == 4e-3
    assert chosen("source", "folder:x", set={"source": {"lr": 0.5}}).lr == 0.5
    middle = round(math.sqrt(SMALL * BASE))
    assert rate_at(middle, 1e-3, 1e-5) == pytest.approx(1e-4, rel=1e-6)
    assert rate_at(10, 1e-3, 1e-5) == 1e-3


def test_later_options_enter_records_only_where_they_are_set() -> None:
    assert "scales" not in plain_values(chosen("source", "digits-c"))
    assert plain_values(chosen("source", "imagenet-c"))["scales"] == [0.6, 0.8, 1.0, 1.5]


def in_force(method: str, shift: str = "") -> dict[str, dict[str, str]]:
    return as_json_values(_method(method, shift))["in_force"]


def test_what_is_shown_says_where_each_option_comes_from() -> None:
    shown = in_force("selfsoup", "imagenet-c")["imagenet-c, budget short"]
    assert shown["steps"] == "10000 (budget short)"
    assert shown["probe_l2"] == "0.01 (default)"
    config = plain_values(chosen("selfsoup", "imagenet-c", budget="short"))
    assert shown.keys() == {*config, "also_on", "head"}
    for option in ("epochs", "lr", "batch", "jitter", "holdout"):
        assert shown[option].partition(" ")[0] == str(config[option])
    assert in_force("tent_pool", "imagenet-c")["imagenet-c, budget paper"]["lr"] == ("0.0001 (budget paper of source)")
    assert in_force("source", "digits-c")["digits-c"]["lr"] == "0.004 (tuned on digits-c)"
    assert "less for larger stocks" in in_force("source", "folder:x")["folder:x"]["lr"]
    assert list(in_force("sar", "imagenet-c")) == ["imagenet-c-bn", "imagenet-c-gn", "imagenet-c-ln"]
    assert "imagenet-c, budget paper" in in_force("selfsoup")
    assert _shift("laion-c")["budgets"][1].startswith("short: a tenth")


@pytest.mark.parametrize("name", ["source_rotation", "selfsoup", "tent_pool", "supervised_soup", "shot_pool"])
def test_what_a_budget_changes_is_told_for_every_shift_and_budget(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Held against the options that a run builds, by value."""
    print_one("method", name, as_json=False)
    told = capsys.readouterr().out.partition("options in force")[2].partition("\n\n")[0]
    head, *budgets = told.replace("\n        ", " ").splitlines()[1:]
    for shift in (each for each in SHIFTS if budgets_of(each)):
        assert shift in head.strip(" :").split(", ")
    defaults = {option.name: option.default for option in options_of(METHODS[name])}
    for line in budgets:
        named, _, values = line.partition(": ")
        for budget in named.split(","):
            config = chosen(name, "imagenet-c", BASE, budget=budget.split()[1])
            for option, default in defaults.items():
                value = getattr(config, option)
                if value == ast.literal_eval(default):
                    continue
                shown = values.partition(f"{option} = ")[2]
                texts = [str(each) for each in value] if isinstance(value, tuple) else []
                word = ("no", "yes")[value] if isinstance(value, bool) else str(value)
                expected = f"[{', '.join(texts)}]" if texts else word
                assert shown.startswith(expected), (budget, option)


def test_the_bill_of_the_paper_is_the_estimate_of_its_cost() -> None:
    """16 fine-tunings of 10 epochs at 105.4 GFLOP an image and 4 MAE runs at 58.7: 24.6 EFLOP, 22.8 hours."""
    setting = published_setting(find_row("imagenet-c"))
    assert setting is not None
    cost = expected_cost(make_spec(HEADLINE), [parse_method("selfsoup")], setting)
    assert cost.counts == (("inter-training of 100,000 steps", 4), ("fine-tuning of 10 epochs", 16))
    assert cost.hours == pytest.approx(22.8, rel=0.03)
    text = str(cost)
    assert "4 inter-trainings of 100,000 steps and 16 fine-tunings of 10 epochs" in text
    twice = expected_cost(make_spec(HEADLINE, {"seeds": 2}), [parse_method("selfsoup")], setting)
    assert twice.counts == (("inter-training of 100,000 steps", 8), ("fine-tuning of 10 epochs", 32))
    assert twice.flops == pytest.approx(2 * cost.flops)
    assert cost_of([]) == TrainingCost((), 0)


@pytest.mark.parametrize(
    ("hours", "words"),
    [(0.001, "1 minute"), (0.5, "30 minutes"), (1, "1 hour"), (22.4, "22 hours"), (1234, "1,234 hours")],
)
def test_times_in_words(hours: float, words: str) -> None:
    assert in_time(hours) == words
