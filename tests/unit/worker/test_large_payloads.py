"""Large payloads: streamed beside the store before their jobs, read in pieces, deleted after their jobs are gone."""

import asyncio
import io
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from ledgerq.eventlog.blobs import FOLDER, PIECE_BYTES, BlobName, MemoryBlobs
from ledgerq.eventlog.clock import ManualClock, SystemClock
from ledgerq.eventlog.errors import (
    DuplicateJobId,
    InvalidArgument,
    InvalidState,
    PayloadMissing,
    StoreUnavailable,
    UniqueKeyHeld,
)
from ledgerq.eventlog.memory import MemoryDisk, MemoryReader, MemoryStore
from ledgerq.eventlog.stores import open_reader, open_store
from ledgerq.projections.audit import audit
from ledgerq.projections.repair.copying import copy_into
from ledgerq.worker.claims import Claim
from ledgerq.worker.execution import JobContext
from ledgerq.worker.queue import Queue
from ledgerq.worker.worker import Worker
from tests.support.loops import settle
from tests.support.operators import WHO
from tests.support.rig import Rig

LARGE = bytes(range(256)) * 3000
HOUR_S = 3600.0


async def pieces(data: bytes = LARGE, size: int = 100_000) -> AsyncIterator[bytes]:
    """The bytes in pieces of a size that has nothing to do with ours."""
    for at in range(0, len(data), size):
        yield data[at : at + size]


async def whole(source: AsyncIterator[bytes]) -> bytes:
    """All bytes of a payload."""
    return b"".join([piece async for piece in source])


@pytest.mark.parametrize("kind", ["pieces", "file", "async file"])
async def test_a_large_payload_is_streamed_in_and_out_and_goes_with_its_job(kind: str) -> None:
    class AsyncFile:
        def __init__(self) -> None:
            self._file = io.BytesIO(LARGE)

        async def read(self, size: int) -> bytes:
            return self._file.read(size)

    source: Any = {"pieces": pieces(), "file": io.BytesIO(LARGE), "async file": AsyncFile()}[kind]
    async with Rig() as rig:
        added = await rig.queue.enqueue("q", source, headers={"name": "film"}, priority=3)
        (name,) = rig.disk.blobs
        assert (rig.disk.blobs[name], BlobName.parse(name).job) == (LARGE, added.id)  # type: ignore[union-attr]
        job = await rig.queue.get(added.job_id)
        assert job.blob is not None
        assert (job.blob.size_bytes, job.priority) == (len(LARGE), 3)
        assert not any(LARGE[:100] in value for value in rig.disk.rows.values())
        for attempt in (1, 2):
            (claim,) = await rig.queue.claim("q")
            assert (claim.attempt, claim.headers) == (attempt, {"name": "film"})
            assert await whole(claim.open_payload()) == LARGE
            with pytest.raises(InvalidState, match="open_payload"):
                claim.payload  # noqa: B018
            if attempt == 1:
                await rig.queue.nack(claim, "boom", delay=0)
        assert await whole(rig.queue.open_payload(added.job_id)) == LARGE
        with pytest.raises(InvalidState, match=str(len(LARGE))):
            await rig.queue.payload(added.job_id)
        assert [*rig.disk.blobs] == [name]
        await rig.queue.ack(claim)
        rig.faults.hold("sync:before")
        await rig.advance(25 * HOUR_S)
        assert [*rig.disk.blobs] == [name]  # its job is swept, and that is not durable
        rig.faults.let_go("sync:before")
        await settle()
        assert not rig.disk.blobs


async def test_a_small_payload_that_is_streamed_is_one_like_any_other() -> None:
    async with Rig() as rig:
        for data in (b"", b"x", b"x" * (PIECE_BYTES - 1)):
            added = await rig.queue.enqueue("q", pieces(data))
            assert (await rig.queue.get(added.job_id)).spec.terms is None
            (claim,) = await rig.queue.claim("q")
            assert (claim.payload, await whole(claim.open_payload())) == (data, data)
            assert await whole(rig.queue.open_payload(added.job_id)) == data
            await rig.queue.ack(claim)
        added = await rig.queue.enqueue("q", pieces(b"x" * PIECE_BYTES))
        assert len(rig.disk.blobs) == 1
        (claim,) = await rig.queue.claim("q")
        assert await whole(claim.open_payload()) == b"x" * PIECE_BYTES
        await rig.queue.ack(claim)


async def test_what_is_not_enqueued_leaves_no_payload_behind() -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield LARGE
        raise OSError("the disk of the sender is gone")

    async def text() -> AsyncIterator[Any]:
        yield "text"

    async with Rig() as rig:
        first = await rig.queue.enqueue("q", pieces(), unique_key="k")
        again = await rig.queue.enqueue("q", pieces(), unique_key="k")
        assert (again.job_id, again.created) == (first.job_id, False)
        cases: list[tuple[Any, dict[str, Any], type[Exception]]] = [
            (broken(), {}, OSError),
            (text(), {}, InvalidArgument),
            (io.StringIO("text"), {}, InvalidArgument),
            (pieces(), {"job_id": first.job_id}, DuplicateJobId),
            (pieces(), {"priority": -1}, InvalidArgument),
        ]
        for payload, options, error in cases:
            with pytest.raises(error):
                await rig.queue.enqueue("q", payload, **options)
        await settle()
        assert len(rig.disk.blobs) == 1
        async with rig.queue.transaction() as t:
            with pytest.raises(InvalidArgument, match="a payload is bytes"):
                t.enqueue("q", pieces())  # type: ignore[call-overload]
        with pytest.raises(InvalidArgument, match="a payload is bytes"):
            await rig.queue.enqueue_many("q", [pieces()])  # type: ignore[list-item]
        (claim,) = await rig.queue.claim("q")
        await rig.queue.ack(claim)


async def test_orphans_are_deleted_at_the_next_opening_and_daily_when_they_are_old() -> None:
    async with Rig() as rig:
        kept = await rig.queue.enqueue("q", pieces(), delay=30 * 24 * HOUR_S)
        (name,) = rig.disk.blobs
        rig.faults.hold("write:before")
        enqueueing = asyncio.create_task(rig.queue.enqueue("q", pieces()))
        while len(rig.disk.blobs) < 2:
            await asyncio.sleep(0)
        await settle()
        enqueueing.cancel()
        await asyncio.gather(enqueueing, return_exceptions=True)
        rig.faults.held.clear()
        await rig.crash()
        await settle()
        assert len(rig.disk.blobs) == 2
        rig.disk.blobs[f"{BlobName(kept.id, kept.id)}.part"] = b"half"
        rig.disk.blobs["somebody's own"] = b"mine"
        await rig.advance(HOUR_S + 1)
        assert len(rig.disk.blobs) == 4
        await rig.reopen()
        await settle()
        assert {*rig.disk.blobs} == {name, "somebody's own"}
        rig.disk.blobs[str(BlobName(kept.id, kept.id))] = b"of no job"
        await rig.advance(24 * HOUR_S)
        assert {*rig.disk.blobs} == {name, "somebody's own"}
        assert await whole(rig.queue.open_payload(kept.job_id)) == LARGE


async def test_a_payload_under_way_is_no_orphan_however_long_it_takes() -> None:
    async with Rig() as rig:
        await rig.queue.enqueue("q", pieces(), delay=60 * 24 * HOUR_S)  # so that it is looked for orphans, daily
        go_on = asyncio.Event()
        real = MemoryBlobs.put

        async def slowly(self: MemoryBlobs, name: str, pieces: AsyncIterator[bytes]) -> None:
            await real(self, name, pieces)
            await go_on.wait()

        MemoryBlobs.put = slowly  # type: ignore[method-assign,unused-ignore]
        try:
            enqueueing = asyncio.create_task(rig.queue.enqueue("q", pieces()))
            await settle()
            await rig.advance(25 * HOUR_S)
            await rig.advance(25 * HOUR_S)
            assert len(rig.disk.blobs) == 2
            go_on.set()
            added = await enqueueing
        finally:
            MemoryBlobs.put = real  # type: ignore[method-assign,unused-ignore]
        assert await whole(rig.queue.open_payload(added.job_id)) == LARGE
        (claim,) = await rig.queue.claim("q")
        await rig.queue.ack(claim)


def _flipped(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


HARMS: dict[str, Any] = {
    "deleted": lambda data: None,
    "cut": lambda data: data[:-1],
    "emptied": lambda data: b"",
    "longer": lambda data: data + b"x",
    "a bit flipped": _flipped,
}


@pytest.mark.parametrize("harm", HARMS)
async def test_a_harmed_payload_is_noticed_by_its_reader_the_audit_and_a_copy(harm: str) -> None:
    rig = Rig()
    queue = await rig.open()
    good, bad = await queue.enqueue("q", pieces()), await queue.enqueue("q", pieces())
    await queue.enqueue("q", b"small")
    name = next(name for name in rig.disk.blobs if BlobName.parse(name).job == bad.id)  # type: ignore[union-attr]
    harmed = HARMS[harm](rig.disk.blobs.pop(name))
    if harmed is not None:
        rig.disk.blobs[name] = harmed
    claims = await queue.claim("q", limit=3)
    assert await whole(claims[0].open_payload()) == LARGE
    with pytest.raises(PayloadMissing, match=bad.job_id):
        await whole(claims[1].open_payload())
    for claim in claims:
        await queue.release(claim)
    await queue.close()
    reader = MemoryReader(rig.disk)
    assert (await audit(reader, clock=rig.clock)).clean
    report = await audit(reader, clock=rig.clock, deep=True)
    assert [(one.range_name, bad.job_id in one.key) for one in report.differences] == [("blob", True)]
    target = MemoryDisk()
    copied = await copy_into(reader, MemoryStore(target), clock=rig.clock, **WHO)
    assert [one.job.job_id for one in copied.lost] == [bad.job_id]
    assert [*target.blobs.values()] == [LARGE]
    assert (await audit(MemoryReader(target), clock=rig.clock, deep=True)).clean
    async with Queue.open(store=MemoryStore(target), clock=rig.clock) as other:
        assert (await other.get(bad.job_id)).state == "dead"
        assert await whole(other.open_payload(good.job_id)) == LARGE
        with pytest.raises(PayloadMissing):
            await whole(other.open_payload(bad.job_id))


async def test_handlers_read_a_large_payload_in_pieces() -> None:
    sizes: list[int] = []
    async with Rig() as rig:
        await rig.queue.enqueue("q", pieces())
        worker = Worker(rig.queue)

        @worker.handler("q")
        async def handle(job: JobContext) -> None:
            sizes.extend([len(piece) async for piece in job.open_payload()])

        await worker.run(until_empty=True, signals=False)
    assert sum(sizes) == len(LARGE)
    assert max(sizes) <= PIECE_BYTES


async def test_a_claim_of_a_service_has_no_large_payload() -> None:
    async with Rig() as rig:
        await rig.queue.enqueue("q", pieces())
        (claim,) = await rig.queue.claim("q")
        fields = (claim.queue, claim.id, claim.offset, 1, 1, 0, 0, 0, 0, claim.record, claim.terms)
        with pytest.raises(InvalidArgument, match="can't be sent by a service"):
            await whole(Claim(*fields).open_payload())
        await rig.queue.ack(claim)


# ---------------------------------------------------------------------- in a folder


async def test_a_folder_has_it_as_a_file_that_is_whole_or_not_there(tmp_path: Path) -> None:
    folder, clock = tmp_path / "store", ManualClock(SystemClock().now_ms())

    async def broken() -> AsyncIterator[bytes]:
        yield LARGE
        names = [path.name for path in (folder / FOLDER).iterdir()]
        assert [name.endswith(".part") for name in names] == [True]
        raise ValueError

    async with Queue.open(str(folder), clock=clock) as queue:
        with pytest.raises(ValueError):  # noqa: PT011
            await queue.enqueue("q", broken())
        assert not list((folder / FOLDER).iterdir())
        added = await queue.enqueue("q", pieces())
        (file,) = (folder / FOLDER).iterdir()
        assert file.read_bytes() == LARGE
        assert (file.stat().st_mode & 0o777, file.parent.stat().st_mode & 0o777) == (0o600, 0o700)
        assert await whole(queue.open_payload(added.job_id)) == LARGE
    reader = await open_reader(str(folder), pinned=True)
    assert (await audit(reader, clock=clock, deep=True)).clean
    target = await open_store(str(tmp_path / "copy"), clock=clock)
    await copy_into(reader, target, clock=clock, **WHO)
    await target.close()
    await reader.close()
    assert [path.read_bytes() for path in (tmp_path / "copy" / FOLDER).iterdir()] == [LARGE]
    file.unlink()
    os.mkfifo(file)
    async with Queue.open(str(folder), clock=clock) as queue:
        with pytest.raises(StoreUnavailable, match="is not a file"):
            await whole(queue.open_payload(added.job_id))
        (claim,) = await queue.claim("q")
        await queue.ack(claim)


async def test_a_job_with_a_large_payload_is_not_replaced_and_one_that_is_refused_leaves_no_payload() -> None:
    async with Rig() as rig:
        await rig.queue.enqueue("q", pieces(), unique_key="k")
        again = await rig.queue.enqueue("q", b"small", unique_key="k", on_conflict="replace")
        assert (again.created, again.replaced) == (False, False)
        with pytest.raises(UniqueKeyHeld):
            await rig.queue.enqueue("q", pieces(), unique_key="k", on_conflict="raise")
        await settle()
        assert len(rig.disk.blobs) == 1
        (claim,) = await rig.queue.claim("q")
        assert await whole(claim.open_payload()) == LARGE
