"""The digits suite, killed twice without warning and started again, gives the matrix of a run without kills."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bench.models.weights_io import save_weights
from methods.nets.weights import Architecture, Weights, build_encoder
from methods.training.loop import reset
from tests.support.killed_runs import QUICK, SMALL, SUITE, kill_twice_and_finish, words_of


@pytest.fixture
def stock(tmp_path: Path) -> str:
    """A random stock for 32 px with 16 channels and one block, as a file."""
    architecture = Architecture(dim=16, depth=1, heads=2, decoder_dim=16, decoder_heads=2)
    encoder = build_encoder(architecture)
    reset(encoder, torch.Generator().manual_seed(0))
    path = tmp_path / "tiny.safetensors"
    save_weights(path, Weights(architecture, {f"encoder.{n}": t for n, t in encoder.state_dict().items()}), {})
    return str(path)


# Quick tests kill one training (tests/bench/execution/test_checkpointing.py), streams of single adapters
# (tests/bench/evaluation/test_stream_resume.py) and a run at its writes (tests/bench/runs/test_faults.py).
@pytest.mark.slow
def test_a_small_suite_survives_two_kills(tmp_path: Path, stock: str) -> None:
    made = kill_twice_and_finish(tmp_path, [*SUITE, *SMALL, "--jobs", "1", "--stock", stock, *words_of(QUICK)])
    assert made == 4 * 2 * 3 * 6  # protocols, seeds, conditions; source, tent, memo, two soups and an ingredient


@pytest.mark.slow
def test_the_suite_survives_two_kills(tmp_path: Path) -> None:
    made = kill_twice_and_finish(tmp_path, SUITE)
    assert made == 4 * 2 * 13 * 9
