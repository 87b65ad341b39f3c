"""Lists in the settings of a run become one run for each combination."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from bench.core.errors import UsageError
from bench.settings.grid import cells_of, settings_of

BASE = {"method": "source,tent", "shift": "digits-c"}


def values_of(name: str, *layers: dict[str, Any]) -> list[Any]:
    return [getattr(cell.spec, name) for cell in cells_of(BASE, *layers)]


def test_without_lists_there_is_one_run_without_a_name() -> None:
    (cell,) = cells_of(BASE, {"protocol": "continual"}, {"set": {"tent": {"steps": 2}}})
    assert (cell.name, cell.spec.protocol, cell.spec.options) == ("", "continual", {"tent": {"steps": 2}})


@pytest.mark.parametrize(
    ("name", "given", "values"),
    [
        ("shift", "digits-c, fashion-c,", ["digits-c", "fashion-c"]),
        ("shift", ["digits-c", "fashion-c", "digits-c"], ["digits-c", "fashion-c"]),
        ("batch_size", "16,64", [16, 64]),
        ("batch_size", [16, 64], [16, 64]),
        ("batch_size", "16", [16]),
        ("labels", "0,10", [0, 10]),
        ("split", "joint,disjoint", ["joint", "disjoint"]),
        ("precision", "fp32,bf16", ["fp32", "bf16"]),
        ("model", "timm:a,timm:b", ["timm:a", "timm:b"]),
        ("stock", "digits,timm:vit", ["digits", "timm:vit"]),
        ("protocol", "continual,correlated:delta=0.1,seed=3", ["continual", "correlated:delta=0.1,seed=3"]),
        ("protocol", "correlated:delta=0.1,continual", ["correlated:delta=0.1", "continual"]),
        ("protocol", "a:x=1,b:y=2,z=3,c", ["a:x=1", "b:y=2,z=3", "c"]),
    ],
)
def test_each_of_these_settings_takes_a_list(name: str, given: Any, values: list[Any]) -> None:
    assert values_of(name, {name: given}) == values
    assert values_of(name, {name.replace("_", "-"): given}) == values


def test_the_grid_is_the_product_in_the_order_of_the_lists() -> None:
    cells = cells_of(BASE, {"protocol": ["continual", "episodic"], "batch_size": [1, 16]})
    assert [cell.name for cell in cells] == [
        "continual, batch size 1",
        "continual, batch size 16",
        "episodic, batch size 1",
        "episodic, batch size 16",
    ]


def test_a_flag_replaces_the_list_of_a_file() -> None:
    assert values_of("batch_size", {"batch_size": [1, 2]}, {"batch_size": "8"}) == [8]


def test_runs_of_a_file_are_no_product_and_flags_win() -> None:
    file = tomllib.loads(
        """
        severity = 3
        [set.tent]
        steps = 2
        [[runs]]
        shift = "digits-c"
        batch-size = 64
        [[runs]]
        shift = "fashion-c"
        protocol = ["continual", "episodic"]
        [runs.set.tent]
        lr = 0.1
        """
    )
    cells = cells_of(BASE, file, {"seeds": 2, "protocol": None})
    assert [(c.spec.shift, c.spec.protocol, c.spec.batch_size, c.spec.seeds, c.spec.options) for c in cells] == [
        ("digits-c", "reset_each_shift", 64, 2, {"tent": {"steps": 2}}),
        ("fashion-c", "continual", 64, 2, {"tent": {"steps": 2, "lr": 0.1}}),
        ("fashion-c", "episodic", 64, 2, {"tent": {"steps": 2, "lr": 0.1}}),
    ]


def test_names_tell_methods_severities_and_files_apart() -> None:
    assert [c.name for c in cells_of(BASE, {"runs": [{"severity": 3}, {"severity": 5}]})] == [
        "severity 3",
        "severity 5",
    ]
    assert [c.name for c in cells_of(BASE, {"model": "a/net.py:f,b/net.py:f"})] == ["a/net.py:f", "b/net.py:f"]
    assert [c.name for c in cells_of(BASE, {"runs": [{"limit": 3}, {"limit": 4}]})] == ["run 1", "run 2"]
    assert [c.name for c in cells_of(BASE, {"runs": [{"labels": 3}, {}]})] == ["labels 3", "default labels"]
    steps: list[dict[str, Any]] = [{"set": {"tent": {"steps": 2}}}, {"set": {"tent": {"steps": 3}}}, {}]
    assert [c.name for c in cells_of(BASE, {"runs": steps})] == ["tent.steps=2", "tent.steps=3", ""]


def test_a_file_with_a_comma_in_its_name_is_one(tmp_path: Path) -> None:
    (tmp_path / "a,b").mkdir()
    (tmp_path / "a,b.safetensors").touch()
    assert values_of("shift", {"shift": f"folder:{tmp_path}/a,b"}) == [f"folder:{tmp_path}/a,b"]
    assert values_of("stock", {"stock": f"{tmp_path}/a,b.safetensors"}) == [f"{tmp_path}/a,b.safetensors"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"batch_size": "16,many"}, r"^--batch-size takes whole numbers, as in --batch-size 16,64; not 'many'$"),
        ({"batch_size": "0,16"}, r"^--batch-size must be 1 or more, not 0$"),
        ({"shift": ","}, r"^--shift is empty; name at least one$"),
        ({"split": []}, r"^--split is empty; name at least one$"),
        ({"runs": {"shift": "a"}}, r"^runs must be tables of settings, each under \[\[runs\]\]$"),
        ({"runs": []}, r"^runs must be tables"),
        ({"runs": [{"runs": []}]}, r"^\[\[runs\]\] holds runs itself"),
        ({"runs": [{"shfit": "a"}]}, r"unknown setting 'shfit'; did you mean 'shift'"),
        ({"runs": [{"shift": "digits-c"}, {}]}, r"^two runs of \[\[runs\]\] are equal; remove one$"),
        ({"precision": "fp32,fp8"}, r"^--precision must be 'auto', 'fp32' or 'bf16', not 'fp8'"),
    ],
)
def test_what_is_no_grid_is_said_in_a_sentence(given: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        cells_of(BASE, given)


def test_settings_repeat_the_runs() -> None:
    layers: list[dict[str, Any]] = [
        {"protocol": ["continual", "episodic"], "seeds": 3, "labels": 5},
        {"runs": [{"shift": "digits-c", "set": {"tent": {"lr": 0.1, "optimizer": None}}}, {"shift": "fashion-c"}]},
        {"out": "elsewhere", "rerun": True},
    ]
    cells = cells_of(BASE, *layers)
    again = cells_of(tomllib.loads(tomli_w.dumps(settings_of([cell.spec for cell in cells]))))
    assert [cell.name for cell in again] == [cell.name for cell in cells]
    for one, other in zip(cells, again, strict=True):
        left = {"out": None, "rerun": False, "options": {"tent": {"lr": 0.1}} if one.spec.options else {}}
        assert other.spec == one.spec.model_copy(update=left)
    (single,) = cells_of(BASE)
    assert "runs" not in settings_of([single.spec])
