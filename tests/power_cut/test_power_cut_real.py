"""Power cuts on real file systems, cut off under load: every store opens by itself with everything promised in it.

Root, loop devices, ext4 and xfs are needed. POWER_CUTS in the environment plays another number of cuts, POWER_CUT_SEED
others; `python -m tests.power_cut.real_cuts` does it by hand.
"""

import os
import subprocess
import sys

import pytest

from tests.power_cut.real_cuts import LIVES
from tests.process.kills import ROOT

CUTS = os.environ.get("POWER_CUTS", "100")
SEED = os.environ.get("POWER_CUT_SEED", "0")
LIMIT_S = 900.0


@pytest.mark.proof
def test_cut_off_at_any_moment_a_file_system_holds_every_promise() -> None:
    command = (sys.executable, "-m", "tests.power_cut.real_cuts", "--cuts", CUTS, "--seed", SEED)
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    if done.returncode == 2:
        pytest.skip(done.stderr)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{CUTS} cuts in" in done.stdout
    if int(CUTS) >= 100:
        assert not [life for life in LIVES if f", {life} |" not in done.stdout], done.stdout
