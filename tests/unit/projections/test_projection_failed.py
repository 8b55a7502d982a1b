"""A user's projection that raises is no reason to call a ledger clean, or to write half of its rows."""

import asyncio
import logging
from collections.abc import Mapping

import pytest

from ledgerq import ProjectionFailed, Transition
from ledgerq.eventlog.memory import MemoryReader, MemoryStore
from ledgerq.projections.audit import audit
from ledgerq.projections.rebuild import rebuild
from tests.support.loops import settle
from tests.support.rig import Rig


class Broken:
    name = "broken"

    def restore(self, rows: Mapping[bytes, bytes]) -> None:
        pass

    def apply(self, transition: Transition) -> Mapping[bytes, bytes | None]:
        raise RuntimeError("a mistake")


async def test_audit_and_rebuild_say_that_a_projection_raised_and_write_nothing() -> None:
    async with Rig() as rig:
        await rig.queue.enqueue("q", b"1")
    with pytest.raises(ProjectionFailed, match=r"broken.*a mistake"):
        await audit(MemoryReader(rig.disk), clock=rig.clock, projections=[Broken()])
    before = dict(rig.disk.rows)
    with pytest.raises(ProjectionFailed, match="broken"):
        await rebuild(MemoryStore(rig.disk), clock=rig.clock, actor="a", reason="r", projections=[Broken()])
    assert dict(rig.disk.rows) == before
    await rebuild(MemoryStore(rig.disk), clock=rig.clock, actor="a", reason="r", only="jobs", projections=[Broken()])


async def test_logging_that_raises_about_it_ends_no_commit() -> None:
    told: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(str(context["exception"])))

    def no_logging(record: logging.LogRecord) -> bool:
        raise OSError("no logging today")

    log = logging.getLogger("ledgerq.projections")
    log.addFilter(no_logging)
    try:
        async with Rig(projections=[Broken()]) as rig:
            await rig.queue.enqueue("q", b"1")
            await rig.queue.enqueue("q", b"2")
            await settle()
    finally:
        log.removeFilter(no_logging)
    assert told == ["no logging today"]
