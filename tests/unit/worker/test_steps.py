"""Steps: the work of each is done once, whatever becomes of the tries, and its value is there for later ones."""

import asyncio
from collections.abc import Callable
from datetime import date
from typing import Any

import pytest
from pydantic import BaseModel

from ledgerq.eventlog.errors import ClaimLost, InvalidArgument, InvalidState
from ledgerq.eventlog.events import Acked, Sealed, StepDone
from ledgerq.eventlog.keys import TEXT_PREFIX, text_key
from ledgerq.worker.engine.decisions import MAX_STEPS
from ledgerq.worker.execution import JobContext
from ledgerq.worker.options import QueueOptions
from ledgerq.worker.outcomes import StepLost
from ledgerq.worker.steps.steps import DoneStep
from ledgerq.worker.tasks.memory_queue import memory_queue
from ledgerq.worker.tasks.registry import Tasks
from ledgerq.worker.worker import Worker
from tests.support.operators import WHO
from tests.support.rig import Rig

SOON = QueueOptions(backoff_base_s=0.0)


class Receipt(BaseModel):
    number: int
    day: date


async def run(rig: Rig, handler: Callable[[JobContext], Any]) -> None:
    """Run one worker until its queue is empty."""
    worker = Worker(rig.queue)
    worker.handler("q")(handler)
    await worker.run(until_empty=True, signals=False)


async def test_a_step_is_done_once_and_its_value_is_there_in_later_tries() -> None:
    calls: list[str] = []

    async def charge(cents: int) -> Receipt:
        calls.append("charge")
        return Receipt(number=cents, day=date(2026, 1, 2))

    def ship(to: str) -> None:
        calls.append(f"ship to {to}")

    async def handle(job: JobContext) -> None:
        receipt = await job.step("charge", charge, 500)
        assert receipt == Receipt(number=500, day=date(2026, 1, 2))
        pair: Any = await job.step("pair", lambda: (1, "a"))
        assert pair == [1, "a"]
        if job.attempt == 1:
            raise ConnectionError("lost")
        await job.step("ship", ship, to="Bonn")

    async with Rig(default=SOON) as rig:
        added = await rig.queue.enqueue("q", b"")
        await run(rig, handle)
        assert calls == ["charge", "ship to Bonn"]
        job = await rig.queue.get(added.job_id)
        assert (job.state, [name for name, _ in job.steps]) == ("done", ["charge", "pair", "ship"])
        events = [event for event in await rig.events() if isinstance(event, StepDone)]
        assert [(event.name, event.value) for event in events] == [*job.steps]
        assert job.steps[2][1] is None
        assert {key for key in rig.disk.rows if key.startswith(TEXT_PREFIX)} >= {
            text_key(value.at) for _, value in job.steps if value is not None
        }
        assert (await rig.queue.stats("q")).totals["step_done"] == 3
        await rig.advance(2 * 24 * 3600)
        assert not any(key.startswith(TEXT_PREFIX) for key in rig.disk.rows)


async def test_steps_of_plain_handlers_run_in_their_thread_and_not_twice_after_a_restart() -> None:
    calls: list[int] = []

    def count(by: int) -> int:
        calls.append(by)
        return sum(calls)

    def handle(job: JobContext) -> None:
        for i in (1, 2):
            assert job.step_sync(f"count:{i}", count, i) == (1, 3)[i - 1]
        with pytest.raises(InvalidArgument, match="async"):
            job.step_sync("sleep", asyncio.sleep, 0)  # type: ignore[unused-coroutine]
        if job.attempt == 1:
            raise ValueError

    async with Rig() as rig:
        await rig.queue.enqueue("q", b"")
        (claim,) = await rig.queue.claim("q")
        await rig.queue.finish_step(claim, "count:1", b"1")
        calls.append(1)
        await rig.crash(default=SOON)
        await run(rig, handle)
        assert calls == [1, 2]


async def test_what_a_step_raises_is_the_try_s_own_and_the_step_may_be_tried_again() -> None:
    async with Rig(default=SOON) as rig:
        await rig.queue.enqueue("q", b"")
        tries = 0

        async def flaky() -> int:
            nonlocal tries
            tries += 1
            if tries < 3:
                raise ConnectionError("not now")
            return tries

        async def handle(job: JobContext) -> None:
            with pytest.raises(ConnectionError):
                await job.step("flaky", flaky)
            with pytest.raises(ConnectionError):
                await job.step("flaky", flaky)
            assert await job.step("flaky", flaky) == 3
            with pytest.raises(InvalidArgument, match="'flaky' in this try already"):
                await job.step("flaky", flaky)
            with pytest.raises(InvalidArgument, match="a step's name"):
                await job.step("", flaky)
            with pytest.raises(InvalidState, match="step_sync would block"):
                job.step_sync("x", int)

        await run(rig, handle)
        assert isinstance((await rig.events())[-1], Acked)
        assert tries == 3


async def test_a_lost_claim_does_no_step_and_appends_nothing() -> None:
    async with Rig() as rig:
        await rig.queue.enqueue("q", b"")
        (lost,) = await rig.queue.claim("q")
        await rig.queue.finish_step(lost, "one", None)
        await rig.queue.release(lost)
        (claim,) = await rig.queue.claim("q")
        with pytest.raises(ClaimLost):
            await rig.queue.read_step(lost, "one")
        with pytest.raises(ClaimLost):
            await rig.queue.finish_step(lost, "two", b"1")
        assert await rig.queue.read_step(claim, "one") == DoneStep(None)
        assert await rig.queue.read_step(claim, "two") is None
        with pytest.raises(InvalidState, match="done already"):
            await rig.queue.finish_step(claim, "one", None)
        assert sum(key.startswith(TEXT_PREFIX) for key in rig.disk.rows) == 1  # why the first claim was released
        await rig.queue.ack(claim)


async def test_a_job_does_two_hundred_steps_at_most() -> None:
    async with Rig() as rig:
        await rig.queue.enqueue("q", b"")
        (claim,) = await rig.queue.claim("q")
        await asyncio.gather(*(rig.queue.finish_step(claim, f"step {i}", b"%d" % i) for i in range(MAX_STEPS)))
        assert await rig.queue.read_step(claim, "step 7") == DoneStep(b"7")
        for call in (rig.queue.read_step(claim, "one more"), rig.queue.finish_step(claim, "one more", None)):
            with pytest.raises(InvalidState, match="has done 200 steps"):
                await call
        assert len(await rig.queue.history(claim.job_id)) == 2 + MAX_STEPS
        await rig.queue.ack(claim)


async def test_a_value_that_is_lost_makes_a_dead_letter_and_the_step_is_not_done_again() -> None:
    calls = 0

    async def charge() -> int:
        nonlocal calls
        calls += 1
        return 5

    async def handle(job: JobContext) -> None:
        await job.step("charge", charge)
        raise ConnectionError

    rig = Rig(default=QueueOptions(max_attempts=5, backoff_base_s=60.0))
    await rig.open()
    added = await rig.queue.enqueue("q", b"")
    worker = Worker(rig.queue)
    worker.handler("q")(handle)
    working = asyncio.create_task(worker.run(signals=False))
    while (await rig.queue.get(added.job_id)).state != "scheduled":
        await asyncio.sleep(0)
    ((_, value),) = (await rig.queue.get(added.job_id)).steps
    assert isinstance(value, Sealed)
    del rig.disk.rows[text_key(value.at)]
    await rig.advance(60)
    job = await rig.queue.finished(added.job_id)
    assert (job.state, job.error_type, calls) == ("dead", StepLost.__name__, 1)
    assert "the value of step 'charge'" in job.error
    worker.stop()
    await working
    await rig.queue.close()


async def test_a_value_that_is_not_of_its_declared_type_makes_a_dead_letter_at_once() -> None:
    async def wrong() -> int:
        return "five"  # type: ignore[return-value]

    async with Rig() as rig:
        added = await rig.queue.enqueue("q", b"")

        async def handle(job: JobContext) -> None:
            await job.step("wrong", wrong)

        await run(rig, handle)
        job = await rig.queue.get(added.job_id)
        assert (job.state, job.error_type, job.steps) == ("dead", "ResultDoesntFit", ())


async def test_a_job_that_is_requeued_or_moved_goes_on_after_its_steps() -> None:
    async with Rig() as rig:
        await rig.queue.enqueue("q", b"")
        (claim,) = await rig.queue.claim("q")
        await rig.queue.finish_step(claim, "one", b"1")
        await rig.queue.nack(claim, "boom", dead=True)
        await rig.queue.requeue(claim.job_id, **WHO)
        (claim,) = await rig.queue.claim("q")
        assert await rig.queue.read_step(claim, "one") == DoneStep(b"1")
        await rig.queue.ack(claim)


async def test_tasks_have_steps_in_tests_too() -> None:
    app = Tasks()
    calls: list[str] = []

    @app.task()
    async def order(job: JobContext, number: int) -> int:
        first = await job.step("first", fetch, number)
        if job.attempt == 1 and number == 1:
            raise ConnectionError
        job.progress(0.5, "half")
        job.log.info("half", extra={"more": 1})
        return first + 1

    def fetch(number: int) -> int:
        calls.append(f"fetch {number}")
        return 40 + number

    async with memory_queue(app) as queue:
        handle = await order.enqueue(number=1)
        await queue.drain()
        assert await handle == 42
    with app.inline():
        assert await (await order.enqueue(number=2)) == 43
    assert calls == ["fetch 1", "fetch 2"]
