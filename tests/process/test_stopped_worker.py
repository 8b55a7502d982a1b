"""A process that is stopped (SIGSTOP) past the lease of the job it holds, and continued: one settlement counts.

The queue's own process stops with it, so its lease ends when it goes on, unless it is renewed at once; or another
process took the store over meanwhile.
"""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from ledgerq.eventlog.clock import SystemClock
from ledgerq.eventlog.events import Acked, Claimed, LeaseExpired, Nacked
from ledgerq.eventlog.log import LogReader
from ledgerq.eventlog.stores import open_reader
from ledgerq.worker.queue import Queue
from tests.process.kills import ROOT, Ledger
from tests.support.ledger_checks import check_ledger
from tests.tiers import sampled

LEASE_S = 0.5
POLL_S = 0.005
LIMIT_S = 60.0


class Stopped:
    """The child (kill_stopped_child.py)."""

    def __init__(self, process: asyncio.subprocess.Process, cue: Path) -> None:
        self.lines: list[str] = []
        self._process = process
        self._cue = cue

    async def says(self, *starts: str) -> str:
        """Its next line, which begins with one of these words."""
        assert self._process.stdout is not None
        async with asyncio.timeout(LIMIT_S):
            line = (await self._process.stdout.readline()).decode().strip()
        assert line.startswith(starts), [*self.lines, line]
        self.lines.append(line)
        return line

    async def all_says(self) -> list[str]:
        """Its whole output by its end, which must come by itself."""
        assert self._process.stdout is not None
        async with asyncio.timeout(LIMIT_S):
            self.lines += (await self._process.stdout.read()).decode().splitlines()
            assert await self._process.wait() == 0
        return self.lines

    async def stop(self) -> None:
        """It does nothing any more."""
        self._process.send_signal(signal.SIGSTOP)
        async with asyncio.timeout(LIMIT_S):
            while self._state() != "T":
                await asyncio.sleep(POLL_S)

    def go_on(self) -> None:
        """It goes on where it was."""
        self._process.send_signal(signal.SIGCONT)

    def cue(self) -> None:
        """The first try may end."""
        self._cue.touch()

    def _state(self) -> str:
        return Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()[0]


@asynccontextmanager
async def child(folder: Path, what: str, *, lease_s: float = LEASE_S) -> AsyncIterator[Stopped]:
    """A child for the block."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(ROOT / "tests/process/kill_stopped_child.py"), str(folder), what, str(lease_s)),
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        yield Stopped(process, folder / "cue")
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def history(folder: Path) -> list[str]:
    """What happened to the one job, after a look at the whole ledger: each claim was settled once."""
    store = await open_reader((folder / "store").as_uri(), pinned=True)
    ledger, happened = Ledger(), list[str]()
    try:
        await check_ledger(store)
        async for record in LogReader(store, clock=SystemClock()).read():
            ledger.add(record)
            if isinstance(record.event, Claimed | Acked | Nacked | LeaseExpired):
                happened.append(type(record.event).__name__)
    finally:
        await store.close()
    assert not ledger.unfinished
    assert happened.count("Acked") == 1
    assert ledger.settled == len(ledger.claimed)
    return happened


async def past_the_lease() -> None:
    """Real time must pass here: the process that stands still has a clock that doesn't."""
    await asyncio.sleep(2 * LEASE_S)


@pytest.mark.proof
@pytest.mark.parametrize("what", sampled(["async", "thread"]))
@pytest.mark.parametrize("ends", sampled(["while it stands still", "later"]))
async def test_a_worker_that_stood_still_past_its_lease_settles_its_job_once(
    tmp_path: Path, what: str, ends: str
) -> None:
    async with child(tmp_path, what) as worker:
        await worker.says("started 1")
        await worker.stop()
        await past_the_lease()
        if ends == "while it stands still":
            worker.cue()
        worker.go_on()
        await past_the_lease()
        worker.cue()
        lines = await worker.all_says()
    # Its lease may be renewed in time or not; each claim was one try, and the one that ended last counts.
    happened = await history(tmp_path)
    assert lines[-1] == "over"
    assert sum(line.startswith("started") for line in lines) == happened.count("Claimed")
    assert sum(line.startswith("ended") for line in lines) >= 1
    assert happened[-1] == "Acked"


@pytest.mark.proof
async def test_a_claim_whose_lease_ended_while_its_process_stood_still_is_lost(tmp_path: Path) -> None:
    async with child(tmp_path, "claims") as holder:
        await holder.says("started 1")
        await holder.stop()
        await past_the_lease()
        holder.go_on()
        await holder.says("claimed 2")
        holder.cue()
        assert (await holder.all_says())[-3:] == ["lost 1", "acked 2", "over"]
    assert await history(tmp_path) == ["Claimed", "LeaseExpired", "Claimed", "Acked"]


@pytest.mark.proof
async def test_who_acks_first_after_standing_still_past_the_lease_wins(tmp_path: Path) -> None:
    async with child(tmp_path, "claims") as holder:
        await holder.says("started 1")
        await holder.stop()
        await past_the_lease()
        holder.cue()
        holder.go_on()
        lines = await holder.all_says()
    happened = await history(tmp_path)
    if "lost 1" in lines:
        assert "acked 2" in lines
        assert happened == ["Claimed", "LeaseExpired", "Claimed", "Acked"]
    else:
        assert lines == ["started 1", "acked 1", "over"]
        assert happened == ["Claimed", "Acked"]


@pytest.mark.proof
@pytest.mark.parametrize("what", sampled(["async", "thread"]))
@pytest.mark.parametrize("ends", sampled(["while it stands still", "never"]))
async def test_a_worker_that_was_taken_over_while_it_stood_still_settles_nothing(
    tmp_path: Path, what: str, ends: str
) -> None:
    async with child(tmp_path, what, lease_s=30.0) as worker:
        await worker.says("started 1")
        await worker.stop()
        async with Queue.open((tmp_path / "store").as_uri(), take_over=True) as queue:
            (claim,) = await queue.claim("q", wait=10)
            assert claim.attempt == 2
            if ends == "while it stands still":
                worker.cue()
            worker.go_on()
            lines = await worker.all_says()
            # Only the current claim settles, and it is not the worker's.
            assert (await queue.get(claim.job_id)).state == "claimed"
            await queue.ack(claim)
    assert lines[-1] == "failed Fenced"
    assert lines[:-1] in (["started 1", "cancelled 1"], *([["started 1", "ended 1"]] if ends != "never" else []))
    assert await history(tmp_path) == ["Claimed", "LeaseExpired", "Claimed", "Acked"]
