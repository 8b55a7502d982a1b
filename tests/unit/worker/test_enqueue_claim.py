"""Enqueueing and claiming: order, priorities, limits, several queues, and arguments that are refused."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from ledgerq.eventlog.codec import decode_batch
from ledgerq.eventlog.errors import InvalidArgument, InvalidQueueName, JobNotFound, PayloadTooLarge
from ledgerq.eventlog.events import Claimed, Enqueued
from ledgerq.worker.options import NewJob, QueueOptions
from tests.support.loops import settle
from tests.support.rig import Rig, payloads

NEVER_A_JOB = "01ARZ3NDEKTSV4RRFFQ69G5FAV"


async def test_jobs_of_one_priority_are_claimed_in_the_order_they_were_enqueued() -> None:
    async with Rig() as rig:
        for i in range(10):
            await rig.queue.enqueue("q", b"%d" % i)
        claims = [claim for _ in range(10) for claim in await rig.queue.claim("q")]
        assert payloads(claims) == [b"%d" % i for i in range(10)]
        assert await rig.queue.claim("q") == []


async def test_a_lower_priority_number_is_claimed_first_and_within_it_the_older_job() -> None:
    async with Rig() as rig:
        for name, priority in ((b"c1", 7), (b"a1", 0), (b"b1", 5), (b"d1", None), (b"a2", 0), (b"z", 2**32 - 1)):
            await rig.queue.enqueue("q", name, priority=priority)
        assert payloads(await rig.queue.claim("q", limit=9)) == [b"a1", b"a2", b"b1", b"c1", b"d1", b"z"]


async def test_a_claim_says_everything_about_its_job() -> None:
    async with Rig() as rig:
        added = await rig.queue.enqueue("q", b"work", priority=3, max_attempts=9, headers={"trace": "äbc"})
        (claim,) = await rig.queue.claim("q", lease=2.5, worker="w1")
        assert added.created
        assert claim.job_id == added.job_id
        assert (claim.queue, claim.payload, claim.headers) == ("q", b"work", {"trace": "äbc"})
        assert (claim.attempt, claim.max_attempts, claim.priority) == (1, 9, 3)
        assert claim.lease_ms == 2500
        assert claim.lease_expires_ms == rig.clock.now_ms() + 2500
        assert claim.lease_expires_at == datetime.fromtimestamp(claim.lease_expires_ms / 1000, UTC)
        job = await rig.queue.get(added.job_id)
        assert (job.state, job.attempt, job.worker, job.lease_ms, job.claim_offset) == (
            "claimed",
            1,
            "w1",
            2500,
            claim.offset,
        )


@pytest.mark.parametrize("payload", [b"", b"\0", bytes(range(256)) * 100])
async def test_a_payload_comes_back_as_it_was_given(payload: bytes) -> None:
    async with Rig() as rig:
        added = await rig.queue.enqueue("q", bytearray(payload))  # type: ignore[arg-type]
        assert (await rig.queue.payload(added.job_id)).payload == payload
        assert payloads(await rig.queue.claim("q")) == [payload]


async def test_a_claim_takes_up_to_its_limit() -> None:
    async with Rig() as rig:
        await rig.queue.enqueue_many("q", [b"%d" % i for i in range(5)])
        assert payloads(await rig.queue.claim("q", limit=3)) == [b"0", b"1", b"2"]
        assert payloads(await rig.queue.claim("q", limit=3)) == [b"3", b"4"]
        assert await rig.queue.claim("q", limit=3) == []


async def test_the_first_queue_that_has_jobs_is_served() -> None:
    async with Rig() as rig:
        await rig.queue.enqueue("b", b"b1")
        await rig.queue.enqueue("c", b"c1")
        assert payloads(await rig.queue.claim(["a", "b", "c"], limit=5)) == [b"b1"]
        await rig.queue.enqueue("a", b"a1")
        assert payloads(await rig.queue.claim(["a", "b", "c"], limit=5)) == [b"a1"]
        assert payloads(await rig.queue.claim(("a", "a", "c"), limit=5)) == [b"c1"]


async def test_the_first_queue_that_has_jobs_is_served_also_when_its_jobs_are_only_in_the_store() -> None:
    async with Rig() as rig:
        await rig.queue.enqueue("a", b"a1")
        await rig.queue.enqueue_many("b", [b"b1", b"b2"])
        await rig.reopen()
        assert payloads(await rig.queue.claim("b")) == [b"b1"]
        assert payloads(await rig.queue.claim(["a", "b"])) == [b"a1"]


async def test_a_later_queue_is_served_once_an_earlier_one_turns_out_to_hold_nothing() -> None:
    async with Rig() as rig:
        await rig.queue.enqueue("a", b"a1")
        await rig.queue.enqueue("b", b"b1")
        await rig.queue.ack((await rig.queue.claim("a"))[0])
        await rig.reopen()
        assert payloads(await rig.queue.claim(["a", "b"])) == [b"b1"]
        assert await rig.queue.claim(["a", "b"]) == []


@pytest.mark.parametrize(
    "given", [{"payload": "text"}, {"payload": b"", "priority": True}, {"payload": b"", "delay": "5"}]
)
def test_a_new_job_refuses_what_enqueue_refuses(given: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument, match="NewJob"):
        NewJob(**given)


async def test_queues_do_not_see_each_others_jobs() -> None:
    async with Rig() as rig:
        for name in ("q", "q1", "Q", "ä", " "):
            await rig.queue.enqueue(name, name.encode())
        await rig.reopen()
        for name in ("ä", "q1", " ", "q", "Q"):
            assert payloads(await rig.queue.claim(name, limit=9)) == [name.encode()]
        assert await rig.queue.queues() == sorted(("q", "q1", "Q", "ä", " "))


async def test_many_jobs_enqueued_together_are_in_one_commit_and_in_order() -> None:
    async with Rig() as rig:
        before = len(await rig.batches())
        added = await rig.queue.enqueue_many("q", [b"0", NewJob(b"1", priority=1), NewJob(b"2", headers={"a": "b"})])
        assert [job.created for job in added] == [True] * 3
        (batch,) = (await rig.batches())[before:]
        assert [event.id for event in batch.events if isinstance(event, Enqueued)] == [job.id for job in added]
        assert payloads(await rig.queue.claim("q", limit=5)) == [b"1", b"0", b"2"]


async def test_an_empty_bulk_call_adds_nothing() -> None:
    async with Rig() as rig:
        assert await rig.queue.enqueue_many("q", []) == []
        assert await rig.queue.queues() == []


async def test_a_bulk_call_with_one_bad_job_adds_none() -> None:
    async with Rig(default=QueueOptions(max_payload_bytes=100)) as rig:
        with pytest.raises(PayloadTooLarge):
            await rig.queue.enqueue_many("q", [b"0", bytes(101), b"2"])
        with pytest.raises(InvalidArgument):
            await rig.queue.enqueue_many("q", [b"0", NewJob(b"1", job_id="no ULID")])
        assert await rig.queue.queues() == []
        assert await rig.queue.claim("q") == []


async def test_concurrent_enqueues_share_commits_and_each_is_there() -> None:
    async with Rig() as rig:
        before = len(await rig.batches())
        added = await asyncio.gather(*(rig.queue.enqueue("q", b"%d" % i) for i in range(200)))
        assert len({job.id for job in added}) == 200
        assert len(await rig.batches()) - before <= 2
        claims = await rig.queue.claim("q", limit=500)
        assert payloads(claims) == [b"%d" % i for i in range(200)]


async def test_concurrent_claims_get_different_jobs() -> None:
    async with Rig() as rig:
        await rig.queue.enqueue_many("q", [b"%d" % i for i in range(50)])
        groups = await asyncio.gather(*(rig.queue.claim("q", limit=3) for _ in range(20)))
        assert payloads([claim for group in groups for claim in group]) == [b"%d" % i for i in range(50)]


async def test_the_queues_own_options_hold_and_others_use_the_default() -> None:
    options = {"fast": QueueOptions(priority=5, lease_s=1.0, max_attempts=1)}
    async with Rig(default=QueueOptions(lease_s=60.0), queues=options) as rig:
        await rig.queue.enqueue("fast", b"")
        await rig.queue.enqueue("slow", b"")
        (fast,), (slow,) = await rig.queue.claim("fast"), await rig.queue.claim("slow")
        assert (fast.priority, fast.lease_ms, fast.max_attempts) == (5, 1000, 1)
        assert (slow.priority, slow.lease_ms, slow.max_attempts) == (1000, 60_000, 3)
        assert rig.queue.options("fast") == options["fast"]


@pytest.mark.parametrize(
    "arguments",
    [
        {"priority": -1},
        {"priority": 2**32},
        {"priority": True},
        {"priority": 1.5},
        {"delay": -1},
        {"delay": float("nan")},
        {"delay": float("inf")},
        {"delay": 1e15},
        {"delay": "1"},
        {"run_at": datetime(2030, 1, 1)},
        {"run_at": 5},
        {"delay": 1, "run_at": datetime(2030, 1, 1, tzinfo=UTC)},
        {"max_attempts": 0},
        {"max_attempts": False},
        {"unique_key": ""},
        {"unique_key": bytes(1025)},
        {"unique_key": "\ud800"},
        {"unique_key": "k", "unique_until": "never"},
        {"headers": {"a": 1}},
        {"headers": {1: "a"}},
        {"headers": {"a": "\ud800"}},
        {"job_id": "short"},
        {"job_id": "U" * 26},
        {"job_id": 5},
    ],
    ids=repr,
)
async def test_an_argument_out_of_range_is_refused_and_nothing_is_written(arguments: dict[str, object]) -> None:
    async with Rig() as rig:
        before = dict(rig.disk.rows)
        with pytest.raises(InvalidArgument):
            await rig.queue.enqueue("q", b"", **arguments)  # type: ignore[arg-type]
        await settle()
        assert dict(rig.disk.rows) == before


@pytest.mark.parametrize("payload", ["text", None, 5, [1]])
async def test_a_payload_that_is_not_bytes_is_refused(payload: object) -> None:
    async with Rig() as rig:
        with pytest.raises(InvalidArgument):
            await rig.queue.enqueue("q", payload)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["", "a\0b", "x" * 256, "ä" * 128, "\ud800", 5, None, b"q"])
async def test_a_queue_name_that_no_key_can_hold_is_refused(name: str) -> None:
    async with Rig() as rig:
        for call in (
            rig.queue.enqueue(name, b""),
            rig.queue.enqueue_many(name, [b""]),
            rig.queue.claim([name]),
            rig.queue.pause(name, actor="a", reason="b"),
            rig.queue.stats(name),
            rig.queue.jobs(name),
        ):
            with pytest.raises(InvalidQueueName):
                await call


@pytest.mark.parametrize(
    "arguments",
    [{"limit": 0}, {"limit": 10_001}, {"limit": True}, {"lease": 0}, {"lease": -1}, {"lease": "x"}, {"wait": -1}],
    ids=repr,
)
async def test_a_claim_with_an_argument_out_of_range_is_refused(arguments: dict[str, object]) -> None:
    async with Rig() as rig:
        await rig.queue.enqueue("q", b"")
        with pytest.raises(InvalidArgument):
            await rig.queue.claim("q", **arguments)  # type: ignore[arg-type]
        with pytest.raises(InvalidArgument):
            await rig.queue.claim([])
        assert (await rig.queue.stats("q")).pending == 1


async def test_headers_count_towards_the_limit_of_a_payload() -> None:
    async with Rig(default=QueueOptions(max_payload_bytes=10)) as rig:
        await rig.queue.enqueue("q", bytes(4), headers={"abc": "äb"})
        with pytest.raises(PayloadTooLarge):
            await rig.queue.enqueue("q", bytes(5), headers={"abc": "äb"})


async def test_a_run_at_that_has_passed_means_at_once() -> None:
    async with Rig() as rig:
        now = datetime.fromtimestamp(rig.clock.now_ms() / 1000, UTC)
        await rig.queue.enqueue("q", b"past", run_at=now - timedelta(days=1))
        await rig.queue.enqueue("q", b"now", run_at=now)
        await rig.queue.enqueue("q", b"zero", delay=0)
        assert payloads(await rig.queue.claim("q", limit=9)) == [b"past", b"now", b"zero"]


async def test_a_job_nobody_enqueued_is_not_found() -> None:
    async with Rig() as rig:
        for call in (
            rig.queue.get(NEVER_A_JOB),
            rig.queue.payload(NEVER_A_JOB),
            rig.queue.history(NEVER_A_JOB),
            rig.queue.cancel(NEVER_A_JOB, actor="a", reason="b"),
            rig.queue.requeue(NEVER_A_JOB, actor="a", reason="b"),
        ):
            with pytest.raises(JobNotFound):
                await call


async def test_a_worker_name_of_any_text_is_kept_shortened() -> None:
    async with Rig() as rig:
        await rig.queue.enqueue("q", b"")
        await rig.queue.claim("q", worker="\ud800" + "w" * 400)
        (event,) = [event for event in await rig.events() if isinstance(event, Claimed)]
        assert event.worker is not None
        assert len(event.worker) <= 260
        assert all(
            decode_batch(b.base_offset, rig.disk.rows[b"l/" + b.base_offset.to_bytes(8)]) for b in await rig.batches()
        )
