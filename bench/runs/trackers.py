"""Log metrics to an experiment tracker through accelerate, in addition to the records in the run's folder."""

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
from bench.core.extras import OF_TRACKERS, missing
from bench.settings.run_spec import RunSpec
from leaderboards.record import Record

log = logging.getLogger(__name__)


_SECONDS_TO_START = 120.0
_SECONDS_TO_FINISH = 30.0


class RecordTracker:
    """Logs records to a tracker in a separate thread, so that a run never waits for the tracker.

    A tracker that fails gets no more records; one that hangs gets half a minute at the end of the run.
    Raises UsageError if the tracker cannot start.
    """

    def __init__(self, start: Callable[[], Any] | None) -> None:
        self._queue: queue.SimpleQueue[tuple[Any, ...]] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        if start is None:
            return
        started: Future[None] = Future()
        self._thread = threading.Thread(target=self._serve, args=(start, started), daemon=True)
        self._thread.start()
        try:
            started.result(_SECONDS_TO_START)
        except TimeoutError:
            raise UsageError(
                f"--tracker: no answer for {_SECONDS_TO_START:.0f} s; fix the tracker or leave --tracker out"
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
        values = {f"{prefix}/{name}": float(number) for name, number in numbers.items() if number is not None}
        self._queue.put(("log", values))

    def finish(self) -> None:
        """Wait for the tracker to log everything, for half a minute at most."""
        if self._thread is None:
            return
        self._queue.put(("finish",))
        self._thread.join(_SECONDS_TO_FINISH)
        if self._thread.is_alive():
            log.warning("the tracker does not answer; some metrics are only in the records")

    def _serve(self, start: Callable[[], Any], started: Future[None]) -> None:
        """Make all calls to the tracker from one thread, because some trackers have state per thread."""
        try:
            tracker = start()
        except Exception as error:  # noqa: BLE001 - raised again in the run's thread
            started.set_exception(error)
            return
        started.set_result(None)
        call = ""
        while call != "finish":
            call, *arguments = self._queue.get()
            try:
                getattr(tracker, call)(*arguments)
            except Exception as error:  # noqa: BLE001 - a tracker may raise anything and must not stop a run
                log.warning("the tracker failed and gets no more metrics: %s", error)
                return


@contextmanager
def open_tracker(spec: RunSpec, out: Path) -> Iterator[RecordTracker]:
    """Open the tracker of a run, one that does nothing if none is set; its files are in `out`/track.

    Its output goes to stderr. Raises MissingDataError if its package is missing, UsageError if it cannot start.
    """
    if spec.tracker is None:
        yield RecordTracker(None)
        return
    with redirect_stdout(sys.stderr):
        tracker = RecordTracker(partial(_start, spec.tracker, spec, out.absolute()))
        try:
            yield tracker
        finally:
            tracker.finish()


def _start(name: str, spec: RunSpec, out: Path) -> Any:
    from accelerate import PartialState
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

    if name not in [str(kind) for kind in get_available_trackers()]:
        raise missing(OF_TRACKERS[name], f"--tracker {name}", name)
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
    configuration = spec.model_dump(mode="json", by_alias=True, exclude_none=True)
    try:
        PartialState(cpu=True)  # the trackers' logger needs to know which process this is
        tracker = LOGGER_TYPE_TO_CLASS[name](**settings)
        tracker.start()
        tracker.store_init_configuration({key: str(value) for key, value in configuration.items()})
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UsageError(f"--tracker {name} cannot start ({reason}); fix that or leave --tracker out") from error
    return tracker
