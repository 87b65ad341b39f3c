"""What holds for the whole test run and must be set before anything loads torch."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator

import pytest

# Imports and collection make a million objects that stay; looking for garbage among them again and again costs seconds.
gc.disable()

if "PYTEST_XDIST_WORKER" in os.environ:
    # Several test processes share the cores.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
if "--benchmark-only" not in sys.argv:
    # What a test writes need not outlive a loss of power; each record waits four times for the disk.
    os.fsync = lambda file: None
    # The golden outputs were made with AVX2 kernels. Wider ones round otherwise, which sensitive streams amplify beyond
    # any tolerance. Speed is measured with the kernels and the disk of the machine.
    os.environ.setdefault("ATEN_CPU_CAPABILITY", "avx2")
    os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX2")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """From here on garbage is looked for among later objects alone."""
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()
