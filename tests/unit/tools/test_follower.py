"""The exporter's reader of a store: one commit at a time, and old numbers marked as old."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ledgerq.eventlog.clock import ManualClock
from ledgerq.eventlog.errors import StoreNotFound, StoreUnavailable
from ledgerq.eventlog.log import LogReader
from ledgerq.eventlog.memory import MemoryDisk, MemoryReader
from ledgerq.eventlog.store import Row
from ledgerq.projections.stats import QueueCounters
from ledgerq.tools.exporter.follower import Follower
from ledgerq.worker.queue import Queue
from tests.support.rig import Rig


class Moving(MemoryReader):
    """A view that moves on right after the first read of a range, some times."""

    def __init__(self, disk: MemoryDisk, queue: Queue, times: int) -> None:
        super().__init__(disk)
        self._queue = queue
        self._times = times

    async def scan(
        self, start: bytes, stop: bytes, *, reverse: bool = False, page_rows: int = 1000
    ) -> AsyncIterator[list[Row]]:
        async for rows in super().scan(start, stop, reverse=reverse, page_rows=page_rows):
            yield rows
        if self._times:
            self._times -= 1
            await self._queue.enqueue("mail", b"one more")


async def test_head_and_counters_are_of_one_commit() -> None:
    async with Rig() as rig:
        await rig.queue.enqueue("mail", b"a")
        follower = Follower("somewhere", clock=rig.clock, interval_s=1)
        moving = Moving(rig.disk, rig.queue, 3)
        head, rows = await follower._read(LogReader(moving, clock=rig.clock))
        assert head == rig.queue.log.durable_head
        assert QueueCounters.decode(rows["mail"]).view("mail").totals["enqueued"] == 4
        with pytest.raises(StoreUnavailable, match="changes faster than it can be read"):
            await follower._read(LogReader(Moving(rig.disk, rig.queue, 100), clock=rig.clock))


async def test_what_was_not_read_for_long_is_old(tmp_path: Path) -> None:
    url, clock = str(tmp_path / "store"), ManualClock()
    follower = Follower(url, clock=clock, interval_s=10)
    with pytest.raises(StoreNotFound):
        await follower.refresh()
    assert "there is no store" in (await follower.reasons())[0]
    async with Queue.open(url, clock=clock) as queue:
        await queue.enqueue("mail", b"a")
        await follower.refresh()
        clock.advance(seconds=29)
        assert await follower.reasons() == []
        clock.advance(seconds=2)
        assert await follower.reasons() == [f"{url} was last read 31 s ago"]
        await follower.try_refresh()
        assert await follower.reasons() == []
        # A view is made anew now and then, and when the clock went back.
        log = follower._log
        await follower.refresh()
        assert follower._log is log
        clock.advance(seconds=-3600)
        await follower.refresh()
        assert follower._log is not log
    await follower.close()
