"""Opening: taking over what an earlier writer left, fencing it, and stores that are refused."""

import asyncio

import pytest

from ledgerq.eventlog import keys
from ledgerq.eventlog.errors import Fenced as FencedError
from ledgerq.eventlog.errors import (
    FormatTooNew,
    InvalidArgument,
    InvalidQueueName,
    LogCorrupt,
    LogRolledBack,
    NotRebuilt,
    StoreUnavailable,
    WrongLoop,
)
from ledgerq.eventlog.events import LeaseExpired, WriterClosed, WriterOpened
from ledgerq.eventlog.memory import MemoryStore
from ledgerq.worker.options import QueueOptions
from ledgerq.worker.queue import Queue
from tests.support.loops import settle
from tests.support.queue_calls import CALLS, Call, every_call
from tests.support.rig import Faults, Rig, abandon, payloads


async def test_jobs_found_claimed_at_opening_are_interrupted_and_pending_again() -> None:
    async with Rig() as rig:
        await rig.queue.enqueue_many("q", [b"0", b"1", b"2"])
        await rig.queue.claim("q", limit=2, lease=3600)
        await rig.crash()
        stats = await rig.queue.stats("q")
        assert (stats.claimed, stats.pending) == (0, 3)
        expired = [event for event in await rig.events() if isinstance(event, LeaseExpired)]
        assert [(event.to, event.reason) for event in expired] == [("pending", "interrupted")] * 2
        claims = await rig.queue.claim("q", limit=9)
        assert [(claim.payload, claim.attempt) for claim in claims] == [(b"0", 2), (b"1", 2), (b"2", 1)]


async def test_a_job_interrupted_in_its_last_attempt_is_dead() -> None:
    async with Rig() as rig:
        added = await rig.queue.enqueue("q", b"", max_attempts=1)
        await rig.queue.claim("q")
        await rig.reopen()
        job = await rig.queue.get(added.job_id)
        assert (job.state, job.error, job.attempt) == ("dead", "interrupted", 1)


async def test_more_interrupted_claims_than_a_page_holds_are_all_ended() -> None:
    async with Rig() as rig:
        await rig.queue.enqueue_many("q", [b""] * 2500)
        assert len(await rig.queue.claim("q", limit=2500)) == 2500
        await rig.crash()
        assert (await rig.queue.stats("q")).pending == 2500


async def test_every_opening_and_closing_is_in_the_log_with_its_own_epoch() -> None:
    async with Rig() as rig:
        await rig.reopen()
        await rig.crash()
        batches = await rig.batches()
        marks = [(type(e), b.epoch) for b in batches for e in b.events if isinstance(e, WriterOpened | WriterClosed)]
        assert marks == [(WriterOpened, 1), (WriterClosed, 1), (WriterOpened, 2), (WriterOpened, 3)]


@every_call
async def test_a_second_opening_fences_the_first(call: Call) -> None:
    async with Rig() as rig:
        first = rig.queue
        await first.enqueue_many("q", [b"0", b"1"])
        (claim,) = await first.claim("q")
        heard: list[str] = []
        first.watch(claim, heard.append)
        waiting = asyncio.create_task(first.claim("empty", wait=None))
        await settle()
        second = await rig.open()
        await rig.advance(1)  # an idle writer polls once a second
        assert isinstance(first.failure, FencedError)
        assert heard == ["lost"]
        with pytest.raises(FencedError):
            await waiting
        rows = dict(rig.disk.rows)
        with pytest.raises(FencedError):
            await call(first, claim)
        assert dict(rig.disk.rows) == rows
        await first.close()
        assert payloads(await second.claim("q", limit=5)) == [b"0", b"1"]


@pytest.mark.parametrize("call", [CALLS[name] for name in ("enqueue", "ack", "claim", "nack", "pause", "cancel")])
async def test_a_fenced_writer_that_has_not_noticed_reports_nothing_and_writes_nothing(call: Call) -> None:
    async with Rig() as rig:
        first = rig.queue
        await first.enqueue_many("q", [b"0", b"1"])
        (claim,) = await first.claim("q")
        await rig.open()
        rows = dict(rig.disk.rows)
        with pytest.raises(FencedError):
            await call(first, claim)
        assert dict(rig.disk.rows) == rows
        await first.close()


async def test_the_error_of_an_ended_queue_does_not_gather_what_its_callers_hold() -> None:
    async with Rig() as rig:
        first, frames = rig.queue, []
        await rig.open()
        for _ in range(50):
            with pytest.raises(FencedError) as raised:
                await first.enqueue("q", bytes(1000))
            frames.append(len(raised.traceback))
        assert max(frames[1:]) <= 5
        await first.close()


async def test_a_writer_fenced_in_the_middle_of_a_commit_tells_its_callers() -> None:
    async with Rig() as rig:
        first = rig.queue
        rig.faults.hold("write:before")
        enqueuing = asyncio.create_task(first.enqueue("q", b"x"))
        await settle()
        opening = asyncio.ensure_future(rig.open())
        await settle()
        rig.faults.let_go("write:before")
        await opening
        with pytest.raises(FencedError):
            await enqueuing
        await first.close()
        assert (await rig.queue.stats("q")).pending == 0


async def test_options_that_make_no_sense_close_the_store() -> None:
    for options in ({"ready_window": 0}, {"queues": {"a\0b": QueueOptions()}}):
        faults = Faults()
        with pytest.raises((InvalidArgument, InvalidQueueName)):
            await Queue.open(store=MemoryStore(fault=faults), **options)
        assert faults.calls == ["close"]


@pytest.mark.parametrize("call", ["get", "scan", "write:before", "write:after", "sync:before"])
async def test_an_error_while_opening_closes_the_store_and_leaves_no_task(call: str) -> None:
    async with Rig() as rig:
        await rig.queue.close()
        rig.faults.calls.clear()
        rig.faults.spoil(call, StoreUnavailable("away"))
        with pytest.raises(StoreUnavailable):
            await rig.open()
        assert rig.faults.calls[-1] == "close"
        await settle()
        assert asyncio.all_tasks() == {asyncio.current_task()}
        await rig.open()


async def test_an_opening_that_is_cancelled_closes_the_store() -> None:
    async with Rig() as rig:
        await rig.queue.close()
        for call in ("get", "scan", "sync:before"):
            rig.faults.calls.clear()
            rig.faults.hold(call)
            opening = asyncio.create_task(rig.open())
            await settle()
            opening.cancel()
            await settle()
            rig.faults.let_go(call)
            await settle()
            assert opening.cancelled()
            assert rig.faults.calls[-1] == "close"
            assert asyncio.all_tasks() == {asyncio.current_task()}
        await rig.open()


async def test_a_log_that_ends_before_its_anchor_is_not_opened_until_the_loss_is_accepted() -> None:
    async with Rig() as rig:
        await rig.queue.enqueue("q", b"kept")
        older = dict(rig.disk.rows)
        await rig.queue.enqueue("q", b"lost")
        await abandon(rig.queue)
        anchor = rig.disk.anchor
        assert anchor is not None
        rig.disk.rows.clear()
        rig.disk.rows.update(older)
        with pytest.raises(LogRolledBack) as caught:
            await rig.open()
        assert caught.value.anchored_offset == anchor.next_offset - 1
        assert dict(rig.disk.rows) == older
        await rig.open(accept_rollback=True)
        opened = [event for event in await rig.events() if isinstance(event, WriterOpened)]
        assert [event.rolled_back_from for event in opened] == [None, anchor.next_offset - 1]
        assert payloads(await rig.queue.claim("q", limit=5)) == [b"kept"]
        await rig.reopen()


async def test_accepting_a_rollback_that_did_not_happen_changes_nothing() -> None:
    async with Rig() as rig:
        await rig.reopen(accept_rollback=True)
        opened = [event for event in await rig.events() if isinstance(event, WriterOpened)]
        assert [event.rolled_back_from for event in opened] == [None, None]


async def test_a_store_that_can_not_be_this_logs_is_refused() -> None:
    async with Rig() as rig:
        await rig.queue.close()
        good = dict(rig.disk.rows)
        harms: list[tuple[dict[bytes, bytes | None], type[Exception]]] = [
            ({keys.FORMAT_KEY: b"4"}, FormatTooNew),
            ({keys.FORMAT_KEY: b"1"}, NotRebuilt),
            ({keys.FORMAT_KEY: b"x"}, LogCorrupt),
            ({keys.FORMAT_KEY: None}, InvalidArgument),
            ({keys.REBUILD_KEY: b"1"}, NotRebuilt),
            ({keys.HEAD_KEY: b"?"}, LogCorrupt),
            ({max(key for key in good if key.startswith(keys.LOG_PREFIX)): b"?"}, (LogCorrupt, LogRolledBack)),  # type: ignore[list-item]
        ]
        for changes, error in harms:
            for key, value in changes.items():
                if value is None:
                    del rig.disk.rows[key]
                else:
                    rig.disk.rows[key] = value
            harmed = dict(rig.disk.rows)
            with pytest.raises(error):
                await rig.open()
            assert dict(rig.disk.rows) == harmed
            rig.disk.rows.clear()
            rig.disk.rows.update(good)
        await rig.open()


async def test_a_call_from_another_event_loop_is_refused() -> None:
    async with Rig() as rig:

        def elsewhere() -> type[BaseException] | None:
            try:
                asyncio.run(rig.queue.enqueue("q", b""))
            except BaseException as error:
                return type(error)
            return None

        assert await asyncio.to_thread(elsewhere) is WrongLoop
        await rig.queue.enqueue("q", b"")
