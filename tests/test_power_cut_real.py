"""Power cuts on real file systems, cut off under load: every store opens by itself with everything promised in it.

Root, loop devices, ext4 and xfs are needed. POWER_CUTS in the environment plays another number of cuts, POWER_CUT_SEED
others; `python -m tests.power_cut_real` does it by hand.
"""

import os

import pytest

from tests.power_cut_mounts import FILE_SYSTEMS, why_no_mounts
from tests.power_cut_real import LIVES, run_cuts

CUTS = int(os.environ.get("POWER_CUTS", "100"))
SEED = int(os.environ.get("POWER_CUT_SEED", "0"))


@pytest.mark.proof
async def test_cut_off_at_any_moment_a_file_system_holds_every_promise() -> None:
    kinds = {kind: why_no_mounts(kind) for kind in FILE_SYSTEMS}
    able = [kind for kind, reason in kinds.items() if not reason]
    if not able:
        pytest.skip("; ".join(kinds.values()))
    result = await run_cuts(able, CUTS, seed=SEED)
    assert not result.failed, "\n".join(result.lines())
    assert result.cuts.total() == CUTS
    if CUTS >= 100:
        assert {life for _, life in result.cuts} == LIVES.keys()
        assert {kind for kind, _ in result.cuts} == set(able)
