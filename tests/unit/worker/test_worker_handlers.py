"""Registering handlers, and what a worker refuses."""

from typing import Any

import pytest

from ledgerq.eventlog.errors import InvalidArgument, InvalidQueueName
from ledgerq.worker.execution import JobContext
from ledgerq.worker.worker import Worker
from tests.support.loops import settle
from tests.support.rig import Rig
from tests.support.workers import Stage, working


async def done(job: JobContext) -> None:
    """Nothing to do."""


async def test_a_handler_stays_what_it_was() -> None:
    async with Rig() as rig:
        worker = Worker(rig.queue)
        assert worker.handler("q")(done) is done


async def test_a_queue_has_one_handler() -> None:
    async with Rig() as rig:
        worker = Worker(rig.queue)
        worker.handler("q")(done)
        with pytest.raises(InvalidArgument, match="queue 'q' has a handler already"):
            worker.handler("q")(done)


@pytest.mark.parametrize("timeout", [-1, float("nan"), float("inf"), "5", True])
async def test_a_timeout_is_a_number_of_seconds(timeout: Any) -> None:
    async with Rig() as rig:
        with pytest.raises(InvalidArgument, match="timeout is a number of seconds"):
            Worker(rig.queue).handler("q", timeout=timeout)


@pytest.mark.parametrize("name", ["", "a\0b", "x" * 256, done, None])
async def test_a_handlers_queue_has_a_valid_name(name: Any) -> None:
    async with Rig() as rig:
        with pytest.raises(InvalidQueueName):
            Worker(rig.queue).handler(name)


async def test_what_would_never_run_is_no_handler() -> None:
    def generator(job: JobContext) -> Any:
        yield

    async def async_generator(job: JobContext) -> Any:
        yield

    things: list[Any] = [None, "text", generator, async_generator]
    async with Rig() as rig:
        worker = Worker(rig.queue)
        for thing in things:
            with pytest.raises(InvalidArgument, match="a handler is"):
                worker.handler("q")(thing)
        with pytest.raises(InvalidArgument, match="no handler"):
            await worker.run(signals=False)


@pytest.mark.parametrize(
    "arguments",
    [{"concurrency": value} for value in (0, -1, 10_001, True, 1.5, "2")]
    + [{"prefetch": value} for value in (-1, 10_001, True, 1.5)]
    + [{"max_settling": value} for value in (0, -1, 1_000_001, True, 1.5)]
    + [{"max_settling_bytes": value} for value in (0, 2**40 + 1, True, "1")]
    + [{"grace": value} for value in (-1, float("nan"), "soon")],
    ids=repr,
)
async def test_a_workers_limits_are_checked(arguments: dict[str, Any]) -> None:
    async with Rig() as rig:
        with pytest.raises(InvalidArgument, match=next(iter(arguments))):
            Worker(rig.queue, **arguments)


async def test_a_worker_without_a_handler_refuses_to_run() -> None:
    async with Rig() as rig:
        with pytest.raises(InvalidArgument, match="no handler"):
            await Worker(rig.queue).run(signals=False)


async def test_a_worker_runs_once() -> None:
    async with Rig() as rig:
        worker = Worker(rig.queue)
        worker.handler("q")(done)
        await worker.run(until_empty=True, signals=False)
        with pytest.raises(InvalidArgument, match="runs once"):
            await worker.run(signals=False)


@pytest.mark.parametrize("busy", [False, True])
async def test_a_worker_that_runs_refuses_to_run_beside_itself(busy: bool) -> None:
    stage = Stage()
    async with Rig() as rig:
        worker = Worker(rig.queue)
        worker.handler("q")(stage)
        async with working(worker):
            if busy:
                await rig.queue.enqueue("q", b"")
                await settle()
            with pytest.raises(InvalidArgument, match="runs once"):
                await worker.run(signals=False)
            stage.cue.set()
            await settle()


async def test_a_worker_that_was_stopped_before_it_ran_claims_nothing() -> None:
    stage = Stage()
    async with Rig() as rig:
        await rig.queue.enqueue("q", b"")
        worker = Worker(rig.queue)
        worker.handler("q")(stage)
        worker.stop()
        await worker.run(signals=False)
        assert not stage.started
        assert (await rig.queue.stats("q")).totals["claimed"] == 0


async def test_a_handler_comes_before_the_run() -> None:
    async with Rig() as rig:
        worker = Worker(rig.queue)
        worker.handler("q")(done)
        async with working(worker):
            with pytest.raises(InvalidArgument, match="before it runs"):
                worker.handler("late")(done)


async def test_the_largest_worker_there_may_be_works() -> None:
    async with Rig() as rig:
        await rig.queue.enqueue_many("q", [b""] * 3)
        worker = Worker(rig.queue, concurrency=10_000, prefetch=10_000)
        worker.handler("q")(done)
        await worker.run(until_empty=True, signals=False)
        assert (await rig.queue.stats("q")).done == 3
