"""Closing: which calls get an error, what ends, and what a closed queue refuses."""

import asyncio

import pytest

from ledgerq.eventlog.errors import (
    QueueClosed,
)
from ledgerq.eventlog.events import WriterClosed
from ledgerq.worker.queue import Queue
from tests.support.loops import settle
from tests.support.queue_calls import Call, every_call
from tests.support.rig import Rig, payloads


@every_call
async def test_after_close_every_call_is_refused(call: Call) -> None:
    async with Rig() as rig:
        queue = rig.queue
        await queue.enqueue_many("q", [b"0", b"1"])
        (claim,) = await queue.claim("q")
        await queue.close()
        with pytest.raises(QueueClosed):
            await call(queue, claim)
        await queue.close()


@every_call
async def test_a_call_made_while_the_queue_is_closing_ends(call: Call) -> None:
    async with Rig() as rig:
        queue = rig.queue
        await queue.enqueue_many("q", [b"0", b"1"])
        (claim,) = await queue.claim("q")
        closing = asyncio.create_task(queue.close())
        calls = []
        for _ in range(12):
            calls.append(asyncio.ensure_future(call(queue, claim)))
            await asyncio.sleep(0)
        await closing
        await settle()
        assert all(task.done() for task in calls)
        await asyncio.gather(*calls, return_exceptions=True)


@pytest.mark.parametrize("held", ["get", "scan"])
@every_call
async def test_a_call_whose_look_up_is_under_way_when_the_queue_closes_ends(call: Call, held: str) -> None:
    async with Rig() as rig:
        queue = rig.queue
        await queue.enqueue_many("q", [b"0", b"1"])
        (claim,) = await queue.claim("q")
        await settle()
        rig.faults.hold(held)
        calling = asyncio.ensure_future(call(queue, claim))
        await settle()
        closing = asyncio.create_task(queue.close())
        await settle()
        rig.faults.let_go(held)
        await settle()
        assert closing.done()
        assert calling.done()
        await asyncio.gather(calling, return_exceptions=True)


async def test_nothing_is_added_behind_the_event_that_closes_the_log() -> None:
    async with Rig() as rig:
        queue = rig.queue
        await queue.enqueue("q", b"")
        await settle()
        rig.faults.hold("get")
        enqueuing = asyncio.create_task(queue.enqueue("q", b"", unique_key="k"))
        await settle()
        rig.faults.hold("sync:before")
        closing = asyncio.create_task(queue.close())
        await settle()
        rig.faults.let_go("get")
        await settle()
        rig.faults.let_go("sync:before")
        await closing
        with pytest.raises(QueueClosed):
            await enqueuing
        assert isinstance((await rig.events())[-1], WriterClosed)


async def test_closing_tells_those_who_wait_and_ends_every_task() -> None:
    async with Rig() as rig:
        before = asyncio.all_tasks()
        other = await Queue.open(clock=rig.clock)
        await other.enqueue("q", b"")
        (claim,) = await other.claim("q")
        heard: list[str] = []
        other.watch(claim, heard.append)
        waiting = [asyncio.create_task(other.claim("empty", wait=wait)) for wait in (None, 5)]
        await settle()
        await other.close()
        for task in waiting:
            with pytest.raises(QueueClosed):
                await task
        await settle()
        assert heard == ["lost"]
        assert asyncio.all_tasks() - before == set()


async def test_one_who_watches_a_claim_of_a_closed_queue_hears_that_it_is_lost() -> None:
    async with Rig() as rig:
        await rig.queue.enqueue("q", b"")
        (claim,) = await rig.queue.claim("q")
        await rig.queue.close()
        heard: list[str] = []
        rig.queue.watch(claim, heard.append)
        await settle()
        assert heard == ["lost"]


async def test_closing_twice_or_at_once_closes_once() -> None:
    async with Rig() as rig:
        await asyncio.gather(rig.queue.close(), rig.queue.close())
        await rig.queue.close()
        assert sum(isinstance(event, WriterClosed) for event in await rig.events()) == 1
        assert rig.faults.calls.count("close") == 1


async def test_a_close_that_is_cancelled_goes_on() -> None:
    async with Rig() as rig:
        rig.faults.hold("sync:before")
        closing = asyncio.create_task(rig.queue.close())
        await settle()
        closing.cancel()
        await settle()
        rig.faults.let_go("sync:before")
        await rig.queue.close()
        assert sum(isinstance(event, WriterClosed) for event in await rig.events()) == 1


async def test_closing_commits_what_is_staged() -> None:
    async with Rig() as rig:
        enqueuing = asyncio.create_task(rig.queue.enqueue("q", b"x"))
        await asyncio.sleep(0)
        await rig.queue.close()
        await enqueuing
        await rig.open()
        assert payloads(await rig.queue.claim("q")) == [b"x"]


async def test_async_with_opens_and_closes() -> None:
    async with Queue.open("memory:///") as queue:
        await queue.enqueue("q", b"")
        assert queue.location == "memory:///"
        assert queue.failure is None
    with pytest.raises(QueueClosed):
        await queue.enqueue("q", b"")
    await settle()
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_a_claim_that_is_handed_out_by_the_last_commit_leaves_no_timer_behind() -> None:
    async with Rig() as rig:
        await rig.queue.enqueue("q", b"x")
        rig.faults.hold("sync:before")
        claiming = asyncio.create_task(rig.queue.claim("q", lease=86_400))
        await settle()
        closing = asyncio.create_task(rig.queue.close())
        await settle()
        rig.faults.let_go("sync:before")
        assert len(await claiming) == 1
        await closing
        assert rig.clock.next_due_ms() is None
