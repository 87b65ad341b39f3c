"""Keys change with code, weights and images, but not with moved files or comments."""

from __future__ import annotations

import importlib
import json
import os
import py_compile
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import quick_processes
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from bench.core import source_code
from bench.core.components import all_components, component_of, identity, identity_of, name_of
from bench.core.errors import BenchError
from bench.core.import_object import code_of, load_object
from bench.core.source_code import HOME, definitions_digest, files_digest
from bench.evaluation.evaluate import evaluate
from bench.models.weights_io import model_digest
from bench.planning.plan import make_plan
from bench.planning.streams import missing_streams
from bench.runs.run import run
from bench.settings.run_spec import make_spec
from bench.training import job_cache
from bench.training.job_cache import draw_key, job_key
from leaderboards.identity import key_of_record
from leaderboards.store import Store
from leaderboards.verify import verify
from methods.base import Job
from methods.identity import component
from methods.training.finetune import fine_tune

RECIPE = '''
"""A recipe that trains nothing but a head."""
import torch
from dataclasses import dataclass
from typing import ClassVar
from methods.base import Job, Recipe
from methods.nets.weights import Weights
from methods.table import Access
from {helper} import scale_of


@dataclass(frozen=True)
class Head:
    """Options."""
    scale: float = 1.0


def tune(inputs, data, config, generator):
    stock = inputs[0]
    head = torch.randn(10, stock.architecture.dim, generator=generator) * config.scale * scale_of()
    bias = torch.zeros(10)
    return Weights(stock.architecture, {{**stock.tensors, "head.weight": head, "head.bias": bias}})


class RandomHead(Recipe):
    """A random head on the encoder of the stock."""

    access: ClassVar[Access] = Access()

    def plan(self, stock, source, pool):
        encoder = Weights(
            stock.architecture, {{k: v for k, v in stock.tensors.items() if k.startswith("encoder.")}}
        )
        return {{"": Job(tune, Head(), (encoder,), source, "a head")}}
'''
HELPER = "def scale_of():\n    return 1.0\n"


def written(folder: Path, helper: str = "scales") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "random_head.py").write_text(RECIPE.format(helper=helper))
    (folder / f"{helper}.py").write_text(HELPER)
    return folder / "random_head.py"


def keys_of(settings: dict[str, Any], **changes: Any) -> list[str]:
    return list(make_plan(make_spec({**settings, **changes})).keys)


def accuracies(outcome: Any) -> list[float]:
    return [record.metrics.accuracy for record in sorted(outcome.records(), key=lambda record: str(record.corruption))]


def likelihoods(outcome: Any) -> list[float]:
    return [record.metrics.nll for record in sorted(outcome.records(), key=lambda record: str(record.corruption))]


# --- identity bound to place, too wide, too narrow ------------------------------------------------------------------


def test_a_recipe_gives_the_same_keys_and_numbers_wherever_its_file_lies(
    tmp_path: Path, settings: dict[str, Any], run_quick: Callable[..., Any]
) -> None:
    one, other, third = (written(tmp_path / name) for name in ("one", "other", "third"))
    third.write_text(f"# a comment\n\n{third.read_text()}\n\n# another one\n")
    (tmp_path / "third" / "scales.py").write_text('def scale_of():\n    """How large."""\n    return 1.0  # whole\n')
    found = [
        run_quick(settings, method=f"{file}:RandomHead", out=tmp_path / f"run{number}")
        for number, file in enumerate((one, other, third))
    ]
    assert found[0].keys == found[1].keys == found[2].keys
    assert accuracies(found[0]) == accuracies(found[1]) == accuracies(found[2])
    record = found[0].records()[0]
    assert record.key == key_of_record(record)
    assert record.components["method:random_head.py:RandomHead"].count("/") == 1


@pytest.mark.parametrize("surface", ["recipe", "adapter", "model", "shift", "objective"])
def test_a_helper_that_is_imported_counts(surface: str, tmp_path: Path, settings: dict[str, Any]) -> None:
    changes, helper, edit = _USER_CODE[surface](tmp_path)
    if surface in ("model", "shift"):
        settings = {name: value for name, value in settings.items() if name != "stock"} | changes
    else:
        settings = settings | changes
    before = keys_of(settings)
    helper.write_text(helper.read_text() + "\n# a comment changes nothing\n")
    assert keys_of(settings) == before
    helper.write_text(edit(helper.read_text()))
    assert not set(keys_of(settings)) & set(before) or surface == "shift"
    assert keys_of(settings) != before


def _recipe(folder: Path) -> tuple[dict[str, Any], Path, Callable[[str], str]]:
    file = written(folder, "scales_of_recipe")
    return {"method": f"{file}:RandomHead"}, folder / "scales_of_recipe.py", lambda text: text.replace("1.0", "2.0")


def _adapter(folder: Path) -> tuple[dict[str, Any], Path, Callable[[str], str]]:
    package = folder / "mine"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "helper_of_adapter.py").write_text("def factor():\n    return 1.0\n")
    (package / "flat.py").write_text(
        "from typing import ClassVar\nfrom methods.base import Adapter\nfrom methods.table import Access\n"
        "from .helper_of_adapter import factor\n\n\nclass Flat(Adapter):\n    access: ClassVar[Access] = Access()\n\n"
        "    def predict(self, images):\n        return self.model(images).detach() * factor()\n"
    )
    where = package / "helper_of_adapter.py"
    return {"method": f"{package / 'flat.py'}:Flat"}, where, lambda text: text.replace("1.0", "0.5")


def _model(folder: Path) -> tuple[dict[str, Any], Path, Callable[[str], str]]:
    (folder / "helper_of_model.py").write_text("def squeeze(scores):\n    return scores\n")
    (folder / "net.py").write_text(
        "import torch\n\n\nclass Net(torch.nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        "        torch.manual_seed(0)\n"
        "        self.body = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3072, 10))\n\n"
        "    def forward(self, images):\n        from helper_of_model import squeeze\n"
        "        return squeeze(self.body(images))\n\n\ndef make():\n    return Net()\n"
    )
    where = folder / "helper_of_model.py"
    return {"model": f"{folder / 'net.py'}:make"}, where, lambda text: text.replace("return scores", "return -scores")


def _shift(folder: Path) -> tuple[dict[str, Any], Path, Callable[[str], str]]:
    changes, _, _ = _model(folder)
    (folder / "helper_of_shift.py").write_text(
        "def darker(images, severity):\n    return images // int(1 + severity)\n"
    )
    (folder / "dark.py").write_text(
        "import numpy as np\nfrom bench.shifts.user_shift import OwnShift\nfrom helper_of_shift import darker\n\n\n"
        "class Dark(OwnShift):\n    classes = 10\n    corruptions = ('dark',)\n\n    def images(self, part):\n"
        "        rng = np.random.default_rng(0)\n"
        "        return rng.integers(0, 256, (20, 32, 32, 3), dtype=np.uint8), np.arange(20) % 10\n\n"
        "    def corrupt(self, images, corruption, severity, ids):\n        return darker(images, severity)\n"
    )
    changes |= {"shift": f"{folder / 'dark.py'}:Dark", "corruption": "dark", "limit": None}
    return changes, folder / "helper_of_shift.py", lambda text: text.replace("1 + severity", "2 + severity")


def _objective(folder: Path) -> tuple[dict[str, Any], Path, Callable[[str], str]]:
    changes, _, _ = _recipe(folder)
    file = folder / "random_head.py"
    (folder / "helper_of_objective.py").write_text(
        "import dataclasses\n\n\n@dataclasses.dataclass(frozen=True)\nclass Loss:\n    power: int = 2\n"
    )
    text = file.read_text().replace("    scale: float = 1.0", "    scale: float = 1.0\n    loss: Loss = Loss()")
    file.write_text(text.replace("import torch\n", "import torch\nfrom helper_of_objective import Loss\n", 1))
    return changes, folder / "helper_of_objective.py", lambda text: text.replace("power: int = 2", "power: int = 3")


_USER_CODE: dict[str, Callable[[Path], tuple[dict[str, Any], Path, Callable[[str], str]]]] = {
    "recipe": _recipe,
    "adapter": _adapter,
    "model": _model,
    "shift": _shift,
    "objective": _objective,
}


def test_a_helper_that_changes_in_a_session_is_loaded_again(
    tmp_path: Path, settings: dict[str, Any], run_quick: Callable[..., Any]
) -> None:
    file = written(tmp_path, "scales_of_session")
    settings = settings | {"method": f"{file}:RandomHead"}
    first = run_quick(settings)
    (tmp_path / "scales_of_session.py").write_text("def scale_of():\n    return 0.0\n")
    second = run_quick(settings)
    assert not set(first.keys) & set(second.keys)
    sharp, flat = ([record.metrics.nll for record in outcome.records()] for outcome in (first, second))
    assert min(sharp) > 2.5
    assert flat == pytest.approx([np.log(10)] * len(flat))  # a head of zeros says nothing
    (tmp_path / "scales_of_session.py").write_text(HELPER)
    assert run_quick(settings).reused == len(first.keys)


@pytest.mark.parametrize("helper", ["old_scales.py", "old_package/scales.py"])
def test_bytecode_of_an_older_text_is_not_run(tmp_path: Path, helper: str) -> None:
    """Python takes bytecode for that of a file whose size and second of change are the same."""
    place = tmp_path / helper
    place.parent.mkdir(exist_ok=True)
    place.write_text("SCALE = 1.0\n")
    py_compile.compile(str(place))
    changed = place.stat().st_mtime
    place.write_text("SCALE = 2.0\n")
    os.utime(place, (changed, changed))
    file = tmp_path / "asks.py"
    file.write_text(f"from {helper.removesuffix('.py').replace('/', '.')} import SCALE\n")
    assert load_object(f"{file}:SCALE") == 2.0


@pytest.mark.parametrize("place", ["from aside_{}.value import SCALE", ""])
def test_bytecode_is_not_run_outside_the_file_s_folder_either(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A package elsewhere on the path: imported by a file, and named itself."""
    package = f"aside_{len(place)}"
    module = tmp_path / "elsewhere" / package / "value.py"
    module.parent.mkdir(parents=True)
    (module.parent / "__init__.py").write_text("")
    module.write_text("SCALE = 1.0\n")
    py_compile.compile(str(module))
    changed = module.stat().st_mtime
    module.write_text("SCALE = 2.0\n")
    os.utime(module, (changed, changed))
    monkeypatch.syspath_prepend(tmp_path / "elsewhere")
    (tmp_path / "own").mkdir()
    file = tmp_path / "own" / "asks.py"
    file.write_text(place.format(len(place)) + "\n")
    assert load_object(f"{file}:SCALE" if place else f"{package}.value:SCALE") == 2.0


def test_two_helpers_of_one_name_are_two(tmp_path: Path) -> None:
    one, other = written(tmp_path / "a", "twins"), written(tmp_path / "b", "twins")
    (tmp_path / "b" / "twins.py").write_text("def scale_of():\n    return 3.0\n")
    assert load_object(f"{one}:scale_of")() == 1.0
    assert load_object(f"{other}:scale_of")() == 3.0
    assert load_object(f"{one}:scale_of")() == 1.0
    assert code_of(f"{one}:tune") != code_of(f"{other}:tune")


def test_an_installed_package_counts_with_what_it_imports_from_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source_code, "_site_folders", lambda: (tmp_path.resolve(),))
    package = tmp_path / "their_package"
    (package / "deep").mkdir(parents=True)
    for name, text in {
        "__init__.py": "",
        "method.py": "from .deep.rule import factor\nimport other_package\n",
        "deep/__init__.py": "from . import rule\n",
        "deep/rule.py": "from ..table import N\nfactor = N\n",
        "table.py": "N = 1\n",
        "unused.py": "X = 1\n",
    }.items():
        (package / name).write_text(text)
    (tmp_path / "other_package.py").write_text("Y = 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))

    def digest() -> str:
        return files_digest(package / "method.py")

    before = digest()
    (package / "unused.py").write_text("X = 2\n")
    (tmp_path / "other_package.py").write_text("Y = 2\n")
    assert digest() == before
    (package / "table.py").write_text("N = 2\n")
    assert digest() != before


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("def f(x):\n    '''Doc.'''\n    return x + 1  # one more\n", True),
        ("def f(x):\n\n    return (x\n        + 1)\n", True),
        ("def f(x):\n    return x + 2\n", False),
        ("def f(y):\n    return y + 1\n", False),
        ("from math import sin as f\n\n\ndef f(x):\n    return x + 1\n", False),
    ],
)
def test_what_a_file_does_is_its_code_without_comments(tmp_path: Path, text: str, same: bool) -> None:
    file = tmp_path / "f.py"
    file.write_text("def f(x):\n    return x + 1\n")
    before = files_digest(file)
    file.write_text(text)
    assert (files_digest(file) == before) is same


def test_names_that_are_swapped_in_an_import_are_other_code(tmp_path: Path) -> None:
    file = tmp_path / "f.py"
    file.write_text("from math import sin as a, cos as b\n")
    before = files_digest(file)
    file.write_text("from math import cos as a, sin as b\n")
    assert files_digest(file) != before


# --- our own code -----------------------------------------------------------------------------------------------------


@pytest.fixture
def checkout(tmp_path: Path) -> Callable[..., dict[str, str]]:
    """Edits a copy of this project; gives the identities of components there, in a process of its own."""
    home = tmp_path / "checkout"
    home.mkdir()
    for package in source_code.OWN:
        shutil.copytree(HOME / package, home / package, ignore=shutil.ignore_patterns("__pycache__", "results"))

    def identities(names: list[str], *edits: tuple[str, str, str]) -> dict[str, str]:
        for file, old, new in edits:
            text = (home / file).read_text()
            assert old in text, (file, old)
            (home / file).write_text(text.replace(old, new, 1))
        code = "import json, sys; from bench.core.components import identity; "
        code += "print(json.dumps({name: identity(name) for name in json.loads(sys.argv[1])}))"
        there = {"PYTHONPATH": str(home), "PATH": ""}
        done = quick_processes.run(["-c", code, json.dumps(names)], cwd=home, env=there, check=True)
        found: dict[str, str] = json.loads(done.stdout)
        return found

    return identities


NAMES = [
    "harness",
    "decoder",
    "library",
    "method:tent",
    "method:sar",
    "method:source",
    "corruption:fog",
    "corruption:snow",
]
NAMES += ["methods.finetune.fine_tune", "methods.selfsoup.ingredients.inter_train"]


def test_comments_docstrings_messages_and_new_functions_change_no_identity(checkout: Any) -> None:
    found = checkout(
        NAMES,
        ("methods/base.py", "from __future__", "# a comment\nfrom __future__"),
        ("methods/base.py", 'class Adapter(_Method):\n    """', 'class Adapter(_Method):\n    """Another sentence. '),
        (
            "methods/base.py",
            "class Checkpointer(Protocol)",
            "def new_helper() -> int:\n    return 3\n\n\nclass Checkpointer(Protocol)",
        ),
        ("methods/base.py", "call prepare() before reset()", "prepare first"),
        ("methods/adapters/sar.py", '"margin": 0.7}', '"margin": 0.6}'),
        ("corruptions/weather.py", "def fog(", "# fog\ndef fog("),
    )
    assert found == {name: str(component_of(name).version) for name in NAMES}


# A file, what is replaced in it by what, and the components that this changes.
EDITS: dict[str, tuple[str, str, str, set[str]]] = {
    "adapter": ("methods/adapters/tent.py", "def predict", "surprise = 1\n\n    def predict", {"method:tent"}),
    "loss": (
        "methods/losses.py",
        "def entropy(logits: Tensor)",
        "def entropy(logits: Tensor, _: int = 0)",
        {"method:tent", "method:sar", "library"},
    ),
    "corruption": (
        "corruptions/weather.py",
        "def fog(images: Tensor",
        "def fog(images: Tensor | Tensor",
        {"corruption:fog"},
    ),
    "training": (
        "methods/training/finetune.py",
        "def linear_probe(",
        "def linear_probe(_: int, ",
        {"methods.finetune.fine_tune", "method:source"},
    ),
    "protocol": ("bench/evaluation/protocols.py", "def by_class(", "def by_class(_: int, ", {"harness"}),
    "decoder": ("bench/data/decode.py", "size: int\n", "size: int = 3\n", {"decoder", "harness"}),
}


@pytest.mark.parametrize(
    "edits",
    [
        ("loss", "corruption"),
        *(pytest.param((name,), marks=pytest.mark.slow) for name in EDITS),
    ],
    ids=" and ".join,
)
def test_an_edit_moves_what_depends_on_it_and_nothing_else(checkout: Any, edits: tuple[str, ...]) -> None:
    found = checkout(NAMES, *(EDITS[name][:3] for name in edits))
    moved = set().union(*(EDITS[name][3] for name in edits))
    versions = {name: str(component_of(name).version) for name in NAMES}
    assert {name for name, value in found.items() if value != versions[name]} == moved
    assert all(value.startswith(f"{versions[name]}+") for name, value in found.items() if name in moved)


def test_a_file_that_moves_changes_no_identity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "moved"
    shutil.copytree(HOME / "methods", home / "methods", ignore=shutil.ignore_patterns("__pycache__"))
    before = definitions_digest([("methods.adapters.sar", "Sar")])
    (home / "methods" / "deep").mkdir()
    (home / "methods" / "deep" / "__init__.py").write_text("")
    shutil.move(home / "methods" / "losses.py", home / "methods" / "deep" / "entropies.py")
    for file in home.rglob("*.py"):
        text = file.read_text()
        file.write_text(text.replace("from methods.losses import", "from methods.deep.entropies import"))
    monkeypatch.setattr(source_code, "HOME", home)
    for cached in (source_code._read, source_code._parsed, source_code._file_of):
        cached.cache_clear()
    try:
        assert definitions_digest([("methods.adapters.sar", "Sar")]) == before
    finally:
        monkeypatch.undo()
        for cached in (source_code._read, source_code._parsed, source_code._file_of):
            cached.cache_clear()


def test_the_lock_file_is_that_of_this_code() -> None:
    stale = [name for name in all_components() if identity(name) != str(component_of(name).version)]
    assert not stale, f"the code of {', '.join(stale)} changed; run `make components`"


def test_names_are_declared_and_unique() -> None:
    def same_name() -> None: ...

    assert name_of(component("methods.finetune.fine_tune")(same_name)) == "methods.finetune.fine_tune"
    assert identity_of(fine_tune) == ("methods.finetune.fine_tune", "1")

    def undeclared() -> None: ...

    undeclared.__module__ = "methods.training.finetune"
    with pytest.raises(BenchError, match="has no identity; add @component"):
        name_of(undeclared)
    assert len(set(all_components())) == len(all_components())


def test_a_version_moves_keys_and_no_draw(stock: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from bench.models.weights_io import load_stock

    job = Job(fine_tune, None, (load_stock(stock),), None, "x")
    before = job_key(job, 0), draw_key(job, 0)
    monkeypatch.setattr(job_cache, "identity_of", lambda thing: (name_of(thing), "2"))
    assert job_key(job, 0) != before[0]
    assert draw_key(job, 0) == before[1]


# --- two reads --------------------------------------------------------------------------------------------------------


def test_a_checkpoint_overwritten_in_a_session_gives_its_own_numbers(
    tmp_path: Path, settings: dict[str, Any], run_quick: Callable[..., Any]
) -> None:
    name, stock = _checkpoint(tmp_path)
    del settings["stock"]
    settings |= {"model": name, "shift": "digits-c"}
    first = run_quick(settings)
    tensors = load_file(stock)
    first_layer = next(key for key in tensors if key.endswith("conv.weight") or key.endswith("conv1.0.weight"))
    save_file({key: (-value if key == first_layer else value) for key, value in tensors.items()}, stock)
    second = run_quick(settings)
    assert not set(first.keys) & set(second.keys)
    assert likelihoods(first) != likelihoods(second)
    assert verify(second.out).ok
    fresh = run(make_spec({**settings, "out": tmp_path / "fresh"}))
    assert likelihoods(fresh) == likelihoods(second)


def _checkpoint(folder: Path) -> tuple[str, Path]:
    import timm

    torch.manual_seed(0)
    network = timm.create_model("resnet10t", num_classes=10)
    path = folder / "net.safetensors"
    save_file(network.state_dict(), path)
    return f"timm:resnet10t@{path}", path  # stem: conv1.0, conv1.3, conv1.6


def test_a_model_replaced_between_planning_and_loading_is_refused(tmp_path: Path, settings: dict[str, Any]) -> None:
    name, path = _checkpoint(tmp_path)
    del settings["stock"]
    settings |= {"model": name}
    job = next(task.arguments[0] for task, *_ in missing_streams(make_plan(make_spec(settings))))
    save_file({key: value + 1 if key == "fc.bias" else value for key, value in load_file(path).items()}, path)
    with pytest.raises(BenchError, match=r"the weights of timm:resnet10t@.* have changed since the run was planned"):
        evaluate(job)


def test_images_replaced_between_planning_and_loading_are_refused(tmp_path: Path, settings: dict[str, Any]) -> None:
    from PIL import Image

    def fill(value: int) -> None:
        for label in range(10):
            (tmp_path / "set" / f"class{label}").mkdir(parents=True, exist_ok=True)
            for number in range(3):
                grey = np.full((32, 32, 3), (value + 20 * label + number) % 256, np.uint8)
                Image.fromarray(grey).save(tmp_path / "set" / f"class{label}" / f"{number}.png")

    name, _ = _checkpoint(tmp_path)
    fill(0)
    settings = {"shift": f"folder:{tmp_path / 'set'}", "model": name, "method": "source", "out": tmp_path / "run"}
    job = next(task.arguments[0] for task, *_ in missing_streams(make_plan(make_spec(settings))))
    assert evaluate(job)
    fill(100)
    with pytest.raises(BenchError, match=r"have changed since the run was planned|has changed since it was opened"):
        evaluate(replace(job, reading=replace(job.reading, workers=3)))


def test_own_code_that_is_not_the_planned_one_is_refused(settings: dict[str, Any]) -> None:
    job = next(task.arguments[0] for task, *_ in missing_streams(make_plan(make_spec(settings | {"method": "tent"}))))
    assert job.expected is not None
    planned = {**job.expected.components, "method:tent": "7"}
    with pytest.raises(BenchError, match="the code of method:tent has changed since the run was planned"):
        evaluate(replace(job, expected=replace(job.expected, components=planned)))


# --- models and records -----------------------------------------------------------------------------------------------


def test_a_plain_tensor_on_a_model_is_part_of_its_digest() -> None:
    class ZeroShot(nn.Module):
        def __init__(self, text: torch.Tensor) -> None:
            super().__init__()
            self.body = nn.Linear(4, 3)
            self.text = {"features": [text]}

    torch.manual_seed(0)
    one, other = ZeroShot(torch.zeros(2, 3)), ZeroShot(torch.ones(2, 3))
    other.body = one.body
    assert model_digest(one) != model_digest(other)


def test_records_of_a_run_hold_their_identity_together(settings: dict[str, Any], run_quick: Callable[..., Any]) -> None:
    outcome = run_quick(settings, method="tent,selfsoup", protocol="reset_each_shift")
    for protocol in ("continual", "mixed_domains"):
        run_quick(settings, method="tent", protocol=protocol)
    records = Store(outcome.out).records()
    assert [record.key for record in records] == [key_of_record(record) for record in records]
    assert verify(outcome.out).ok
    seen = {(record.method, record.protocol): record.data.seen for record in records if record.corruption == "fog"}
    assert seen["tent", "reset_each_shift"] is None
    assert len({seen["selfsoup", "reset_each_shift"], seen["tent", "continual"], seen["tent", "mixed_domains"]}) == 3


def test_a_field_changed_inside_a_record_is_found(settings: dict[str, Any], run_quick: Callable[..., Any]) -> None:
    outcome = run_quick(settings)
    shutil.rmtree(outcome.out / "state", ignore_errors=True)
    (outcome.out / "records.jsonl").unlink()
    record = next(record for record in outcome.records() if record.corruption)
    path = outcome.out / "records" / f"{record.key}.json"
    content = json.loads(path.read_text())
    other: dict[str, Any] = {
        "severity": 4.0,
        "seed": 5,
        "options": {"source": {**content["options"]["source"], "lr": 0.5}},
        "components": {**content["components"], "harness": "2"},
        "data": {**content["data"], "profile": "other"},
        "batch_size": 7,
        "model": "other",
    }
    for field, value in other.items():
        path.write_text(json.dumps(content | {field: value}))
        problems = verify(outcome.out).problems
        assert any("has fields of another key" in problem.message for problem in problems), field
    path.write_text(json.dumps(content))
    assert verify(outcome.out).ok


def test_labels_replaced_by_the_predicted_ones_are_found(
    settings: dict[str, Any], run_quick: Callable[..., Any]
) -> None:
    from leaderboards import Predictions, diagnose, score

    outcome = run_quick(settings)
    (outcome.out / "records.jsonl").unlink()
    for record in outcome.records():
        made = Store(outcome.out).predictions(record)
        cheated = Predictions(made.id, made.predicted, made.predicted, made.confidence, made.confidence, made.sum_p2)
        cheated.save(outcome.out / str(record.predictions))
        path = outcome.out / "records" / f"{record.key}.json"
        content = json.loads(path.read_text())
        content |= {"metrics": score(cheated).model_dump(), "diagnostics": diagnose(cheated).model_dump()}
        path.write_text(json.dumps(content))
    messages = [problem.message for problem in verify(outcome.out).problems]
    assert any("other images or labels than the record says" in message for message in messages)
    assert any("other labels than the record" in message and "same images" in message for message in messages)


def test_a_module_is_no_file_of_its_own_name() -> None:
    assert importlib.import_module("bench.core.source_code").is_own("methods.adapters.tent")
    assert not source_code.is_own("methods_of_mine")
