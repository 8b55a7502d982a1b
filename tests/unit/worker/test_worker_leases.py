"""Leases: renewed while a job is held, and what happens when one is lost or can't be renewed."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from ledgerq.eventlog.errors import StoreUnavailable
from ledgerq.worker.claims import Claim
from ledgerq.worker.execution import JobContext
from ledgerq.worker.options import QueueOptions
from ledgerq.worker.worker import Worker
from tests.support.loops import settle, until
from tests.support.operators import WHO
from tests.support.rig import Rig
from tests.support.workers import Stage, fetching_ahead, state_of, working


def note_claims(rig: Rig) -> list[Claim]:
    """Record all claims that the queue returns from now on in this list."""
    taken: list[Claim] = []
    claim = rig.queue.claim

    async def noted(*args: Any, **kwargs: Any) -> list[Claim]:
        claims = await claim(*args, **kwargs)
        taken.extend(claims)
        return claims

    rig.queue.claim = noted  # type: ignore[method-assign]
    return taken


async def test_leases_are_renewed_while_a_job_runs_or_waits_for_its_slot() -> None:
    stage = Stage()
    async with Rig(default=QueueOptions(lease_s=30.0)) as rig:
        await rig.queue.enqueue_many("q", [b"runs", b"waits"])
        worker = fetching_ahead(Worker(rig.queue, concurrency=1), 1)
        worker.handler("q")(stage)
        async with working(worker, until_empty=True):
            for _ in range(60):
                await rig.advance(5)
                assert not await rig.queue.claim("q")
            stage.cue.set()
        stats = await rig.queue.stats("q")
        assert (stats.done, stats.totals["claimed"], stats.totals["lease_expired"]) == (2, 2, 0)
        assert stage.started == [b"runs", b"waits"]


async def test_the_shortest_lease_among_the_queues_sets_the_pace() -> None:
    stage = Stage()
    queues = {"short": QueueOptions(lease_s=3.0), "long": QueueOptions(lease_s=300.0)}
    async with Rig(queues=queues) as rig:
        await rig.queue.enqueue("short", b"s")
        await rig.queue.enqueue("long", b"l")
        worker = Worker(rig.queue)
        worker.handler("short")(stage)
        worker.handler("long")(stage)
        async with working(worker):
            for _ in range(20):
                await rig.advance(1)
            assert (await rig.queue.stats("short")).totals["lease_expired"] == 0
            stage.cue.set()
            await settle()
        assert (await rig.queue.stats("short")).done == (await rig.queue.stats("long")).done == 1


async def test_without_renewals_the_lease_ends_the_handler_is_cancelled_and_nothing_is_settled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stage = Stage()

    async def stalled(*_: Any) -> None:
        await asyncio.Event().wait()

    async with Rig(default=QueueOptions(lease_s=30.0)) as rig:
        added = await rig.queue.enqueue("q", b"x")
        monkeypatch.setattr(rig.queue, "extend", stalled)
        worker = Worker(rig.queue, concurrency=1)
        worker.handler("q")(stage)
        async with working(worker):
            await rig.advance(10)
            assert not stage.cancelled
            await rig.queue.pause("q", **WHO)
            await rig.advance(20)
            assert stage.cancelled == [b"x"]
            assert state_of(await rig.queue.get(added.job_id)) == ("pending", 1, "lease expired")
            assert [type(record.event).__name__ for record in await rig.queue.history(added.job_id)][
                -1
            ] == "LeaseExpired"


async def test_a_claim_settled_by_another_hand_stops_the_handler_at_the_next_renewal() -> None:
    stage = Stage()
    async with Rig(default=QueueOptions(lease_s=30.0)) as rig:
        added = await rig.queue.enqueue("q", b"x")
        taken = note_claims(rig)
        worker = Worker(rig.queue)
        worker.handler("q")(stage)
        async with working(worker):
            await rig.queue.nack(replace(taken[0]), "by another hand", delay=100)
            events = await rig.events()
            await rig.advance(10)
            assert stage.cancelled == [b"x"]
            assert await rig.events() == events
            assert state_of(await rig.queue.get(added.job_id)) == ("scheduled", 1, "by another hand")


@pytest.mark.parametrize("fails", [False, True])
async def test_a_result_that_comes_after_the_claim_was_settled_by_another_hand_does_not_count(
    fails: bool, caplog: pytest.LogCaptureFixture
) -> None:
    stage = Stage()
    async with Rig() as rig:
        added = await rig.queue.enqueue("q", b"x")
        taken = note_claims(rig)
        worker = Worker(rig.queue)

        @worker.handler("q")
        async def handle(job: JobContext) -> None:
            await stage(job)
            if fails:
                raise ValueError("late")

        async with working(worker):
            await rig.queue.nack(replace(taken[0]), "by another hand", delay=100)
            events = await rig.events()
            stage.cue.set()
            await settle()
            assert stage.ended == [b"x"]
            assert await rig.events() == events
        assert f"job {added.job_id} (q): its result doesn't count" in caplog.text


async def test_a_renewal_that_finds_the_claim_lost_stops_the_handler(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage()
    async with Rig(default=QueueOptions(lease_s=30.0)) as rig:
        await rig.queue.enqueue("q", b"x")
        monkeypatch.setattr(rig.queue, "watch", lambda claim, callback: None)  # without a call of its callback
        worker = Worker(rig.queue)
        worker.handler("q")(stage)
        async with working(worker):
            (job,) = (await rig.queue.jobs("q")).jobs
            rig.queue._core.dispatcher.leases.drop(job.id)
            await rig.advance(10)
            assert stage.cancelled == [b"x"]
            assert (await rig.queue.get(job.job_id)).state == "claimed"


async def test_leases_are_renewed_though_the_end_of_another_job_is_not_durable_for_long() -> None:
    cues = {b"ends": asyncio.Event(), b"runs": asyncio.Event()}
    async with Rig(default=QueueOptions(lease_s=30.0)) as rig:
        await rig.queue.enqueue_many("q", list(cues))
        worker = Worker(rig.queue, concurrency=2)

        @worker.handler("q")
        async def handle(job: JobContext) -> None:
            await cues[job.payload].wait()

        async with working(worker, until_empty=True):
            rig.faults.hold("sync:before")
            cues[b"ends"].set()
            await settle()
            for _ in range(5):
                await rig.advance(10)
            rig.faults.let_go("sync:before")
            await settle()
            cues[b"runs"].set()
        stats = await rig.queue.stats("q")
        assert (stats.done, stats.totals["claimed"], stats.totals["lease_expired"]) == (2, 2, 0)


async def test_the_lease_of_a_claim_is_renewed_while_a_queue_of_ones_own_delays_its_ack(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    started: list[bytes] = []
    other = asyncio.Event()
    async with Rig(default=QueueOptions(lease_s=30.0)) as rig:
        await rig.queue.enqueue("q", b"x")
        ack = rig.queue.ack

        async def ack_late(claim: Claim) -> None:
            await other.wait()
            await ack(claim)

        monkeypatch.setattr(rig.queue, "ack", ack_late)
        worker = Worker(rig.queue)

        @worker.handler("q")
        async def handle(job: JobContext) -> None:
            started.append(job.payload)

        async with working(worker, until_empty=True):
            for _ in range(6):
                await rig.advance(10)
            other.set()
        stats = await rig.queue.stats("q")
        assert (started, stats.done, stats.totals["lease_expired"]) == ([b"x"], 1, 0)


async def test_a_renewal_that_fails_ends_the_worker_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage()

    async def away(*_: Any) -> None:
        raise StoreUnavailable("gone fishing")

    async with Rig() as rig:
        await rig.queue.enqueue("q", b"x")
        monkeypatch.setattr(rig.queue, "extend", away)
        worker = Worker(rig.queue)
        worker.handler("q")(stage)
        task = asyncio.create_task(worker.run(signals=False))
        await settle()
        await rig.advance(10)
        with pytest.raises(StoreUnavailable, match="gone fishing"):
            await task
        assert stage.cancelled == [b"x"]


@pytest.mark.parametrize("method", ["claim", "ack", "extend", "drained"])
async def test_an_unforeseen_error_of_the_queue_ends_the_worker_instead_of_leaving_it_idle(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("unforeseen")

    stage = Stage()
    async with Rig() as rig:
        await rig.queue.enqueue("q", b"x")
        monkeypatch.setattr(rig.queue, method, broken)
        worker = Worker(rig.queue)
        worker.handler("q")(stage)
        task = asyncio.create_task(worker.run(until_empty=True, signals=False))
        await settle()
        if method == "extend":
            await rig.advance(10)
        stage.cue.set()
        await until(task.done)
        with pytest.raises(RuntimeError, match="unforeseen"):
            await task
