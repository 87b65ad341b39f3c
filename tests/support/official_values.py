"""Values that a release computes from given random numbers, held against ours: augmentations, losses and gradients.

The checkouts are those of `official_streams`. What a run made is stored in `tests/golden/official/NAME.npz`.

    SOUPBENCH_OFFICIAL=checkouts python tests/support/official_values.py [NAME ...]     # writes them anew
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    os.environ["ATEN_CPU_CAPABILITY"] = "avx2"
    os.environ["ONEDNN_MAX_CPU_ISA"] = "AVX2"
    sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parent)]

import numpy as np
import torch
from official_streams import FOLDER, Absent, declared
from torch import Tensor

Values = dict[str, Tensor]


@dataclass(frozen=True)
class OfficialValues:
    """One computation of a release and of ours from the same images and the same random numbers.

    `name`: file of the stored values. `file`: what of the checkouts is run. `enters`: the branches that are entered, in
    words; `official` asserts it. `official` raises Absent without its checkout. `tolerance`: the largest absolute
    difference. `often`: the share of values that may differ by more than `tolerance`, where a difference of one level
    of 8 bits is magnified by a later threshold. `levels`: store fractions of 1 in 16 bits, not in float32.
    """

    name: str
    file: str
    enters: Sequence[str]
    official: Callable[[], Values]
    ours: Callable[[], Values]
    tolerance: float = 1e-5
    often: float = 0.0
    levels: bool = False

    def stored(self) -> Values:
        with np.load(FOLDER / f"{self.name}.npz") as file:
            return {name: self._read(file[name]) for name in file.files}

    def store(self, values: Values) -> None:
        np.savez_compressed(FOLDER / f"{self.name}.npz", **{name: self._kept(value) for name, value in values.items()})

    def _kept(self, value: Tensor) -> Any:
        return value.mul(65535).round().numpy().astype(np.uint16) if self.levels else value.float().numpy()

    def _read(self, value: Any) -> Tensor:
        return torch.from_numpy(value.astype(np.float32)) / (65535 if self.levels else 1)

    def agrees(self, made: Values, official: Values) -> bool:
        """Whether values are those of the release."""
        assert made.keys() == official.keys()
        slack = 1 / 65535 if self.levels else 0.0
        for name, value in official.items():
            apart = (made[name] - value).abs()
            if not (apart.isfinite().all() and float((apart > self.tolerance + slack).double().mean()) <= self.often):
                return False
        return True


def hold(values: OfficialValues) -> None:
    """Compare ours with what the release made; where there are checkouts, run the release again too."""
    expected = values.stored()
    try:
        again = values.official()
    except Absent:
        pass
    else:
        assert values.agrees(again, expected)
    assert values.agrees(values.ours(), expected)


class Queue:
    """Numbers that are given out in order, in place of draws; `end` asserts that none is left."""

    def __init__(self, name: str, numbers: Sequence[Any]) -> None:
        self.name, self.numbers = name, list(numbers)

    def __call__(self, *_: Any, **__: Any) -> Any:
        assert self.numbers, f"the release draws more {self.name} than were given"
        return self.numbers.pop(0)

    def end(self) -> None:
        assert not self.numbers, f"the release left {len(self.numbers)} {self.name}"


class Instead:
    """A module with some of its names replaced."""

    def __init__(self, module: Any, **replaced: Any) -> None:
        self._module, self._replaced = module, replaced

    def __getattr__(self, name: str) -> Any:
        return self._replaced[name] if name in self._replaced else getattr(self._module, name)


@contextmanager
def arguments(*given: str) -> Iterator[None]:
    """Let scripts that read the command line when they are loaded find these words on it."""
    before = sys.argv
    sys.argv = [before[0], *given]
    try:
        yield
    finally:
        sys.argv = before


def write(names: Sequence[str]) -> None:
    """Run the releases and store what they made."""
    FOLDER.mkdir(exist_ok=True)
    for values in all_values():
        if names and values.name not in names:
            continue
        try:
            made = values.official()
        except Absent as error:
            print(f"{values.name}: {error}")  # noqa: T201 - the output of this script
            continue
        values.store(made)
        ours = values.ours()
        for name, value in made.items():
            apart = (ours[name] - value).abs()
            more = float((apart > values.tolerance).double().mean())
            most, mean = float(apart.max()), float(apart.mean())
            print(  # noqa: T201
                f"{values.name}: {name} differs by at most {most:.2g}, on average {mean:.2g}, "
                f"{more:.2g} of it by more than {values.tolerance:.2g}; {values.file}; {'; '.join(values.enters)}"
            )


def all_values() -> list[OfficialValues]:
    """The values of all test files in `tests/methods/official`."""
    return declared("VALUES")


if __name__ == "__main__":
    # One module, whether it is run or imported by the files of values.
    importlib.import_module("official_values").write(sys.argv[1:])
