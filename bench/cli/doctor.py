"""Implement `bench doctor`: a report about the installation and this machine."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Any

from bench.core.cache_dir import cache_dir
from bench.core.console import print_json, print_text
from bench.core.environment import environment
from bench.data_tools.locate import look_everywhere
from bench.models.weights_io import BUNDLED
from bench.shifts import SHIFTS
from bench.shifts.data_root import Reading


def print_report(as_json: bool) -> None:
    """Print versions, devices and precisions, folders, and which `bench` the shell runs."""
    report = _report()
    if as_json:
        print_json(report)
    else:
        print_text("\n".join(f"{key}: {value}" for key, value in report.items()))


def _bench_on_path() -> str:
    """Return the program that the shell runs for `bench`; another package installs a command of the same name."""
    found = shutil.which("bench")
    if found is None:
        return "none; use python -m bench"
    own = Path(sys.executable).with_name("bench")
    return found if Path(found).absolute() == own else f"{found} (not of this Python; use {sys.executable} -m bench)"


def _report() -> dict[str, Any]:
    import torch

    from bench.core.devices import has_bf16, pick_device, pick_jobs
    from bench.core.environment import device_name

    device = pick_device("auto")
    reading = Reading()
    jobs, threads = pick_jobs(None, device)
    cache = cache_dir()
    free = shutil.disk_usage(next(path for path in (cache, *cache.parents) if path.exists())).free
    return {
        **environment(),
        "device": device_name(device),
        "cuda": torch.version.cuda if torch.cuda.is_available() else None,
        "bf16": has_bf16(device),
        "processes": f"{jobs} with {threads} thread{'s' if threads > 1 else ''} each",
        "cache": str(cache),
        "cache_writable": os.access(next(p for p in (cache, *cache.parents) if p.exists()), os.W_OK),
        "cache_disk_free_gb": round(free / 2**30, 1),
        "bench_on_path": _bench_on_path(),
        "data_root": str(reading.root),
        "data_found": ", ".join(found.shift for found in look_everywhere(reading) if found.here),
        "stocks": ", ".join(BUNDLED),
        "shifts": ", ".join(SHIFTS),
    }
