"""Measured numbers to an experiment tracker, through accelerate; the records in the run's folder stay what counts."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.errors import UsageError
from bench.spec import RunSpec
from leaderboards.record import Record

log = logging.getLogger(__name__)


class Sink:
    """Takes records as they are made. One that fails is left out for the rest of the run, which goes on."""

    def __init__(self, tracker: Any | None) -> None:
        self._tracker = tracker

    def take(self, record: Record) -> None:
        """Log a done record's metrics as METHOD/PART/seed/CONDITION/NAME."""
        if record.metrics is None:
            return
        where = "clean" if record.corruption is None else f"{record.corruption} {record.severity:g}"
        parts = [record.method, *([record.part] if record.part else []), f"seed {record.seed}", where]
        # Trackers refuse other characters in names.
        prefix = "/".join(re.sub(r"[^\w\-. ]", "_", part) for part in parts)
        numbers = record.metrics.model_dump()
        self._do("log", {f"{prefix}/{name}": float(number) for name, number in numbers.items() if number is not None})

    def finish(self) -> None:
        self._do("finish")

    def _do(self, what: str, *values: Any) -> None:
        if self._tracker is None:
            return
        try:
            getattr(self._tracker, what)(*values)
        except Exception as error:  # noqa: BLE001 - trackers fail in ways of their own, and never matter to a number
            log.warning("the tracker failed and gets nothing more: %s", error)
            self._tracker = None


@contextmanager
def open_sink(spec: RunSpec, out: Path) -> Iterator[Sink]:
    """The sink that a run asks for, which takes nothing where it asks for none; its files lie in `out`/track.

    Raises UsageError where the tracker's package is missing or it cannot start.
    """
    sink = Sink(None if spec.track is None else _start(spec.track, spec, out.absolute()))
    try:
        yield sink
    finally:
        sink.finish()


def _start(name: str, spec: RunSpec, out: Path) -> Any:
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

    if name not in [str(kind) for kind in get_available_trackers()]:
        raise UsageError(f"--track {name} needs a package; install it with: pip install 'soupbench[track]'")
    folder = out / "track"
    settings: dict[str, Any] = {}
    match name:
        case "tensorboard":
            settings = {"run_name": out.name, "logging_dir": folder}
        case "mlflow":
            os.environ.setdefault("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
            settings = {"experiment_name": spec.shift, "run_name": out.name, "logging_dir": f"{folder}/mlflow"}
        case "wandb":
            settings = {"run_name": spec.shift, "name": out.name, "dir": folder}
            settings |= {"mode": "offline"} if spec.offline else {}
        case "trackio":
            os.environ.setdefault("TRACKIO_DIR", str(folder))
            settings = {"run_name": spec.shift, "name": out.name}
    folder.mkdir(parents=True, exist_ok=True)
    asked = spec.model_dump(mode="json", by_alias=True, exclude_none=True)
    try:
        tracker = LOGGER_TYPE_TO_CLASS[name](**settings)
        tracker.start()
        tracker.store_init_configuration({key: str(value) for key, value in asked.items()})
    except Exception as error:
        said = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UsageError(f"--track {name} cannot start ({said}); mend that or leave --track out") from error
    return tracker
