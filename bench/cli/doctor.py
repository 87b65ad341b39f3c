"""Implement `bench doctor`: a report about the installation and this machine."""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench.core.cache_dir import cache_dir, write_bytes
from bench.core.console import print_json, print_text, say
from bench.core.environment import environment
from bench.core.errors import UsageError
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


def print_device_check(device: str, only: str, out: Path | None, *, as_json: bool) -> int:
    """Compare a device with the CPU, print the report as Markdown (or JSON) and write it to `out`.

    Returns the exit code: 1 if a comparison is outside its tolerance or ended in an error. Raises UsageError for an
    unusable device and for a selection that names nothing.
    """
    from bench.core.devices import pick_device
    from bench.runs.device_check import DeviceComparison, check_device, to_markdown

    def tell(done: DeviceComparison) -> None:
        say(f"{done.name}: {done.verdict}")

    wanted = tuple(text.strip() for text in only.split(",") if text.strip())
    report = check_device(pick_device(device), wanted, tell)
    if not report.comparisons and not report.rates:
        raise UsageError(f"--only {only} names no comparison; give parts of their names, as in --only fog,tent,soup")
    if out is not None:
        write_bytes(out, to_markdown(report).encode())
    if as_json:
        print_json(asdict(report) | {"agrees": report.agrees})
    else:
        print_text(to_markdown(report))
    return 0 if report.agrees else 1


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
