"""How much memory a large batch needs, measured by the operating system in a process of its own."""

from __future__ import annotations

import subprocess
import sys

import pytest

import corruptions
from corruptions.weather import frost_folder

_PEAK = """
import resource, sys
import torch
from corruptions import corrupt

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

torch.set_num_threads(1)
images = torch.randint(0, 256, (256, 3, 224, 224), dtype=torch.uint8)
for name in sys.argv[1:]:
    corrupt(images[:2], name, 3, ids=range(2))
before = peak()
for name in sys.argv[1:]:
    corrupt(images, name, 3, ids=range(256))
    print(name, (peak() - before) / images.numel())
"""


@pytest.mark.slow
def test_a_large_batch_needs_few_copies_of_itself() -> None:
    names = [name for name in corruptions.names() if name != "frost" or frost_folder()]
    done = subprocess.run([sys.executable, "-c", _PEAK, *names], capture_output=True, text=True, check=True)
    copies = dict(line.split() for line in done.stdout.splitlines())
    assert list(copies) == names
    # One copy is the result.
    assert max(float(value) for value in copies.values()) < 6, copies
