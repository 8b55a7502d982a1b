"""The commands of operators: cancel, requeue, pause, resume; and their events."""

import asyncio
from typing import Any

import pytest

from ledgerq.eventlog.errors import InvalidArgument, InvalidState
from ledgerq.eventlog.events import CancelRequested, QueuePaused, QueueResumed
from tests.support.loops import settle
from tests.support.operators import WHO
from tests.support.rig import Rig, payloads


async def test_a_pending_job_is_cancelled_at_once_and_never_claimed() -> None:
    async with Rig() as rig:
        first = await rig.queue.enqueue("q", b"1")
        await rig.queue.enqueue("q", b"2")
        job = await rig.queue.cancel(first.job_id, **WHO)
        assert (job.state, job.sweep_at_ms) == ("cancelled", rig.clock.now_ms() + 24 * 3600 * 1000)
        assert payloads(await rig.queue.claim("q", limit=9)) == [b"2"]


async def test_a_scheduled_job_is_cancelled_at_once_and_never_promoted() -> None:
    async with Rig() as rig:
        added = await rig.queue.enqueue("q", b"", delay=5)
        assert (await rig.queue.cancel(added.job_id, **WHO)).state == "cancelled"
        await rig.advance(10)
        stats = await rig.queue.stats("q")
        assert (stats.cancelled, stats.totals["promoted"]) == (1, 0)


@pytest.mark.parametrize("end", ["done", "dead", "cancelled"])
async def test_a_finished_job_can_not_be_cancelled(end: str) -> None:
    async with Rig() as rig:
        added = await rig.queue.enqueue("q", b"")
        if end == "cancelled":
            await rig.queue.cancel(added.job_id, **WHO)
        else:
            (claim,) = await rig.queue.claim("q")
            await (rig.queue.ack(claim) if end == "done" else rig.queue.nack(claim, "e", dead=True))
        offset = rig.queue.log.next_offset
        with pytest.raises(InvalidState, match=end):
            await rig.queue.cancel(added.job_id, **WHO)
        assert rig.queue.log.next_offset == offset


async def test_cancelling_a_claimed_job_asks_its_worker_once_and_the_log_says_so() -> None:
    async with Rig() as rig:
        heard: list[str] = []
        added = await rig.queue.enqueue("q", b"")
        (claim,) = await rig.queue.claim("q")
        rig.queue.watch(claim, heard.append)
        for _ in range(2):
            job = await rig.queue.cancel(added.job_id, **WHO)
            assert (job.state, job.cancel_request) == ("claimed", ("ann", "because"))
        assert heard == ["cancel"]
        requests = [event for event in await rig.events() if isinstance(event, CancelRequested)]
        assert requests == [CancelRequested(claim.id, "ann", "because")]


async def test_one_who_watches_after_the_request_hears_of_it_too() -> None:
    async with Rig() as rig:
        heard: list[str] = []
        added = await rig.queue.enqueue("q", b"")
        (claim,) = await rig.queue.claim("q")
        await rig.queue.cancel(added.job_id, **WHO)
        rig.queue.watch(claim, heard.append)
        await settle()
        assert heard == ["cancel"]


@pytest.mark.parametrize("settle_by", ["nack", "nack with delay", "release", "expiry", "restart"])
async def test_a_job_whose_cancellation_was_requested_is_cancelled_when_its_claim_ends(settle_by: str) -> None:
    async with Rig() as rig:
        added = await rig.queue.enqueue("q", b"", max_attempts=1)
        (claim,) = await rig.queue.claim("q", lease=5)
        await rig.queue.cancel(added.job_id, **WHO)
        if settle_by == "nack":
            await rig.queue.nack(claim, "e")
        elif settle_by == "nack with delay":
            await rig.queue.nack(claim, "e", delay=9, dead=True)
        elif settle_by == "release":
            await rig.queue.release(claim)
        elif settle_by == "expiry":
            await rig.advance(5)
        else:
            await rig.crash()
        job = await rig.queue.get(added.job_id)
        assert (job.state, job.cancel_request) == ("cancelled", None)
        assert await rig.queue.claim("q") == []


async def test_a_job_acked_after_the_request_is_done() -> None:
    async with Rig() as rig:
        added = await rig.queue.enqueue("q", b"")
        (claim,) = await rig.queue.claim("q")
        await rig.queue.cancel(added.job_id, **WHO)
        await rig.queue.ack(claim)
        assert (await rig.queue.get(added.job_id)).state == "done"


async def test_a_watcher_hears_that_its_claim_is_lost_but_not_of_its_own_settling() -> None:
    async with Rig() as rig:
        await rig.queue.enqueue_many("q", [b"", b"", b""])
        expired, acked, nacked = await rig.queue.claim("q", limit=3, lease=5)
        heard: list[tuple[str, str]] = []
        for name, claim in (("expired", expired), ("acked", acked), ("nacked", nacked)):
            rig.queue.watch(claim, lambda what, name=name: heard.append((name, what)))  # type: ignore[misc]
        await rig.queue.ack(acked)
        await rig.queue.nack(nacked, "e")
        await rig.advance(5)
        assert heard == [("expired", "lost")]
        rig.queue.watch(acked, lambda what: heard.append(("late", what)))
        await settle()
        assert heard[1:] == [("late", "lost")]


async def test_a_dead_job_that_is_requeued_starts_anew() -> None:
    async with Rig() as rig:
        added = await rig.queue.enqueue("q", b"x", max_attempts=2)
        for _ in range(2):
            (claim,) = await rig.queue.claim("q")
            await rig.queue.nack(claim, "e", delay=0)
        await rig.reopen()
        job = await rig.queue.requeue(added.job_id, **WHO)
        assert (job.state, job.attempt, job.sweep_at_ms) == ("pending", 0, 0)
        (claim,) = await rig.queue.claim("q")
        assert (claim.attempt, claim.payload) == (1, b"x")
        await rig.advance(8 * 24 * 3600)
        assert (await rig.queue.get(added.job_id)).job_id == added.job_id


@pytest.mark.parametrize("state", ["pending", "scheduled", "claimed", "done", "cancelled"])
async def test_only_a_dead_job_can_be_requeued(state: str) -> None:
    async with Rig() as rig:
        added = await rig.queue.enqueue("q", b"", delay=60 if state == "scheduled" else 0)
        if state in ("claimed", "done"):
            (claim,) = await rig.queue.claim("q")
            if state == "done":
                await rig.queue.ack(claim)
        elif state == "cancelled":
            await rig.queue.cancel(added.job_id, **WHO)
        with pytest.raises(InvalidState, match=state):
            await rig.queue.requeue(added.job_id, **WHO)


async def test_a_paused_queue_hands_out_nothing_and_takes_jobs() -> None:
    async with Rig() as rig:
        await rig.queue.enqueue("q", b"1")
        await rig.queue.pause("q", **WHO)
        await rig.queue.enqueue("q", b"2")
        assert await rig.queue.claim("q", limit=5) == []
        assert (await rig.queue.stats("q")).paused
        await rig.crash()
        assert await rig.queue.claim("q", limit=5) == []
        await rig.queue.resume("q", **WHO)
        assert payloads(await rig.queue.claim("q", limit=5)) == [b"1", b"2"]
        assert not (await rig.queue.stats("q")).paused


async def test_pausing_or_resuming_twice_changes_nothing() -> None:
    async with Rig() as rig:
        await rig.queue.resume("q", **WHO)
        for _ in range(2):
            await rig.queue.pause("q", **WHO)
        for _ in range(2):
            await rig.queue.resume("q", **WHO)
        events = [event for event in await rig.events() if isinstance(event, QueuePaused | QueueResumed)]
        assert events == [QueuePaused("q", "ann", "because"), QueueResumed("q", "ann", "because")]


async def test_claims_that_wait_on_a_paused_queue_are_served_when_it_is_resumed() -> None:
    async with Rig() as rig:
        await rig.queue.pause("q", **WHO)
        waiting = [asyncio.create_task(rig.queue.claim("q", wait=None)) for _ in range(3)]
        await settle()
        await rig.queue.enqueue_many("q", [b"0", b"1"])
        await settle()
        assert not any(task.done() for task in waiting)
        await rig.queue.resume("q", **WHO)
        assert payloads([*await waiting[0], *await waiting[1]]) == [b"0", b"1"]
        assert not waiting[2].done()
        await rig.queue.pause("q", **WHO)
        await rig.queue.enqueue("q", b"2")
        await settle()
        assert not waiting[2].done()
        await rig.queue.resume("q", **WHO)
        assert payloads(await waiting[2]) == [b"2"]


async def test_a_job_claimed_before_the_pause_can_be_settled_and_its_retry_waits() -> None:
    async with Rig() as rig:
        await rig.queue.enqueue_many("q", [b"1", b"2"])
        one, two = await rig.queue.claim("q", limit=2)
        await rig.queue.pause("q", **WHO)
        await rig.queue.ack(one)
        await rig.queue.nack(two, "e", delay=0)
        assert await rig.queue.claim("q") == []
        await rig.queue.resume("q", **WHO)
        assert payloads(await rig.queue.claim("q")) == [b"2"]


async def test_a_paused_queue_does_not_hold_up_another_one() -> None:
    async with Rig() as rig:
        await rig.queue.enqueue("a", b"a")
        await rig.queue.enqueue("b", b"b")
        await rig.queue.pause("a", **WHO)
        assert payloads(await rig.queue.claim(["a", "b"])) == [b"b"]


@pytest.mark.parametrize("bad", [{"actor": ""}, {"reason": " "}, {"actor": "x" * 1001}, {"reason": None}])
async def test_an_operator_must_say_who_and_why(bad: dict[str, Any]) -> None:
    async with Rig() as rig:
        added = await rig.queue.enqueue("q", b"")
        who: dict[str, Any] = {**WHO, **bad}
        for call in (
            rig.queue.cancel(added.job_id, **who),
            rig.queue.pause("q", **who),
            rig.queue.resume("q", **who),
        ):
            with pytest.raises(InvalidArgument):
                await call
        assert (await rig.queue.get(added.job_id)).state == "pending"


async def test_concurrent_cancel_and_claim_agree_on_one_outcome() -> None:
    async with Rig() as rig:
        added = await rig.queue.enqueue("q", b"")
        job, claims = await asyncio.gather(rig.queue.cancel(added.job_id, **WHO), rig.queue.claim("q"))
        assert (job.state, len(claims)) in (("cancelled", 0), ("claimed", 1))
