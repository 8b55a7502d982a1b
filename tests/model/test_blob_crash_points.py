"""Large payloads, ended at every call of the store in every way that a process can end: a live job has its own, whole.

The calls of blobs are calls of the store here, too.
"""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from ledgerq.eventlog.blobs import BlobName, Blobs, MemoryBlobs
from ledgerq.eventlog.events import Swept
from ledgerq.eventlog.memory import MemoryDisk, MemoryReader, MemoryStore
from ledgerq.projections.audit import audit
from ledgerq.worker.engine import large_payloads
from ledgerq.worker.engine.large_payloads import LargePayloads
from ledgerq.worker.options import QueueOptions
from ledgerq.worker.queue import Queue
from tests.model.crash_points import CrashPoint, End, at_each_call, each_end, until_crash
from tests.support.rig import Rig

OPTIONS: dict[str, Any] = {"commit_interval_ms": 0.0, "default": QueueOptions(keep_done_s=60.0, max_crashes=None)}
TWO_HOURS_S = 2 * 3600.0
PIECE = 100
Told = dict[str, bytes]


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is large is not: the runs are many."""
    monkeypatch.setattr(large_payloads, "PIECE_BYTES", PIECE)


async def pieces(data: bytes) -> AsyncIterator[bytes]:
    """The bytes in two pieces."""
    yield data[:PIECE]
    yield data[PIECE:]


class CutBlobs(MemoryBlobs):
    """Blobs whose calls meet the fault of the store; one is there when it is whole."""

    def __init__(self, disk: MemoryDisk, point: CrashPoint) -> None:
        super().__init__(disk.blobs)
        self._point = point

    async def put(self, name: str, pieces: AsyncIterator[bytes]) -> None:
        """Write a blob, of which a part is there first."""
        await self._point("blob:begun")
        self._stored[name + ".part"] = await anext(pieces)
        await self._point("blob:half")
        self._stored[name] = self._stored.pop(name + ".part") + b"".join([piece async for piece in pieces])
        await self._point("blob:whole")

    async def delete(self, name: str) -> None:
        """Delete a blob."""
        await self._point("blob:deleting")
        await super().delete(name)
        await self._point("blob:deleted")


class CutStore(MemoryStore):
    """A store with such blobs."""

    def __init__(self, disk: MemoryDisk, point: CrashPoint) -> None:
        super().__init__(disk, fault=point)
        self._blobs = CutBlobs(disk, point)

    @property
    def blobs(self) -> Blobs:
        """The blobs."""
        return self._blobs


async def operate(rig: Rig, point: CrashPoint, told: Told) -> None:
    """Three large payloads are enqueued; one is worked off and swept, one is tried again, one is deleted."""
    point.store = store = CutStore(rig.disk, point)
    queue = rig.queue = await Queue.open(store=store, clock=rig.clock, entropy=rig.entropy, **OPTIONS)
    for number in range(3):
        data = b"%d" % number * PIECE * 2
        told[(await queue.enqueue("q", pieces(data))).job_id] = data
    done, again, last = await queue.claim("q", limit=3)
    for claim in (done, again, last):
        assert b"".join([piece async for piece in claim.open_payload()]) == told[claim.job_id]
    await queue.ack_many([done, last])
    await queue.nack(again, "boom", delay=0)
    await rig.advance(61)
    (claim,) = await queue.claim("q")
    assert b"".join([piece async for piece in claim.open_payload()]) == told[claim.job_id]
    await queue.release(claim)
    await queue.close()


async def check_promises(rig: Rig, told: Told) -> None:
    """Each job that is there has its payload; after two hours there are those of jobs, and no others."""
    await rig.check()
    if rig.disk.rows:
        report = await audit(MemoryReader(rig.disk), clock=rig.clock, deep=True)
        assert report.clean, report.differences
    for _ in range(2):
        queue = await rig.open(**OPTIONS)
        await rig.advance(0)
        jobs = (await queue.jobs("q")).jobs
        for job in jobs:
            data = b"".join([piece async for piece in queue.open_payload(job.job_id)])
            assert data == told.get(job.job_id, data)
            assert len(data) == 2 * PIECE
        for job_id in set(told) - {job.job_id for job in jobs}:
            assert isinstance((await queue.history(job_id))[-1].event, Swept)
        await queue.close()
        rig.clock.advance(seconds=TWO_HOURS_S)
    queue = await rig.open(**OPTIONS)
    await rig.advance(0)
    names = {str(BlobName(job.blob.id, job.id)) for job in (await queue.jobs("q")).jobs if job.blob is not None}
    await queue.close()
    assert {*rig.disk.blobs} == names, "orphans are left"


async def run_until_it_ends(rig: Rig, at: int | None, end: End) -> tuple[CrashPoint, Told]:
    """Run the scenario up to its end or the crash."""
    point, told = CrashPoint(at, end), Told()
    await until_crash(rig, point, end, operate(rig, point, told))
    return point, told


async def test_the_scenario_itself_goes_well() -> None:
    rig = Rig()
    point, told = await run_until_it_ends(rig, None, "error")
    assert (len(told), len(rig.disk.blobs)) == (3, 1)
    assert {call.split(":")[1] for call in point.calls if call.startswith("blob")} >= {"half", "whole", "deleted"}
    await check_promises(rig, told)


@each_end("vanish", 12)
async def test_large_payloads_that_are_ended_at_any_call_are_whole_and_of_a_job(end: End, step: int) -> None:
    await at_each_call(run_until_it_ends, check_promises, end, max(step, 2))


def deleted_before_its_event_is_durable(patch: pytest.MonkeyPatch) -> None:
    """A payload is deleted when the event by which its job is gone is staged."""

    def delete_at_once(self: LargePayloads) -> None:
        pass

    real = LargePayloads.start

    def start(self: LargePayloads) -> None:
        real(self)
        state = self._writer_state
        before = state.on_change

        def changed(old: Any, new: Any) -> None:
            before(old, new)
            if new is None and old.blob is not None:
                patched: Any = state.log.store.blobs
                patched._stored.pop(str(BlobName(old.blob.id, old.id)), None)

        state.on_change = changed

    patch.setattr(LargePayloads, "delete_gone", delete_at_once)
    patch.setattr(LargePayloads, "start", start)


def event_before_the_payload(patch: pytest.MonkeyPatch) -> None:
    """A payload counts as written when its last piece was taken, and is there later, if at all."""
    late: list[tuple[CutBlobs, str, bytes]] = []

    async def put(self: CutBlobs, name: str, pieces: AsyncIterator[bytes]) -> None:
        late.append((self, name, b"".join([piece async for piece in pieces])))
        if len(late) > 1:
            blobs, name, data = late.pop(0)
            blobs._stored[name] = data

    patch.setattr(CutBlobs, "put", put)


def orphans_stay(patch: pytest.MonkeyPatch) -> None:
    """What no job has is never looked for."""
    patch.setattr(LargePayloads, "start", lambda self: None)
    patch.setattr(LargePayloads, "_look_daily", lambda self: None)


@pytest.mark.proof
@pytest.mark.parametrize(
    ("defect", "how"),
    [
        (deleted_before_its_event_is_durable, "is missing"),
        (event_before_the_payload, "is missing"),
        (orphans_stay, "orphans are left"),
    ],
)
async def test_planted_defects_are_noticed(defect: Any, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    defect(monkeypatch)
    with pytest.raises(AssertionError, match=how):
        await at_each_call(run_until_it_ends, check_promises, "vanish", 1)
