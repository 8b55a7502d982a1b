"""Changes of many jobs at once: which jobs are meant, dry runs, refusals, and what becomes of interrupted ones."""

import asyncio
from datetime import UTC, datetime
from typing import Any

import pytest

from ledgerq.eventlog.errors import InvalidArgument, InvalidQueueName, InvalidState, JobNotFound
from ledgerq.eventlog.events import (
    BulkBegan,
    BulkEnded,
    Cancelled,
    CancelRequested,
    Deleted,
    Requeued,
    Sealed,
    WriterClosed,
)
from ledgerq.eventlog.keys import TEXT_PREFIX, payload_key, text_key
from ledgerq.projections import selection
from ledgerq.projections.selection import Filter
from ledgerq.worker.engine import bulk_change
from ledgerq.worker.options import NewJob
from tests.support.loops import settle
from tests.support.operators import WHO
from tests.support.rig import Rig, abandon, claim_all

DEAD = Filter(queue="q", state="dead")


@pytest.fixture(autouse=True)
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few jobs at a time, so that a handful of them takes many steps."""
    monkeypatch.setattr(bulk_change, "_PIECE_JOBS", 2)
    monkeypatch.setattr(bulk_change, "_COMMIT_JOBS", 3)
    monkeypatch.setattr(selection, "_PAGE_ROWS", 3)


async def dead_jobs(rig: Rig, count: int, error: str = "boom", queue: str = "q") -> list[str]:
    """Dead jobs of a queue, by their ids."""
    added = await rig.queue.enqueue_many(queue, [b"x"] * count)
    for claim in await claim_all(rig.queue, queue):
        await rig.queue.nack(claim, error, dead=True)
    return [one.job_id for one in added]


async def states(rig: Rig, ids: list[str]) -> list[str]:
    return [(await rig.queue.get(job_id)).state for job_id in ids]


async def test_a_dry_run_counts_shows_some_and_changes_nothing() -> None:
    async with Rig() as rig:
        ids = await dead_jobs(rig, 25)
        offset = rig.queue.log.next_offset
        found = await rig.queue.bulk.requeue(DEAD, **WHO)
        assert (found.what, found.filter, found.count, found.skipped) == ("requeue", DEAD, 25, 0)
        assert [job.job_id for job in found.examples] == ids[:20]
        assert {job.error for job in found.examples} == {"boom"}
        assert (found.token, found.offset, rig.queue.log.next_offset) == (offset, None, offset)


async def test_dead_jobs_are_requeued_and_claims_that_wait_get_them() -> None:
    async with Rig() as rig:
        ids = await dead_jobs(rig, 7)
        waiting = asyncio.create_task(rig.queue.claim("q", limit=1, wait=None))
        await settle()
        done = await rig.queue.bulk.requeue(DEAD, **WHO, dry_run=False)
        assert (done.count, done.skipped) == (7, 0)
        assert len(await waiting) == 1
        assert sorted(await states(rig, ids)) == ["claimed", *["pending"] * 6]
        stats = await rig.queue.stats("q")
        assert (stats.dead, stats.totals["requeued"]) == (0, 7)


async def test_the_log_has_its_begin_each_job_and_its_end_and_the_reason_stands_once() -> None:
    async with Rig() as rig:
        await dead_jobs(rig, 4)
        done = await rig.queue.bulk.requeue(DEAD, actor="ann", reason="the server is back", dry_run=False)
        raw = [event for batch in await rig.batches() for event in batch.events]
        assert done.offset is not None
        began = raw[done.offset]
        assert isinstance(began, BulkBegan)
        assert isinstance(began.reason, Sealed)
        requeued = [event for event in raw if isinstance(event, Requeued)]
        assert [event.reason for event in requeued] == [began.reason] * 4
        assert raw[-1] == BulkEnded("q", done.offset, 4, 0)
        shown = [event for event in await rig.events() if isinstance(event, Requeued | BulkBegan)]
        assert {event.reason for event in shown} == {"the server is back"}
        history = await rig.queue.history(done.examples[0].job_id)
        assert history[-1].event == Requeued(done.examples[0].id, "ann", "the server is back")


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        ({}, {"early", "late", "boom"}),
        ({"error": "late"}, {"late"}),
        ({"error": "l"}, {"early", "late"}),
        ({"error": "LATE"}, set()),
        ({"after": 60}, {"late", "boom"}),
        ({"before": 60}, {"early"}),
        ({"before": 61, "after": 60}, {"late", "boom"}),
        ({"error_type": "OSError"}, set()),
        ({"state": "dead", "error": "boom"}, {"boom"}),
    ],
)
async def test_a_filter_means_the_jobs_to_which_all_of_it_applies(chosen: dict[str, Any], expected: set[str]) -> None:
    async with Rig() as rig:
        begun_ms = rig.clock.now_ms()
        await dead_jobs(rig, 1, "early")
        await rig.advance(60)
        for error in ("late", "boom"):
            await dead_jobs(rig, 1, error)
        await dead_jobs(rig, 2, "late", "other")
        for name in ("before", "after"):
            if name in chosen:
                chosen |= {name: datetime.fromtimestamp(begun_ms / 1000 + chosen[name], UTC)}
        filter = Filter(queue="q", **chosen)
        found = await rig.queue.bulk.requeue(filter, **WHO)
        assert {job.error for job in found.examples} == expected
        done = await rig.queue.bulk.requeue(filter, **WHO, dry_run=False)
        assert (done.count, done.offset is None) == (len(expected), not expected)
        assert (await rig.queue.stats("other")).dead == 2


async def test_jobs_of_one_task_and_of_one_type_of_error_are_meant_also_when_the_bulk_is_resumed() -> None:
    async with Rig() as rig:
        for task in ("send", "send", "count", "send"):
            await rig.queue.enqueue("q", b"{}", task=task)
        for claim in await claim_all(rig.queue):
            await rig.queue.nack(claim, "boom", dead=True, error_type="OSError" if claim.task == "send" else "KeyError")
        filter = Filter(queue="q", task="send", error_type="OSError")
        assert (await rig.queue.bulk.requeue(Filter(queue="q", error_type="KeyError"), **WHO)).count == 1
        assert (await rig.queue.bulk.requeue(Filter(queue="q", task="mail"), **WHO)).count == 0
        await begun(rig, filter, steps=1)
        await rig.crash()
        (done,) = await rig.queue.bulk.resume()
        assert (done.filter, done.count) == (filter, 3)
        assert (await rig.queue.stats("q")).dead == 1


async def test_a_job_whose_unique_key_another_one_holds_is_skipped() -> None:
    async with Rig() as rig:
        keyed: list[bytes | NewJob] = [NewJob(b"", unique_key=key) for key in ("a", "b", "c")]
        for _ in range(2):
            await rig.queue.enqueue_many("q", keyed)
            for claim in await claim_all(rig.queue):
                await rig.queue.nack(claim, "boom", dead=True)
        holder = await rig.queue.enqueue("q", b"", unique_key="a")
        done = await rig.queue.bulk.requeue(DEAD, **WHO, dry_run=False)
        # Of two dead ones with the same key the first gets it; those of the key that is held get none.
        assert (done.count, done.skipped) == (2, 4)
        assert (await rig.queue.enqueue("q", b"", unique_key="b")).job_id == done.examples[0].job_id
        assert (await rig.queue.get(holder.job_id)).state == "pending"


async def test_jobs_of_all_states_that_are_not_finished_are_cancelled_and_workers_asked_to_stop() -> None:
    async with Rig() as rig:
        heard: list[str] = []
        pending = [one.job_id for one in await rig.queue.enqueue_many("q", [b""] * 6)]
        scheduled = [one.job_id for one in await rig.queue.enqueue_many("q", [NewJob(b"", delay=60)] * 4)]
        claims = await rig.queue.claim("q", limit=2)
        for claim in claims:
            rig.queue.watch(claim, heard.append)
        done = await rig.queue.bulk.cancel(Filter(queue="q"), **WHO, dry_run=False)
        assert done.count == 10
        assert heard == ["cancel", "cancel"]
        assert await states(rig, pending + scheduled) == ["claimed"] * 2 + ["cancelled"] * 8
        await rig.queue.nack(claims[0], "stopped")
        await rig.queue.ack(claims[1])
        assert (await rig.queue.bulk.cancel(Filter(queue="q"), **WHO, dry_run=False)).count == 0
        events = await rig.events()
        assert sum(isinstance(event, CancelRequested) for event in events) == 2
        assert sum(isinstance(event, Cancelled) for event in events) == 9


async def test_jobs_of_one_state_are_cancelled_when_that_is_asked_for() -> None:
    async with Rig() as rig:
        await rig.queue.enqueue_many("q", [b""] * 3)
        await rig.queue.enqueue_many("q", [NewJob(b"", delay=60)] * 3)
        assert (await rig.queue.bulk.cancel(Filter(queue="q", state="scheduled"), **WHO, dry_run=False)).count == 3
        stats = await rig.queue.stats("q")
        assert (stats.pending, stats.scheduled, stats.cancelled) == (3, 0, 3)


async def test_deleted_jobs_leave_no_record_no_payload_and_no_text_and_their_history_stays() -> None:
    async with Rig() as rig:
        ids = await dead_jobs(rig, 5, "alice@example.org is unknown")
        kept = await dead_jobs(rig, 1, "another")
        jobs = [await rig.queue.get(job_id) for job_id in ids]
        filter = Filter(queue="q", state="dead", error="alice@example.org")
        done = await rig.queue.bulk.delete(filter, actor="ann", reason="as she asked", dry_run=False)
        assert done.count == 5
        for job in jobs:
            with pytest.raises(JobNotFound):
                await rig.queue.get(job.job_id)
            assert payload_key(job.offset) not in rig.disk.rows
            assert all(text_key(at) not in rig.disk.rows for at in job.texts)
            last = (await rig.queue.history(job.job_id))[-1].event
            assert isinstance(last, Deleted)
            assert last.actor == "ann"
        assert await states(rig, kept) == ["dead"]
        stats = await rig.queue.stats("q")
        assert (stats.dead, stats.totals["deleted"], stats.totals["swept"]) == (1, 5, 0)
        in_log = b"".join(value for key, value in rig.disk.rows.items() if key.startswith(b"l/"))
        assert b"alice" not in in_log


async def test_a_time_that_passes_after_a_job_was_deleted_sweeps_nothing() -> None:
    async with Rig() as rig:
        await dead_jobs(rig, 3)
        await rig.queue.bulk.delete(DEAD, **WHO, dry_run=False)
        await rig.advance(8 * 24 * 3600)
        assert (await rig.queue.stats("q")).totals["swept"] == 0


async def test_more_jobs_than_expected_are_refused_and_nothing_is_changed() -> None:
    async with Rig() as rig:
        await dead_jobs(rig, 3)
        found = await rig.queue.bulk.requeue(DEAD, **WHO)
        await dead_jobs(rig, 1)
        offset = rig.queue.log.next_offset
        with pytest.raises(InvalidState, match="4 jobs match now, more than the 3 expected"):
            await rig.queue.bulk.requeue(DEAD, **WHO, dry_run=False, expect=found.count)
        assert rig.queue.log.next_offset == offset
        # Those of the dry run, and no others.
        done = await rig.queue.bulk.requeue(DEAD, **WHO, dry_run=False, expect=found.count, token=found.token)
        assert done.count == 3
        assert (await rig.queue.stats("q")).dead == 1


async def test_a_job_that_dies_again_while_the_bulk_runs_is_not_requeued_again() -> None:
    async with Rig() as rig:
        await dead_jobs(rig, 8)

        async def fail() -> None:
            while True:
                for claim in await rig.queue.claim("q", limit=1, wait=None):
                    await rig.queue.nack(claim, "again", dead=True)

        worker = asyncio.create_task(fail())
        done = await rig.queue.bulk.requeue(DEAD, **WHO, dry_run=False)
        await settle()
        worker.cancel()
        await asyncio.gather(worker, return_exceptions=True)
        assert done.count == 8
        stats = await rig.queue.stats("q")
        assert (stats.dead, stats.totals["requeued"]) == (8, 8)


async def begun(rig: Rig, filter: Filter, *, steps: int) -> None:
    """Begin to requeue, and lose the process after some steps."""
    task = asyncio.create_task(rig.queue.bulk.requeue(filter, **WHO, dry_run=False))
    while (await rig.queue.stats("q")).totals["requeued"] < steps:
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


@pytest.mark.parametrize("end", ["cancelled", "crash", "close"])
async def test_an_interrupted_bulk_is_finished_by_resume_and_counts_all_jobs(end: str) -> None:
    async with Rig() as rig:
        ids = await dead_jobs(rig, 11)
        await begun(rig, Filter(queue="q", error="boom"), steps=4)
        if end == "crash":
            await rig.crash()
        elif end == "close":
            await rig.reopen()
        late = await dead_jobs(rig, 1)  # dead since it began, and not meant; this ends the requeued ones, too
        (done,) = await rig.queue.bulk.resume()
        assert (done.what, done.filter.error, done.count, done.skipped) == ("requeue", "boom", 11, 0)
        assert [event for event in await rig.events() if isinstance(event, BulkEnded)] == [
            BulkEnded("q", done.offset or 0, 11, 0)
        ]
        for job_id in ids:
            history = await rig.queue.history(job_id)
            assert sum(isinstance(record.event, Requeued) for record in history) == 1
        assert await states(rig, late) == ["dead"]
        assert await rig.queue.bulk.resume() == []


async def test_the_same_call_goes_on_with_an_interrupted_bulk_and_another_is_refused() -> None:
    async with Rig() as rig:
        await dead_jobs(rig, 9)
        await begun(rig, DEAD, steps=2)
        await rig.crash()
        for call in (
            rig.queue.bulk.delete(DEAD, **WHO, dry_run=False),
            rig.queue.bulk.requeue(Filter(queue="q", state="dead", error="x"), **WHO, dry_run=False),
        ):
            with pytest.raises(InvalidState, match="was interrupted: finish it first"):
                await call
        done = await rig.queue.bulk.requeue(DEAD, **WHO, dry_run=False)
        assert done.count == 9
        assert sum(isinstance(event, BulkBegan) for event in await rig.events()) == 1


async def test_requests_to_stop_are_counted_once_when_a_cancellation_is_resumed() -> None:
    async with Rig() as rig:
        await rig.queue.enqueue_many("q", [b""] * 8)
        claims = await rig.queue.claim("q", limit=8)
        task = asyncio.create_task(rig.queue.bulk.cancel(Filter(queue="q", state="claimed"), **WHO, dry_run=False))
        while not (await rig.queue.stats("q")).totals["cancel_requested"]:
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        asked = [claim for claim in claims if (await rig.queue.get(claim.job_id)).cancel_request is not None]
        assert 0 < len(asked) < 8
        for claim in asked:
            await rig.queue.nack(claim, "stopped")
        (done,) = await rig.queue.bulk.resume()
        assert done.count == 8


async def test_a_text_that_is_lost_changes_no_further_job() -> None:
    async with Rig() as rig:
        await dead_jobs(rig, 9)
        await begun(rig, Filter(queue="q", error="boom"), steps=2)
        (offset,) = [c.bulk for c in rig.queue._writer_state.counters.values()]
        await abandon(rig.queue)
        text = rig.disk.rows.pop(text_key(offset))
        await rig.open()
        requeued = (await rig.queue.stats("q")).totals["requeued"]
        (done,) = await rig.queue.bulk.resume()
        assert done.count == requeued < 9
        rig.disk.rows[text_key(offset)] = text


async def test_bulks_of_two_callers_follow_each_other() -> None:
    async with Rig() as rig:
        await dead_jobs(rig, 5)
        first, second = await asyncio.gather(
            rig.queue.bulk.requeue(DEAD, **WHO, dry_run=False), rig.queue.bulk.requeue(DEAD, **WHO, dry_run=False)
        )
        assert (first.count, second.count) == (5, 0)


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ({"queue": ""}, InvalidQueueName),
        ({"state": "asleep"}, InvalidArgument),
        ({"error": ""}, InvalidArgument),
        ({"error": b"boom"}, InvalidArgument),
        ({"error_type": "x" * 1001}, InvalidArgument),
        ({"before": datetime(2026, 1, 1)}, InvalidArgument),
        ({"after": 5}, InvalidArgument),
    ],
)
def test_a_filter_that_can_mean_nothing_is_refused(given: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        Filter(**({"queue": "q"} | given))


async def test_what_can_not_be_done_is_refused_before_anything_is_written() -> None:
    async with Rig() as rig:
        await dead_jobs(rig, 1)
        offset, changes = rig.queue.log.next_offset, rig.queue.bulk
        for call, what in (
            (changes.delete(Filter(queue="q"), **WHO), "say which jobs to delete"),
            (changes.requeue(Filter(queue="q", state="done"), **WHO), "done can't be changed so"),
            (changes.cancel(Filter(queue="q", state="dead"), **WHO), "dead can't be changed so"),
            (changes.requeue("q", **WHO), "chosen by a Filter"),  # type: ignore[arg-type]
            (changes.requeue(DEAD, actor="", reason="x"), "actor must be text"),
            (changes.requeue(DEAD, **WHO, expect=-1), "expect is a whole number"),
            (changes.requeue(DEAD, **WHO, token=True), "token is a whole number"),
        ):
            with pytest.raises(InvalidArgument, match=what):
                await call
        assert rig.queue.log.next_offset == offset
        assert not [key for key in rig.disk.rows if key.startswith(TEXT_PREFIX) and key > text_key(offset)]


async def test_a_cancellation_by_error_looks_at_the_errors_of_jobs_that_move_meanwhile() -> None:
    async with Rig() as rig:
        meant = (await rig.queue.enqueue("q", b"")).job_id
        (claim,) = await rig.queue.claim("q")
        await rig.queue.nack(claim, "boom", delay=1000)
        others = [(await rig.queue.enqueue("q", b"")).job_id for _ in range(5)]
        filter = Filter(queue="q", error="boom")
        found = await rig.queue.bulk.cancel(filter, **WHO)

        async def work() -> None:
            for _ in others:
                (claim,) = await rig.queue.claim("q")
                await rig.queue.nack(claim, "temporary: 503", delay=5)

        working = asyncio.create_task(work())
        done = await rig.queue.bulk.cancel(filter, **WHO, dry_run=False, expect=1, token=found.token)
        await working
        assert (found.count, done.count) == (1, 1)
        assert await states(rig, [meant, *others]) == ["cancelled"] + ["scheduled"] * 5


@pytest.mark.parametrize("what", ["requeue", "cancel", "delete"])
async def test_nothing_is_staged_after_a_close_that_comes_while_jobs_are_read(what: str) -> None:
    for at in range(1, 9):
        async with Rig() as rig:
            await (rig.queue.enqueue_many("q", [b"x"] * 9) if what == "cancel" else dead_jobs(rig, 9))
            rig.faults.hold("get")
            change = getattr(rig.queue.bulk, what)
            filter = Filter(queue="q") if what == "cancel" else DEAD
            changing = asyncio.create_task(change(filter, **WHO, dry_run=False))
            for _ in range(at):
                await settle()
                rig.faults.let_go("get")
                rig.faults.hold("get")
            closing = asyncio.create_task(rig.queue.close())
            await settle()
            rig.faults.let_go("get")
            await asyncio.gather(changing, return_exceptions=True)
            await closing
            assert isinstance((await rig.events())[-1], WriterClosed)
