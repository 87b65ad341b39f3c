"""User corruptions: created, checked, drawn and run."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import quick_processes
import torch
from typer.testing import CliRunner

from bench.cli.main import app
from bench.core.conditions import CLEAN, Condition
from bench.core.errors import UsageError
from bench.settings.run_spec import make_spec
from bench.shifts import load_shift
from bench.shifts.data_root import Reading
from bench.shifts.shift import pick_corruptions
from bench.shifts.user_corruption import added, apply_own

INVERT = """
def invert(images, severity, draws):
    return images + ((255 - 2 * images.float()) * severity / 5).to(images.dtype)
"""


@pytest.fixture
def path(tmp_path: Path) -> str:
    file = tmp_path / "mine.py"
    file.write_text(INVERT)
    return f"{file}:invert"


def test_the_first_file_works(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["new", "corruption", "my_grain", "--out", str(tmp_path)])
    assert done.exit_code == 0, done.output
    tried = quick_processes.run(["-m", "pytest", "-q", "test_my_grain.py"], cwd=tmp_path)
    assert tried.returncode == 0
    again = CliRunner().invoke(app, ["new", "corruption", "my_grain", "--out", str(tmp_path)])
    assert isinstance(again.exception, UsageError)
    taken = CliRunner().invoke(app, ["new", "corruption", "fog", "--out", str(tmp_path)])
    assert "already" in str(taken.exception)


def test_a_shift_takes_it_beside_its_own(path: str) -> None:
    shift = load_shift("digits-c", reading=Reading(added=added(("fog", path))))
    assert pick_corruptions(shift, ("fog", path), "disjoint") == ("fog", "mine.py:invert")
    ids = shift.ids("test")[:5]
    clean = shift.images(ids, CLEAN)
    condition = Condition("mine.py:invert", 5)
    assert torch.equal(shift.images(ids, condition), 255 - clean)
    assert torch.equal(shift.images(ids[2:3], condition), 255 - clean[2:3])
    assert torch.equal(pickle.loads(pickle.dumps(shift)).images(ids, condition), 255 - clean)
    plain = load_shift("digits-c")
    assert shift.digest(ids, Condition("fog", 5)) == plain.digest(ids, Condition("fog", 5))
    assert shift.digest(ids, condition) != shift.digest(ids, Condition("mine.py:invert", 4))


def test_its_code_is_part_of_the_condition(path: str) -> None:
    ids = load_shift("digits-c").ids("test")[:5]
    condition = Condition("mine.py:invert", 5)
    before = load_shift("digits-c", reading=Reading(added=added((path,))))
    digest = before.digest(ids, condition)
    file = Path(path.rpartition(":")[0])
    file.write_text(INVERT.replace("/ 5", "/ 6"))
    after = load_shift("digits-c", reading=Reading(added=added((path,))))
    assert after.digest(ids, condition) != digest
    with pytest.raises(UsageError, match="has changed since the run was planned; start the run again"):
        before.images(ids, condition)


def test_what_is_no_corruption_is_told(path: str, tmp_path: Path) -> None:
    images = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    (tmp_path / "bad.py").write_text("def cut(images, severity, draws):\n    return images[:, :1]\n\nfive = 5\n")
    with pytest.raises(UsageError, match=r"bad.py:cut gave torch.uint8 \[2, 1, 8, 8\] .*return uint8 \[2, 3, 8, 8\]"):
        apply_own(f"{tmp_path / 'bad.py'}:cut", images, 3, [0, 1])
    with pytest.raises(UsageError, match="is not a function"):
        added((f"{tmp_path / 'bad.py'}:five",))
    with pytest.raises(UsageError, match="has no 'other'"):
        added((f"{tmp_path / 'mine.py'}:other",))
    (tmp_path / "deeper").mkdir()
    (tmp_path / "deeper" / "mine.py").write_text(INVERT)
    with pytest.raises(UsageError, match="have the same name"):
        added((path, f"{tmp_path / 'deeper' / 'mine.py'}:invert"))


def test_random_numbers_belong_to_the_image(tmp_path: Path) -> None:
    file = tmp_path / "noisy.py"
    file.write_text(
        "import numpy as np\nimport torch\n\n\ndef noise(images, severity, draws):\n"
        "    return torch.from_numpy(np.stack([own.integers(0, 256, images.shape[1:]) for own in draws])).byte()\n"
    )
    images = torch.zeros(3, 3, 8, 8, dtype=torch.uint8)
    together = apply_own(f"{file}:noise", images, 3, [7, 8, 9])
    assert torch.equal(apply_own(f"{file}:noise", images[:1], 3, [9]), together[2:])
    assert not torch.equal(together[0], together[1])
    assert not images.any()
    assert len(np.unique(together)) > 100


def test_gallery_and_run_take_it(path: str, tmp_path: Path) -> None:
    picture = tmp_path / "grid.png"
    drawn = CliRunner().invoke(app, ["gallery", "--corruption", f"{path},fog", "-o", str(picture), "--size", "32"])
    assert drawn.exit_code == 0, drawn.output
    assert picture.stat().st_size > 1000
    out = tmp_path / "run"
    command = ["run", "--method", "source", "--shift", "digits-c", "--corruption", path, "--limit", "20"]
    done = CliRunner().invoke(app, [*command, "--out", str(out)])
    assert done.exit_code == 0, done.output
    records = [json.loads(line) for line in (out / "records.jsonl").read_text().splitlines()]
    assert {record["corruption"] for record in records} == {None, "mine.py:invert"}


def test_an_export_takes_it(path: str, tmp_path: Path) -> None:
    out = tmp_path / "copy"
    command = ["data", "export", "digits-c", "--corruption", f"fog,{path}", "--limit", "4", "-o", str(out)]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    made = np.load(out / "mine.py-invert.npy", allow_pickle=False)
    shift = load_shift("digits-c", reading=Reading(added=added((path,))))
    ids = shift.ids("test")
    first = shift.images(ids[:1], Condition("mine.py:invert", 5))[0].permute(1, 2, 0).numpy()
    assert np.array_equal(made[16], first)
    assert set(json.loads((out / "manifest.json").read_text())["user_corruptions"]) == {"mine.py:invert"}
    assert "mine.py-invert.npy" in (out / "SHA256SUMS").read_text()
    Path(path.rpartition(":")[0]).write_text(INVERT.replace("/ 5", "/ 6"))
    again = CliRunner().invoke(app, command)
    assert "mine.py:invert has changed since" in str(again.exception)


def test_an_export_that_has_none_takes_one_later(path: str, tmp_path: Path) -> None:
    out = tmp_path / "copy"
    for name in ("fog", path):
        command = ["data", "export", "digits-c", "--corruption", name, "--limit", "4", "-o", str(out)]
        assert CliRunner().invoke(app, command).exit_code == 0
    assert {file.name for file in out.glob("*.npy")} == {"fog.npy", "mine.py-invert.npy", "labels.npy"}
    assert "user_corruptions" in json.loads((out / "manifest.json").read_text())


def test_tuning_takes_it_and_refuses_a_reported_one(path: str, capsys: pytest.CaptureFixture[str]) -> None:
    from bench.runs.tuning import _chosen

    shift = load_shift("digits-c")

    def chosen(corruption: str | None) -> tuple[str, ...]:
        run = make_spec({"method": "tent", "shift": "digits-c", "split": "dev", "corruption": corruption})
        return _chosen(run, shift)

    assert chosen(f"speckle, {path}") == ("speckle", path)
    assert "mine.py:invert chooses options here" in capsys.readouterr().err
    assert chosen(None) == shift.tuning_corruptions
    with pytest.raises(UsageError, match="fog is reported on digits-c"):
        chosen(f"fog,{path}")
    with pytest.raises(UsageError, match="did you mean"):
        chosen("speckel_noise")
