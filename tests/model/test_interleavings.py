"""Many callers at once on a store whose every call takes a random number of turns, some of them cancelled half-way.

What the state machine test can't reach, because its steps follow each other. A seed gives the same run each time.
"""

import asyncio
import random
from collections.abc import Awaitable
from typing import Any, TypeVar

import pytest

from ledgerq.eventlog.errors import ClaimLost, DuplicateJobId, InvalidState, JobNotFound
from ledgerq.eventlog.memory import MemoryStore
from ledgerq.worker.claims import Claim
from ledgerq.worker.options import NewJob, QueueOptions
from ledgerq.worker.queue import Queue
from tests.support.loops import settle
from tests.support.operators import WHO
from tests.support.rig import Rig
from tests.tiers import sampled

T = TypeVar("T")
SEEDS = 25
OPTIONS = QueueOptions(max_attempts=3, lease_s=10.0, backoff_base_s=4.0)
EXPECTED = (ClaimLost, DuplicateJobId, InvalidState, JobNotFound)


class Chaos:
    """Callers of all kinds, and what they know."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.rig = Rig()
        self.reported: set[str] = set()
        self.acked: set[str] = set()
        self.stopped = False
        self.queue: Queue

    async def slow(self, call: str) -> None:
        """The fault of the store: takes some turns."""
        for _ in range(self.rng.choice((0, 0, 1, 3, 12))):
            await asyncio.sleep(0)

    async def open(self) -> None:
        """Open a queue on the slow store."""
        store = MemoryStore(self.rig.disk, fault=self.slow)
        window = self.rng.choice((1, 3, 10, 10_000))
        self.queue = self.rig.queue = await Queue.open(
            store=store,
            clock=self.rig.clock,
            entropy=self.rig.entropy,
            default=OPTIONS,
            ready_window=window,
            commit_interval_ms=0.0,
        )

    async def maybe(self, call: Awaitable[T], impatience: float = 0.15) -> T | None:
        """Await a call, or cancel it after some turns; None when it was cancelled or refused."""
        task = asyncio.ensure_future(call)
        try:
            if self.rng.random() < impatience:
                for _ in range(self.rng.randrange(30)):
                    await asyncio.sleep(0)
                task.cancel()
            return await task
        except (asyncio.CancelledError, *EXPECTED):
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            return None

    async def produce(self) -> None:
        """Add jobs of all kinds."""
        for _ in range(40):
            arguments: dict[str, Any] = {"priority": self.rng.randrange(3)}
            kind = self.rng.randrange(5)
            if kind == 0:
                jobs = [NewJob(b"x", priority=self.rng.randrange(3)) for _ in range(self.rng.randrange(1, 8))]
                added = await self.maybe(self.queue.enqueue_many("q", jobs))
                self.reported |= {job.job_id for job in added or ()}
                continue
            if kind == 1:
                arguments["delay"] = self.rng.randrange(1, 20)
            elif kind == 2:
                arguments["unique_key"] = f"k{self.rng.randrange(3)}"
                arguments["unique_until"] = self.rng.choice(("finished", "claimed"))
            one = await self.maybe(self.queue.enqueue("q", b"x", **arguments))
            if one is not None:
                self.reported.add(one.job_id)

    async def consume(self) -> None:
        """Claim with and without patience, and settle in every way."""
        while not self.stopped:
            wait = self.rng.choice((0, 0, 3, None))
            lease = self.rng.choice((None, 2))
            claims = await self.maybe(self.queue.claim("q", limit=self.rng.randrange(1, 5), lease=lease, wait=wait))
            for claim in claims or ():
                assert claim.job_id not in self.acked, "an acked job came back"
                await self.settle(claim)
            await asyncio.sleep(0)

    async def settle(self, claim: Claim) -> None:
        """One way or another; some claims are forgotten."""
        chance = self.rng.random()
        if chance < 0.5:
            try:
                await self.queue.ack(claim)
            except ClaimLost:
                return
            self.acked.add(claim.job_id)
        elif chance < 0.75:
            await self.maybe(self.queue.nack(claim, "e", delay=self.rng.choice((None, 0)), dead=chance < 0.55))
        elif chance < 0.85:
            await self.maybe(self.queue.release(claim))
        elif chance < 0.9:
            await self.maybe(self.queue.extend(claim, self.rng.choice((1, 30))))

    async def operate(self) -> None:
        """Cancel, requeue, pause, resume, look."""
        while not self.stopped:
            for _ in range(self.rng.randrange(8)):
                await asyncio.sleep(0)
            known = sorted(self.reported)
            job_id = self.rng.choice(known) if known else ""
            kind = self.rng.randrange(12)
            if kind < 3 and job_id:
                await self.maybe(self.queue.cancel(job_id, **WHO))
            elif kind < 7:
                page = await self.queue.jobs("q", "dead")
                for job in page.jobs[:2]:
                    await self.maybe(self.queue.requeue(job.job_id, **WHO))
            elif kind == 7:
                await self.maybe(self.queue.pause("q", **WHO))
            elif kind < 10:
                await self.maybe(self.queue.resume("q", **WHO))
            elif job_id:
                await self.maybe(self.queue.history(job_id))

    async def let_time_pass(self) -> None:
        """A second now and then."""
        while not self.stopped:
            for _ in range(self.rng.randrange(20)):
                await asyncio.sleep(0)
            self.rig.clock.advance(seconds=self.rng.choice((0.001, 0.5, 1, 4)))

    async def run(self) -> None:
        """All at once, until everything is produced."""
        endless = [self.consume() for _ in range(4)] + [self.operate(), self.operate(), self.let_time_pass()]
        background = [asyncio.create_task(work) for work in endless]
        await asyncio.gather(*(self.produce() for _ in range(3)))
        self.stopped = True
        for task in background:
            task.cancel()
        results = await asyncio.gather(*background, return_exceptions=True)
        errors = [result for result in results if result is not None and not isinstance(result, asyncio.CancelledError)]
        assert not errors, errors

    async def drain(self) -> None:
        """In peace: every job that is not finished is claimed and acked."""
        await self.queue.resume("q", **WHO)
        for _ in range(200):
            claims = await self.queue.claim("q", limit=100)
            assert not {claim.job_id for claim in claims} & self.acked
            await self.queue.ack_many(claims)
            self.rig.clock.advance(seconds=5)
            await settle(200)
            stats = await self.queue.stats("q")
            if stats.pending + stats.scheduled + stats.claimed == 0:
                return
        raise AssertionError(f"jobs are left that nobody can claim: {stats}")


@pytest.mark.parametrize("seed", sampled(range(SEEDS), quick=8))
async def test_callers_that_interleave_in_any_way_lose_nothing_and_leave_a_clean_ledger(seed: int) -> None:
    chaos = Chaos(seed)
    async with asyncio.timeout(60):
        await chaos.open()
        await chaos.run()
        await settle(300)
        await chaos.queue.queues()
        await chaos.rig.check()
        if seed % 2:
            await chaos.queue.close()
            await chaos.open()
        await chaos.drain()
        fold = await chaos.rig.check()
        states = {job.job_id: job.state for job in fold.jobs.values()}
        assert chaos.reported <= states.keys()
        assert {states[job_id] for job_id in chaos.acked} <= {"done"}
        assert chaos.queue._core.maintenance.failures == 0
        assert not chaos.queue._core.admission._locks._locks
        assert chaos.queue._writer_state._budget.used_bytes == 0
        await chaos.queue.close()
        await settle()
        assert asyncio.all_tasks() == {asyncio.current_task()}
