"""Sweeping, payloads that were lost or altered, and maintenance that meets a passing error."""

import asyncio
import logging

import pytest

from ledgerq.eventlog import keys
from ledgerq.eventlog.errors import JobNotFound, PayloadMissing, StoreUnavailable
from ledgerq.eventlog.events import LeaseExpired, Nacked, Promoted, Swept
from ledgerq.eventlog.side_records import encode_payload
from ledgerq.projections.payloads import MISSING, UNREADABLE
from ledgerq.worker.options import QueueOptions
from tests.support.loops import settle
from tests.support.operators import WHO
from tests.support.rig import Rig, claim_all, payloads

DAY_S = 24 * 3600


async def test_a_text_that_comes_and_goes_in_one_commit_leaves_no_row() -> None:
    async with Rig() as rig:
        await rig.queue.enqueue("q", b"")
        (claim,) = await rig.queue.claim("q")
        state = rig.queue._writer_state
        job = state.claimed[claim.id]
        dead = state.apply(job, Nacked(claim.id, "dead", 0, 1, False, "boom"))
        assert dead is not None
        assert state.apply(dead, Swept(claim.id)) is None
        await rig.queue.log.committed()
        assert not [key for key in rig.disk.rows if key.startswith(keys.TEXT_PREFIX)]
        await rig.check()


@pytest.mark.parametrize(("end", "kept_days"), [("done", 1), ("cancelled", 1), ("dead", 7)])
async def test_a_finished_job_is_swept_exactly_when_its_retention_is_over(end: str, kept_days: int) -> None:
    async with Rig() as rig:
        added = await rig.queue.enqueue("q", b"secret", unique_key="k")
        if end == "cancelled":
            await rig.queue.cancel(added.job_id, **WHO)
        else:
            (claim,) = await rig.queue.claim("q")
            await (rig.queue.ack(claim) if end == "done" else rig.queue.nack(claim, "e", dead=True))
        await rig.advance(kept_days * DAY_S - 0.001)
        assert (await rig.queue.get(added.job_id)).state == end
        assert (await rig.queue.payload(added.job_id)).payload == b"secret"
        history = await rig.queue.history(added.job_id)
        await rig.advance(0.001)
        with pytest.raises(JobNotFound):
            await rig.queue.get(added.job_id)
        with pytest.raises(JobNotFound):
            await rig.queue.payload(added.job_id)
        assert not [key for key in rig.disk.rows if key.startswith(keys.PAYLOAD_PREFIX)]
        assert not any(b"secret" in value for value in rig.disk.rows.values())
        assert not [key for key in rig.disk.rows if key.startswith(keys.TEXT_PREFIX)]
        after = await rig.queue.history(added.job_id)
        texts = [(getattr(r.event, "error", ""), getattr(r.event, "reason", "")) for r in after]
        assert not {"e", "because"} & {text for both in texts for text in both if isinstance(text, str)}
        assert [(r.offset, r.time_ms, type(r.event)) for r in after[:-1]] == [
            (r.offset, r.time_ms, type(r.event)) for r in history
        ]
        assert after[-1].event == Swept(added.id)
        stats = await rig.queue.stats("q")
        assert (stats.done, stats.dead, stats.cancelled, stats.totals["swept"]) == (0, 0, 0, 1)


async def test_retention_of_nothing_sweeps_at_once() -> None:
    async with Rig(default=QueueOptions(keep_done_s=0)) as rig:
        await rig.queue.enqueue("q", b"")
        await rig.queue.ack((await rig.queue.claim("q"))[0])
        await settle()
        assert (await rig.queue.stats("q")).totals["swept"] == 1


async def test_more_finished_jobs_than_one_step_takes_are_all_swept_each_at_its_time() -> None:
    async with Rig() as rig:
        for _ in range(2):
            await rig.queue.enqueue_many("q", [b""] * 450)
            await rig.queue.ack_many(await rig.queue.claim("q", limit=450))
            await rig.advance(10)
        await rig.advance(DAY_S - 20)
        assert (await rig.queue.stats("q")).done == 450
        await rig.advance(10)
        assert (await rig.queue.stats("q")).done == 0


async def test_jobs_that_outlived_their_retention_while_the_store_was_closed_are_swept_at_the_next_opening() -> None:
    async with Rig() as rig:
        await rig.queue.enqueue("q", b"")
        await rig.queue.ack((await rig.queue.claim("q"))[0])
        await rig.queue.close()
        rig.clock.advance(seconds=2 * DAY_S)
        await rig.open()
        await settle()
        assert (await rig.queue.stats("q")).done == 0


async def test_an_option_changed_later_does_not_change_when_a_job_is_swept() -> None:
    async with Rig() as rig:
        added = await rig.queue.enqueue("q", b"")
        await rig.queue.ack((await rig.queue.claim("q"))[0])
        await rig.reopen(default=QueueOptions(keep_done_s=1.0))
        await rig.advance(DAY_S - 1)
        assert (await rig.queue.get(added.job_id)).state == "done"


async def test_a_requeued_job_is_not_swept_at_the_time_its_death_had_set() -> None:
    async with Rig() as rig:
        added = await rig.queue.enqueue("q", b"")
        await rig.queue.nack((await rig.queue.claim("q"))[0], "e", dead=True)
        await rig.queue.requeue(added.job_id, **WHO)
        await rig.advance(8 * DAY_S)
        assert (await rig.queue.get(added.job_id)).state == "pending"


async def test_a_passing_error_is_logged_counted_and_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    async with Rig() as rig:
        await rig.queue.enqueue("q", b"x", delay=5)
        await settle()
        rig.faults.spoil("scan", StoreUnavailable("the store is away"))
        with caplog.at_level(logging.WARNING, "ledgerq"):
            await rig.advance(5)
        assert "the store is away" in caplog.text
        assert rig.queue._core.maintenance.failures == 1
        assert (await rig.queue.stats("q")).scheduled == 1
        await rig.advance(1)
        assert payloads(await rig.queue.claim("q")) == [b"x"]


async def test_an_unforeseen_error_does_not_end_maintenance(caplog: pytest.LogCaptureFixture) -> None:
    async with Rig() as rig:
        await rig.queue.enqueue("q", b"x", delay=5)
        await settle()
        rig.faults.spoil("scan", ZeroDivisionError("odd"))
        await rig.advance(5)
        await rig.advance(1)
        assert payloads(await rig.queue.claim("q")) == [b"x"]
        assert "odd" in caplog.text


@pytest.mark.parametrize("held", ["scan", "get"])
async def test_what_is_staged_while_maintenance_looks_is_not_overlooked(held: str) -> None:
    async with Rig() as rig:
        await rig.queue.enqueue("q", b"a", delay=5)
        await rig.queue.enqueue("q", b"late", delay=100)
        await settle()
        rig.faults.hold(held)
        await rig.advance(5)
        during = [asyncio.create_task(rig.queue.enqueue("q", b"b%d" % i, delay=1 + i)) for i in range(3)]
        await settle()
        rig.clock.advance(seconds=1)
        rig.faults.let_go(held)
        await asyncio.gather(*during)
        await settle()
        assert payloads(await rig.queue.claim("q", limit=9)) == [b"a", b"b0"]
        await rig.advance(1)
        assert payloads(await rig.queue.claim("q", limit=9)) == [b"b1"]
        await rig.advance(1)
        assert payloads(await rig.queue.claim("q", limit=9)) == [b"b2"]


async def test_a_job_staged_overdue_while_maintenance_waits_for_a_commit_is_not_overlooked() -> None:
    async with Rig() as rig:
        await rig.queue.enqueue("q", b"late", delay=5)
        rig.faults.hold("get")
        early = asyncio.create_task(rig.queue.enqueue("q", b"early", delay=1, unique_key="k"))
        await settle()
        rig.faults.hold("sync:before")
        other = asyncio.create_task(rig.queue.enqueue("other", b""))
        await settle()
        await rig.advance(6)  # maintenance waits for the commit in flight
        rig.faults.let_go("get")  # and now the look-up is done that the earlier job waited for
        await settle()
        rig.faults.hold("write:before")
        rig.faults.let_go("sync:before")
        await settle()
        rig.faults.let_go("write:before")
        await asyncio.gather(early, other)
        await settle()
        assert sorted(payloads(await rig.queue.claim("q", limit=9))) == [b"early", b"late"]


async def test_sweeping_a_long_backlog_keeps_no_lease_and_no_due_job_waiting() -> None:
    async with Rig() as rig:
        await rig.queue.enqueue_many("q", [b""] * 3000)
        await rig.queue.ack_many(await claim_all(rig.queue))
        await rig.queue.enqueue("due", b"", delay=DAY_S + 1)
        await rig.queue.enqueue("leased", b"")
        await rig.queue.claim("leased", lease=DAY_S + 1)
        await settle()
        rig.faults.hold("sync:before")
        await rig.advance(DAY_S)
        rig.clock.advance(seconds=1)  # while the first of many steps is under way
        rig.faults.let_go("sync:before")
        await settle(500)
        kinds = [type(event) for event in await rig.events()]
        assert kinds.count(Swept) == 3000
        for kind in (Promoted, LeaseExpired):
            assert kinds[: kinds.index(kind)].count(Swept) < 1500


async def test_jobs_that_finish_in_the_millisecond_being_swept_are_swept_too() -> None:
    async with Rig(default=QueueOptions(keep_done_s=0)) as rig:
        await rig.queue.enqueue_many("q", [b""] * 40)
        claims = await rig.queue.claim("q", limit=40)
        await settle()
        rig.faults.hold("get")
        await rig.queue.ack_many(claims[:20])
        await settle()
        await rig.queue.ack_many(claims[20:])
        await settle()
        rig.faults.let_go("get")
        await settle()
        assert (await rig.queue.stats("q")).totals["swept"] == 40


@pytest.mark.parametrize("harm", ["missing", "altered", "empty", "another job's", "in a damaged block"])
async def test_a_job_without_its_payload_becomes_a_dead_letter_that_says_so(harm: str) -> None:
    async with Rig() as rig:
        broken, whole = [await rig.queue.enqueue("q", payload) for payload in (b"broken", b"whole")]
        key = keys.payload_key((await rig.queue.get(broken.job_id)).offset)
        await rig.queue.close()
        if harm == "missing":
            del rig.disk.rows[key]
        elif harm == "altered":
            rig.disk.rows[key] = encode_payload(bytes(16), None, b"forged")
        elif harm == "empty":
            rig.disk.rows[key] = b""
        elif harm == "in a damaged block":
            rig.disk.damaged.add(key)
        else:
            rig.disk.rows[key] = rig.disk.rows[key[:-1] + bytes((key[-1] + 1,))]
        rig.without_payload.add(broken.id)
        await rig.open()
        with pytest.raises(PayloadMissing):
            await rig.queue.payload(broken.job_id)
        assert payloads(await rig.queue.claim("q", limit=5)) == [b"whole"]
        job = await rig.queue.get(broken.job_id)
        assert job.state == "dead"
        assert job.error.startswith(
            {"missing": MISSING, "in a damaged block": UNREADABLE}.get(harm, "the payload doesn't match its digest")
        )
        history = await rig.queue.history(broken.job_id)
        assert [type(record.event).__name__ for record in history] == ["Enqueued", "DeadLettered"]
        assert (await rig.queue.stats("q")).totals["dead_lettered"] == 1
        rig.disk.damaged.clear()
        assert (await rig.queue.get(whole.job_id)).state == "claimed"


async def test_a_waiting_claim_is_not_stopped_by_a_job_without_its_payload() -> None:
    async with Rig() as rig:
        broken = await rig.queue.enqueue("q", b"broken")
        key = keys.payload_key((await rig.queue.get(broken.job_id)).offset)
        await rig.queue.close()
        del rig.disk.rows[key]
        rig.without_payload.add(broken.id)
        await rig.open()
        waiting = asyncio.create_task(rig.queue.claim("q", wait=None))
        await settle()
        assert (await rig.queue.get(broken.job_id)).state == "dead"
        await rig.queue.enqueue("q", b"whole")
        assert payloads(await waiting) == [b"whole"]
