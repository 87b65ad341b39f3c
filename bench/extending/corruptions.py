"""Write a starter file for a user-defined corruption."""

from __future__ import annotations

from pathlib import Path

import corruptions
from bench.extending.methods import write_first

_CORRUPTION = '''"""{title}: one sentence that says what happens to an image."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def {name}(images: Tensor, severity: float, draws: Sequence[np.random.Generator]) -> Tensor:
    """Images uint8 [n, 3, h, w] to the same; severity 1 is mild, 5 is strong.

    The result for an image must not depend on its batch: draw random numbers only from its own generator in `draws`.
    """
    grain = np.stack([own.normal(0, 8 * severity, images.shape[2:]) for own in draws])
    rough = images + torch.from_numpy(grain).to(images.device)[:, None]
    return rough.clamp(0, 255).to(torch.uint8)
'''

_TEST = '''"""{title} changes images more at higher severity, and independently of their batch."""

from pathlib import Path

import torch
from bench.shifts.user_corruption import apply_own

PATH = f"{{Path(__file__).with_name('{name}.py')}}:{name}"
IMAGES = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_images_do_not_depend_on_their_batch() -> None:
    together = apply_own(PATH, IMAGES, 3, range(4))
    apart = torch.cat([apply_own(PATH, IMAGES[i : i + 1], 3, [i]) for i in range(4)])
    assert torch.equal(together, apart)


def test_grows_with_severity() -> None:
    changes = [(apply_own(PATH, IMAGES, level, range(4)).float() - IMAGES).abs().mean() for level in (1, 3, 5)]
    assert 0 < changes[0] < changes[1] < changes[2]
'''

_NEXT = """wrote {file} and {test}
test it:     python -m pytest {test}
see it:      bench gallery --corruption {file}:{name},fog -o {name}.png
run it:      bench run --method source,tent --shift digits-c --corruption {file}:{name},fog
"""


def write_corruption(name: str, folder: Path) -> None:
    """Write NAME.py and test_NAME.py into a folder. Raises UsageError for a name or file that exists."""
    write_first("corruption", name, corruptions.names(), folder, (_CORRUPTION, _TEST), _NEXT, "grain")
