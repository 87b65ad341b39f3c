"""Complete runs of methods: every record is done and reports the passes that the method's file states."""

from __future__ import annotations

from typing import Any

import pytest

from bench.core.errors import UsageError
from bench.runs.run import run
from bench.settings.methods import parse_method
from bench.settings.run_spec import make_spec
from leaderboards.verify import verify

# Options for which the passes are known: (forwards, backwards) per image.
WIDE_OPEN: dict[str, dict[str, Any]] = {
    "eta": {"margin": 1.0, "epsilon": 2.0},
    "eata": {"margin": 1.0, "epsilon": 2.0, "fisher_images": 10},
    "rdumb": {"margin": 1.0, "epsilon": 2.0},
    "rpl": {},
    "sar": {"margin": 1.0, "reset_below": 0.0},
    "deyo": {"margin": 1.0, "plpd": -1.0},
    "come_tent": {},
    "come_eata": {"epsilon": 2.0, "fisher_images": 10},
    "come_sar": {"reset_below": 0.0},
    "lame": {},
    "t3a": {},
    "shot_im": {},
    "sotta": {"capacity": 1, "update_every": 1, "confidence": 0.0},
    "memo": {"views": 3},
    "foa": {"prompts": 1, "population": 4, "source_images": 5},
    "cotta": {"threshold": 2.0, "views": 3},
    "petal": {"threshold": 2.0, "views": 3, "posterior_epochs": 3},
    "adacontrast": {"queue": 16, "bank_start": 4},
    "rmt": {"warm_up_images": 5},
    "santa": {},
    "actmad": {"source_images": 10},
    "ttt": {"steps": 2, "copies": 3},
    "ttt_online": {"copies": 2, "rotations": "expand", "threshold": 0.99},
    "ttt_pp": {"queue": 4, "source_images": 10, "encoder_scale": 1e-3, "projection_scale": 1e-3},
}
PASSES = {
    "eta": (1, 1),
    "eata": (1, 1),
    "rdumb": (1, 1),
    "rpl": (1, 1),
    "sar": (2, 2),
    "deyo": (2, 1),
    "come_tent": (1, 1),
    "lame": (1, 0),
    "t3a": (1, 0),
    "shot_im": (1, 1),
    "sotta": (1 + 2, 2),
    "memo": (3 + 1, 3),
    "foa": (4 + 1, 0),
    "cotta": (1 + 1 + 3, 1),
    "petal": (1 + 1 + 3, 1),
    "adacontrast": (5, 1),
    "santa": (3, 2),
    "actmad": (2, 1),
    "ttt": (2 * 3 + 1, 2 * 3),
    "ttt_online": (1 + 4 * 2 + 1, 4 * 2),
    "ttt_pp": (2 + 1 + 1, 2 + 1),  # without BatchNorm
}


@pytest.mark.filterwarnings("error")
def test_a_run_of_the_family_is_done_and_counts_its_passes(settings: dict[str, Any]) -> None:
    short = {"epochs": 2, "batch_size": 50}
    options = {"source": short, "source_rotation": short, "source_contrast": short, **WIDE_OPEN}
    outcome = run(make_spec({**settings, "method": ",".join(WIDE_OPEN), "corruption": "fog"}, {"set": options}))
    assert outcome.exit_code == 0
    records = [record for record in outcome.records() if record.corruption == "fog"]
    assert {record.method: record.access.source for record in records} == {
        name: parse_method(name).access.source for name in WIDE_OPEN
    }
    for record in records:
        cost = record.cost
        assert cost is not None
        if record.method in PASSES:
            assert (cost.forwards / record.n, cost.backwards / record.n) == PASSES[record.method], record.method
    assert verify(outcome.out).ok


def test_options_out_of_range_end_in_one_sentence(settings: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=r"sar.*rho must be a finite number of at least 0, not -1"):
        run(make_spec({**settings, "method": "sar"}, {"set": {"sar": {"rho": -1.0}}}))
