"""The private parts of libraries that bench needs; `tests/bench/core/test_private_apis.py` checks that they work."""

from __future__ import annotations

import os
import sys
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from multiprocessing.process import BaseProcess
from typing import Any


def processes_of(pool: ProcessPoolExecutor) -> list[BaseProcess]:
    """Return the processes of a pool, which is the only way to end a busy one before Python 3.14."""
    return list((pool._processes or {}).values())


def start_forkserver() -> None:
    """Start the process that forks workers, if this system forks."""
    if sys.platform != "win32":
        from multiprocessing import forkserver

        forkserver.ensure_running()


def end_forkserver() -> None:
    """End the process that forks workers, if there is one; left alone it ends only after it has loaded its modules."""
    if sys.platform != "win32":
        import signal
        from multiprocessing import forkserver

        server: Any = forkserver._forkserver
        if (pid := server._forkserver_pid) is not None:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            server._stop()


def fingerprint_of(table: Any) -> str:
    """Return the fingerprint of a `datasets.Dataset`, which identifies tables without files."""
    return str(table._fingerprint)


def is_selection(table: Any) -> bool:
    """Return whether a `datasets.Dataset` is a selection of rows, so that its Arrow data has other rows."""
    return table._indices is not None


def model_arguments(network: Any) -> dict[str, Any]:
    """Return the arguments in a timm network's configuration, which timm keeps on the network; empty without any."""
    return dict(getattr(network, "_model_args", {}))
