"""Implement `bench stock` and `bench train` with progress: a bar on a terminal, occasional lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from bench.core.console import new_console, print_text, say
from bench.core.errors import Interrupted
from bench.shifts import SHIFTS
from bench.training import pretrain_stock as stocks
from bench.training import train_classifier as classifiers

_SECONDS_BETWEEN_LINES = 30.0


def make(spec: stocks.StockSpec, out: Path | None) -> None:
    """Pretrain and write a stock, then print the command that uses it."""
    out = stocks.where_to(spec, out)
    plan = stocks.plan_stock(spec)
    shape = plan.recipe.architecture
    batch = min(plan.recipe.batch_size, len(plan.data))
    say(
        f"{plan.source}; {shape.image_size} px, {shape.description}; {plan.recipe.steps} steps of {plan.objective}, "
        f"{batch} images each, on {plan.device}"
    )
    start = time.perf_counter()
    with _resumable(), _Progress("pretraining", plan.recipe.steps) as progress:
        weights = stocks.make_stock(spec, out, progress.update, plan)
    print_text(
        f"{out}: {out.stat().st_size / 1000:.0f} kB, {weights.digest}, {time.perf_counter() - start:.0f} s; "
        f"loss in {out.with_suffix('.png')}"
    )
    shift = stocks.SOURCES.get(spec.data, spec.data)
    if shift.partition(":")[0] in SHIFTS:
        print_text(f"use it with: bench run --method source,selfsoup --shift {shift} --stock {out}")


def train(spec: classifiers.TrainSpec, out: Path | None) -> None:
    """Train and write a classifier, then print its accuracy and the command that uses it."""
    out = classifiers.where_to(spec, out)
    plan = classifiers.plan_training(spec)
    recipe, count = plan.recipe, len(plan.data)
    say(
        f"{plan.source}; {recipe.architecture.image_size} px, {recipe.architecture.description}; {recipe.epochs} "
        f"epochs of {recipe.steps(count) // recipe.epochs} steps, {min(recipe.batch_size, count)} images each, on "
        f"{plan.device}"
    )
    start = time.perf_counter()
    with _resumable(), _Progress("training", recipe.steps(count)) as progress:
        trained = classifiers.make_classifier(spec, out, progress.update, plan)
    print_text(
        f"{out}: {out.stat().st_size / 1000:.0f} kB, {trained.weights.digest}, {time.perf_counter() - start:.0f} s; "
        f"{trained.accuracy:.2%} of {len(plan.dev)} dev images right; curves in {out.with_suffix('.png')}"
    )
    shift = stocks.SOURCES.get(spec.data, spec.data)
    print_text(f"use it with: bench run --method source,tent --shift {shift} --model {out}")


@contextmanager
def _resumable() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted(
            "interrupted; run the same command again to continue from the last checkpoint (saved every minute)"
        ) from None


class _Progress:
    def __init__(self, what: str, steps: int) -> None:
        self._what = what
        self._console = new_console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        self._bar = Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=self._console)
        self._task = self._bar.add_task(what, total=steps)
        self._steps = steps
        self._last_printed = time.monotonic()

    def __enter__(self) -> _Progress:
        if self._console.is_terminal:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def update(self, done: int, loss: float | None) -> None:
        text = "" if loss is None else f", loss {loss:.4f}"
        if self._console.is_terminal:
            self._bar.update(self._task, completed=done, description=f"{self._what}{text}")
            return
        now = time.monotonic()
        if done == self._steps or now - self._last_printed >= _SECONDS_BETWEEN_LINES:
            self._last_printed = now
            say(f"[{done}/{self._steps}] steps{text}")
