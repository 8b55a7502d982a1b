"""What running tries report: at once in memory, in a row each second at most, in no event, and gone with the claim."""

import asyncio
from typing import Any

import pytest

from ledgerq.eventlog.errors import InvalidArgument, InvalidState
from ledgerq.eventlog.keys import PROGRESS_PREFIX, progress_key
from ledgerq.eventlog.memory import MemoryReader
from ledgerq.eventlog.side_records import PayloadRecord
from ledgerq.projections.progress import Progress, encode_progress, read_progress
from ledgerq.worker.claims import Claim
from ledgerq.worker.execution import JobContext
from ledgerq.worker.worker import Worker
from tests.support.loops import settle
from tests.support.rig import Rig


def reports(rig: Rig) -> list[bytes]:
    """The keys of the reports on the disk."""
    return [key for key in rig.disk.rows if key.startswith(PROGRESS_PREFIX)]


async def claimed(rig: Rig, jobs: int = 1) -> list[Claim]:
    """Claims of new jobs."""
    await rig.queue.enqueue_many("q", [b""] * jobs)
    return await rig.queue.claim("q", limit=jobs)


async def test_a_report_is_read_at_once_and_is_in_the_store_without_an_event() -> None:
    async with Rig() as rig:
        (claim,) = await claimed(rig)
        assert await rig.queue.progress(claim.job_id) is None
        anchor, events = rig.disk.anchor, len(await rig.events())
        rig.queue.report(claim, 0.4, "12 of 30")
        told = Progress(0.4, "12 of 30", rig.clock.now_ms())
        assert await rig.queue.progress(claim.job_id) == told
        await settle()
        job = await rig.queue.get(claim.job_id)
        assert await read_progress(MemoryReader(rig.disk), job) == told
        assert (rig.disk.anchor, len(await rig.events())) == (anchor, events)
        await rig.queue.ack(claim)
        assert await rig.queue.progress(claim.job_id) is None
        assert not reports(rig)


async def test_reports_are_written_once_a_second_all_of_them_together() -> None:
    async with Rig() as rig:
        claims = await claimed(rig, 3)
        for number in range(50):
            for claim in claims:
                rig.queue.report(claim, number / 50)
            await settle()
        writes = rig.faults.calls.count("write:before")
        rows = [rig.disk.rows[progress_key(claim.id)] for claim in claims]
        assert rows == [encode_progress(claim.offset, Progress(0.0, "", rig.clock.now_ms())) for claim in claims]
        await rig.advance(1)
        assert rig.faults.calls.count("write:before") == writes + 1
        for claim in claims:
            assert await read_progress(MemoryReader(rig.disk), await rig.queue.get(claim.job_id)) == Progress(
                0.98, "", rig.clock.now_ms() - 1000
            )
        await rig.queue.ack_many(claims)
        assert not reports(rig)


async def test_a_report_comes_with_a_commit_that_is_open_and_waits_for_one_on_its_way() -> None:
    async with Rig() as rig:
        first, second = await claimed(rig, 2)
        writes = rig.faults.calls.count("write:before")
        rig.queue.report(first, 0.1)
        enqueueing = asyncio.create_task(rig.queue.enqueue("q", b""))
        await enqueueing
        assert (len(reports(rig)), rig.faults.calls.count("write:before")) == (1, writes + 1)
        await rig.advance(1)
        rig.faults.hold("sync:before")
        enqueueing = asyncio.create_task(rig.queue.enqueue("q", b""))
        await settle()
        rig.queue.report(second, 0.2)
        await settle()
        assert len(reports(rig)) == 1
        ending = asyncio.create_task(rig.queue.release(second))  # it is not to leave its report behind
        await settle()
        rig.faults.let_go("sync:before")
        await asyncio.gather(enqueueing, ending)
        await settle()
        assert reports(rig) == [progress_key(first.id)]
        await rig.queue.ack(first)


async def test_nothing_is_left_of_the_writer_before_and_an_old_claim_reports_nothing() -> None:
    async with Rig() as rig:
        (claim,) = await claimed(rig)
        rig.queue.report(claim, 0.5)
        await settle()
        assert reports(rig)
        await rig.crash()
        assert not reports(rig)
        rig.queue.report(claim, 0.6)
        (again,) = await rig.queue.claim("q")
        rig.queue.report(claim, 0.7)
        await rig.advance(2)
        assert (await rig.queue.progress(again.job_id), reports(rig)) == (None, [])
        # A row that a fault has left behind, and any other, counts for nothing.
        job = await rig.queue.get(again.job_id)
        for row in (encode_progress(claim.offset, Progress(0.5, "", 1)), b"", b"\x93\x01\x02\x03", b"\xc1"):
            rig.disk.rows[progress_key(again.id)] = row
            assert await read_progress(MemoryReader(rig.disk), job) is None
        await rig.queue.ack(again)


@pytest.mark.parametrize("fraction", [-0.1, 1.1, float("nan"), True, "half", None])
async def test_a_report_is_a_number_from_0_to_1_and_a_text(fraction: Any) -> None:
    async with Rig() as rig:
        (claim,) = await claimed(rig)
        with pytest.raises(InvalidArgument):
            rig.queue.report(claim, fraction)
        with pytest.raises(InvalidArgument):
            rig.queue.report(claim, 0.5, b"text")  # type: ignore[arg-type]
        await rig.queue.ack(claim)


async def test_handlers_in_threads_report_and_log_with_the_ids_of_their_job(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "ledgerq.job")
    seen: list[Progress | None] = []
    async with Rig() as rig:
        added = await rig.queue.enqueue("q", b"")
        worker = Worker(rig.queue)

        @worker.handler("q")
        async def handle(job: JobContext) -> None:
            await job.in_thread(lambda: job.progress(0.25, "in a thread"))
            await settle()
            seen.append(await rig.queue.progress(job.job_id))
            job.log.info("charged %d", 5, extra={"more": "yes"})

        await worker.run(until_empty=True, signals=False)
        assert [one and (one.fraction, one.text) for one in seen] == [(0.25, "in a thread")]
        assert not reports(rig)
    (record,) = [record for record in caplog.records if record.name == "ledgerq.job"]
    told = {name: value for name, value in vars(record).items() if name.startswith("ledgerq_") or name == "more"}
    assert (record.getMessage(), told.pop("more"), told.pop("ledgerq_offset") > 0) == ("charged 5", "yes", True)
    assert told == {
        "ledgerq_event": "job_log",
        "ledgerq_job_id": added.job_id,
        "ledgerq_queue": "q",
        "ledgerq_attempt": 1,
    }


def test_a_job_without_a_queue_reports_to_nobody() -> None:
    job = JobContext(Claim("q", bytes(16), 1, 1, 1, 0, 0, 0, 0, PayloadRecord(b"", None, b"")))
    for call in (lambda: job.progress(0.5), lambda: job.step_sync("x", int)):
        with pytest.raises(InvalidState, match="no queue"):
            call()
