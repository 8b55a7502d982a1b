"""Opening a log, closing it, and losing it to another writer."""

import asyncio
from typing import Any

import pytest

from ledgerq.eventlog import keys
from ledgerq.eventlog.clock import ManualClock
from ledgerq.eventlog.errors import Fenced, LogCorrupt, QueueClosed, WrongLoop
from ledgerq.eventlog.memory import MemoryDisk
from tests.support.loops import settle
from tests.support.rig import Faults
from tests.support.small_logs import Watcher, append, change_batch, change_head, event, start_log, stored, write_log

START_MS = ManualClock().now_ms()


async def test_another_loop_is_refused() -> None:
    log = await start_log(MemoryDisk())

    async def check() -> None:
        log.check()

    with pytest.raises(WrongLoop):
        await asyncio.to_thread(lambda: asyncio.run(check()))
    log.check()
    await log.close()


async def test_closing_commits_what_is_staged() -> None:
    disk = MemoryDisk()
    log = await start_log(disk)
    task = asyncio.create_task(append(log, 0))
    await asyncio.sleep(0)
    log.append(event(1))
    await log.close()
    assert await task == 0
    assert [len(batch.events) for batch in await stored(disk)] == [2]
    with pytest.raises(QueueClosed):
        log.check()


async def test_closing_waits_for_the_commit_in_flight_and_the_one_behind_it() -> None:
    disk, faults = MemoryDisk(), Faults()
    log = await start_log(disk, fault=faults)
    faults.hold("sync:before")
    tasks = [asyncio.create_task(append(log, 0))]
    await settle()
    tasks.append(asyncio.create_task(append(log, 1)))
    closing = asyncio.create_task(log.close())
    await settle()
    assert not closing.done()
    faults.let_go("sync:before")
    await closing
    assert await asyncio.gather(*tasks) == [0, 1]
    assert len(await stored(disk)) == 2


async def test_closing_twice_closes_the_store_once() -> None:
    faults = Faults()
    log = await start_log(MemoryDisk(), fault=faults)
    await log.close()
    await log.close()
    assert faults.calls.count("close") == 1


@pytest.mark.parametrize(
    "damage",
    [{"base_offset": 0}, {"base_offset": 3}, {"epoch": 0}, {"epoch": 9}, {"time_ms": START_MS}, {"digest": bytes(32)}],
)
async def test_a_log_whose_head_is_damaged_is_not_opened(damage: dict[str, Any]) -> None:
    disk = MemoryDisk()
    await write_log(disk, [2, 2])
    disk.anchor = None
    change_head(disk, **damage)
    with pytest.raises(LogCorrupt):
        await start_log(disk)


@pytest.mark.parametrize("base", [0, 2])
async def test_a_log_whose_last_batch_is_damaged_or_gone_is_not_opened(base: int) -> None:
    disk = MemoryDisk()
    await write_log(disk, [2, 2][: base // 2 + 1])
    disk.anchor = None
    change_batch(disk, base, number=99)
    with pytest.raises(LogCorrupt) as caught:
        await start_log(disk)
    assert caught.value.offset == base
    del disk.rows[keys.log_key(base)]
    with pytest.raises(LogCorrupt) as caught:
        await start_log(disk)
    assert caught.value.offset == base


# Fencing


async def test_a_second_writer_fences_the_first() -> None:
    disk = MemoryDisk()
    first = await start_log(disk)
    assert await append(first, 0) == 0
    second = await start_log(disk)
    assert second.epoch == first.epoch + 1
    with pytest.raises(Fenced):
        await append(first, 1)
    with pytest.raises(Fenced):
        first.check()
    assert await append(second, 2) == 1
    await first.close()
    await second.close()
    assert [(batch.epoch, batch.events) for batch in await stored(disk)] == [(1, [event(0)]), (2, [event(2)])]


async def test_an_idle_writer_learns_that_it_was_fenced() -> None:
    disk, clock, watcher = MemoryDisk(), ManualClock(), Watcher()
    first = await start_log(disk, clock, watcher=watcher)
    second = await start_log(disk, ManualClock())
    first.check()
    clock.advance(seconds=1)
    assert isinstance(first.failure, Fenced)
    assert watcher.failures == [first.failure]
    with pytest.raises(Fenced):
        first.check()
    await first.close()
    await second.close()


async def test_a_writer_fenced_while_its_commit_is_on_its_way_reports_nothing() -> None:
    disk, faults, clock = MemoryDisk(), Faults(), ManualClock()
    first = await start_log(disk, clock, fault=faults)
    faults.hold("sync:before")
    task = asyncio.create_task(append(first, 0))
    await settle()
    second = await start_log(disk, ManualClock())
    clock.advance(seconds=1)
    await settle()
    clock.advance(seconds=1)  # the commit on its way had until then to say so itself
    with pytest.raises(Fenced):
        await task
    faults.let_go("sync:before")
    await settle()
    assert first.durable_head.next_offset == 0
    await first.close()
    await second.close()
    assert await stored(disk) == []
