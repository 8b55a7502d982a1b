"""Jobs that are put off: the try is not counted, the job is due again later, and dead when that has no end."""

from typing import Any

import pytest
from msgspec.structs import replace

from ledgerq import Snooze
from ledgerq.eventlog.errors import ClaimLost, InvalidArgument
from ledgerq.eventlog.events import Cancelled, CancelRequested, Claimed, Nacked
from ledgerq.projections.job import evolve
from ledgerq.worker.engine import decisions
from ledgerq.worker.execution import JobContext
from ledgerq.worker.job_logging import say_outcome
from ledgerq.worker.worker import Worker
from tests.support.operators import WHO
from tests.support.rig import Rig
from tests.support.workers import working
from tests.unit.worker.test_decisions import CLAIM_OFFSET, ID, NOW_MS, OPTIONS, claimed


async def test_a_claim_released_with_a_delay_is_due_then_and_its_try_is_not_counted() -> None:
    async with Rig() as rig:
        added = await rig.queue.enqueue("q", b"")
        (claim,) = await rig.queue.claim("q")
        await rig.queue.release(claim, "not yet", delay=30)
        job = await rig.queue.get(added.job_id)
        assert (job.state, job.attempt, job.due_ms, job.error) == (
            "scheduled",
            0,
            rig.clock.now_ms() + 30_000,
            "not yet",
        )
        assert await rig.queue.claim("q") == []
        await rig.advance(30)
        (claim,) = await rig.queue.claim("q")
        assert claim.attempt == 1
        with pytest.raises(ClaimLost):
            await rig.queue.release(replace_offset(claim), delay=30)


def replace_offset(claim: Any) -> Any:
    """A claim that never was."""
    claim.offset += 1
    return claim


async def test_a_handler_puts_its_job_off_as_often_as_it_must() -> None:
    async with Rig() as rig:
        worker, tries = Worker(rig.queue), list[int]()

        @worker.handler("q")
        async def handle(job: JobContext) -> None:
            tries.append(job.attempt)
            if len(tries) < 5:
                raise Snooze(0, "too early")

        added = await rig.queue.enqueue("q", b"", max_attempts=1)
        async with working(worker, until_empty=True) as running:
            while not running.done():
                if tries:  # also no delay at all is one, and is counted
                    job = await rig.queue.get(added.job_id)
                    assert (job.state, job.snoozes) in (("scheduled", len(tries)), ("done", 4))
                await rig.advance(0.001)
        assert tries == [1] * 5
        job = await rig.queue.get(added.job_id)
        assert (job.state, job.attempt) == ("done", 1)


async def test_a_handler_that_puts_off_is_logged_as_such(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "ledgerq.worker")
    async with Rig() as rig:
        worker = Worker(rig.queue)

        @worker.handler("q")
        async def handle(job: JobContext) -> None:
            worker.stop()
            raise Snooze(30)

        added = await rig.queue.enqueue("q", b"")
        await worker.run(signals=False)
        assert (await rig.queue.get(added.job_id)).due_ms == rig.clock.now_ms() + 30_000
        assert "put off for 30 s: the handler put the job off" in caplog.text


def test_the_thousandth_time_in_a_row_is_the_last() -> None:
    def put_off(snoozes: int) -> Any:
        job = replace(claimed(1), snoozes=snoozes)
        return decisions.release(job, CLAIM_OFFSET, options=OPTIONS, now_ms=NOW_MS, error="not yet", delay_ms=5)

    assert put_off(998) == [Nacked(ID, "scheduled", NOW_MS + 5, 0, True, "not yet")]
    why = "put off 1,000 times in a row: not yet"
    assert put_off(999) == [Nacked(ID, "dead", 0, NOW_MS + 20_000, True, why)]


def test_times_are_counted_in_a_row_and_a_claim_given_back_at_once_is_none() -> None:
    job = claimed(1)
    for event, snoozes in (
        (Nacked(ID, "scheduled", NOW_MS, 0, True, ""), 1),
        (Claimed(ID, 1, 5, None), 1),
        (Nacked(ID, "pending", 0, 0, True, ""), 1),
        (Nacked(ID, "scheduled", NOW_MS, 0, True, ""), 2),
        (Nacked(ID, "scheduled", NOW_MS, 0, False, ""), 0),
    ):
        evolved = evolve(job, event, job.last_offset + 1, NOW_MS)
        assert evolved is not None
        job = evolved
        assert job.snoozes == snoozes


def test_a_job_that_is_to_stop_is_cancelled_instead() -> None:
    job = claimed(1, CancelRequested(ID, "ann", "late"))
    events = decisions.release(job, CLAIM_OFFSET, options=OPTIONS, now_ms=NOW_MS, error="bye", delay_ms=5)
    assert events == [Nacked(ID, "pending", 0, 0, True, "bye"), Cancelled(ID, NOW_MS + 30_000, "ann", "late")]


@pytest.mark.parametrize("delay", [-1, "5", float("nan"), True])
async def test_a_delay_is_a_number_of_seconds(delay: Any) -> None:
    with pytest.raises(InvalidArgument, match="delay is a number of seconds"):
        Snooze(delay)
    async with Rig() as rig:
        added = await rig.queue.enqueue("q", b"")
        (claim,) = await rig.queue.claim("q")
        with pytest.raises(InvalidArgument, match="delay is a number of seconds"):
            await rig.queue.release(claim, delay=delay)
        assert (await rig.queue.cancel(added.job_id, **WHO)).state == "claimed"


async def test_the_last_of_a_thousand_is_logged_as_the_end_that_it_is(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decisions, "MAX_SNOOZES", 2)
    async with Rig() as rig:
        added = await rig.queue.enqueue("q", b"")
        for delay in (1, 1):
            (claim,) = await rig.queue.claim("q")
            await rig.queue.release(claim, "no token", delay=delay)
            await rig.advance(1)
        assert (await rig.queue.get(added.job_id)).state == "dead"
    (record,) = [record for record in caplog.records if record.name == "ledgerq.queue"]
    assert (record.levelname, vars(record)["ledgerq_event"]) == ("ERROR", "job_dead")
    words = "put off 2 times in a row: no token, it is dead now (attempt 0 of 3)"
    assert record.getMessage() == f"job {added.job_id} (q): {words}"


async def test_a_try_beyond_those_of_its_job_is_counted_by_the_rule_for_its_exception(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with Rig() as rig:
        added = await rig.queue.enqueue("q", b"", max_attempts=1)
        (claim,) = await rig.queue.claim("q")
        claim.attempt = 4
        say_outcome(claim, "retry", OSError(), None, max_attempts=10)
        say_outcome(claim, "retry", OSError(), None)
        await rig.queue.ack(claim)
    words = f"job {added.job_id} (q): will be tried again, its handler raised OSError"
    assert [record.getMessage() for record in caplog.records] == [f"{words} (attempt 4 of 10)", f"{words} (attempt 4)"]
