"""A stream as a task: one process at a time, from its checkpoint on, and not again if its records are there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bench.cache import lock
from bench.keeper import FileKeeper
from bench.live import Teller
from bench.predict import Evaluation, Measured, evaluate
from leaderboards.store import Store


def measure(job: Evaluation, out: Path, name: str, keys: Sequence[str] | None, label: str) -> list[Measured] | None:
    """Evaluate with a checkpoint in the run's folder, which stays there until `forget`.

    None where another run of the folder has measured all of `keys` meanwhile (`keys` is None: measure in any case).
    `label` names the stream for people who watch.
    An error takes the checkpoint away: what is tried again starts anew.
    """
    with lock(out / "state" / f"{name}.lock"):
        if keys is not None and Store(out).has_done(keys):
            return None
        keeper = FileKeeper(checkpoint(out, name), place=None)
        teller = Teller(out, name, label)
        try:
            return evaluate(job, keeper, teller)
        except Exception:
            keeper.forget()
            raise
        finally:
            teller.end()


def checkpoint(out: Path, name: str) -> Path:
    """Where the checkpoint of a stream lies."""
    return out / "state" / f"{name}.pt"


def forget(out: Path, name: str) -> None:
    """Remove what was there to go on: the records are written."""
    checkpoint(out, name).unlink(missing_ok=True)
    (out / "state" / f"{name}.lock").unlink(missing_ok=True)
