"""Processes that report facts and are killed, and the proof that what they reported holds.

A child (kill_child.py) writes each fact to a file once the call behind it had returned; `Facts` reads them.
"""

import asyncio
import os
import random
import sys
from pathlib import Path

from ledgerq.eventlog.clock import ManualClock, SystemClock
from ledgerq.eventlog.events import Acked, Claimed
from ledgerq.projections.fold import Fold
from ledgerq.worker.queue import Queue
from tests.ledger_checks import check_ledger

__all__ = ["Facts", "check_promises", "open_and_check", "run_and_kill"]

ROOT = Path(__file__).resolve().parent.parent
POLL_S = 0.002
START_LIMIT_S = 60.0


class Facts:
    """What the children reported so far."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "facts"
        self.enqueued: dict[str, str] = {}
        self.claimed: dict[int, str] = {}
        self.acked: set[str] = set()
        self.dead: set[str] = set()
        self.cancelled: set[str] = set()

    @property
    def size_bytes(self) -> int:
        """How much there is to read."""
        return self._file.stat().st_size if self._file.exists() else 0

    def read(self) -> None:
        """Read it all; the last line may have been cut off."""
        lines = self._file.read_bytes().split(b"\n")[:-1]
        for line in lines:
            what, job_id, more = line.decode().split(" ")
            if what == "enqueued":
                self.enqueued[job_id] = more
            elif what == "claimed":
                self.claimed[int(more)] = job_id
            else:
                {"acked": self.acked, "dead": self.dead, "cancelled": self.cancelled}[what].add(job_id)


async def run_and_kill(
    folder: Path, facts: Facts, seed: int, *, url: str | None = None, report_bytes: tuple[int, int] = (1_000, 25_000)
) -> None:
    """Start a child and kill it once it has reported a random number of bytes more; `url`: not on folder/store."""
    enough_bytes = facts.size_bytes + random.Random(seed).randrange(*report_bytes)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "tests" / "kill_child.py"), str(folder), str(seed), *([url] if url else [])]
    with (folder / "stderr").open("wb") as stderr:
        child = await asyncio.create_subprocess_exec(*command, stderr=stderr, env=environment)
        try:
            async with asyncio.timeout(START_LIMIT_S):
                while facts.size_bytes < enough_bytes and child.returncode is None:
                    await asyncio.sleep(POLL_S)
        finally:
            if child.returncode is None:
                child.kill()
            await child.wait()
    assert child.returncode == -9, (folder / "stderr").read_text()


def check_promises(facts: Facts, fold: Fold, claimed: dict[int, str], acked: set[str]) -> None:
    """Nothing that was reported is lost, and nothing that was acked comes back. (Nothing is swept in a day.)"""
    jobs = {job.job_id: job for job in fold.jobs.values()}
    lost = facts.enqueued.keys() - jobs.keys()
    assert not lost, f"{len(lost)} jobs that were reported are gone: {sorted(lost)[:3]}"
    assert facts.acked <= acked
    assert {jobs[job_id].state for job_id in facts.acked} <= {"done"}
    assert {jobs[job_id].state for job_id in facts.dead} <= {"dead"}
    assert {jobs[job_id].state for job_id in facts.cancelled} <= {"cancelled"}
    missing = {offset for offset, job_id in facts.claimed.items() if claimed.get(offset) != job_id}
    assert not missing, f"claims were handed over that the log does not have: {sorted(missing)[:3]}"


async def open_and_check(url: str, facts: Facts) -> Fold:
    """Open the queue after a crash, and prove everything through it."""
    # With a clock that stands still the queue changes nothing any more once it has looked around.
    async with Queue.open(url, clock=ManualClock(SystemClock().now_ms())) as queue:
        for _ in range(10):
            head = await queue.log.head()
            try:
                fold = await check_ledger(queue.log.store)
            except AssertionError:
                if await queue.log.head() == head:
                    raise
                continue
            break
        claimed: dict[int, str] = {}
        acked: set[str] = set()
        async for record in queue.log.read():
            if type(record.event) is Claimed:
                job = fold.jobs[record.event.job_id]
                assert job.job_id not in acked, f"{job.job_id} was acked and claimed again at {record.offset}"
                claimed[record.offset] = job.job_id
            elif type(record.event) is Acked:
                acked.add(fold.jobs[record.event.job_id].job_id)
        check_promises(facts, fold, claimed, acked)
        for job_id in [*facts.enqueued][-3:]:
            assert (await queue.payload(job_id)).payload.hex().startswith(facts.enqueued[job_id])
        stats = await queue.stats("q")
        assert stats.claimed == 0
        return fold
