"""How a run is held against its release, for the files of runs in this folder."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from golden_streams import Golden, agree
from official_streams import Absent, OfficialRun


@pytest.fixture
def held_to_release(golden: Golden) -> Callable[[OfficialRun], None]:
    """Compare our adapter with what the release made; where there are checkouts, run the release again too."""

    def hold(run: OfficialRun) -> None:
        expected = run.stored()
        try:
            again = run.play_official(golden)
        except Absent:
            pass
        else:
            torch.testing.assert_close(again.float(), expected, rtol=0, atol=run.tolerance)
        assert agree(lambda stream: run.play_ours(stream, golden), run.inputs(golden)[0], expected, run.tolerance)

    return hold
