"""kill -9, a hundred times: what was reported is there, what was acked stays done, the ledger is clean.

The kills come at every kind of moment (`MOMENTS` in kill_rounds.py), on stores with and without fsync: a killed process
loses nothing that the kernel holds. KILL_ROUNDS in the environment plays another number of rounds, KILL_SEED others;
`python -m tests.process.kill_rounds` does it by hand. `make test` plays two.
"""

import os
from pathlib import Path

import pytest

from tests.process.kill_rounds import MOMENTS, run_rounds

ROUNDS = int(os.environ.get("KILL_ROUNDS", "100"))
SEED = int(os.environ.get("KILL_SEED", "0"))
# Far below what was seen, and enough to show that the rounds did not pass over anything.
LEAST_PER_ROUND = {"enqueued": 20, "claimed": 15, "acked": 10, "settled": 15, "swept": 5, "promoted": 2, "writers": 0.5}


async def test_killed_twice_it_keeps_every_promise(tmp_path: Path) -> None:
    outcome = await run_rounds(tmp_path, 2, seed=SEED)
    assert outcome.rounds.total() == 2


@pytest.mark.proof
async def test_killed_at_any_moment_it_keeps_every_promise(tmp_path: Path) -> None:
    outcome = await run_rounds(tmp_path, ROUNDS, seed=SEED)
    assert outcome.rounds.total() == ROUNDS
    if ROUNDS >= 100:
        assert outcome.rounds.keys() == MOMENTS.keys()
        assert {name for name, least in LEAST_PER_ROUND.items() if outcome.seen[name] < least * ROUNDS} == set()
        for name in (
            "dead",
            "cancelled",
            "requeued",
            "expired",
            "rebuilt",
            "secrets",
            "errors",
            "counted",
            "results",
            "ticked",
        ):
            assert outcome.seen[name] > 0, name
