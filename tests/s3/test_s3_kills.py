"""kill -9 on queues in a bucket, fifteen times on each server: what was reported is there, the ledger is clean.

The kinds of moments, and what is proven after each, are those of process/kill_rounds.py. S3_KILL_ROUNDS in the
environment plays another number of rounds, S3_KILL_SEED others.
"""

import os
from pathlib import Path

import pytest

from tests.process import kill_rounds
from tests.process.kill_rounds import MOMENTS, REPORT_BYTES, Child, Series, run_rounds
from tests.s3.servers import both_servers, bucket, s3_server

pytestmark = pytest.mark.proof

__all__ = ["bucket", "s3_server"]

ROUNDS = int(os.environ.get("S3_KILL_ROUNDS", "15"))
SEED = int(os.environ.get("S3_KILL_SEED", "0"))
# Far below what was seen, and enough to show that the rounds did not pass over anything.
LEAST_PER_ROUND = {"enqueued": 10, "claimed": 5, "acked": 2, "settled": 5, "writers": 0.5}
# A commit takes ten times as long here as on files, so a round is as long with fewer facts.
SHARE = 5


class ShortSeries(Series):
    """A series whose rounds are over sooner."""

    async def reported(self, child: Child, report_bytes: tuple[int, int] = REPORT_BYTES) -> None:
        """Wait for a part of what is waited for on files."""
        least, most = report_bytes
        await super().reported(child, (least // SHARE, most // SHARE + 1))


@both_servers
async def test_killed_at_any_moment_it_keeps_every_promise(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kill_rounds, "Series", ShortSeries)
    outcome = await run_rounds(tmp_path, ROUNDS, seed=SEED, url=f"s3://{bucket}/kills")
    assert outcome.rounds.total() == ROUNDS
    assert {name for name, least in LEAST_PER_ROUND.items() if outcome.seen[name] < least * ROUNDS} == set()
    if ROUNDS >= 100:
        assert outcome.rounds.keys() == MOMENTS.keys()
