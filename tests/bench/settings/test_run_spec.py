"""Settings: layers, lists, ranges, and errors that suggest the nearest name."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.core.conditions import CLEAN, Condition
from bench.core.errors import UsageError
from bench.settings.run_fields import RunFields
from bench.settings.run_spec import RunSpec, make_spec, read_run_file

BASE = {"method": "tent", "shift": "digits-c"}


@pytest.mark.parametrize(
    ("given", "levels"),
    [("5", (5.0,)), ("1-5", (1.0, 2.0, 3.0, 4.0, 5.0)), ("3,5", (3.0, 5.0)), ([2, 4.5], (2.0, 4.5)), (3, (3.0,))],
)
def test_severities_are_lists_ranges_or_single_numbers(given: object, levels: tuple[float, ...]) -> None:
    assert make_spec(BASE, {"severity": given}).severity == levels


@pytest.mark.parametrize("given", ["6", "0", "-1", "a", "", "1-9", True, "nan"])
def test_a_severity_outside_the_scale_is_refused_with_the_range(given: object) -> None:
    with pytest.raises(UsageError, match=r"--severity .*5"):
        make_spec(BASE, {"severity": given})


def test_later_layers_win_and_options_merge_key_by_key() -> None:
    spec = make_spec(
        BASE,
        {"batch_size": 32, "set": {"tent": {"lr": 1.0, "steps": 2}}},
        {"batch_size": 16, "set": {"tent": {"lr": 0.5}}},
        {"batch_size": None},
    )
    assert spec.batch_size == 16
    assert spec.options == {"tent": {"lr": 0.5, "steps": 2}}


def test_every_setting_is_declared_where_the_flags_are_made() -> None:
    # of_suite is no flag: a suite sets it.
    assert [name for name in RunSpec.model_fields if name != "of_suite"] == list(RunFields.__annotations__)


@pytest.mark.parametrize("name", ["tracker", "track"])
def test_a_tracker_has_two_names(name: str, tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text(f'{name} = "mlflow"')
    assert make_spec(BASE, read_run_file(path)).tracker == "mlflow"
    assert make_spec(BASE, {name: "wandb"}, {"tracker": "mlflow"}).tracker == "mlflow"
    assert make_spec(BASE, {"tracker": "wandb"}, {name: "mlflow"}).tracker == "mlflow"


def test_methods_are_split_in_order_without_repeats() -> None:
    assert make_spec(BASE, {"method": "source, tent,source"}).method == ("source", "tent")


def test_seeds_count_from_the_first() -> None:
    assert make_spec(BASE, {"seeds": 3}).seed_list == (0, 1, 2)
    assert make_spec(BASE, {"seed": 4}).seed_list == (4,)
    assert make_spec(BASE, {"seed": 4, "seeds": 2}).seed_list == (4, 5)


@pytest.mark.parametrize(
    ("layer", "sentence"),
    [
        ({"severty": 5}, "unknown setting 'severty'; did you mean 'severity'"),
        ({"model": "a.py:b", "stock": "c"}, "exclude each other"),
        ({"rerun": True, "only_failed": True}, "exclude each other"),
        ({"limit": 0}, "--limit"),
        ({"method": ","}, "--method .*empty"),
        ({"set": {"tent": 3}}, "set.tent must be a table"),
        ({"precision": "fp8"}, "--precision"),
    ],
)
def test_what_does_not_fit_is_one_sentence(layer: dict[str, object], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        make_spec(BASE, layer)


def test_a_missing_method_says_where_to_look() -> None:
    with pytest.raises(UsageError, match="bench list methods"):
        make_spec({"shift": "digits-c"})


def test_conditions_start_with_clean_and_go_severity_by_severity() -> None:
    spec = make_spec(BASE, {"severity": "1,2"})
    assert spec.conditions(("fog", "contrast")) == (
        CLEAN,
        Condition("fog", 1),
        Condition("contrast", 1),
        Condition("fog", 2),
        Condition("contrast", 2),
    )


def test_run_files_use_the_flags_names(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text('method = ["tent"]\nshift = "digits-c"\nbatch-size = 8\n[set.tent]\nlr = 0.1\n')
    spec = make_spec(read_run_file(file))
    assert (spec.batch_size, spec.options) == (8, {"tent": {"lr": 0.1}})


@pytest.mark.parametrize("content", [b"method = ", b"\xff\xfe\x00"])
def test_a_broken_run_file_is_named(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "broken.toml"
    file.write_bytes(content)
    with pytest.raises(UsageError, match=r"broken\.toml is not a TOML file"):
        read_run_file(file)
    with pytest.raises(UsageError, match="no run file"):
        read_run_file(tmp_path / "absent.toml")


def test_clean_is_the_only_condition_without_corruption() -> None:
    with pytest.raises(ValueError, match="clean is"):
        Condition(None, 3)
    with pytest.raises(ValueError, match="clean is"):
        Condition("fog", 0)
