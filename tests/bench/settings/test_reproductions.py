"""Reproduction cards: their settings are those of the official configurations, and each names what it needs.

`FACTS` holds the constants of the official configurations and scripts; tests/official/test_reproductions.py reads them,
and the published numbers, from the checkouts themselves.
"""

from __future__ import annotations

from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import timm
import torchvision

from bench.core.errors import UsageError
from bench.evaluation.protocols import parse_protocol
from bench.settings.method_options import MethodOptions
from bench.settings.methods import build_config, parse_method
from bench.settings.reproductions import Card, cards, find_card
from bench.settings.run_spec import make_spec, read_run_file
from bench.shifts import find_row
from methods import METHODS

RUNS = Path(__file__).parents[3] / "runs"
CARDS = sorted(cards())
SOUPS = [name for name in CARDS if name.startswith("selfsoup")]
ADAPTERS = [name for name in CARDS if name not in SOUPS]

R50, VIT = "torchvision:resnet50.IMAGENET1K_V1", "torchvision:vit_b_16.IMAGENET1K_V1"
STANDARD = "robustbench:cifar10/corruptions/Standard"
ADAM = {"lr": 1e-3, "optimizer": "adam", "momentum": 0.9}
SGD = {"lr": 2.5e-4, "optimizer": "sgd", "momentum": 0.9}
ROTTA = ADAM | {"capacity": 64, "update_every": 64, "teacher_share": 0.001, "statistics_share": 0.05}
ROTTA |= {"age_weight": 1.0, "entropy_weight": 1.0}
COTTA = {"teacher_momentum": 0.999, "views": 32}
SAR = {"margin": 0.4, "rho": 0.05, "reset_below": 0.2, "official_quirks": True}


def fact(model: str, protocol: str, batch: int, images: str, **options: Any) -> dict[str, Any]:
    return {"model": model, "protocol": protocol, "batch_size": batch, "shift": images, "set": options}


FACTS: dict[str, dict[str, Any]] = {
    # DequanWang/tent e9e926a: cfgs/tent.yaml, cifar10c.py (a reset before each corruption), and the README's overrides.
    "tent-cifar10-c": fact(STANDARD, "reset_each_shift", 200, "cifar10-c", tent=ADAM | {"steps": 1}),
    "tent-cifar10-c-augmix": fact(
        "robustbench:cifar10/corruptions/Hendrycks2020AugMix_WRN",
        *("reset_each_shift", 200, "cifar10-c"),
        tent=ADAM | {"steps": 1},
    ),
    # mariodoebler/test-time-adaptation 8b2ed63: classification/cfgs/cifar10_c/*.yaml over conf.py.
    "tent-cifar10-c-continual": fact(STANDARD, "continual", 200, "cifar10-c", tent=ADAM | {"steps": 1}),
    "eata-cifar10-c": fact(
        *(STANDARD, "continual", 200, "cifar10-c"),
        eata=ADAM | {"margin": 0.4, "epsilon": 0.4, "beta": 1.0, "fisher_images": 2000},
    ),
    "cotta-cifar10-c": fact(
        *(STANDARD, "continual", 200, "cifar10-c"),
        cotta=ADAM | COTTA | {"restore": 0.01, "threshold": 0.92, "symmetric": False},
    ),
    "rotta-cifar10-c": fact(STANDARD, "continual", 200, "cifar10-c", rotta=ROTTA),
    "roid-cifar10-c": fact(STANDARD, "continual", 200, "cifar10-c", roid=ADAM | {"source_share": 0.01}),
    "roid-cifar10-c-mixed": fact(STANDARD, "mixed_domains", 200, "cifar10-c", roid=ADAM | {"source_share": 0.01}),
    # mr-eggplant/EATA f739b36: main.py.
    "tent-imagenet-c": fact(R50, "reset_each_shift", 64, "imagenet-c", tent=SGD | {"steps": 1}),
    "eta-imagenet-c": fact(R50, "reset_each_shift", 64, "imagenet-c", eta=SGD | {"margin": 0.4, "epsilon": 0.05}),
    "eata-imagenet-c": fact(
        *(R50, "reset_each_shift", 64, "imagenet-c"),
        eata=SGD | {"margin": 0.4, "epsilon": 0.05, "beta": 2000.0, "fisher_images": 2000},
    ),
    # mr-eggplant/SAR 20f6e24: main.py with resnet50_bn_torch, sam.py and sar.py.
    "sar-imagenet-c": fact(R50, "reset_each_shift", 64, "imagenet-c", sar=SGD | SAR),
    # Jhyun17/DeYO 3d7d289: exp_deyo.sh, mild setting, over config.py.
    "deyo-imagenet-c": fact(
        *(R50, "reset_each_shift", 64, "imagenet-c"),
        deyo=SGD | {"margin": 0.5, "weight_margin": 0.4, "plpd": 0.3, "patches": 4, "official_names": True},
    ),
    # mr-eggplant/FOA 004b02d: main.py and tta_library; its README asks for timm 0.9.10.
    "tent-imagenet-c-vit": fact(
        "timm:vit_base_patch16_224.augreg2_in21k_ft_in1k",
        *("reset_each_shift", 64, "imagenet-c"),
        tent=SGD | {"lr": 1e-3, "steps": 1},
    ),
    "sar-imagenet-c-vit": fact(
        "timm:vit_base_patch16_224.augreg2_in21k_ft_in1k",
        *("reset_each_shift", 64, "imagenet-c"),
        sar=SGD | SAR | {"lr": 1e-3},
    ),
    "cotta-imagenet-c-vit": fact(
        "timm:vit_base_patch16_224.augreg2_in21k_ft_in1k",
        *("reset_each_shift", 64, "imagenet-c"),
        cotta=SGD | COTTA | {"lr": 5e-3, "nesterov": False, "restore": 0.001, "threshold": 0.1, "symmetric": True},
    ),
    # mariodoebler/test-time-adaptation 8b2ed63: classification/cfgs/imagenet_c/*.yaml over conf.py.
    "cotta-imagenet-c": fact(
        *(R50, "continual", 64, "imagenet-c-5k"),
        cotta=SGD | COTTA | {"lr": 0.01, "nesterov": True, "restore": 0.001, "threshold": 0.1, "symmetric": True},
    ),
    "rotta-imagenet-c": fact(R50, "continual", 64, "imagenet-c-5k", rotta=ROTTA),
    "roid-imagenet-c": fact(R50, "continual", 64, "imagenet-c-5k", roid=SGD | {"nesterov": True, "source_share": 0.01}),
    "roid-imagenet-c-vit": fact(
        VIT, "continual", 64, "imagenet-c-5k", roid=SGD | {"nesterov": True, "source_share": 0.01}
    ),
    "roid-imagenet-c-mixed": fact(
        R50, "mixed_domains", 64, "imagenet-c-5k", roid=SGD | {"nesterov": True, "source_share": 0.01}
    ),
    "roid-imagenet-c-correlated": fact(
        VIT, "correlated", 64, "imagenet-c", roid=SGD | {"nesterov": True, "source_share": 0.01}
    ),
}


@pytest.mark.parametrize("name", ADAPTERS)
def test_settings_are_those_of_the_official_configuration(name: str) -> None:
    """Every constant of a card is one of the official configuration, and none of these is left to a default."""
    run = find_card(name).run
    assert {key: run[key] for key in FACTS[name]} == FACTS[name]
    assert set(run) - set(FACTS[name]) == {"method", "severity", "split"}
    assert (run["severity"], run["split"]) == (5, "transductive")  # severity 5, all images


def config_of(name: str, *, with_set: bool) -> dict[str, Any]:
    card = find_card(name)
    spec = make_spec(card.run if with_set else {key: value for key, value in card.run.items() if key != "set"})
    row = find_row(spec.shift)

    class Described:
        name = row.name
        family = row.family
        classes = 10 if row.family == "cifar" else 1000

    options = MethodOptions(spec, Described(), "ln" if "vit" in str(spec.model) else "bn", "cpu")
    return {method: options.config(METHODS[method]) for method in card.run["set"]}


# These follow a release where this project follows the paper, or borrow the rate for ResNets as their source does.
OTHER_THAN_DEFAULT = {"sar-imagenet-c", "sar-imagenet-c-vit", "deyo-imagenet-c"}


@pytest.mark.parametrize("name", ADAPTERS)
def test_a_plain_run_has_the_options_of_the_card(name: str) -> None:
    """So records of a card are those of the same run without one."""
    same = config_of(name, with_set=True) == config_of(name, with_set=False)
    assert same == (name not in OTHER_THAN_DEFAULT)


@pytest.mark.parametrize("name", CARDS)
def test_everything_that_a_card_names_exists(name: str) -> None:
    card = find_card(name)
    spec = make_spec(card.run)
    assert spec.out is None  # the command chooses the folder
    parse_protocol(spec.protocol)
    find_row(spec.shift)
    for method in spec.method:
        parse_method(method)
    for method, options in card.run.get("set", {}).items():
        build_config(METHODS[method], options)
    for number in card.published:
        assert number.method in spec.method
        assert not number.each or abs(fmean(number.each) - number.value) <= 0.06
    assert card.url.startswith("https://")
    assert all([card.summary, card.source, card.measures, card.data, card.weights, card.why])
    assert number.quantity in card.measures
    assert ("imagenet-c-5k.txt" in card.files) == (spec.shift == "imagenet-c-5k")


@pytest.mark.parametrize("name", ADAPTERS)
def test_the_weights_are_in_the_zoo(name: str) -> None:
    zoo, _, model = find_card(name).run["model"].partition(":")
    if zoo == "torchvision":
        architecture, _, weights = model.partition(".")
        assert weights in torchvision.models.get_model_weights(architecture).__members__
    elif zoo == "timm":
        assert model in timm.list_pretrained()
    else:
        assert (zoo, model.rpartition("/")[0]) == ("robustbench", "cifar10/corruptions")


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("selfsoup-imagenet-c", "paper-imagenet-c"),
        ("selfsoup-laion-c", "paper-laion-c"),
        ("selfsoup-clean-imagenet-c", "paper-contrast"),
        ("selfsoup-union", "paper-union"),
    ],
)
def test_soups_are_those_of_the_paper_s_run_files(name: str, file: str) -> None:
    """A card runs methods of the run file, with its settings."""
    card, whole = find_card(name).run, read_run_file(RUNS / f"{file}.toml")
    assert set(card["method"]) <= set(whole["method"])
    ours, theirs = (make_spec(each, {"method": "source", "out": "x"}) for each in (card, whole))
    used = {method.partition("+")[2] or method for method in card["method"]}
    assert ours.options == {method: options for method, options in theirs.options.items() if method in used}
    assert ours.model_copy(update={"options": {}}) == theirs.model_copy(update={"options": {}})


def test_the_soup_on_clean_images_is_scored_like_the_other() -> None:
    clean, shifted = find_card("selfsoup-clean-laion-c").run, find_card("selfsoup-laion-c").run
    assert {**clean, "method": 0} == {**shifted, "method": 0}


GOOD = """
summary = "s"
source = "s"
url = "https://example.org"
measures = "error"
data = "d"
weights = "w"
why = "y"
differs = []
[run]
method = "source"
[[published]]
method = "source"
error = 10
tolerance = 1
"""


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("error = 10", "", "either an error or an accuracy"),
        ("error = 10", "error = 10\naccuracy = 90", "either an error or an accuracy"),
        ("error = 10", "error = 101", "less than or equal to 100"),
        ("tolerance = 1", "tolerance = 0", "greater than 0"),
        ('why = "y"', "", "why: Field required"),
        ('why = "y"', 'why = "y"\nweight = 1', "weight: Extra inputs"),
        ("[run]", "[run", "not a TOML file"),
    ],
)
def test_a_wrong_card_is_one_sentence(old: str, new: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(GOOD)
    assert isinstance(find_card(str(path)), Card)
    path.write_text(GOOD.replace(old, new))
    with pytest.raises(UsageError, match=message):
        find_card(str(path))


def test_unknown_cards_are_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="unknown reproduction 'tent-imagenet'; did you mean 'tent-imagenet-c'"):
        find_card("tent-imagenet")
    with pytest.raises(UsageError, match=r"no card .*none\.toml"):
        find_card(str(tmp_path / "none.toml"))
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="save it as UTF-8"):
        find_card(str(tmp_path / "binary.toml"))


def test_the_page_lists_every_card_and_number() -> None:
    page = (RUNS.parent / "docs" / "reproduce.md").read_text()
    lines = [line for line in page.splitlines() if line.startswith("| `")]
    assert lines == [
        f"| `{card.name}` | {number.row} | {number.quantity} {number.value:g} | {number.tolerance:g} "
        f"| [{card.source}]({card.url}) |"
        for card in cards().values()
        for number in card.published
    ]


def test_the_example_on_the_page_is_a_card(tmp_path: Path) -> None:
    page = (RUNS.parent / "docs" / "reproduce.md").read_text()
    (tmp_path / "mine.toml").write_text(page.partition("```toml\n")[2].partition("```")[0])
    assert make_spec(find_card(str(tmp_path / "mine.toml")).run).method == ("tent",)
