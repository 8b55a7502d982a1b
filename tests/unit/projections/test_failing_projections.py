"""Projections that raise any error at any moment: the queue goes on, nothing is lost, and the rebuild reports it."""

import asyncio
from collections.abc import Mapping

import pytest

from ledgerq import ProjectionFailed, Transition
from ledgerq.eventlog.memory import MemoryReader, MemoryStore
from ledgerq.projections.audit import audit
from ledgerq.projections.rebuild import rebuild
from tests.support.rig import Rig

RAISED = [
    RuntimeError("a mistake"),
    StopIteration(),
    RecursionError(),
    MemoryError(),
    SystemExit(3),
    asyncio.CancelledError(),
    GeneratorExit(),
    TimeoutError(),
]
each_error = pytest.mark.parametrize("error", RAISED, ids=lambda error: type(error).__name__)


class Raising:
    """Raises `error` while it is `broken`; counts transitions otherwise."""

    name = "raising"

    def __init__(self, error: BaseException, *, where: str = "apply") -> None:
        self.error = error
        self.broken = False
        self._where = where
        self._count = 0

    def restore(self, rows: Mapping[bytes, bytes]) -> None:
        """Start from the rows."""
        if self.broken and self._where == "restore":
            raise self.error
        self._count = int(rows.get(b"count", b"0"))

    def apply(self, transition: Transition) -> Mapping[bytes, bytes | None]:
        """Count."""
        if self.broken and self._where == "apply":
            raise self.error
        self._count += 1
        return {b"count": b"%d" % self._count}


def count(rig: Rig) -> int:
    """The count in the projection's row."""
    return int(rig.disk.rows.get(b"x/raising\0count", b"0"))


@each_error
async def test_a_projection_that_raises_while_the_queue_works(error: BaseException) -> None:
    projection = Raising(error)
    async with Rig(projections=[projection]) as rig:
        await rig.queue.enqueue("q", b"1")
        before = count(rig)
        projection.broken = True
        job = await rig.queue.enqueue("q", b"2")
        claims = await rig.queue.claim("q", limit=2)
        await rig.queue.ack_many(claims)
        assert rig.queue.failure is None
        assert (await rig.queue.get(job.job_id)).state == "done"
        assert count(rig) == before
        projection.broken = False
        await rig.reopen()
        head = await rig.queue.log.head()
        assert count(rig) == head.next_offset


@each_error
@pytest.mark.parametrize("where", ["restore", "apply"])
async def test_a_projection_that_raises_while_the_queue_opens(error: BaseException, where: str) -> None:
    projection = Raising(error, where=where)
    async with Rig() as rig:
        await rig.queue.enqueue("q", b"1")
        projection.broken = True
        await rig.reopen(projections=[projection])
        await rig.queue.enqueue("q", b"2")
        assert rig.queue.failure is None
        assert (await rig.queue.stats("q")).pending == 2
        projection.broken = False
        await rig.reopen(projections=[projection])
        assert count(rig) == (await rig.queue.log.head()).next_offset


@each_error
async def test_a_projection_that_raises_in_a_rebuild_or_an_audit(error: BaseException) -> None:
    projection = Raising(error)
    async with Rig(projections=[projection]) as rig:
        await rig.queue.enqueue("q", b"1")
    projection.broken = True
    before = dict(rig.disk.rows)
    with pytest.raises(ProjectionFailed, match="raising"):
        await audit(MemoryReader(rig.disk), clock=rig.clock, projections=[projection])
    for only in (None, "raising"):
        with pytest.raises(ProjectionFailed, match="raising"):
            await rebuild(
                MemoryStore(rig.disk), clock=rig.clock, actor="a", reason="r", only=only, projections=[projection]
            )
    assert dict(rig.disk.rows) == before


async def test_ctrl_c_in_a_projection_is_meant_for_the_program() -> None:
    """It is the one thing that is no mistake of the projection's. What was not confirmed is learnt by opening again."""
    projection = Raising(KeyboardInterrupt())
    rig = Rig(projections=[projection])
    await rig.open()
    await rig.queue.enqueue("q", b"1")
    projection.broken = True
    with pytest.raises(KeyboardInterrupt):
        rig.queue._core.writer_state.host.project([Transition(5, 5, (await rig.events())[0], None, None)], 6, {})
    projection.broken = False
    await rig.queue.close()
    await rig.check()
