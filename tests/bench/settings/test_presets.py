"""Published options: where they apply, which options override them, and how they are shown."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import pytest

from bench.cli.catalogue import _method
from bench.core.errors import UsageError
from bench.core.import_object import load_object
from bench.planning.plan import make_plan
from bench.settings.methods import literal_of, parse_method
from bench.settings.published import NOTHING, RATE_RULES, DataKind, PublishedOptions, borrowed, origins, published
from bench.settings.run_spec import make_spec
from bench.shifts.digits import Digits
from methods import METHODS
from methods.base import Adapter

PLUGIN = """
from dataclasses import dataclass
from methods.base import Adapter
from methods.table import Access

class Base(Adapter):
    access = Access(test="stream", state="{state}")
    presets = {{"cifar-ln": {{"lr": 0.4, "steps": 3}}, "cifar-bn": {{"lr": 0.2}}}}
    rate_rules = {{"cifar-ln": "batch/64"}}
    tested_against = "restatement"

    @dataclass(frozen=True)
    class Config:
        lr: float = 0.1
        steps: int = 1
        margin: float = 0.5

    def predict(self, images):
        return self.model(images)

class Mine(Base):
    pass
"""


def plugin(folder: Path, state: str = "online") -> str:
    file = folder / f"{state}.py"
    file.write_text(PLUGIN.format(state=state))
    return f"{file}:Mine"


IMAGENET, CIFAR, CIFAR100 = DataKind("", "imagenet", 1000), DataKind("", "cifar", 10), DataKind("", "cifar", 100)
COTTA = {"lr": 1e-3, "optimizer": "adam", "restore": 0.01, "symmetric": False}
NAMED = {"imagenet": IMAGENET, "cifar": CIFAR, "cifar100": CIFAR100}


def chosen(name: str, data: DataKind, norm: str, batch_size: int = 64) -> PublishedOptions:
    cls = load_object(METHODS[name].path)
    return published(cls.presets, cls.rate_rules, data, norm, batch_size)


def sar_main(norm: str, batch: int, doubled: bool) -> float:
    """The rate in main.py of mr-eggplant/SAR, Jhyun17/DeYO and BlueWhaleLab/COME, the last without the doubling."""
    if norm == "ln":
        rate = (0.001 / 64) * batch
    else:
        rate = (0.00025 / 64) * batch * 2 if batch < 32 else 0.00025
    return 2 * rate if batch == 1 and doubled else rate


@pytest.mark.parametrize(
    ("name", "doubled"),
    [("sar", True), ("deyo", True), ("come_tent", False), ("come_eata", False), ("come_sar", False)],
)
def test_rates_follow_the_mains_of_their_releases(name: str, doubled: bool) -> None:
    cells = list(product(("bn", "gn", "ln"), (1, 2, 16, 31, 32, 64, 200)))
    found = {(norm, batch): chosen(name, IMAGENET, norm, batch).options["lr"] for norm, batch in cells}
    assert found == pytest.approx({(norm, batch): sar_main(norm, batch, doubled) for norm, batch in cells})


@pytest.mark.parametrize("name", ["roid", "cmf", "rmt", "santa", "adacontrast", "rotta", "cotta", "memo"])
@pytest.mark.parametrize("data", [IMAGENET, CIFAR, CIFAR100])
def test_rates_of_other_releases_do_not_change_with_the_batch(name: str, data: DataKind) -> None:
    for norm in ("bn", "gn", "ln"):
        found = {batch: chosen(name, data, norm, batch).options for batch in (1, 16, 64, 200)}
        assert found == dict.fromkeys(found, chosen(name, data, norm).options), norm


@pytest.mark.parametrize(
    ("name", "data", "norm", "options"),
    [
        ("rdumb", "cifar", "bn", {"lr": 1e-3, "optimizer": "adam", "epsilon": 0.4, "interval": 1000}),
        ("rdumb", "cifar100", "bn", {"lr": 1e-3, "optimizer": "adam", "epsilon": 0.4, "interval": 1000}),
        ("rdumb", "imagenet", "ln", {"lr": 1e-3, "epsilon": 0.05, "interval": 1000}),
        ("eta", "cifar100", "bn", {"lr": 1e-3, "optimizer": "adam", "epsilon": 0.1}),
        ("cotta", "cifar", "bn", {**COTTA, "threshold": 0.92}),
        ("cotta", "cifar100", "bn", {**COTTA, "threshold": 0.72}),
        ("memo", "cifar", "bn", {"lr": 5e-3, "views": 32, "crop": "padded"}),
        ("memo", "cifar100", "gn", {"lr": 5e-3, "views": 32, "crop": "padded"}),
    ],
)  # fmt: skip
def test_options_of_cifar_are_those_of_the_configuration_files(
    name: str, data: str, norm: str, options: dict[str, Any]
) -> None:
    found = chosen(name, NAMED[data], norm)
    assert found.options == options
    assert found.exact
    assert borrowed(found, {}) == ""


def test_where_nothing_is_published_the_step_follows_the_norms_and_the_rest_the_classes() -> None:
    found = chosen("eta", CIFAR, "ln", 16)
    assert found.options == {"epsilon": 0.4, "lr": 1e-3 * 16 / 64}
    assert borrowed(found, {}) == "epsilon of cifar-bn, lr of imagenet-ln"
    assert borrowed(found, {"lr": 1.0}) == "epsilon of cifar-bn"
    assert borrowed(found, {"lr": 1.0, "epsilon": 1.0}) == ""
    assert chosen("memo", CIFAR, "ln").options == {
        "views": 32, "crop": "padded", "lr": 1e-5, "optimizer": "adamw", "weight_decay": 0.01,
    }  # fmt: skip
    assert chosen("rpl", IMAGENET, "ln").options == chosen("rpl", IMAGENET, "bn").options
    assert not chosen("rpl", IMAGENET, "ln").exact


def test_what_depends_on_the_pictures_is_not_taken_from_other_data() -> None:
    assert chosen("actmad", CIFAR, "ln").options["flip"] is True
    assert chosen("actmad", DataKind("digits-c", "digits", 10), "ln").options == {"lr": 1e-2}


@pytest.mark.parametrize(("classes", "epsilon"), [(2, 0.4), (10, 0.4), (31, 0.4), (32, 0.1), (200, 0.1), (400, 0.05)])
def test_thresholds_follow_the_number_of_classes(classes: int, epsilon: float) -> None:
    assert chosen("eta", DataKind("own", "digits", classes), "ln").options["epsilon"] == epsilon


def test_a_name_of_a_shift_goes_over_its_family() -> None:
    assert chosen("foa", DataKind("imagenet-r", "imagenet", 200), "ln").options == {"trade_off": 0.2}
    assert chosen("foa", DataKind("imagenet-a", "imagenet", 200), "ln").options == {"trade_off": 0.4}


def test_a_method_without_published_options_and_a_rule_that_does_not_exist() -> None:
    assert chosen("t3a", CIFAR, "ln") == NOTHING
    with pytest.raises(UsageError, match=r"rate rule 'batch/3'"):
        published({"cifar-bn": {"lr": 1.0}}, {"cifar-bn": "batch/3"}, CIFAR, "bn")


def test_the_words_name_value_origin_and_rule() -> None:
    for norm, words in (("ln", "of imagenet-ln, times batch/64, twice that for 1"), ("bn", "published")):
        found = origins(chosen("sar", CIFAR, norm, 8))
        assert {option: str(value) for option, value in found.items()} == {"lr": f"0.001 ({words})"}


def test_presets_go_over_defaults_and_under_what_is_asked_for(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def plan(**options: Any) -> Any:
        spec = make_spec(
            {**settings, "method": plugin(tmp_path), "batch_size": 32}, {"set": {"online.py:Mine": options}}
        )
        return make_plan(spec)

    def resolved(**options: Any) -> Any:
        return plan(**options).entries[0].trial.options["online.py:Mine"]

    assert resolved() == {"lr": pytest.approx(0.2), "steps": 3, "margin": 0.5}
    (note,) = plan().notes
    assert note == (
        "online.py:Mine: no published options for digits-c on ln: using lr of cifar-ln, steps of cifar-ln "
        "(bench tune chooses better)"
    )
    assert plan(lr=7.0, steps=1).notes == ()
    assert resolved(lr=7.0) == {"lr": 7.0, "steps": 3, "margin": 0.5}
    monkeypatch.setattr(Digits, "family", "cifar")
    assert resolved() == {"lr": pytest.approx(0.2), "steps": 3, "margin": 0.5}
    assert plan().notes == ()
    monkeypatch.setattr(
        "bench.settings.method_options.tuned_options", lambda _, name: {} if name == "source" else {"steps": 9}
    )
    assert resolved() == {"lr": pytest.approx(0.2), "steps": 9, "margin": 0.5}
    assert resolved(steps=2)["steps"] == 2


def test_literals_are_read_from_text_through_bases(tmp_path: Path) -> None:
    row = parse_method(plugin(tmp_path)).adapter
    assert row is not None
    assert literal_of(row, "tested_against", "none") == "restatement"
    assert literal_of(row, "presets", {})["cifar-bn"] == {"lr": 0.2}
    assert literal_of(row, "nothing", 3) == 3


@pytest.mark.parametrize("name", [row.name for row in METHODS.values() if row.kind == "adapter"])
def test_what_is_shown_is_what_the_class_says(name: str) -> None:
    cls: type[Adapter] = load_object(METHODS[name].path)
    shown = _method(name)
    assert shown["tested_against"] == cls.tested_against
    assert shown["presets"] == cls.presets
    assert shown["rate_rules"] == cls.rate_rules
    assert set(cls.rate_rules.values()) <= RATE_RULES.keys()
    assert cls.rate_rules.keys() <= cls.presets.keys()
    assert {key.rpartition("-")[2] for key in cls.presets} <= {"bn", "ln", "gn"}
    assert {key.rpartition("-")[0] for key in cls.presets} <= {"imagenet", "cifar", "cifar100", "imagenet-r"}
    for options in cls.presets.values():
        cls.Config(**options)
