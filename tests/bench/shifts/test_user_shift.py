"""User shifts: created by `bench new`, checked by `bench check`, run, and rejected with clear errors."""

from __future__ import annotations

import json
import pickle
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import quick_processes
import torch
from typer.testing import CliRunner

from bench.cli.main import app
from bench.core.cache_dir import answers_dir
from bench.core.conditions import CLEAN, Condition
from bench.core.errors import BenchError, MissingDataError, UsageError
from bench.evaluation.evaluate import evaluate
from bench.extending.shifts import conform
from bench.models.classifiers import for_classes
from bench.planning.plan import make_plan
from bench.planning.streams import missing_streams
from bench.runs.run import Outcome, run
from bench.settings.run_spec import make_spec
from bench.shifts import find_row, load_shift
from bench.shifts.data_root import Reading
from bench.shifts.shift import pick_corruptions
from leaderboards.store import Store

Quick = Callable[..., Outcome]

BODY = """
import multiprocessing
import numpy as np
import torch
from bench.shifts.user_shift import OwnShift

class Mine(OwnShift):
    classes = 3
    corruptions = ("dark",)

    def images(self, part):
        rng = np.random.default_rng(part == "train")
        return rng.integers(0, 256, (12, 8, 8, 3), dtype=np.uint8), np.arange(12) % 3

    def corrupt(self, images, corruption, severity, ids):
        return (images / (1 + severity)).to(torch.uint8)
"""


def bench(*words: object) -> Any:
    return CliRunner().invoke(app, [str(word) for word in words])


def written(folder: Path, *changes: tuple[str, str]) -> str:
    text = BODY
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    file = folder / f"mine{abs(hash(text))}.py"
    file.write_text(text)
    return f"{file}:Mine"


def test_a_new_shift_keeps_every_rule_and_runs(tmp_path: Path, settings: dict[str, Any], run_quick: Quick) -> None:
    made = bench("new", "shift", "my_lamp", "--out", tmp_path / "own")
    assert made.exit_code == 0, made.output
    file = tmp_path / "own" / "my_lamp.py"
    assert f"bench run --method source,tent --shift {file}:MyLamp --stock digits" in made.output
    settings |= {"shift": f"{file}:MyLamp", "corruption": "shadow,grain"}
    alone = run_quick(settings, method="source,tent,selfsoup", out=tmp_path / "alone")
    assert (alone.exit_code, alone.errors) == (0, ())
    records = alone.records()
    assert {record.shift for record in records} == {"my_lamp.py:MyLamp"}
    assert str(tmp_path) not in "".join(record.to_json() for record in records)
    assert bench("verify", tmp_path / "alone").exit_code == 0
    several = run_quick(settings, method="source,tent,selfsoup", jobs=2, out=tmp_path / "several")
    assert {record.key: record.metrics for record in several.records()} == {r.key: r.metrics for r in records}
    assert not answers_dir().exists()
    assert bench("new", "shift", "my_lamp", "--out", tmp_path / "own").exit_code != 0


@pytest.mark.slow
def test_what_is_written_passes_its_own_test_and_linters(tmp_path: Path) -> None:
    assert bench("new", "shift", "my_lamp", "--out", tmp_path).exit_code == 0
    checked = bench("check", "shift", tmp_path / "my_lamp.py")
    assert checked.exit_code == 0, checked.output
    assert "my_lamp.py:MyLamp breaks 0 rules" in checked.output
    done = quick_processes.run(["-m", "pytest", "-q", "-p", "no:cacheprovider", "test_my_lamp.py"], cwd=tmp_path)
    assert done.returncode == 0, done.stdout
    for tool in (["check"], ["format", "--check", "--line-length", "120"]):
        linted = subprocess.run(
            [sys.executable, "-m", "ruff", *tool, "."], cwd=tmp_path, capture_output=True, text=True
        )
        assert linted.returncode == 0, linted.stdout


def test_pixels_labels_and_digests_are_those_of_the_file(tmp_path: Path) -> None:
    shift = load_shift(written(tmp_path))
    pixels = np.random.default_rng(False).integers(0, 256, (12, 8, 8, 3), dtype=np.uint8)
    ids = shift.ids("test")
    assert torch.equal(shift.images(ids[3:5], CLEAN), torch.from_numpy(pixels[3:5].transpose(0, 3, 1, 2)))
    assert torch.equal(shift.images(ids, Condition("dark", 1)), shift.images(ids, CLEAN) // 2)
    assert shift.labels(ids).tolist() == [0, 1, 2] * 4
    assert len(shift.ids("dev")) == 2
    other = load_shift(written(tmp_path, ("(1 + severity)", "(2 + severity)")))
    assert other.digest(ids, CLEAN) == shift.digest(ids, CLEAN)
    assert other.digest(ids, Condition("dark", 1)) != shift.digest(ids, Condition("dark", 1))
    assert shift.digest(ids, Condition("dark", 1)) != shift.digest(ids, Condition("dark", 2))
    assert pickle.loads(pickle.dumps(shift)).digest(ids, CLEAN) == shift.digest(ids, CLEAN)


def test_tuning_has_its_own_corruptions_and_severities_their_own_numbers(tmp_path: Path) -> None:
    more = (
        'corruptions = ("dark",)',
        'corruptions = ("dark",)\n    tuning_corruptions = ("dim",)\n    severities = (2.5,)',
    )
    shift = load_shift(written(tmp_path, more))
    assert pick_corruptions(shift, None, "dev") == ("dim",)
    assert pick_corruptions(shift, None, "disjoint") == ("dark",)
    assert shift.severities == (2.5,)


BROKEN = {
    "same_again": ("(1 + severity)", "(1 + severity + np.random.default_rng().random())"),
    "same_in_every_batch": ("(images / (1 + severity))", "(images / (1 + severity) * (images.float().mean() / 255))"),
    "same_in_another_process": ("(1 + severity)", "(len(multiprocessing.current_process().name) - 7)"),
    "changes_images": ("(images / (1 + severity))", "(images * 1)"),
    "gives_images": ("(images / (1 + severity)).to(torch.uint8)", "images / (1 + severity)"),
    "keeps_parts_apart": ('default_rng(part == "train")', "default_rng(0)"),
    "tests_every_class": ("np.arange(12) % 3", "np.arange(12) % 2"),
}


@pytest.mark.parametrize("rule", BROKEN)
def test_who_breaks_a_rule_is_told(tmp_path: Path, rule: str) -> None:
    found = list(conform(written(tmp_path, BROKEN[rule])))
    assert {finding.check for finding in found if finding.status == "failed"} >= {rule}
    if rule not in ("same_again", "gives_images"):  # which break others too
        assert {finding.check for finding in found if finding.status == "failed"} == {rule}
    assert all(finding.message for finding in found if finding.status == "failed")


def test_a_check_tells_in_json_and_with_its_exit_code(tmp_path: Path) -> None:
    path = written(tmp_path, ("return (images / (1 + severity)).to(torch.uint8)", "raise KeyError('no such thing')"))
    done = bench("check", "shift", path, "--json")
    assert done.exit_code == 4
    told = json.loads(done.output)
    assert told["failed"] == 3
    assert {finding["message"] for finding in told["findings"] if finding["status"] == "failed"} == {
        "KeyError: 'no such thing'"
    }


WRONG: dict[str, tuple[tuple[str, str], str]] = {
    "no classes": (("    classes = 3\n", ""), "does not define classes"),
    "one class": (("classes = 3", "classes = 1"), "has 1 classes"),
    "no corruptions": (('("dark",)', "()"), "corruptions must be names"),
    "a name with a dash": (('("dark",)', '("dark-ish",)'), "corruptions must be names"),
    "a name twice": (('("dark",)', '("dark", "dark")'), "a name of its own"),
    "a reserved name": (('("dark",)', '("clean",)'), "neither clean nor natural"),
    "no severities": (('("dark",)', '("dark",)\n    severities = ()'), "severities must be numbers above 0"),
    "floats": (("dtype=np.uint8", "dtype=np.int64"), r"must be uint8 .*, not int64 \[12, 8, 8, 3\]"),
    "two channels": (("(12, 8, 8, 3)", "(12, 8, 8, 2)"), r"not uint8 \[12, 8, 8, 2\]"),
    "no images": (("(12, 8, 8, 3)", "(0, 8, 8, 3)"), r"not uint8 \[0, 8, 8, 3\]"),
    "labels short": (("np.arange(12) % 3", "np.arange(11) % 3"), "12 images have 11 labels"),
    "a label too large": (("np.arange(12) % 3", "np.arange(12) % 4"), "label 3, outside of 0 .. 2"),
    "labels of words": (("np.arange(12) % 3", "np.array(['a'] * 12)"), "labels must be whole numbers"),
    "nothing": (("rng = np", "return None\n        rng = np"), r"images\('test'\) returned None"),
    "no corrupt": (("def corrupt(", "def corrupted("), "is no shift; derive it"),
    "another base": (("Mine(OwnShift)", "Mine"), "is no shift; derive it"),
    "no such file": (("rng = np", "open('/nowhere/a.npy'); rng = np"), "there is no /nowhere/a.npy"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_no_shift_is_refused_in_a_sentence(tmp_path: Path, wrong: str) -> None:
    change, said = WRONG[wrong]
    with pytest.raises(BenchError, match=said) as caught:
        load_shift(written(tmp_path, change))
    assert "\n" not in str(caught.value)


def test_a_shift_is_named_with_its_class(tmp_path: Path) -> None:
    path = written(tmp_path)
    file = path.rpartition(":")[0]
    with pytest.raises(UsageError, match=re.escape(f"say which class of {file}")):
        find_row(file)
    with pytest.raises(UsageError, match="has no 'Other'"):
        load_shift(f"{file}:Other")
    with pytest.raises(UsageError, match="no file"):
        load_shift(f"{tmp_path / 'absent.py'}:Mine")
    assert "path of a Python file" in str(bench("check", "shift", "imagenet-c").exception)
    assert bench("check", "shift", file).exit_code == 0


def test_without_a_stock_or_train_images_it_says_what_to_give(tmp_path: Path, settings: dict[str, Any]) -> None:
    path = written(tmp_path, ("        rng =", "        if part == 'train':\n            return None\n        rng ="))
    del settings["stock"]
    settings |= {"shift": path, "corruption": "dark"}
    with pytest.raises(MissingDataError, match="has no stock; give one with --stock, or a classifier with --model"):
        make_plan(make_spec(settings))
    (tmp_path / "net.py").write_text(
        "import torch\ndef make():\n    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 3))\n"
    )
    with pytest.raises(MissingDataError, match="has no train images"):
        make_plan(make_spec({**settings, "stock": "digits"}))
    plan = make_plan(make_spec({**settings, "model": f"{tmp_path / 'net.py'}:make"}))
    assert len(plan.keys) == 2


def test_a_file_that_changes_under_a_run_is_refused(tmp_path: Path, settings: dict[str, Any], run_quick: Quick) -> None:
    path = written(tmp_path)
    file = Path(path.rpartition(":")[0])
    (tmp_path / "net.py").write_text(
        "import torch\ndef make():\n    torch.manual_seed(0)\n"
        "    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 3))\n"
    )
    del settings["stock"]
    settings |= {"shift": path, "corruption": "dark", "model": f"{tmp_path / 'net.py'}:make"}
    jobs = [task.arguments[0] for task, *_ in missing_streams(make_plan(make_spec(settings)))]
    sent = pickle.dumps(load_shift(path))
    dark = next(job for job in jobs if job.segments[0].conditions != (CLEAN,))
    assert evaluate(dark)
    file.write_text(file.read_text().replace("(1 + severity)", "(2 + severity)"))
    reading = replace(dark.reading, workers=3)  # what another process has not loaded yet
    with pytest.raises(BenchError, match="have changed since the run was planned"):
        evaluate(replace(dark, reading=reading))
    with pytest.raises(UsageError, match="has changed since the run was planned"):
        pickle.loads(sent)
    outcome = run_quick(settings)
    assert outcome.exit_code == 0
    assert len(Store(outcome.out).records()) == 2


KNOWING = """
import torch
from torch import nn

class Knowing(nn.Module):
    '''An ImageNet classifier that reads the class from the value of the pixels.'''

    def forward(self, images):
        value = (images.mean((1, 2, 3)) * 255).round()
        return -(value[:, None] - torch.arange(1000)[None] % 256).abs().float()

def net():
    return Knowing()
"""


@pytest.mark.parametrize(
    ("classes", "places", "right"),
    [
        (("great white shark", "n01440764", "goldfish"), (2, 0, 1), 1.0),  # words and synsets, in another order
        (("cock", "tench"), (7, 0), 1.0),
        (("0", "1", "2"), (0, 1, 2), None),  # not ImageNet's, so the number of outputs is wrong
        (("tench", "goldfish", "a dragon"), (0, 1, 2), None),
    ],
)
def test_an_imagenet_classifier_is_scored_on_the_outputs_of_the_named_classes(
    tmp_path: Path, classes: tuple[str, ...], places: tuple[int, ...], right: float | None
) -> None:
    text = BODY.replace("classes = 3", f"classes = {classes!r}").replace(
        "return rng.integers(0, 256, (12, 8, 8, 3), dtype=np.uint8), np.arange(12) % 3",
        f"labels = np.arange(12) % {len(classes)}\n"
        f"        return np.tile(np.array({places!r}, np.uint8)[labels][:, None, None, None], (1, 8, 8, 3)), labels",
    )
    (tmp_path / "mine.py").write_text(text.replace("(images / (1 + severity)).to(torch.uint8)", "images.clone()"))
    (tmp_path / "net.py").write_text(KNOWING)
    asked = {"shift": f"{tmp_path / 'mine.py'}:Mine", "model": f"{tmp_path / 'net.py'}:net", "out": tmp_path / "out"}
    spec = make_spec({**asked, "method": "source", "severity": 1, "jobs": 1})
    if right is None:
        with pytest.raises(UsageError, match=f"1000 outputs but mine.py:Mine has {len(classes)} classes"):
            make_plan(spec)
        return
    assert [record.metrics.accuracy for record in run(spec).records() if record.metrics] == [right] * 2


def test_all_of_imagenet_in_another_order_is_scored_by_name(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        BODY.replace("import numpy as np", "import numpy as np\nfrom bench.data.classes import synsets", 1).replace(
            "classes = 3", "classes = synsets()[::-1]"
        )
    )
    shift = load_shift(f"{tmp_path / 'mine.py'}:Mine", reading=Reading())
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 1000))
    image = torch.rand(1, 3, 8, 8)
    torch.testing.assert_close(for_classes(model, shift, image)(image), model(image).flip(1))
