"""Handlers that raise what is no Exception: a failed try like any other, and no slot, job or worker is lost by it."""

import asyncio
import gc
import logging
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest

from ledgerq import MemoryDisk, MemoryStore, Queue
from ledgerq.eventlog.clock import ManualClock
from ledgerq.eventlog.runtime.threads import DaemonThreads
from ledgerq.worker.execution import Handler, JobContext
from ledgerq.worker.running import Runner, Running
from ledgerq.worker.worker import Worker
from tests.support.loops import settle
from tests.support.rig import Rig
from tests.support.workers import LIMIT_S, Stage, handler_threads, state_of
from tests.tiers import sampled


class Own(BaseException):
    """A BaseException of a library, not meant to be caught."""


ODD: list[Callable[[], BaseException]] = [
    lambda: Own("by a library"),
    lambda: GeneratorExit("closed"),
    lambda: SystemExit(3),
    lambda: asyncio.CancelledError("by itself"),
    lambda: BaseExceptionGroup("several", [KeyboardInterrupt(), Own()]),
]


async def raises(job: JobContext, error: Callable[[], BaseException]) -> None:
    raise error()


def raises_in_a_thread(job: JobContext, error: Callable[[], BaseException]) -> None:
    raise error()


def raises_when_awaited(job: JobContext, error: Callable[[], BaseException]) -> Any:
    return raises(job, error)


each_kind = pytest.mark.parametrize(
    "kind",
    sampled([raises, raises_in_a_thread, raises_when_awaited]),
    ids=["async def", "def", "def with an awaitable"],
)


def failing(kind: Any, error: Callable[[], BaseException], fails: Callable[[bytes], bool]) -> Any:
    """A handler of this kind that raises `error` for the payloads that fail."""
    if kind is raises:

        async def handle(job: JobContext) -> None:
            if fails(job.payload):
                await raises(job, error)

        return handle
    return lambda job: kind(job, error) if fails(job.payload) else None


@each_kind
@pytest.mark.parametrize("error", ODD, ids=[type(error()).__name__ for error in ODD])
async def test_it_is_a_failed_try_with_its_traceback_and_the_next_job_has_its_slot(
    kind: Any, error: Callable[[], BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    told: list[dict[str, Any]] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: told.append(context))
    async with Rig() as rig:
        again = await rig.queue.enqueue("q", b"bad", priority=1)
        dead = await rig.queue.enqueue("q", b"bad", priority=2, max_attempts=1)
        good = await rig.queue.enqueue("q", b"good", priority=3)
        worker = Worker(rig.queue, concurrency=1)

        def fails(payload: bytes) -> bool:
            if payload == b"good":
                loop.call_soon_threadsafe(worker.stop)
            return payload == b"bad"

        worker.handler("q")(failing(kind, error, fails))
        async with asyncio.timeout(LIMIT_S):
            await worker.run(signals=False)
        jobs = [await rig.queue.get(added.job_id) for added in (again, dead, good)]
        assert [(job.state, job.attempt) for job in jobs] == [("scheduled", 1), ("dead", 1), ("done", 1)]
        for job in jobs[:2]:
            assert type(error()).__name__ in job.error
            assert "Traceback" in job.error or "in raises" in job.error
        assert [record.message for record in caplog.records if "raised" in record.message]
    assert not handler_threads()
    gc.collect()
    await settle()
    assert told == []


@each_kind
async def test_keyboard_interrupt_fails_its_try_ends_the_worker_and_is_raised_when_all_is_settled(kind: Any) -> None:
    stage = Stage()
    async with Rig() as rig:
        other = await rig.queue.enqueue("other", b"runs")
        worker = Worker(rig.queue, concurrency=2, grace=1000)
        worker.handler("other")(stage)
        worker.handler("q")(failing(kind, lambda: KeyboardInterrupt("enough"), lambda payload: True))
        asyncio.get_running_loop().call_soon(lambda: asyncio.ensure_future(rig.queue.enqueue("q", b"x")))
        with pytest.raises(KeyboardInterrupt):
            async with asyncio.timeout(LIMIT_S):
                await worker.run(signals=False)
        [job] = (await rig.queue.jobs("q")).jobs
        assert (job.state, job.attempt) == ("scheduled", 1)
        assert "KeyboardInterrupt" in job.error
        assert state_of(await rig.queue.get(other.job_id)) == ("pending", 0, "released: the worker ended")
        assert stage.cancelled == [b"runs"]
        assert not rig.queue.on_failure
    assert not handler_threads()


@each_kind
def test_keyboard_interrupt_ends_the_program_and_leaves_a_closed_store(kind: Any) -> None:
    disk = MemoryDisk()

    async def program() -> None:
        async with Queue.open(store=MemoryStore(disk)) as queue:
            worker = Worker(queue)
            worker.handler("q")(failing(kind, KeyboardInterrupt, lambda payload: True))
            await queue.enqueue("q", b"x", max_attempts=1)
            await worker.run()

    async def events() -> list[str]:
        async with Queue.open(store=MemoryStore(disk)) as queue:
            return [type(record.event).__name__ async for record in queue.log.read()]

    with pytest.raises(KeyboardInterrupt):
        asyncio.run(program())
    told = ["WriterOpened", "Enqueued", "Claimed", "Nacked", "WriterClosed", "WriterOpened"]
    assert asyncio.run(events()) == told


async def test_a_thread_that_raises_it_too_late_is_not_heard() -> None:
    begun, cue = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()
    told: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _, context: told.append(context))
    async with Rig() as rig:
        added = await rig.queue.enqueue("q", b"x", max_attempts=1)
        worker = Worker(rig.queue, concurrency=1)

        @worker.handler("q", timeout=1)
        def interrupted(job: JobContext) -> None:
            loop.call_soon_threadsafe(begun.set)
            assert cue.wait(LIMIT_S)
            raise KeyboardInterrupt

        run = asyncio.create_task(worker.run(signals=False, until_empty=True))
        async with asyncio.timeout(LIMIT_S):
            await begun.wait()
            await rig.advance(1)
            cue.set()
            await run
        assert state_of(await rig.queue.get(added.job_id)) == ("dead", 1, "timed out after 1 s")
    gc.collect()
    await settle()
    assert told == []


def test_a_loop_that_is_dropped_closes_its_handlers_in_silence(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """GeneratorExit that comes from outside, since nothing runs any more, is no error of the handler's."""
    complaints: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", complaints.append)
    closed: list[str] = []

    async def handle(job: JobContext) -> None:
        try:
            await asyncio.Event().wait()
        except GeneratorExit:
            closed.append("handler")
            raise

    async def begin() -> None:
        rig = Rig()
        queue = await rig.open()
        await queue.enqueue("q", b"x")
        [claim] = await queue.claim("q")
        handler = Handler.of("q", handle, None)
        Running(Runner(queue, ManualClock(), DaemonThreads("none"), lambda _: None), claim, handler, 0).begin()
        await settle()

    tasks: list[Any] = []
    loop = asyncio.new_event_loop()
    loop.set_exception_handler(lambda *_: None)
    loop.run_until_complete(begin())
    loop.close()
    tasks.clear()
    with caplog.at_level(logging.CRITICAL):
        del loop
        gc.collect()
    assert closed == ["handler"]
    assert complaints == []
