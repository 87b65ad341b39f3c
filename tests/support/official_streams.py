"""Streams on which an adapter is held against its authors' release, run with our random draws.

`SOUPBENCH_OFFICIAL` names a folder with checkouts of the official repositories, each under its repository's name. A
module is loaded from there and its functions run; nothing of it is kept here. What a run made is stored in
`tests/golden/official/NAME.npz`, so that without checkouts the adapter is compared with that.

    SOUPBENCH_OFFICIAL=checkouts python tests/support/official_streams.py [NAME ...]     # writes them anew
    SOUPBENCH_OFFICIAL=checkouts python tests/support/official_streams.py --table        # measures docs/parity.md anew
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import subprocess
import sys
import types
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

if __name__ == "__main__":
    os.environ["ATEN_CPU_CAPABILITY"] = "avx2"
    os.environ["ONEDNN_MAX_CPU_ISA"] = "AVX2"
    sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parent)]

import numpy as np
import torch
from golden_streams import GOLDEN, Golden, play, stored_golden
from torch import Tensor, nn

from methods import METHODS
from methods.base import Adapter

FOLDER = GOLDEN / "official"
PAGE = Path(__file__).parents[2] / "docs" / "parity.md"
# The rows of the page lie between the rule below its heading and this.
TABLE_START = "|---|---|---|---|---|---|"
TABLE_END = "\n\n"


class Absent(Exception):
    """What a run of official code lacks here."""


@dataclass(frozen=True)
class OfficialRun:
    """One stream through a release and through our adapter.

    `name`: file of the stored logits. `adapter` and `options`: ours. `model`: architecture of the golden models
    ("test_resnet", "test_vit"), or a function that builds one, always with the same weights. `file`: what of the
    checkouts is run, for the tables. `enters`: the branches of the release that the stream enters, in words.
    `official(model, stream, source)` plays the release and returns its logits [batches, n, classes]; it raises Absent
    without its checkout, and asserts that the branches named were entered. `stream`: the batches, [batches, n, 3, h,
    w], made from the golden ones. `tolerance`: largest absolute difference. `ours`: how our adapter is played, if
    otherwise than with seed 7 along the stream. `double`: play both in double precision, where the stream amplifies
    rounding, as BatchNorm at large steps does.
    """

    name: str
    adapter: type[Adapter]
    options: Mapping[str, Any]
    model: str | Callable[[Golden], nn.Module]
    file: str
    enters: Sequence[str]
    official: Callable[[nn.Module, Tensor, Tensor], Tensor]
    stream: Callable[[Golden], Tensor] = field(default=lambda golden: golden.stream)
    tolerance: float = 1e-5
    ours: Callable[[OfficialRun, nn.Module, Tensor, Tensor], Tensor] | None = None
    double: bool = False

    def build_model(self, golden: Golden) -> nn.Module:
        model = golden.model(self.model) if isinstance(self.model, str) else self.model(golden)
        return model.double() if self.double else model

    def inputs(self, golden: Golden) -> tuple[Tensor, Tensor]:
        """The stream and the source."""
        stream, source = self.stream(golden), golden.source
        return (stream.double(), source.double()) if self.double else (stream, source)

    def play_ours(self, stream: Tensor, golden: Golden) -> Tensor:
        """The logits of our adapter along a stream like that of `inputs`."""
        play_it = self.ours or partial(play_with_resets, ())
        return play_it(self, self.build_model(golden), stream, self.inputs(golden)[1])

    def play_official(self, golden: Golden) -> Tensor:
        """The logits of the release along the stream. Raises Absent without its checkout."""
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            with on_cpu(), torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                return self.official(self.build_model(golden), *self.inputs(golden)).detach()
        finally:
            torch.set_num_threads(threads)

    def stored(self) -> Tensor:
        return torch.from_numpy(np.load(FOLDER / f"{self.name}.npz")["logits"])


def play_with_resets(
    resets: Collection[int], run: OfficialRun, model: nn.Module, stream: Tensor, source: Tensor
) -> Tensor:
    """The logits of our adapter, which is reset before the batches given; as `ours` by `partial`."""
    adapter = run.adapter(model, run.adapter.Config(**run.options), torch.Generator().manual_seed(7))
    return play(adapter, stream, source, resets=resets)


def with_copies(golden: Golden) -> Tensor:
    """The stream between two batches of copies of one image, of which no model of the golden ones is sure."""
    copies = golden.stream[:1, :1].expand_as(golden.stream[:1])
    return torch.cat([copies, golden.stream[:4], copies])


def fisher_information(model: nn.Module, source: Tensor) -> dict[str, list[Tensor]]:
    """What the releases of EATA take: by name, the mean over batches of squared gradients, and the parameter's value.

    The releases compute it in their scripts, which cannot be loaded; this restates them. `model` is configured,
    `source` [batches, n, 3, h, w].
    """
    named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    squares = {name: torch.zeros_like(parameter) for name, parameter in named.items()}
    for images in source:
        logits = model(images)
        loss = nn.functional.cross_entropy(logits, logits.argmax(1))
        for name, slope in zip(named, torch.autograd.grad(loss, list(named.values())), strict=True):
            squares[name] += slope**2
    return {name: [squares[name] / len(source), named[name].detach().clone()] for name in named}


def checkouts() -> Path:
    """Where the checkouts are. Raises Absent where there are none."""
    named = os.environ.get("SOUPBENCH_OFFICIAL")
    if not named:
        raise Absent("SOUPBENCH_OFFICIAL names no folder with checkouts of the official repositories")
    return Path(named)


def release(folder: str, module: str, stand_ins: Mapping[str, Any] | None = None) -> types.ModuleType:
    """Load a module from a folder in the checkouts, as if Python had been started there. Raises Absent without it.

    `stand_ins` are modules that the release imports and this project does not install, by name: a dict of attributes,
    or any object. Modules of ours and of the release that share a name (`methods`, `utils`) do not meet.
    """
    place = checkouts() / folder
    if not place.is_dir():
        raise Absent(f"{place} is not there")
    own = {entry.stem for entry in place.iterdir() if entry.is_dir() or entry.suffix == ".py"}
    made = {name: _stand_in(name, value) for name, value in (stand_ins or {}).items()}
    hidden = {name: sys.modules.pop(name) for name in list(sys.modules) if name.partition(".")[0] in own}
    before = set(sys.modules)
    try:
        with mock.patch.dict(sys.modules, made), mock.patch.object(sys, "path", [str(place), *sys.path]), on_cpu():
            importlib.invalidate_caches()
            return importlib.import_module(module)
    finally:
        for name in set(sys.modules) - before:
            if name.partition(".")[0] in own:
                del sys.modules[name]
        sys.modules.update(hidden)


def _stand_in(name: str, value: Any) -> Any:
    if not isinstance(value, Mapping):
        return value
    module = types.ModuleType(name)
    vars(module).update(value)
    return module


@contextmanager
def on_cpu() -> Iterator[None]:
    """Let releases that call `.cuda()` run on the CPU."""

    def same(it: Any, *_: Any, **__: Any) -> Any:
        return it

    with mock.patch.object(Tensor, "cuda", same), mock.patch.object(nn.Module, "cuda", same):
        yield


def write(names: Sequence[str]) -> None:
    """Run the releases and store what they made."""
    FOLDER.mkdir(exist_ok=True)
    for run, made, difference in _played(names):
        np.savez_compressed(FOLDER / f"{run.name}.npz", logits=made.float().numpy())
        print(f"{run.name}: largest difference {difference:.2g}; {run.file}; {'; '.join(run.enters)}")  # noqa: T201


def write_table(names: Sequence[str]) -> None:
    """Run the releases and write the rows of the page anew; a row whose checkout is absent stays as it is."""
    before, start, after = PAGE.read_text().partition(TABLE_START)
    known, end, rest = after.partition(TABLE_END)
    rows = {line.split("|")[2].strip(" `"): line for line in known.strip().splitlines()}
    rows |= {run.name: _row(run, difference) for run, _, difference in _played(names)}
    # A stable order by method and run, without runs that are no more.
    lines = sorted(rows[run.name] for run in all_runs() if run.name in rows)
    PAGE.write_text("\n".join([before + start, *lines]) + end + rest)


def _played(names: Sequence[str]) -> Iterator[tuple[OfficialRun, Tensor, float]]:
    """The runs, all or those named, with what the release made and the largest difference of ours."""
    golden = stored_golden()
    for run in all_runs():
        if names and run.name not in names:
            continue
        try:
            made = run.play_official(golden)
        except Absent as error:
            print(f"{run.name}: {error}")  # noqa: T201 - the output of this script
            continue
        ours = run.play_ours(run.inputs(golden)[0], golden)
        yield run, made, float((ours - made).abs().max())


def _row(run: OfficialRun, difference: float) -> str:
    # A run may play a subclass of the adapter, made for the test, or a recipe by itself.
    paths = [f"{cls.__module__}:{cls.__qualname__}" for cls in run.adapter.__mro__]
    named = (row.name for path in paths for row in METHODS.values() if row.path == path)
    method = next(named, run.name.partition("-")[0])
    owner, repository, file = run.file.split("/", 2)
    commit = subprocess.run(
        ["git", "-C", str(checkouts() / repository), "rev-parse", "--short=7", "HEAD"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    model = _in_words(run.model) + (", double" if run.double else "")
    cells = [f"`{method}`", f"`{run.name}`", f"{owner}/{repository} `{file}` ({commit})", model, f"{difference:.1g}"]
    return f"| {' | '.join([*cells, '; '.join(run.enters)])} |"


def _in_words(model: Any) -> str:
    match model:
        case str():
            return model
        case partial(func=function, args=(str(architecture), *_)):
            return f"{architecture}, {_in_words(function)}"
    words: str = model.__name__
    return words.strip("_").replace("_", " ")


def all_runs() -> list[OfficialRun]:
    """The runs of all test files in `tests/methods/official`."""
    return declared("RUNS")


def declared(name: str) -> list[Any]:
    """The entries of the lists of this name in all test files in `tests/methods/official`."""
    found: list[Any] = []
    for file in sorted((Path(__file__).parents[1] / "methods" / "official").glob("test_*.py")):
        spec = importlib.util.spec_from_file_location(file.stem, file)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        found += getattr(module, name, [])
    return found


if __name__ == "__main__":
    # One module, whether it is run or imported by the files of runs.
    module = importlib.import_module("official_streams")
    if "--table" in sys.argv:
        module.write_table([name for name in sys.argv[1:] if name != "--table"])
    else:
        module.write(sys.argv[1:])
