"""A ready window much smaller than the backlog: nothing is lost, nothing comes twice, the order stays right."""

import asyncio
import random
from collections.abc import Sequence
from typing import Any

import pytest

from ledgerq.eventlog.errors import InvalidState
from ledgerq.worker.claims import Claim
from ledgerq.worker.engine import refill
from ledgerq.worker.options import NewJob, QueueOptions
from tests.support.loops import settle
from tests.support.operators import WHO
from tests.support.rig import Rig, claim_all, payloads
from tests.tiers import sampled

BACKLOG_JOBS = 1000


async def test_a_backlog_larger_than_the_window_is_claimed_in_order() -> None:
    async with Rig(ready_window=5) as rig:
        await rig.queue.enqueue_many("q", [b"%d" % i for i in range(BACKLOG_JOBS)])
        claims = [claim for _ in range(BACKLOG_JOBS) for claim in await rig.queue.claim("q")]
        assert payloads(claims) == [b"%d" % i for i in range(BACKLOG_JOBS)]
        assert await rig.queue.claim("q") == []


async def test_a_backlog_of_mixed_priorities_is_claimed_in_order_also_after_a_restart() -> None:
    async with Rig(ready_window=5) as rig:
        rng = random.Random(1)
        wanted: list[tuple[int, int]] = []
        for start in range(0, BACKLOG_JOBS, 50):
            jobs = [(rng.randrange(4), i) for i in range(start, start + 50)]
            wanted += jobs
            await rig.queue.enqueue_many("q", [NewJob(b"%d" % i, priority=p) for p, i in jobs])
        wanted.sort()
        seen: list[bytes] = []
        while len(seen) < BACKLOG_JOBS:
            if len(seen) % 250 < 7:
                await rig.reopen()
            claims = await rig.queue.claim("q", limit=7)
            assert claims
            seen += payloads(claims)
            await rig.queue.ack_many(claims)
            await rig.check() if len(seen) % 140 == 0 else None
        assert seen == [b"%d" % i for _, i in wanted]


async def test_an_urgent_job_overtakes_a_backlog_that_is_only_in_the_store() -> None:
    async with Rig(ready_window=5) as rig:
        await rig.queue.enqueue_many("q", [b"%d" % i for i in range(100)])
        for i in range(20):
            assert payloads(await rig.queue.claim("q")) == [b"%d" % i]
            await rig.queue.enqueue("q", b"urgent", priority=1)
            await rig.queue.enqueue("q", b"last", priority=5000)
            assert payloads(await rig.queue.claim("q")) == [b"urgent"]


async def test_a_backlog_of_large_payloads_is_read_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refill, "_LOAD_BYTES", 10_000)
    async with Rig() as rig:
        await rig.queue.enqueue_many("q", [bytes(1000)] * 200)
        await rig.reopen()
        sizes: list[int] = []
        get_many = rig.store.get_many

        async def counted(wanted: Sequence[bytes]) -> list[bytes | None]:
            values = await get_many(wanted)
            sizes.append(sum(len(value or b"") for key, value in zip(wanted, values, strict=True) if key[:2] == b"p/"))
            return values

        monkeypatch.setattr(rig.store, "get_many", counted)
        claims = await claim_all(rig.queue)
        assert len(claims) == 200
        assert [claim.offset for claim in claims] == sorted(claim.offset for claim in claims)
        assert 0 < max(sizes) <= 10_000


class _Model:
    """What a queue should do, as a dict; the place of a job is (priority, number)."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.rng = random.Random(5)
        self.waiting: dict[tuple[int, int], str] = {}
        self.held: list[tuple[tuple[int, int], Claim]] = []
        self.number = 0

    async def enqueue(self) -> None:
        jobs = [(self.rng.choice((0, 5, 5, 9)), self.number + i) for i in range(self.rng.randrange(1, 40))]
        self.number += len(jobs)
        new = [NewJob(b"%d %d" % place, priority=place[0], max_attempts=1000) for place in jobs]
        for place, added in zip(jobs, await self.rig.queue.enqueue_many("q", new), strict=True):
            self.waiting[place] = added.job_id

    async def claim(self) -> None:
        limit = self.rng.randrange(1, 12)
        claims = await self.rig.queue.claim("q", limit=limit, lease=1000)
        first = sorted(self.waiting)[:limit]
        assert payloads(claims) == [b"%d %d" % place for place in first[: len(claims)]]
        assert bool(claims) == bool(first)
        self.held += zip(first, claims, strict=False)
        for place in first[: len(claims)]:
            del self.waiting[place]

    async def settle_one(self) -> None:
        if not self.held:
            return
        place, claim = self.held.pop(self.rng.randrange(len(self.held)))
        if self.rng.random() < 0.5:
            await self.rig.queue.ack(claim)
        else:
            await self.rig.queue.nack(claim, "e", delay=0)
            self.waiting[place] = claim.job_id

    async def cancel(self) -> None:
        if self.waiting:
            place = self.rng.choice(sorted(self.waiting))
            assert (await self.rig.queue.cancel(self.waiting.pop(place), **WHO)).state == "cancelled"

    async def expire(self) -> None:
        await self.rig.advance(1000)
        for place, claim in self.held:
            self.waiting[place] = claim.job_id
        self.held = []

    async def restart(self) -> None:
        await (self.rig.crash() if self.rng.random() < 0.5 else self.rig.reopen())
        for place, claim in self.held:
            self.waiting[place] = claim.job_id
        self.held = []


@pytest.mark.proof
@pytest.mark.parametrize("window", sampled([2, 1, 5]))
async def test_refills_interleaved_with_everything_else_lose_nothing(window: int) -> None:
    # Claims that end with their process, again and again, and no job that does it.
    async with Rig(ready_window=window, default=QueueOptions(max_crashes=None)) as rig:
        model = _Model(rig)
        actions = [model.enqueue] * 4 + [model.claim] * 8 + [model.settle_one] * 6 + [model.cancel] * 3
        actions += [model.expire, model.restart]
        for step in range(400):
            await model.rng.choice(actions)()
            if step % 20 == 0:
                await rig.check()
        while model.waiting:
            await model.claim()
        fold = await rig.check()
        assert sum(job.state == "claimed" for job in fold.jobs.values()) == len(model.held)


@pytest.mark.parametrize("seed", range(8))
async def test_a_refill_that_takes_time_sees_what_happens_meanwhile(seed: int) -> None:
    rng = random.Random(seed)
    async with Rig(ready_window=3) as rig:
        ids = [job.job_id for job in await rig.queue.enqueue_many("q", [b"%d" % i for i in range(60)])]
        await rig.reopen()
        rig.faults.hold("get" if rng.random() < 0.5 else "scan")
        first = asyncio.create_task(rig.queue.claim("q", limit=10, wait=None))
        await settle()
        cancelled = set(rng.sample(range(60), 10))
        # These look up their jobs while the refill is under way, and change them before or after it reads them.
        rest: list[asyncio.Task[Any]]
        rest = [asyncio.create_task(rig.queue.cancel(ids[i], **WHO)) for i in cancelled]
        rest.append(asyncio.create_task(rig.queue.enqueue("q", b"urgent", priority=0)))
        rest.append(asyncio.create_task(rig.queue.enqueue("q", b"late", priority=2000)))
        await settle()
        rig.faults.let_go(next(iter(rig.faults.held)))
        results = await asyncio.gather(*rest, return_exceptions=True)
        claims = await first
        while more := await rig.queue.claim("q", limit=rng.randrange(1, 9)):
            claims += more
        refused = {i for i, result in zip(cancelled, results, strict=False) if isinstance(result, InvalidState)}
        asked = {
            i
            for i, result in zip(cancelled, results, strict=False)
            if not isinstance(result, BaseException) and getattr(result, "state", "") == "claimed"
        }
        gone = cancelled - refused - asked
        assert sorted(payloads(claims)) == sorted(
            [b"%d" % i for i in range(60) if i not in gone] + [b"urgent", b"late"]
        )
        await rig.check()


async def test_windows_of_many_queues_do_not_mix() -> None:
    async with Rig(ready_window=2) as rig:
        for i in range(200):
            await rig.queue.enqueue(f"q{i % 7}", b"%d" % i)
        await rig.reopen()
        names = [f"q{i}" for i in range(7)]
        for name in names:
            claims = [claim for _ in range(40) for claim in await rig.queue.claim(name)]
            assert payloads(claims) == [b"%d" % i for i in range(200) if f"q{i % 7}" == name]


async def test_concurrent_claims_on_a_small_window_get_every_job_once() -> None:
    async with Rig(ready_window=4) as rig:
        await rig.queue.enqueue_many("q", [b"%d" % i for i in range(300)])
        await rig.reopen()
        seen: list[bytes] = []

        async def work() -> None:
            while claims := await rig.queue.claim("q", limit=3):
                seen.extend(payloads(claims))
                await rig.queue.ack_many(claims)

        await asyncio.gather(*(work() for _ in range(10)))
        assert sorted(seen, key=int) == [b"%d" % i for i in range(300)]
        assert (await rig.queue.stats("q")).done == 300


async def test_the_window_holds_no_more_jobs_than_it_may_for_long() -> None:
    async with Rig(ready_window=10) as rig:
        await rig.queue.enqueue_many("q", [b"%d" % i for i in range(5000)])
        window = rig.queue._writer_state.window("q")
        assert len(window) <= 20
        for _ in range(50):
            await rig.queue.claim("q", limit=10)
        assert len(window) <= 1000 + 20


@pytest.mark.parametrize("urgent_jobs", [1, 3, 5, 9, 30])
@pytest.mark.parametrize("held", ["scan", "get"])
async def test_jobs_enqueued_before_a_place_that_a_refill_is_reading_are_not_lost(held: str, urgent_jobs: int) -> None:
    async with Rig(ready_window=2) as rig:
        await rig.queue.enqueue_many("q", [NewJob(b"%d" % i, priority=10) for i in range(40)])
        claims = await rig.queue.claim("q")
        rig.faults.hold(held)
        refilling = asyncio.create_task(rig.queue.claim("q", limit=5, wait=None))
        await settle()
        urgent = [NewJob(b"u%d" % i, priority=i % 3) for i in range(urgent_jobs)]
        await rig.queue.enqueue_many("q", urgent)
        await settle()
        rig.faults.let_go(held)
        claims += await refilling
        while more := await rig.queue.claim("q", limit=3):
            claims += more
        wanted = [b"%d" % i for i in range(40)] + [b"u%d" % i for i in range(urgent_jobs)]
        assert sorted(payloads(claims)) == sorted(wanted)


async def test_the_budget_for_payloads_is_given_back_and_keeps_the_order() -> None:
    async with Rig() as rig:
        size_bytes = 900_000
        for i in range(60):
            await rig.queue.enqueue("q", b"%02d" % i + bytes(size_bytes), priority=i % 2)
        budget = rig.queue._writer_state._budget
        assert 20_000_000 < budget.used_bytes <= budget.limit_bytes
        claims = [claim for _ in range(60) for claim in await rig.queue.claim("q")]
        assert [int(claim.payload[:2]) for claim in claims] == [*range(0, 60, 2), *range(1, 60, 2)]
        assert budget.used_bytes == 0


async def test_a_job_whose_payload_is_still_on_its_way_to_the_store_is_not_taken_for_broken() -> None:
    async with Rig(ready_window=20) as rig:
        await rig.queue.enqueue_many("q", [b"0", b"1"])
        await rig.reopen()
        rig.faults.hold("scan")
        claiming = asyncio.create_task(rig.queue.claim("q", limit=9, wait=None))
        await settle()
        rig.faults.hold("write:before")
        enqueuing = asyncio.create_task(rig.queue.enqueue_many("q", [NewJob(b"%d" % i, priority=1) for i in (2, 3)]))
        await settle()
        rig.faults.let_go("scan")
        await settle()
        rig.faults.let_go("write:before")
        await enqueuing
        claims = await claiming
        while more := await rig.queue.claim("q", limit=9):
            claims += more
        assert sorted(payloads(claims)) == [b"0", b"1", b"2", b"3"]
        assert (await rig.queue.stats("q")).dead == 0
