"""Limits of a queue: how many jobs run, at what rate, and holds; waiting claims go on as soon as they may."""

import asyncio
from typing import Any

import pytest

from ledgerq.eventlog.errors import InvalidArgument
from ledgerq.eventlog.events import Claimed, Held, HoldReleased, LimitsSet
from ledgerq.worker.claims import Claim
from ledgerq.worker.options import QueueOptions
from tests.support.loops import settle
from tests.support.operators import WHO
from tests.support.rig import Rig
from tests.support.scrapes import numbers


async def filled(rig: Rig, jobs: int = 10, queue: str = "q") -> None:
    await rig.queue.enqueue_many(queue, [b"%d" % n for n in range(jobs)])


async def waiting(rig: Rig, queue: Any = "q", limit: int = 1) -> "asyncio.Task[list[Claim]]":
    task = asyncio.create_task(rig.queue.claim(queue, limit=limit, wait=None))
    await settle()
    return task


async def events_of(rig: Rig, *kinds: type[Any]) -> list[Any]:
    return [event for batch in await rig.batches() for event in batch.events if isinstance(event, kinds)]


async def test_no_more_jobs_are_claimed_than_may_run_and_the_end_of_one_lets_a_waiting_claim_through() -> None:
    async with Rig(default=QueueOptions(max_running=3)) as rig:
        await filled(rig)
        claims = await rig.queue.claim("q", limit=8)
        assert [claim.limited for claim in claims] == [True] * 3
        assert await rig.queue.claim("q") == []
        task = await waiting(rig, limit=5)
        assert not task.done()
        await rig.queue.ack_many(claims[:2])
        assert len(await task) == 2
        for end in (rig.queue.nack(claims[2], "e", dead=True), rig.queue.ack(task.result()[0])):
            task2 = await waiting(rig)
            assert not task2.done()
            await end
            assert len(await task2) == 1


async def test_the_end_of_a_lease_and_a_release_let_a_waiting_claim_through() -> None:
    async with Rig(default=QueueOptions(max_running=1, lease_s=10, max_attempts=9)) as rig:
        await filled(rig, 2)
        (claim,) = await rig.queue.claim("q")
        task = await waiting(rig)
        await rig.queue.release(claim)
        (again,) = await task
        assert again.id == claim.id
        task = await waiting(rig)
        rig.clock.advance(seconds=11)
        await settle()
        assert (await task)[0].attempt == 2


async def test_a_rate_lets_so_many_through_in_any_period_and_a_waiting_claim_by_a_timer() -> None:
    async with Rig(default=QueueOptions(rate="2/s", burst=2)) as rig:
        await filled(rig)
        assert len(await rig.queue.claim("q", limit=8)) == 2
        task = await waiting(rig, limit=8)
        rig.clock.advance(seconds=0.499)
        await settle()
        assert not task.done()
        rig.clock.advance(seconds=0.001)
        await settle()
        assert len(await task) == 1
        rig.clock.advance(seconds=60)
        assert len(await rig.queue.claim("q", limit=8)) == 2, "what was not used is no more than the burst"


async def test_a_restart_gives_no_second_burst_and_a_lost_writer_keeps_the_running_count() -> None:
    rig = Rig(default=QueueOptions(rate="1/min", burst=3, max_running=5, max_attempts=9, lease_s=1000))
    async with rig:
        await filled(rig)
        claims = await rig.queue.claim("q", limit=2, kept=True)
        await rig.crash()
        assert len(await rig.queue.claim("q", limit=8)) == 1, "a takeover gives the rest of the burst"
        assert await rig.queue.claim("q") == []
        rig.clock.advance(seconds=60)
        (more,) = await rig.queue.claim("q", limit=8)
        await rig.queue.ack(more)
        await rig.queue.limit("q", max_running=2, **WHO)
        assert len(await rig.queue.claim("q", limit=8)) == 0, "the kept claims still run"
        await rig.queue.ack_many(claims)
        assert len(await rig.queue.claim("q", limit=8)) == 1
    assert [e.origin for e in await events_of(rig, LimitsSet)] == ["code", "operator"]


async def test_a_hold_and_its_release() -> None:
    async with Rig() as rig:
        await filled(rig)
        await rig.queue.hold("q", seconds=30, **WHO)
        assert await rig.queue.claim("q") == []
        task = await waiting(rig)
        rig.clock.advance(seconds=29)
        await settle()
        assert not task.done()
        await rig.queue.release_hold("q", **WHO)
        assert len(await task) == 1
        await rig.queue.release_hold("q", **WHO)
        await rig.queue.hold("q", seconds=5, **WHO)
        task = await waiting(rig)
        rig.clock.advance(seconds=5)
        await settle()
        assert len(await task) == 1
        (limits,) = await rig.queue.limits()
        assert limits.held_until_ms == rig.clock.now_ms()
    assert len(await events_of(rig, HoldReleased)) == 1


async def test_a_rate_limited_try_gives_its_job_back_and_holds_the_queue_in_one_commit() -> None:
    async with Rig(default=QueueOptions(max_attempts=1)) as rig:
        await filled(rig, 3)
        one, two = await rig.queue.claim("q", limit=2)
        task = await waiting(rig)
        assert (await task)[0].payload == b"2"
        task = await waiting(rig)
        await rig.queue.release(one, "429", hold=30)
        await settle()
        assert not task.done()
        await rig.queue.release(two, "429", hold=10)
        rig.clock.advance(seconds=10)
        await settle()
        assert not task.done(), "a shorter hold ends no longer one"
        rig.clock.advance(seconds=20)
        await settle()
        (claim,) = await task
        assert (claim.id, claim.attempt) == (one.id, 1)
    batches = [[type(e) for e in batch.events] for batch in await rig.batches()]
    assert all(len(kinds) > 1 for kinds in batches if Held in kinds)


async def test_an_operators_limits_go_before_the_programs_until_they_are_taken_back() -> None:
    rig = Rig(default=QueueOptions(max_running=2))
    async with rig:
        await filled(rig, 20)
        await rig.queue.limit("q", max_running=4, **WHO)
        assert len(await rig.queue.claim("q", limit=9)) == 4
        await rig.crash()
        assert len(await rig.queue.claim("q", limit=9)) == 4
        task = await waiting(rig, limit=9)
        await rig.queue.limit("q", rate="1000/s", burst=7, **WHO)
        assert len(await task) == 7, "a new limit lets a waiting claim through"
        await rig.queue.limit("q", **WHO)
        assert await rig.queue.claim("q") == []
        (limits,) = await rig.queue.limits()
        assert limits.setting is not None
        assert (limits.setting.max_running, limits.setting.origin) == (2, "code")


async def test_a_claim_of_several_queues_takes_from_the_next_one_while_the_first_is_limited() -> None:
    async with Rig(queues={"a": QueueOptions(max_running=1)}) as rig:
        await filled(rig, 3, "a")
        await filled(rig, 1, "b")
        claims = [(await rig.queue.claim(["a", "b"]))[0] for _ in range(2)]
        assert [claim.queue for claim in claims] == ["a", "b"]
        assert await rig.queue.claim(["a", "b"]) == []
        task = await waiting(rig, ["a", "b"])
        await rig.queue.ack(claims[0])
        (claim,) = await task
        assert claim.queue == "a"
        task = await waiting(rig, ["a", "b"])
        await rig.queue.enqueue("b", b"")
        assert (await task)[0].queue == "b"


async def test_a_queue_without_limits_has_no_event_and_no_row_of_any() -> None:
    async with Rig() as rig:
        await filled(rig)
        (claim,) = await rig.queue.claim("q")
        assert not claim.limited
        assert await rig.queue.limits() == []
    assert not await events_of(rig, LimitsSet, Held)
    assert len(await events_of(rig, Claimed)) == 1


@pytest.mark.parametrize(
    "wrong",
    [{"rate": "1"}, {"rate": "0/s"}, {"rate": "5/s", "burst": 0}, {"burst": 1}, {"max_running": 0}, {"rate": "9/2day"}],
)
async def test_limits_that_are_none_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument):
        QueueOptions(**wrong)
    async with Rig() as rig:
        with pytest.raises(InvalidArgument):
            await rig.queue.limit("q", **wrong, **WHO)


async def test_the_metrics_show_what_limits_hold_back() -> None:
    async with Rig(queues={"q": QueueOptions(max_running=2)}) as rig:
        await filled(rig, 3)
        most, held = ('ledgerq_queue_max_running{queue="q"}', 'ledgerq_queue_held_back{queue="q"}')
        assert most not in numbers(rig.queue.collector())
        claims = await rig.queue.claim("q", limit=9)
        found = numbers(rig.queue.collector())
        assert (found[most], found[held]) == (2, 1)
        await rig.queue.ack_many(claims)
        await rig.queue.claim("q")
        assert numbers(rig.queue.collector())[held] == 0
