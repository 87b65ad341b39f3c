"""Measured numbers to an experiment tracker, through accelerate; the records in the run's folder stay what counts."""

from __future__ import annotations

import logging
import os
import queue
import re
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any

from bench.core.errors import UsageError
from bench.settings.run_spec import RunSpec
from leaderboards.record import Record

log = logging.getLogger(__name__)


_SECONDS_TO_START = 120.0
_SECONDS_TO_FINISH = 30.0


class RecordTracker:
    """Takes records as they are made, and hands them to a tracker in a thread of its own, for which a run never waits.

    A tracker that fails is left out for the rest of the run; one that hangs gets half a minute at its end.
    Raises UsageError where it cannot start.
    """

    def __init__(self, start: Callable[[], Any] | None) -> None:
        self._inbox: queue.SimpleQueue[tuple[Any, ...]] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        if start is None:
            return
        begun: Future[None] = Future()
        self._thread = threading.Thread(target=self._serve, args=(start, begun), daemon=True)
        self._thread.start()
        try:
            begun.result(_SECONDS_TO_START)
        except TimeoutError:
            raise UsageError(
                f"--track: the tracker does not answer for {_SECONDS_TO_START:.0f} s; mend that or leave --track out"
            ) from None

    def take(self, record: Record) -> None:
        """Log a done record's metrics as METHOD/PART/seed/CONDITION/NAME."""
        if record.metrics is None or self._thread is None:
            return
        where = "clean" if record.corruption is None else f"{record.corruption} {record.severity:g}"
        parts = [record.method, *([record.part] if record.part else []), f"seed {record.seed}", where]
        # Trackers refuse other characters in names.
        prefix = "/".join(re.sub(r"[^\w\-. ]", "_", part) for part in parts)
        numbers = record.metrics.model_dump()
        found = {f"{prefix}/{name}": float(number) for name, number in numbers.items() if number is not None}
        self._inbox.put(("log", found))

    def finish(self) -> None:
        """Wait, but not for long, until the tracker has taken everything."""
        if self._thread is None:
            return
        self._inbox.put(("finish",))
        self._thread.join(_SECONDS_TO_FINISH)
        if self._thread.is_alive():
            log.warning("the tracker does not answer; what it has not taken is in the records alone")

    def _serve(self, start: Callable[[], Any], begun: Future[None]) -> None:
        """All that the tracker is asked for, from one thread: some keep what they need for each thread."""
        try:
            tracker = start()
        except Exception as error:  # noqa: BLE001 - it is raised where the run waits for it
            begun.set_exception(error)
            return
        begun.set_result(None)
        what = ""
        while what != "finish":
            what, *values = self._inbox.get()
            try:
                getattr(tracker, what)(*values)
            except Exception as error:  # noqa: BLE001 - trackers fail in ways of their own, and never matter to a number
                log.warning("the tracker failed and gets nothing more: %s", error)
                return


@contextmanager
def open_tracker(spec: RunSpec, out: Path) -> Iterator[RecordTracker]:
    """The sink that a run asks for, which takes nothing where it asks for none; its files lie in `out`/track.

    What a tracker prints goes to stderr. Raises UsageError where its package is missing or it cannot start.
    """
    if spec.track is None:
        yield RecordTracker(None)
        return
    with redirect_stdout(sys.stderr):
        sink = RecordTracker(partial(_start, spec.track, spec, out.absolute()))
        try:
            yield sink
        finally:
            sink.finish()


def _start(name: str, spec: RunSpec, out: Path) -> Any:
    from accelerate import PartialState
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
            settings = {"run_name": spec.shift, "name": out.name, "dir": folder, "settings": {"console": "off"}}
            settings |= {"mode": "offline"} if spec.offline else {}
        case "trackio":
            os.environ.setdefault("TRACKIO_DIR", str(folder))
            settings = {"run_name": spec.shift, "name": out.name}
    folder.mkdir(parents=True, exist_ok=True)
    asked = spec.model_dump(mode="json", by_alias=True, exclude_none=True)
    try:
        PartialState(cpu=True)  # trackers speak through a log that asks which process this is
        tracker = LOGGER_TYPE_TO_CLASS[name](**settings)
        tracker.start()
        tracker.store_init_configuration({key: str(value) for key, value in asked.items()})
    except Exception as error:
        said = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UsageError(f"--track {name} cannot start ({said}); mend that or leave --track out") from error
    return tracker
