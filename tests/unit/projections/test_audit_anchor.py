"""Audits against an anchor kept elsewhere, and audits of a queue at work: consistent at one commit, every time."""

import asyncio
from pathlib import Path

import pytest
from msgspec.structs import replace

from ledgerq.eventlog import keys
from ledgerq.eventlog.clock import ManualClock, SystemClock
from ledgerq.eventlog.codec import KIND_OF, NO_DIGEST, Head, decode_batch, digest_of, encode_batch, encode_head
from ledgerq.eventlog.errors import LogRolledBack, StoreUnavailable
from ledgerq.eventlog.events import Enqueued
from ledgerq.eventlog.memory import MemoryDisk, MemoryReader, MemoryStore
from ledgerq.eventlog.store import Anchor
from ledgerq.eventlog.stores import open_reader
from ledgerq.projections.audit import AuditReport, audit
from ledgerq.projections.rebuild import rebuild
from ledgerq.worker.options import QueueOptions
from ledgerq.worker.queue import Queue
from tests.support.damaged_rows import copy_of
from tests.support.loops import settle
from tests.support.rig import Rig

TRIES = 50


async def audited(disk: MemoryDisk, anchor: Anchor | None = None, *, pinned: bool = False) -> AuditReport:
    """Audit what is durable."""
    return await audit(MemoryReader(disk, pinned=pinned), clock=ManualClock(), anchor=anchor)


async def grown() -> tuple[Rig, list[tuple[Anchor, MemoryDisk]]]:
    """A closed queue, and the anchors and disks of its commits on the way."""
    kept: list[tuple[Anchor, MemoryDisk]] = []
    async with Rig() as rig:
        for i in range(5):
            await rig.queue.enqueue("q", b"%d" % i)
            assert rig.disk.anchor is not None
            kept.append((rig.disk.anchor, copy_of(rig.disk)))
    return rig, kept


async def test_a_log_contains_every_anchor_that_it_ever_had() -> None:
    rig, kept = await grown()
    for anchor, _ in kept:
        report = await audited(rig.disk, anchor)
        assert report.clean
        assert report.anchor == anchor


async def test_an_older_log_does_not_contain_a_newer_anchor() -> None:
    _, kept = await grown()
    for i, (_, disk) in enumerate(kept):
        for anchor, _ in kept[i + 1 :]:
            with pytest.raises(LogRolledBack) as caught:
                await audited(disk, anchor)
            assert caught.value.anchored_offset == anchor.next_offset - 1
            assert caught.value.head_offset == kept[i][0].next_offset


async def test_another_history_does_not_contain_the_anchor() -> None:
    rig, kept = await grown()
    anchor, disk = kept[2]
    store = MemoryStore(disk)
    queue = await Queue.open(store=store, clock=rig.clock)
    await queue.enqueue_many("q", [b"something"] * 20)
    await queue.close()
    await audited(disk, anchor)
    for newer, _ in kept[3:]:
        with pytest.raises(LogRolledBack, match="another commit in its place"):
            await audited(disk, newer)


def forge(disk: MemoryDisk, offset: int) -> None:
    """Change the enqueued event at `offset`, and recompute all that vouches for it: chain, head, anchor."""
    previous = NO_DIGEST
    head: Head | None = None
    for key in sorted(key for key in disk.rows if key.startswith(keys.LOG_PREFIX)):
        batch = decode_batch(keys.offset_of(key), disk.rows[key])
        events = [
            replace(event, queue="r") if isinstance(event, Enqueued) and batch.base_offset + at == offset else event
            for at, event in enumerate(batch.events)
        ]
        kinds = bytes(KIND_OF[type(event)] for event in events)
        disk.rows[key] = encode_batch(batch.epoch, previous, batch.time_ms, kinds, events, batch.distances or [])
        previous = digest_of(disk.rows[key])
        head = Head(batch.next_offset, previous, batch.epoch, batch.time_ms, batch.base_offset)
    assert head is not None
    disk.rows[keys.HEAD_KEY] = encode_head(head)
    disk.anchor = Anchor(head.base_offset, head.next_offset, head.digest, head.epoch, head.time_ms)


async def test_a_forged_history_is_found_by_an_anchor_kept_elsewhere_and_by_nothing_else() -> None:
    rig, kept = await grown()
    forged = copy_of(rig.disk)
    forge(forged, kept[2][0].base_offset)
    await rebuild(MemoryStore(forged), clock=ManualClock(), actor="mallory", reason="nothing to see")
    assert (await audit(MemoryReader(forged), clock=ManualClock(), deep=True)).clean, "a digest is no signature"
    for anchor, _ in kept[:2]:
        assert (await audited(forged, anchor)).clean, "what was written before it is as it was"
    for anchor, _ in kept[2:]:
        with pytest.raises(LogRolledBack) as caught:
            await audited(forged, anchor)
        message = str(caught.value)
        assert caught.value.first_offset == anchor.base_offset
        assert f"from offset {anchor.base_offset} on is not what was written" in message
        assert "restore the store from a copy that holds the commit" in message
        assert "accept" not in message
        assert "--until" not in message


async def test_the_stores_own_anchor_counts_when_none_is_given() -> None:
    rig, kept = await grown()
    old = kept[1][1]
    assert (await audited(old)).anchor == kept[1][0]
    old.anchor = rig.disk.anchor
    with pytest.raises(LogRolledBack):
        await audited(old)
    old.anchor = None
    assert (await audited(old)).anchor is None


async def test_an_anchor_of_an_empty_log_is_in_every_log() -> None:
    rig, _ = await grown()
    assert (await audited(rig.disk, Anchor(0, 0, bytes(32), 0, 0))).clean


async def work(queue: Queue, number: int) -> None:
    """A little of everything."""
    await queue.enqueue_many("q", [b"%d" % number, b"x" * 300, b"y"])
    await queue.enqueue("q", b"later", delay=0.01, unique_key="k")
    for claim in await queue.claim("q", limit=3):
        if number % 3:
            await queue.ack(claim)
        else:
            await queue.nack(claim, "boom", delay=0.01, dead=number % 5 == 0)


@pytest.mark.proof
async def test_an_audit_of_a_queue_at_work_in_memory_is_consistent_at_one_commit() -> None:
    async with Rig(default=QueueOptions(keep_done_s=1.0)) as rig:
        ends: list[int] = []

        async def keep_working() -> None:
            for number in range(60):
                await work(rig.queue, number)
                await rig.advance(0.1)

        working = asyncio.create_task(keep_working())
        while not working.done():
            report = await audited(rig.disk, pinned=True)
            assert report.clean, report.differences[:3]
            ends.append(report.verified.events)
            await settle(23)
        await working
        assert len(set(ends)) > 20


@pytest.mark.proof
async def test_an_audit_of_a_queue_at_work_on_files_is_consistent_at_one_commit(tmp_path: Path) -> None:
    url = (tmp_path / "store").as_uri()
    options = QueueOptions(keep_done_s=0.1, backoff_base_s=0.01)
    ends: list[int] = []

    async def audit_once() -> AuditReport:
        for _ in range(TRIES):
            reader = await open_reader(url, pinned=True)
            try:
                return await audit(reader, clock=SystemClock(), deep=True)
            except StoreUnavailable:
                continue  # the view says by itself when it can't be the present one any more
            finally:
                await reader.close()
        raise AssertionError("no view was stable")

    async with Queue.open(url, default=options, commit_interval_ms=0) as queue:
        await work(queue, 1)

        async def keep_working() -> None:
            number = 0
            while True:
                number += 1
                await work(queue, number)

        working = asyncio.create_task(keep_working())
        for _ in range(12):
            report = await audit_once()
            assert report.clean, report.differences[:3]
            ends.append(report.verified.events)
        assert not working.done()
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)
        assert queue.failure is None
    assert ends == sorted(ends)
    assert len(set(ends)) > 6
