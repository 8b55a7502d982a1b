"""kill -9 on queues in a bucket, fifteen times on each server: what was reported is there, the ledger is clean.

The kinds of moments, and what is proven after each, are those of kill_rounds.py. S3_KILL_ROUNDS in the environment
plays another number of rounds, S3_KILL_SEED others.
"""

import os
from pathlib import Path

from tests.kill_rounds import MOMENTS, run_rounds
from tests.s3_server import both_servers, bucket, s3_server

__all__ = ["bucket", "s3_server"]

ROUNDS = int(os.environ.get("S3_KILL_ROUNDS", "15"))
SEED = int(os.environ.get("S3_KILL_SEED", "0"))
# Far below what was seen, and enough to show that the rounds did not pass over anything.
LEAST_PER_ROUND = {"enqueued": 20, "claimed": 10, "acked": 5, "settled": 10, "writers": 0.5}


@both_servers
async def test_killed_at_any_moment_it_keeps_every_promise(bucket: str, tmp_path: Path) -> None:
    outcome = await run_rounds(tmp_path, ROUNDS, seed=SEED, url=f"s3://{bucket}/kills")
    assert outcome.rounds.total() == ROUNDS
    assert {name for name, least in LEAST_PER_ROUND.items() if outcome.seen[name] < least * ROUNDS} == set()
    if ROUNDS >= 100:
        assert outcome.rounds.keys() == MOMENTS.keys()
