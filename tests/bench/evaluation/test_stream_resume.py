"""A stream that is killed after any batch resumes with the predictions of an uninterrupted one, bit by bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bench.core.import_object import load_object
from bench.evaluation.evaluate import Evaluation, evaluate
from bench.evaluation.stream_results import ConditionResult
from bench.execution.checkpointing import FileCheckpointer
from bench.planning.plan import make_plan
from bench.planning.streams import missing_streams
from bench.settings.run_spec import make_spec
from methods import METHODS
from methods.example_models import SPECIAL

MODEL = """
import torch
from torch import nn

class Net(nn.Sequential):
    def rotation_logits(self, images):
        return self.rotation(nn.Sequential(*self.children())[:8](images))

    def forward(self, images):
        return nn.Sequential(*self.children())[:9](images)

def build():
    torch.manual_seed(0)
    net = Net(
        nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10),
    )
    net.rotation = nn.Linear(8, 4)
    return net
"""

EXAMPLE = """
from methods.example_models import example_model

def build():
    return example_model("{}")
"""


class Killed(Exception):
    pass


class Dying(FileCheckpointer):
    """Saves after every batch and is killed right after one of them."""

    def __init__(self, path: Path, last: int) -> None:
        super().__init__(path, 0.0, None)
        self.left = last

    def save(self, state: dict[str, Any]) -> None:
        super().save(state)
        self.left -= 1
        if self.left == 0:
            raise Killed


def values(parts: list[ConditionResult]) -> list[Any]:
    return [
        (
            part.condition,
            part.forwards,
            part.backwards,
            part.clean_accuracy_after,
            {name: column.tobytes() for name, column in vars(part.predictions).items() if column is not None},
        )
        for part in parts
    ]


ADAPTERS = [row for row in METHODS.values() if row.kind == "adapter" and row.name != "foa"]
# One adapter of each kind of access is quick; that each adapter resumes from a file is a rule of the conformance suite.
KINDS = {(row.access.source, row.access.state): row for row in reversed(ADAPTERS) if not row.needs}

BATCHES = 3 * -(-12 // 5)
POINTS = (1, 4, BATCHES - 1)


@pytest.mark.parametrize(
    ("name", "points"),
    [pytest.param(row.name, POINTS[place % 3 :][:1], id=row.name) for place, row in enumerate(KINDS.values())]
    + [pytest.param(row.name, POINTS, id=f"{row.name}-everywhere", marks=pytest.mark.slow) for row in ADAPTERS],
)
def test_killed_after_a_batch_and_continued_equals_undisturbed(
    settings: dict[str, Any], tmp_path: Path, name: str, points: tuple[int, ...]
) -> None:
    adapter = load_object(METHODS[name].path)
    special = adapter.needs if adapter.needs in SPECIAL else None
    (tmp_path / "model.py").write_text(MODEL if special is None else EXAMPLE.format(special))
    changed = {key: value for key, value in settings.items() if key != "stock"}
    spec = {**changed, "model": f"{tmp_path / 'model.py'}:build", "method": name, "protocol": "continual"}
    options = {"set": {METHODS[name].options_of or name: dict(adapter.checked_with)}}
    streams = [task.arguments[0] for task, *_ in missing_streams(make_plan(make_spec(spec, options)))]
    job: Evaluation = max(streams, key=lambda stream: len(stream.segments))
    assert len(job.segments) == 2
    assert job.clean is not None
    whole = values(evaluate(job))
    for last in points:
        with pytest.raises(Killed):
            evaluate(job, Dying(tmp_path / "kept.pt", last))
        assert values(evaluate(job, FileCheckpointer(tmp_path / "kept.pt", place=None))) == whole, last
        (tmp_path / "kept.pt").unlink()
