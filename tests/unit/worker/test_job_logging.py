"""The library's log records: which one, at which level, with which attributes, and how often."""

import asyncio
import logging
from collections.abc import Iterator
from typing import Any

import pytest

from ledgerq.eventlog.entropy import job_id_text
from ledgerq.eventlog.errors import ClaimLost, StoreUnavailable
from ledgerq.eventlog.runtime.log_records import LogThrottle, about, about_job
from ledgerq.worker.execution import JobContext
from ledgerq.worker.options import QueueOptions
from ledgerq.worker.outcomes import Dead, Retry
from ledgerq.worker.worker import Worker
from tests.support.loops import settle, until
from tests.support.operators import Who
from tests.support.rig import Rig
from tests.support.workers import Stage, working

WHO: Who = {"actor": "ada", "reason": "test"}
SECRET = b"payload-that-nobody-may-read"
HEADERS = {"authorization": "header-that-nobody-may-read"}


class Kept(logging.Handler):
    """Keeps records and how they read."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []
        self.text = ""

    def emit(self, record: logging.LogRecord) -> None:
        """Keep one."""
        self.records.append(record)
        self.text += self.format(record) + "\n"


@pytest.fixture
def records(caplog: pytest.LogCaptureFixture) -> Iterator[list[logging.LogRecord]]:
    """All records of the library, as they come."""
    kept = Kept()
    top = logging.getLogger("ledgerq")
    top.addHandler(kept)
    with caplog.at_level(logging.DEBUG, "ledgerq"):
        yield kept.records
    top.removeHandler(kept)
    assert "nobody-may-read" not in kept.text
    for record in kept.records:
        assert "nobody-may-read" not in repr(vars(record) | {"exc_info": None})
        assert isinstance(vars(record)["ledgerq_event"], str), f"no event: {record.getMessage()}"


def said(records: list[logging.LogRecord]) -> list[tuple[str, str, str]]:
    """Logger, level and event of each record."""
    return [(record.name, record.levelname, vars(record)["ledgerq_event"]) for record in records]


def fields(record: logging.LogRecord) -> dict[str, Any]:
    """What the library added to a record."""
    return {name: value for name, value in vars(record).items() if name.startswith("ledgerq_")}


async def run_one(rig: Rig, function: Any, *, max_attempts: int = 3, timeout: float | None = None) -> Any:
    """One job, its handler run once; returns the job's id."""
    added = await rig.queue.enqueue("q", SECRET, headers=HEADERS, max_attempts=max_attempts)
    worker = Worker(rig.queue)
    worker.handler("q", timeout=timeout)(function)
    async with working(worker):
        if timeout is not None:
            await rig.advance(timeout)
        await settle()
        await until(lambda: not worker._slots.held)
    return added


async def fails(job: JobContext) -> None:
    """A handler with a fault."""
    raise ValueError("odd")


async def gives_up(job: JobContext) -> None:
    """A handler that knows that it is no use."""
    raise Dead("no such address")


async def asks(job: JobContext) -> None:
    """A handler that wants to be called again."""
    raise Retry(60, "not yet")


async def hangs(job: JobContext) -> None:
    """A handler that doesn't end."""
    await asyncio.Event().wait()


async def goes_well(job: JobContext) -> None:
    """A handler as it should be."""


@pytest.mark.parametrize(
    ("function", "max_attempts", "timeout", "level", "event", "words", "traceback"),
    [
        (fails, 3, None, "WARNING", "job_retry", "will be tried again, its handler raised ValueError", True),
        (fails, 1, None, "ERROR", "job_dead", "dead, its handler raised ValueError", True),
        (gives_up, 3, None, "ERROR", "job_dead", "dead, its handler raised Dead: no such address", False),
        (asks, 3, None, "INFO", "job_retry", "will be tried again, not yet", False),
        (asks, 1, None, "ERROR", "job_dead", "dead, not yet", False),
        (hangs, 3, 5.0, "WARNING", "job_retry", "will be tried again, its handler timed out after 5 s", False),
        (hangs, 1, 5.0, "ERROR", "job_dead", "dead, its handler timed out after 5 s", False),
        (goes_well, 3, None, "DEBUG", "job_done", "done", False),
    ],
)
async def test_each_end_of_a_try_has_its_record(
    records: list[logging.LogRecord],
    function: Any,
    max_attempts: int,
    timeout: float | None,
    level: str,
    event: str,
    words: str,
    traceback: bool,
) -> None:
    async with Rig() as rig:
        added = await run_one(rig, function, max_attempts=max_attempts, timeout=timeout)
        claimed = (await rig.queue.get(added.job_id)).claim_offset
    (record,) = records
    assert said(records) == [("ledgerq.worker", level, event)]
    assert record.getMessage() == f"job {added.job_id} (q): {words} (attempt 1 of {max_attempts})"
    assert fields(record) == {
        "ledgerq_event": event,
        "ledgerq_job_id": added.job_id,
        "ledgerq_queue": "q",
        "ledgerq_attempt": 1,
        "ledgerq_offset": claimed,
    }
    assert (record.exc_info is not None) is traceback
    assert "Traceback" not in record.getMessage()


async def test_nothing_is_said_of_what_goes_well_above_debug(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "ledgerq"):
        async with Rig() as rig:
            await run_one(rig, goes_well)
    assert caplog.records == []


async def test_a_cancelled_and_a_released_job_are_information(records: list[logging.LogRecord]) -> None:
    async with Rig() as rig:
        cancelled = await rig.queue.enqueue("q", SECRET, headers=HEADERS)
        await rig.queue.enqueue("q", SECRET)
        stage = Stage()
        worker = Worker(rig.queue, grace=0)
        worker.handler("q")(stage)
        async with working(worker):
            await rig.queue.cancel(cancelled.job_id, **WHO)
            await settle()
            assert said(records) == [("ledgerq.worker", "INFO", "job_cancelled")]
        assert said(records)[1:] == [("ledgerq.worker", "INFO", "job_released")]


async def test_a_lease_that_ends_is_said_once_it_is_durable(records: list[logging.LogRecord]) -> None:
    async with Rig() as rig:
        one = await rig.queue.enqueue("q", SECRET, headers=HEADERS)
        last = await rig.queue.enqueue("q", SECRET, max_attempts=1)
        claims = await rig.queue.claim("q", limit=2)
        rig.faults.hold("sync:before")
        earlier = asyncio.create_task(rig.queue.enqueue("other", SECRET))
        await settle()
        await rig.advance(31)
        assert rig.queue._core.writer_state.claimed == {}
        assert records == []
        rig.faults.hold("write:before")
        rig.faults.let_go("sync:before")
        await earlier
        assert records == []
        rig.faults.let_go("write:before")
        await settle()
        assert said(records) == [
            ("ledgerq.queue", "WARNING", "lease_expired"),
            ("ledgerq.queue", "ERROR", "job_dead"),
        ]
        assert [fields(record)["ledgerq_job_id"] for record in records] == [one.job_id, last.job_id]
        assert [fields(record)["ledgerq_offset"] for record in records] == [claim.offset for claim in claims]
        assert "lease expired, it is pending now (attempt 1 of 3)" in records[0].getMessage()


async def test_leases_that_end_by_the_thousand_are_said_twenty_times_in_a_minute(
    records: list[logging.LogRecord],
) -> None:
    async with Rig(default=QueueOptions(max_attempts=100)) as rig:
        await rig.queue.enqueue_many("q", [SECRET] * 1000)
        await rig.queue.claim("q", limit=1000)
        await rig.advance(31)
        await settle()
        assert (await rig.queue.stats("q")).pending == 1000
        assert len(records) == 20
        await rig.queue.claim("q", limit=1, lease=100)
        await rig.advance(101)
        assert len(records) == 21
        assert records[-1].getMessage().endswith("(980 more like this were not logged)")


async def test_claims_of_a_writer_that_is_gone_are_said_at_opening(records: list[logging.LogRecord]) -> None:
    async with Rig() as rig:
        await rig.queue.enqueue_many("q", [SECRET] * 30)
        last = await rig.queue.enqueue("r", SECRET, max_attempts=1)
        await rig.queue.claim("q", limit=30)
        await rig.queue.claim("r")
        await rig.crash()
        assert (await rig.queue.get(last.job_id)).state == "dead"
        assert len(records) == 21
        assert {fields(record)["ledgerq_event"] for record in records[:20]} <= {"interrupted", "job_dead"}
        assert fields(records[-1]) == {"ledgerq_event": "writer_interrupted", "ledgerq_claims": 31, "ledgerq_dead": 1}


async def test_a_maintenance_step_that_goes_on_failing_is_said_five_times_in_a_minute(
    records: list[logging.LogRecord],
) -> None:
    async with Rig() as rig:
        await rig.queue.enqueue("q", SECRET, delay=5)
        await settle()
        rig.faults.spoil("scan", *[StoreUnavailable("the store is away")] * 70)
        await rig.advance(5)
        for _ in range(65):
            await rig.advance(1)
        assert rig.queue._core.maintenance.failures >= 60
        minute = [record for record in records if fields(record)["ledgerq_event"] == "maintenance_failed"]
        assert 5 < len(minute) <= 10
        assert "more like this were not logged)" in minute[5].getMessage()
        for _ in range(10):
            await rig.advance(1)


class Broken(logging.Filter):
    """What a program may do to its own logging."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Raise."""
        raise RuntimeError("no logging today")


async def test_logging_that_raises_ends_neither_commits_nor_maintenance() -> None:
    told: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(str(context["exception"])))
    broken, log = Broken(), logging.getLogger("ledgerq.queue")
    log.addFilter(broken)
    try:
        async with Rig() as rig:
            await rig.queue.enqueue("q", b"x")
            for _ in range(2):
                (claim,) = await rig.queue.claim("q", lease=10)
                rig.faults.spoil("scan", StoreUnavailable("gone fishing"))
                await rig.queue.enqueue("later", b"x", delay=10)
                await rig.advance(11)
                await rig.advance(2)
                async with asyncio.timeout(60):
                    await rig.queue.enqueue("other", b"x")
                with pytest.raises(ClaimLost):
                    await rig.queue.ack(claim)
            assert rig.queue._core.maintenance.failures == 2
    finally:
        log.removeFilter(broken)
    assert told == ["no logging today"] * 4


async def test_claiming_that_goes_on_failing_is_said_five_times_in_a_minute(
    records: list[logging.LogRecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Rig() as rig:
        tries = 0

        async def claim(*args: Any, **more: Any) -> Any:
            nonlocal tries
            tries += 1
            raise StoreUnavailable("the store is away")

        monkeypatch.setattr(rig.queue, "claim", claim)
        worker = Worker(rig.queue)
        worker.handler("q")(goes_well)
        async with working(worker):
            for _ in range(59):
                await rig.advance(1)
        assert tries == 60
        assert said(records) == [("ledgerq.worker", "WARNING", "claiming_failed")] * 5


async def test_an_exception_whose_text_cannot_be_made_is_said_all_the_same(records: list[logging.LogRecord]) -> None:
    class Mute(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no words")

    async def handle(job: JobContext) -> None:
        raise Mute

    async with Rig() as rig:
        await run_one(rig, handle)
    assert said(records) == [("ledgerq.worker", "WARNING", "job_retry")]


def test_the_attributes_collide_with_nothing_of_logging() -> None:
    record = logging.LogRecord("n", logging.INFO, __file__, 1, "m", (), None)
    ours = about_job("job_done", bytes(16), "q", 1, 2) | about("upkeep_failed", claims=1, dead=0)
    assert not set(ours) & {*vars(record), "message", "asctime"}
    assert all(name.startswith("ledgerq_") for name in ours)
    assert ours["ledgerq_job_id"] == job_id_text(bytes(16))


def test_seldom_counts_what_it_leaves_out_and_survives_a_clock_that_goes_back() -> None:
    throttle = LogThrottle(burst=2, period_ms=1000)
    assert [throttle.may(now_ms) for now_ms in (5000, 5001, 5002, 5999, 6000)] == [True, True, False, False, True]
    assert throttle.take_left_out() == " (2 more like this were not logged)"
    assert throttle.take_left_out() == ""
    assert [throttle.may(now_ms) for now_ms in (6001, 6002, 100, 101, 102)] == [True, False, True, True, False]
