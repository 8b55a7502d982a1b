"""The outcomes of a handler, and the states of its job."""

import asyncio
import functools
import threading
from typing import Any

import pytest

from ledgerq.eventlog.errors import InvalidArgument
from ledgerq.eventlog.events import Nacked
from ledgerq.projections.job import Job
from ledgerq.worker.execution import JobContext
from ledgerq.worker.outcomes import Dead, Retry, error_text
from ledgerq.worker.worker import Worker
from tests.support.rig import Rig
from tests.support.workers import LIMIT_S, handler_threads, state_of, working


async def meet(rig: Rig, function: Any, payload: bytes = b"payload", **arguments: Any) -> Job:
    """Enqueue one job, let a worker try it once, and return the job as it is then."""
    added = await rig.queue.enqueue("q", payload, **arguments)
    worker = Worker(rig.queue, concurrency=1)
    worker.handler("q")(function)
    async with working(worker), asyncio.timeout(LIMIT_S):
        while (await rig.queue.get(added.job_id)).state in ("pending", "claimed"):
            await asyncio.sleep(0.001)
    assert not handler_threads()
    return await rig.queue.get(added.job_id)


def both_kinds(function: Any) -> Any:
    """Run the test with an async handler and with a plain one, both of which do what `outcome` does."""

    async def in_loop(job: JobContext, outcome: Any) -> Any:
        return outcome(job)

    def in_thread(job: JobContext, outcome: Any) -> Any:
        return outcome(job)

    return pytest.mark.parametrize("kind", [in_loop, in_thread], ids=["async def", "def"])(function)


@both_kinds
async def test_a_job_whose_handler_returns_is_done_whatever_it_returns(kind: Any) -> None:
    async with Rig() as rig:
        for value in (None, False, 0, "text", ValueError("no error when returned")):
            job = await meet(rig, functools.partial(kind, outcome=lambda job, value=value: value))
            assert state_of(job) == ("done", 1, "")


@both_kinds
async def test_a_handler_gets_the_job_with_its_headers(kind: Any) -> None:
    seen: list[Any] = []

    def look(job: JobContext) -> None:
        seen.append((job.payload, job.headers, job.job_id, job.queue, job.attempt, job.stop_requested))
        seen.append((job.claim.offset, job.max_attempts, job.priority))

    async with Rig() as rig:
        arguments = {"headers": {"a": "b"}, "priority": 7, "max_attempts": 4}
        job = await meet(rig, functools.partial(kind, outcome=look), b"bytes", **arguments)
    assert seen == [(b"bytes", {"a": "b"}, job.job_id, "q", 1, False), (job.claim_offset, 4, 7)]


@both_kinds
async def test_an_exception_is_a_failed_try_whose_error_ends_with_the_tracebacks_last_lines(kind: Any) -> None:
    def fail(job: JobContext) -> None:
        raise ZeroDivisionError("by nothing")

    async with Rig() as rig:
        job = await meet(rig, functools.partial(kind, outcome=fail))
        assert (job.state, job.attempt) == ("scheduled", 1)
        assert job.error.endswith('raise ZeroDivisionError("by nothing")\nZeroDivisionError: by nothing')
        assert "in fail" in job.error
        assert job.due_ms > rig.clock.now_ms()


@both_kinds
async def test_the_traceback_begins_at_the_handler(kind: Any) -> None:
    def fail(job: JobContext) -> None:
        raise LookupError("no result")

    async with Rig() as rig:
        job = await meet(rig, functools.partial(kind, outcome=fail))
    lines = job.error.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert lines[1].startswith(f'  File "{__file__}", line ')
    assert lines[1].endswith(f"in {kind.__name__}")
    assert lines[-1] == "LookupError: no result"


@both_kinds
async def test_so_do_those_of_what_led_to_it(kind: Any) -> None:
    def fail(job: JobContext) -> None:
        try:
            raise LookupError
        except LookupError as error:
            raise ExceptionGroup("all", [error]) from error

    async with Rig() as rig:
        job = await meet(rig, functools.partial(kind, outcome=fail))
    assert "execution.py" not in job.error
    assert "ExceptionGroup: all" in job.error


@both_kinds
async def test_an_exception_of_the_last_try_makes_the_job_dead(kind: Any) -> None:
    def fail(job: JobContext) -> None:
        raise KeyError("x")

    async with Rig() as rig:
        job = await meet(rig, functools.partial(kind, outcome=fail), max_attempts=1)
        assert (job.state, job.attempt) == ("dead", 1)
        assert job.error.endswith("KeyError: 'x'")


@both_kinds
async def test_dead_makes_a_dead_letter_at_once_with_its_text(kind: Any) -> None:
    def give_up(job: JobContext) -> None:
        raise Dead("no such address")

    async with Rig() as rig:
        job = await meet(rig, functools.partial(kind, outcome=give_up))
        assert state_of(job) == ("dead", 1, "no such address")


async def test_dead_without_a_text_has_one_all_the_same() -> None:
    async def give_up(job: JobContext) -> None:
        raise Dead

    async with Rig() as rig:
        assert state_of(await meet(rig, give_up)) == ("dead", 1, "dead")


@both_kinds
async def test_retry_schedules_the_next_try_after_exactly_its_delay(kind: Any) -> None:
    def again(job: JobContext) -> None:
        raise Retry(12.345, "the server is busy")

    async with Rig() as rig:
        job = await meet(rig, functools.partial(kind, outcome=again))
        assert state_of(job) == ("scheduled", 1, "the server is busy")
        assert job.due_ms == rig.clock.now_ms() + 12_345


async def test_retry_without_a_delay_follows_the_queues_backoff() -> None:
    async def again(job: JobContext) -> None:
        raise Retry

    async with Rig() as rig:
        job = await meet(rig, again)
        assert state_of(job) == ("scheduled", 1, "the handler asked for a retry")
        assert 0 < job.due_ms - rig.clock.now_ms() <= 8000


async def test_retry_at_once_brings_the_job_back_in_the_same_run_until_its_attempts_are_spent() -> None:
    attempts: list[int] = []

    async def again(job: JobContext) -> None:
        attempts.append(job.attempt)
        raise Retry(0)

    async with Rig() as rig:
        job = await meet(rig, again, max_attempts=3)
        assert state_of(job) == ("dead", 3, "the handler asked for a retry")
        assert attempts == [1, 2, 3]


@pytest.mark.parametrize("delay", [-1, float("nan"), float("inf"), 1e12, True, "5"])
async def test_a_delay_that_makes_no_sense_fails_in_the_handler_that_gave_it_and_nowhere_else(delay: Any) -> None:
    with pytest.raises(InvalidArgument):
        Retry(delay)

    async def again(job: JobContext) -> None:
        raise Retry(delay)

    async with Rig() as rig:
        job = await meet(rig, again)
        assert (job.state, job.attempt) == ("scheduled", 1)
        assert "InvalidArgument" in job.error


def nested(depth: int) -> None:
    """Fail far down."""
    if depth:
        nested(depth - 1)
    raise ValueError("x" * 100)


async def test_a_long_traceback_is_bounded_and_keeps_its_end() -> None:
    async def fail(job: JobContext) -> None:
        nested(50)

    async with Rig() as rig:
        job = await meet(rig, fail)
        assert len(job.error.splitlines()) <= 12
        assert len(job.error) <= 2000
        assert job.error.endswith("ValueError: " + "x" * 100)


def test_a_long_message_is_bounded_and_keeps_its_end() -> None:
    text = error_text(ValueError("y" * 5000 + "the end"))
    assert len(text) == 2000
    assert text.endswith("the end")


async def test_an_error_that_utf8_cant_hold_is_kept_readable() -> None:
    async def fail(job: JobContext) -> None:
        raise ValueError("\ud800 odd")

    async with Rig() as rig:
        job = await meet(rig, fail)
        assert job.error.endswith("ValueError: \\ud800 odd")


class Unprintable(Exception):
    """Its text can't be made."""

    def __str__(self) -> str:
        raise RuntimeError("no text")


class UnprintableDead(Dead, Unprintable):
    """Nor can this one's."""

    __str__ = Unprintable.__str__


@pytest.mark.parametrize("error", [Unprintable, UnprintableDead])
async def test_an_exception_whose_text_cant_be_made_is_settled_all_the_same(error: type[Exception]) -> None:
    async def fail(job: JobContext) -> None:
        raise error

    async with Rig() as rig:
        job = await meet(rig, fail)
        assert job.state == ("dead" if issubclass(error, Dead) else "scheduled")
        assert job.error


@both_kinds
async def test_a_handler_that_raises_cancelled_by_itself_has_failed(kind: Any) -> None:
    def fail(job: JobContext) -> None:
        raise asyncio.CancelledError("of my own")

    async with Rig() as rig:
        job = await meet(rig, functools.partial(kind, outcome=fail))
        assert (job.state, job.attempt) == ("scheduled", 1)
        assert "CancelledError" in job.error


async def test_a_plain_handler_runs_in_a_thread_and_an_async_one_on_the_loop() -> None:
    places: list[bool] = []

    async def on_loop(job: JobContext) -> None:
        places.append(threading.current_thread() is threading.main_thread())

    def in_thread(job: JobContext) -> None:
        places.append(threading.current_thread() is threading.main_thread())

    class Callable:
        async def __call__(self, job: JobContext) -> None:
            places.append(threading.current_thread() is threading.main_thread())

    async with Rig() as rig:
        for handler in (on_loop, functools.partial(on_loop), Callable(), in_thread):
            assert (await meet(rig, handler)).state == "done"
    assert places == [True, True, True, False]


async def test_a_plain_handler_that_returns_an_awaitable_is_not_done_before_that() -> None:
    done: list[bytes] = []

    async def send(payload: bytes) -> None:
        await asyncio.sleep(0)
        done.append(payload)
        if len(done) == 2:
            raise ValueError("second")

    async with Rig() as rig:
        job = await meet(rig, lambda job: send(job.payload))
        assert (job.state, done) == ("done", [b"payload"])
        job = await meet(rig, lambda job: send(job.payload))
        assert (job.state, len(done)) == ("scheduled", 2)
        assert job.error.endswith("ValueError: second")


async def test_an_error_is_in_the_history_with_its_try() -> None:
    async def fail(job: JobContext) -> None:
        raise ValueError(f"try {job.attempt}")

    async with Rig() as rig:
        await rig.queue.enqueue("q", b"", max_attempts=3)
        worker = Worker(rig.queue)
        worker.handler("q")(fail)
        async with working(worker, until_empty=True) as task:
            while not task.done():
                await rig.advance(8)
        errors = [str(event.error).splitlines()[-1] for event in await rig.events() if isinstance(event, Nacked)]
        assert errors == ["ValueError: try 1", "ValueError: try 2", "ValueError: try 3"]
