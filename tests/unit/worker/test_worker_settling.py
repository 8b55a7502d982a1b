"""Settlements on their way: they keep no slot, have limits of their own, and count when they are durable."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from ledgerq.eventlog.errors import StoreUnavailable
from ledgerq.eventlog.events import Acked
from ledgerq.worker import worker as worker_module
from ledgerq.worker.claims import Claim
from ledgerq.worker.execution import JobContext
from ledgerq.worker.options import QueueOptions
from ledgerq.worker.worker import Worker
from tests.support.loops import settle, until
from tests.support.rig import Rig
from tests.support.scrapes import numbers
from tests.support.workers import Stage, ThreadStage, fetching_ahead, finish, state_of, working


def outcomes(worker: Worker) -> dict[str, float]:
    """How many tries of the worker ended in which way, as its metrics have it."""
    prefix = "ledgerq_worker_handler_seconds_count"
    found = numbers(worker.collector())
    return {name.split('outcome="')[1].split('"')[0]: n for name, n in found.items() if name.startswith(prefix)}


class Cues:
    """A handler that waits for the cue of its own payload."""

    def __init__(self, payloads: Sequence[bytes]) -> None:
        self.started: list[bytes] = []
        self.cues = {payload: asyncio.Event() for payload in payloads}

    async def __call__(self, job: JobContext) -> None:
        """Handle one job."""
        self.started.append(job.payload)
        await self.cues[job.payload].wait()

    async def end(self, *payloads: bytes) -> None:
        """Let these handlers end, in one turn of the event loop."""
        for payload in payloads:
            self.cues[payload].set()
        await settle()


@pytest.mark.parametrize("fails", [False, True])
async def test_a_slot_is_free_when_its_handler_has_ended_though_the_outcome_is_not_durable(fails: bool) -> None:
    cues = Cues([b"1", b"2"])
    async with Rig() as rig:
        await rig.queue.enqueue_many("q", list(cues.cues))
        worker = fetching_ahead(Worker(rig.queue, concurrency=1), 1)

        @worker.handler("q")
        async def handle(job: JobContext) -> None:
            await cues(job)
            if fails:
                raise ValueError("boom")

        async with working(worker):
            rig.faults.hold("sync:before")
            await cues.end(b"1")
            assert cues.started == [b"1", b"2"]
            assert len(worker._slots.held) == 2
            assert outcomes(worker) == {}
            rig.faults.let_go("sync:before")
            await settle()
            assert outcomes(worker) == {"retry" if fails else "done": 1}
            assert len(worker._slots.held) == 1
            await cues.end(b"2")


LIMITS: list[tuple[dict[str, Any], int]] = [
    *(({"max_settling": most}, most) for most in (1, 3)),
    *(({"max_settling_bytes": size}, most) for size, most in ((1, 1), (8, 2), (9, 3))),
]


@pytest.mark.parametrize(("limits", "most"), LIMITS, ids=str)
async def test_no_handler_begins_while_as_many_outcomes_as_may_be_are_on_their_way(
    limits: dict[str, Any], most: int
) -> None:
    stage = Stage()
    async with Rig() as rig:
        await rig.queue.enqueue_many("q", [b"4444"] * 9)
        worker = fetching_ahead(Worker(rig.queue, concurrency=1, **limits), 8)
        worker.handler("q")(stage)
        async with working(worker):
            assert len(worker._slots.held) == 9
            rig.faults.hold("sync:before")
            stage.cue.set()
            await settle()
            assert (len(stage.ended), worker._slots.settling.jobs) == (most, most)
            rig.faults.let_go("sync:before")
            await until(lambda: len(stage.ended) == 9)
            await settle()
            assert (await rig.queue.stats("q")).done == 9


async def test_handlers_that_end_in_one_turn_are_acked_in_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    cues = Cues([b"%d" % i for i in range(10)])
    calls: list[int] = []
    async with Rig() as rig:
        await rig.queue.enqueue_many("q", list(cues.cues))
        ack_many = rig.queue.ack_many

        async def noted(claims: Sequence[Claim]) -> None:
            calls.append(len(claims))
            await ack_many(claims)

        monkeypatch.setattr(rig.queue, "ack_many", noted)
        worker = Worker(rig.queue)
        worker.handler("q")(cues)
        async with working(worker, until_empty=True):
            await cues.end(*list(cues.cues)[:6])
            assert calls == [6]
            await cues.end(*list(cues.cues)[6:])
        assert calls == [6, 4]
        commits = [[event for event in batch.events if isinstance(event, Acked)] for batch in await rig.batches()]
        assert [len(acked) for acked in commits if acked] == [6, 4]


async def test_of_several_acks_those_that_are_lost_are_known_and_the_others_done(
    caplog: pytest.LogCaptureFixture,
) -> None:
    cues = Cues([b"1", b"2", b"3"])
    async with Rig() as rig:
        added = await rig.queue.enqueue_many("q", list(cues.cues))
        worker = Worker(rig.queue)
        worker.handler("q")(cues)
        async with working(worker, until_empty=True):
            second = next(claim for claim in worker._slots.held if claim.payload == b"2")
            cues.cues[b"2"].set()
            cues.cues[b"1"].set()
            cues.cues[b"3"].set()
            # Staged now: before the handlers, which end in the next turn, are acked.
            taken = asyncio.create_task(rig.queue.nack(second, "by another hand", dead=True))
            await taken
        assert outcomes(worker) == {"done": 2, "lost": 1}
        assert [(await rig.queue.get(job.job_id)).state for job in added] == ["done", "dead", "done"]
        assert f"job {added[1].job_id} (q): its result doesn't count" in caplog.text


async def test_when_a_queue_of_ones_own_does_not_say_which_acks_are_lost_none_counts_as_done(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cues = Cues([b"1", b"2"])
    async with Rig() as rig:
        await rig.queue.enqueue_many("q", list(cues.cues))

        async def ack_many(claims: Sequence[Claim]) -> None:
            for claim in claims:
                await rig.queue.ack(claim)

        monkeypatch.setattr(rig.queue, "ack_many", ack_many)
        worker = Worker(rig.queue)
        worker.handler("q")(cues)
        async with working(worker):
            first = next(iter(worker._slots.held))
            for cue in cues.cues.values():
                cue.set()
            # Staged before the handlers, which end in the next turn, are acked.
            await asyncio.create_task(rig.queue.nack(first, "by another hand", dead=True))
            await settle()
            assert outcomes(worker) == {"lost": 2}
            assert (await rig.queue.stats("q")).done == 0


async def test_a_settlement_that_is_cancelled_from_outside_before_it_began_is_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with Rig(default=QueueOptions(lease_s=30.0)) as rig:
        added = await rig.queue.enqueue("q", b"x")
        worker = Worker(rig.queue)

        @worker.handler("q")
        async def handle(job: JobContext) -> None:
            pass

        settling = worker._slots.settling
        flush = settling.flush

        def flush_and_cancel() -> None:
            flush()
            for task in settling.tasks:
                task.cancel()
                monkeypatch.setattr(settling, "flush", flush)

        monkeypatch.setattr(settling, "flush", flush_and_cancel)
        async with working(worker, until_empty=True):
            await settle()
            assert outcomes(worker) == {"unknown": 1}
            assert (len(worker._slots.held), settling.jobs) == (0, 0)
            await rig.advance(30)
        assert state_of(await rig.queue.get(added.job_id))[:2] == ("done", 2)


async def test_when_the_store_fails_the_outcomes_on_their_way_are_unknown_and_the_worker_ends() -> None:
    cues = Cues([b"1", b"2", b"3"])
    rig = Rig()
    queue = await rig.open()
    await queue.enqueue_many("q", list(cues.cues))
    worker = Worker(queue)
    worker.handler("q")(cues)
    task = asyncio.create_task(worker.run(signals=False))
    await until(lambda: len(cues.started) == 3)
    rig.faults.hold("sync:before")
    await cues.end(b"1", b"2")
    rig.faults.spoil("sync:after", StoreUnavailable("the disk is gone"))
    rig.faults.let_go("sync:before")
    with pytest.raises(StoreUnavailable, match="the disk is gone"):
        await finish(task)
    assert outcomes(worker) == {"unknown": 2, "lost": 1}
    assert not worker._slots.held
    await queue.close()
    await rig.open()
    stats = await rig.queue.stats("q")
    assert (stats.done, stats.pending) == (2, 1), "they had reached the disk, which could not be known"
    await rig.queue.close()


@pytest.mark.parametrize("until_empty", [False, True])
async def test_a_worker_ends_when_all_outcomes_are_durable_and_not_before(until_empty: bool) -> None:
    stage = Stage()
    async with Rig() as rig:
        await rig.queue.enqueue_many("q", [b"1", b"2", b"3"])
        worker = Worker(rig.queue)
        worker.handler("q")(stage)
        task = asyncio.create_task(worker.run(signals=False, until_empty=until_empty))
        await until(lambda: len(stage.started) == 3)
        rig.faults.hold("sync:before")
        stage.cue.set()
        await settle()
        if not until_empty:
            worker.stop()
        await rig.advance(20)
        assert not task.done()
        assert outcomes(worker) == {}
        rig.faults.let_go("sync:before")
        await finish(task)
        assert outcomes(worker) == {"done": 3}
        assert sum(isinstance(event, Acked) for event in await rig.events()) == 3


async def test_a_run_that_is_cancelled_waits_for_the_outcomes_on_their_way() -> None:
    cues = Cues([b"1", b"2"])
    async with Rig() as rig:
        ended, runs = await rig.queue.enqueue_many("q", list(cues.cues))
        worker = Worker(rig.queue)
        worker.handler("q")(cues)
        task = asyncio.create_task(worker.run(signals=False))
        await until(lambda: len(cues.started) == 2)
        rig.faults.hold("sync:before")
        await cues.end(b"1")
        task.cancel()
        await settle()
        assert not task.done()
        rig.faults.let_go("sync:before")
        with pytest.raises(asyncio.CancelledError):
            await finish(task)
        assert (await rig.queue.get(ended.job_id)).state == "done"
        assert (await rig.queue.get(runs.job_id)).state == "pending"
        assert outcomes(worker) == {"done": 1, "released": 1}


async def test_a_thread_that_goes_on_after_its_time_keeps_its_slot_though_its_outcome_is_durable() -> None:
    stage = ThreadStage()
    async with Rig() as rig:
        await rig.queue.enqueue_many("q", [b"1", b"2"])
        worker = fetching_ahead(Worker(rig.queue, concurrency=1), 1)
        worker.handler("q", timeout=1)(stage)
        async with working(worker, until_empty=True):
            await stage.has_begun()
            await rig.advance(1)
            assert outcomes(worker) == {"timeout": 1}
            assert stage.started == [b"1"]
            stage.cue.set()
            await stage.has_begun()
            await until(lambda: not worker._slots.held)
            await rig.advance(10)
        assert stage.started == [b"1", b"2", b"1"]


async def test_a_worker_that_ends_while_the_store_does_not_answer_says_so_and_the_outcome_is_durable_later(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(worker_module, "_STUBBORN_WAIT_S", 0.0)
    cues = Cues([b"1"])
    async with Rig() as rig:
        added = await rig.queue.enqueue("q", b"1")
        worker = Worker(rig.queue, grace=10)
        worker.handler("q")(cues)
        async with working(worker) as run:
            rig.faults.hold("sync:before")
            await cues.end(b"1")
            worker.stop()
            await settle()
            assert not run.done()
            await rig.advance(10)
            await finish(run)
            assert outcomes(worker) == {"unknown": 1}
            rig.faults.let_go("sync:before")
        assert (await rig.queue.get(added.job_id)).state == "done"
    events = [getattr(record, "ledgerq_event", None) for record in caplog.records if record.name == "ledgerq.worker"]
    assert events == ["handler_stuck", "outcome_unknown"]
