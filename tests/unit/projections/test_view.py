"""Reading a ledger through the queue: jobs, payloads, histories, listings and counters."""

import asyncio
from typing import Any

import pytest

from ledgerq.eventlog import keys
from ledgerq.eventlog import log as log_module
from ledgerq.eventlog.clock import ManualClock
from ledgerq.eventlog.codec import RecordBatch, decode_batch
from ledgerq.eventlog.entropy import job_id_text
from ledgerq.eventlog.errors import (
    InvalidArgument,
    InvalidQueueName,
    JobNotFound,
    PayloadMissing,
    ProjectionDrift,
)
from ledgerq.eventlog.events import STATES, Record, State
from ledgerq.eventlog.log import LogReader
from ledgerq.eventlog.memory import MemoryReader
from ledgerq.projections.index_keys import job_key
from ledgerq.projections.job import Job
from ledgerq.projections.view import LedgerView
from ledgerq.worker.options import NewJob, QueueOptions
from tests.support.loops import settle, until
from tests.support.operators import WHO
from tests.support.rig import Rig

OPTIONS = QueueOptions(keep_done_s=100, keep_dead_s=200, keep_cancelled_s=300)
HOUR_S = 3600


def kinds(records: list[Record]) -> list[str]:
    """The types of these events."""
    return [type(record.event).__name__ for record in records]


async def one_in_each_state(rig: Rig, queue: str = "q") -> dict[State, str]:
    """A job in every state; returns their ids."""
    q = rig.queue
    ids: dict[State, str] = {}
    for state in ("done", "dead", "claimed"):
        ids[state] = (await q.enqueue(queue, state.encode())).job_id
        (claim,) = await q.claim(queue)
        if state == "done":
            await q.ack(claim)
        elif state == "dead":
            await q.nack(claim, "boom", dead=True)
    ids["cancelled"] = (await q.enqueue(queue, b"cancelled")).job_id
    await q.cancel(ids["cancelled"], **WHO)
    ids["pending"] = (await q.enqueue(queue, b"pending")).job_id
    ids["scheduled"] = (await q.enqueue(queue, b"scheduled", delay=50)).job_id
    return ids


async def test_a_job_can_be_looked_up_in_every_state() -> None:
    async with Rig(default=OPTIONS) as rig:
        ids = await one_in_each_state(rig)
        assert set(ids) == set(STATES)
        for state, job_id in ids.items():
            job = await rig.queue.get(job_id)
            assert (job.job_id, job.state, job.queue) == (job_id, state, "q")
            assert (await rig.queue.payload(job_id)).payload == state.encode()


@pytest.mark.parametrize("call", ["get", "payload", "history"])
async def test_an_id_that_nobody_has_is_not_found(call: str) -> None:
    async with Rig() as rig:
        await rig.queue.enqueue("q", b"")
        for number in (0, 5, 2**128 - 1):
            with pytest.raises(JobNotFound, match=job_id_text(number.to_bytes(16))):
                await getattr(rig.queue, call)(job_id_text(number.to_bytes(16)))
        with pytest.raises(InvalidArgument, match="not a job id"):
            await getattr(rig.queue, call)("nonsense")


# Payloads


async def test_looking_up_beside_a_large_commit_copies_nothing_of_it() -> None:
    async with Rig() as rig:
        added = await rig.queue.enqueue_many("q", [b""] * 100)
        rig.faults.hold("write:before")
        commit = asyncio.create_task(rig.queue.enqueue_many("q", [b""] * 2000))
        await until(lambda: rig.queue.log.next_offset > 2100)
        await settle()
        rig.faults.hold("get")
        looking = [asyncio.create_task(rig.queue.get(job.job_id)) for job in added]
        await settle()
        assert sum(len(newer.changes) for newer in rig.queue._writer_state._watches) == 0
        rig.faults.let_go("get")
        rig.faults.let_go("write:before")
        assert [(await task).id for task in looking] == [job.id for job in added]
        new = await commit
        assert (await rig.queue.get(new[-1].job_id)).state == "pending"


async def test_a_payload_comes_with_its_headers() -> None:
    async with Rig() as rig:
        job = await rig.queue.enqueue("q", b"body", headers={"kind": "letter"})
        record = await rig.queue.payload(job.job_id)
        assert (record.payload, record.headers) == (b"body", {"kind": "letter"})


@pytest.mark.parametrize(("row", "match"), [(None, "the payload is missing"), (b"other", "doesn't match its digest")])
async def test_a_payload_that_is_lost_or_altered_is_missing(row: bytes | None, match: str) -> None:
    async with Rig() as rig:
        job = await rig.queue.enqueue("q", b"body")
        rig.without_payload.add(job.id)
        key = keys.payload_key((await rig.queue.get(job.job_id)).offset)
        del rig.disk.rows[key]
        if row is not None:
            rig.disk.rows[key] = row
        with pytest.raises(PayloadMissing, match=match):
            await rig.queue.payload(job.job_id)


# Histories


async def test_a_history_is_every_event_of_the_job_and_of_no_other() -> None:
    async with Rig(default=OPTIONS) as rig:
        ids = await one_in_each_state(rig)
        assert kinds(await rig.queue.history(ids["done"])) == ["Enqueued", "Claimed", "Acked"]
        assert kinds(await rig.queue.history(ids["cancelled"])) == ["Enqueued", "Cancelled"]
        records = await rig.queue.history(ids["dead"])
        assert kinds(records) == ["Enqueued", "Claimed", "Nacked"]
        assert {job_id_text(record.event.id) for record in records} == {ids["dead"]}  # type: ignore[union-attr]
        assert [record.offset for record in records] == sorted(record.offset for record in records)
        assert {(record.time_ms, record.epoch) for record in records} == {(rig.clock.now_ms(), 1)}


async def test_the_history_of_a_swept_job_is_found_by_the_time_in_its_id() -> None:
    async with Rig(default=OPTIONS) as rig:
        for _ in range(5):  # what came long before needs not be read
            await rig.queue.enqueue("other", b"")
            await rig.advance(HOUR_S)
        ids = await one_in_each_state(rig)
        await rig.advance(101)
        with pytest.raises(JobNotFound, match="history"):
            await rig.queue.get(ids["done"])
        records = await rig.queue.history(ids["done"])
        assert kinds(records) == ["Enqueued", "Claimed", "Acked", "Swept"]
        assert records[-1].time_ms - records[0].time_ms == 101_000
        await rig.reopen()
        assert await rig.queue.history(ids["done"]) == records


async def test_a_history_is_found_without_decoding_what_concerns_others(monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[int] = []

    def counted(offset: int, value: bytes) -> RecordBatch:
        decoded.append(offset)
        return decode_batch(offset, value)

    async with Rig(default=OPTIONS) as rig:
        ids = await one_in_each_state(rig)
        for _ in range(200):
            await rig.queue.enqueue("other", b"")
        await rig.advance(101)
        monkeypatch.setattr(log_module, "decode_batch", counted)
        assert len(await rig.queue.history(ids["done"])) == 4
        assert len(decoded) < 40
        decoded.clear()
        with pytest.raises(JobNotFound):
            await rig.queue.history(job_id_text(bytes(range(16))))
        assert len(decoded) < 40


@pytest.mark.parametrize("id_ms", [0, 1_700_000_000_000 - HOUR_S * 1000, 2**48 - 1])
async def test_the_history_of_a_swept_job_is_found_whatever_time_its_own_id_tells(id_ms: int) -> None:
    async with Rig(default=OPTIONS) as rig:
        own = job_id_text(id_ms.to_bytes(6) + bytes(10))
        for _ in range(3):
            await rig.queue.enqueue("other", b"")
            await rig.advance(HOUR_S)
        await rig.queue.enqueue("q", b"", job_id=own)
        (claim,) = await rig.queue.claim("q")
        await rig.queue.ack(claim)
        await rig.advance(101)
        assert kinds(await rig.queue.history(own)) == ["Enqueued", "Claimed", "Acked", "Swept"]


# Listings


async def states_of(rig: Rig, queue: str, **asked: Any) -> list[str]:
    """The ids of a listing of one page."""
    page = await rig.queue.jobs(queue, **asked)
    assert page.next is None
    return [job.job_id for job in page.jobs]


async def test_a_listing_by_state_has_the_jobs_in_it_and_of_its_queue_only() -> None:
    async with Rig(default=OPTIONS) as rig:
        ids, others = await one_in_each_state(rig), await one_in_each_state(rig, "q2")
        for state in STATES:
            assert await states_of(rig, "q", state=state) == [ids[state]]
            assert await states_of(rig, "q2", state=state) == [others[state]]
            assert await states_of(rig, "q3", state=state) == []
        assert sorted(await states_of(rig, "q")) == sorted(ids.values())


@pytest.mark.parametrize("state", [None, *STATES])
@pytest.mark.parametrize("limit", [1, 2, 3, 7, 100])
async def test_pages_add_up_to_the_whole_listing(state: State | None, limit: int) -> None:
    async with Rig(default=OPTIONS) as rig:
        for _ in range(3):
            for queue in ("q", "q2"):
                await one_in_each_state(rig, queue)
                await rig.advance(1)
        whole = (await rig.queue.jobs("q", state=state, limit=1000)).jobs
        assert len(whole) == (18 if state is None else 3)
        found: list[Job] = []
        after: str | None = None
        for _ in range(100):
            page = await rig.queue.jobs("q", state=state, limit=limit, after=after)
            assert len(page.jobs) <= limit
            found += page.jobs
            after = page.next
            if after is None:
                break
            assert len(page.jobs) == limit
        assert found == whole


async def test_pending_jobs_are_listed_as_they_will_be_handed_out() -> None:
    async with Rig() as rig:
        await rig.queue.enqueue_many("q", [NewJob(b"%d" % n, priority=n % 3) for n in range(9)])
        listed = (await rig.queue.jobs("q", state="pending")).jobs
        claims = await rig.queue.claim("q", limit=9)
        assert [job.job_id for job in listed] == [claim.job_id for claim in claims]


async def test_a_page_may_be_asked_for_after_its_last_job_is_gone() -> None:
    async with Rig() as rig:
        await rig.queue.enqueue_many("q", [b"%d" % n for n in range(4)])
        page = await rig.queue.jobs("q", state="pending", limit=2)
        await rig.queue.claim("q", limit=2)
        rest = await rig.queue.jobs("q", state="pending", limit=2, after=page.next)
        assert [job.offset for job in rest.jobs] == [3, 4]


@pytest.mark.parametrize(
    ("asked", "match"),
    [
        ({"state": "gone"}, "state 'gone' is none of"),
        ({"limit": 0}, "limit is a whole number from 1 to 10000"),
        ({"limit": 10_001}, "limit"),
        ({"limit": True}, "limit"),
        ({"limit": "5"}, "limit"),
        ({"after": "nonsense"}, "is not the `next` of a page"),
        ({"after": ""}, "after"),
        ({"after": "00"}, "after"),
        ({"after": 5}, "after"),
        ({"after": b"i/job/".hex(), "state": "dead"}, "after"),
    ],
)
async def test_a_listing_refuses_what_makes_no_sense(asked: dict[str, Any], match: str) -> None:
    async with Rig() as rig:
        with pytest.raises(InvalidArgument, match=match):
            await rig.queue.jobs("q", **asked)
        with pytest.raises(InvalidQueueName):
            await rig.queue.jobs("")


# Counters


async def test_queues_are_those_that_ever_had_an_event_in_order() -> None:
    async with Rig() as rig:
        assert await rig.queue.queues() == []
        for name in ("b", "ä", "a", "a.b"):
            await rig.queue.enqueue(name, b"")
        await rig.queue.pause("empty", **WHO)
        assert await rig.queue.queues() == ["a", "a.b", "b", "empty", "ä"]


async def test_stats_count_each_state_and_every_transition() -> None:
    async with Rig(default=OPTIONS) as rig:
        await one_in_each_state(rig)
        stats = await rig.queue.stats("q")
        assert [getattr(stats, state) for state in STATES] == [1] * 6
        counted = {name: count for name, count in stats.totals.items() if count}
        assert counted == {"enqueued": 6, "claimed": 3, "acked": 1, "nacked": 1, "cancelled": 1, "dead": 1}
        assert not stats.paused
        await rig.queue.pause("q", **WHO)
        assert (await rig.queue.stats("q")).paused
        await rig.advance(HOUR_S)
        assert (await rig.queue.stats("q")).totals["swept"] == 3


async def test_a_queue_that_never_had_an_event_counts_nothing() -> None:
    async with Rig() as rig:
        stats = await rig.queue.stats("never")
        assert (stats.queue, stats.pending, set(stats.totals.values()), stats.paused) == ("never", 0, {0}, False)
        with pytest.raises(InvalidQueueName):
            await rig.queue.stats("")


# Where it reads


READS = ("get", "payload", "history", "jobs", "stats", "queues")


@pytest.mark.parametrize("call", READS)
async def test_what_is_read_is_durable_by_then(call: str) -> None:
    async with Rig() as rig:
        rig.faults.hold("sync:before")
        adding = asyncio.create_task(rig.queue.enqueue("q", b""))
        await settle()
        job_id = job_id_text(next(iter(rig.queue._writer_state._in_flight[0].touched)))
        argument = {"jobs": ["q"], "stats": ["q"], "queues": []}.get(call, [job_id])
        reading = asyncio.create_task(getattr(rig.queue, call)(*argument))
        await settle()
        assert not reading.done()
        rig.faults.let_go("sync:before")
        assert await reading
        assert (await adding).job_id == job_id


async def test_a_reader_in_another_process_sees_the_same() -> None:
    async with Rig(default=OPTIONS) as rig:
        ids = await one_in_each_state(rig)
        view = LedgerView(LogReader(MemoryReader(rig.disk), clock=ManualClock()))
        for job_id in ids.values():
            job = await rig.queue.get(job_id)
            assert await view.job(job.id) == job
            assert await view.history(job.id) == await rig.queue.history(job_id)
            assert await view.payload(job) == await rig.queue.payload(job_id)
        assert await view.jobs("q") == await rig.queue.jobs("q")
        assert await view.stats("q") == await rig.queue.stats("q")
        assert await view.queues() == ["q"]


async def test_a_damaged_job_row_is_drift() -> None:
    async with Rig() as rig:
        job = await rig.queue.enqueue("q", b"")
        good = rig.disk.rows[job_key(job.id)]
        rig.disk.rows[job_key(job.id)] = b"\xc1"
        for reading in (rig.queue.get(job.job_id), rig.queue.history(job.job_id), rig.queue.jobs("q")):
            with pytest.raises(ProjectionDrift):
                await reading
        rig.disk.rows[job_key(job.id)] = good
