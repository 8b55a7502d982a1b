"""Group commit: what is staged together is written together, reported when durable, and never after a failure."""

import asyncio

import pytest

from ledgerq.eventlog import appender
from ledgerq.eventlog.clock import ManualClock
from ledgerq.eventlog.errors import (
    ClockWentBack,
    Fenced,
    LedgerError,
    LogPoisoned,
    OutcomeUnknown,
    StoreUnavailable,
)
from ledgerq.eventlog.memory import MemoryDisk, MemoryStore
from ledgerq.eventlog.writer import EventLog
from tests.support.loops import settle
from tests.support.rig import Faults
from tests.support.small_logs import Watcher, append, event, start_log, stored, write_log

START_MS = ManualClock().now_ms()


async def test_what_many_callers_append_at_once_is_one_batch_in_their_order() -> None:
    disk, faults = MemoryDisk(), Faults()
    log = await start_log(disk, fault=faults)
    offsets = await asyncio.gather(*(append(log, number) for number in range(100)))
    await log.close()
    assert offsets == list(range(100))
    assert [batch.events for batch in await stored(disk)] == [[event(number) for number in range(100)]]
    assert faults.calls.count("write:before") == faults.calls.count("sync:before") == 1


async def test_a_commit_fills_while_another_is_in_flight() -> None:
    disk, faults = MemoryDisk(), Faults()
    log = await start_log(disk, fault=faults)
    faults.hold("sync:before")
    tasks = [asyncio.create_task(append(log, 0))]
    await settle()
    for number in range(1, 6):
        tasks.append(asyncio.create_task(append(log, number)))
        await settle()
    assert faults.calls.count("write:before") == 1
    faults.let_go("sync:before")
    assert await asyncio.gather(*tasks) == list(range(6))
    await log.close()
    assert [(batch.base_offset, len(batch.events)) for batch in await stored(disk)] == [(0, 1), (1, 5)]


async def test_offsets_are_gapless_over_commits_and_writers() -> None:
    disk = MemoryDisk()
    bases = await write_log(disk, [1, 3, 2])
    bases += await write_log(disk, [2, 1], ManualClock(START_MS + 1000))
    batches = await stored(disk)
    assert bases == [batch.base_offset for batch in batches] == [0, 1, 4, 6, 8]
    assert [record.offset for batch in batches for record in batch.records()] == list(range(9))
    assert [batch.epoch for batch in batches] == [1, 1, 1, 2, 2]


@pytest.mark.parametrize("call", ["write:before", "write:after", "sync:before", "sync:after"])
async def test_nothing_is_reported_before_the_sync_has_returned(call: str) -> None:
    disk, faults, watcher = MemoryDisk(), Faults(), Watcher()
    log = await start_log(disk, fault=faults, watcher=watcher)
    faults.hold(call)
    task = asyncio.create_task(append(log, 0))
    await settle()
    assert not task.done()
    assert watcher.durable == []
    assert log.durable_head.next_offset == 0
    faults.let_go(call)
    assert await task == 0
    assert watcher.durable == [0]
    assert log.durable_head.next_offset == 1
    await log.close()


async def test_nothing_staged_means_nothing_to_wait_for() -> None:
    log = await start_log(MemoryDisk())
    await log.committed()
    assert log.durable_head.next_offset == 0
    await log.close()


async def test_the_age_of_what_is_not_durable_yet_can_be_told() -> None:
    disk, faults, clock = MemoryDisk(), Faults(), ManualClock()
    log = await start_log(disk, clock, fault=faults)
    assert log.waiting_since_ms is None
    faults.hold("sync:before")
    first = asyncio.create_task(append(log, 0))
    await settle()
    clock.advance(seconds=0.5)
    second = asyncio.create_task(append(log, 1))
    await settle()
    clock.advance(seconds=0.5)
    assert log.waiting_since_ms == START_MS
    faults.let_go("sync:before")
    await asyncio.gather(first, second)
    assert log.waiting_since_ms is None
    await log.close()


async def test_a_waiter_that_goes_away_leaves_the_commit_alone() -> None:
    disk, faults = MemoryDisk(), Faults()
    log = await start_log(disk, fault=faults)
    faults.hold("sync:before")
    tasks = [asyncio.create_task(append(log, number)) for number in range(3)]
    await settle()
    tasks[1].cancel()
    faults.let_go("sync:before")
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert (results[0], type(results[1]), results[2]) == (0, asyncio.CancelledError, 2)
    await log.close()
    assert [len(batch.events) for batch in await stored(disk)] == [3]


@pytest.mark.parametrize("call", ["write:after", "sync:before", "sync:after"])
@pytest.mark.parametrize("error", [StoreUnavailable("gone"), OutcomeUnknown("no word"), Fenced("another")])
async def test_after_a_failure_every_waiter_is_told_and_nothing_more_is_written(call: str, error: LedgerError) -> None:
    faults, watcher = Faults(), Watcher()
    log = await start_log(MemoryDisk(), fault=faults, watcher=watcher)
    faults.hold("write:before")
    first = [asyncio.create_task(append(log, number)) for number in range(3)]
    await settle()
    behind = [asyncio.create_task(append(log, number)) for number in range(3)]
    await settle()
    faults.spoil(call, error)
    faults.let_go("write:before")
    assert await asyncio.gather(*first, *behind, return_exceptions=True) == [error] * 6
    assert log.failure is error
    assert watcher.failures == [error]
    with pytest.raises(type(error)):
        log.check()
    with pytest.raises(type(error)):
        await log.committed()
    assert faults.calls.count("write:before") == 1
    await log.close()


async def test_a_write_that_is_refused_leaves_nothing_behind() -> None:
    disk, faults = MemoryDisk(), Faults()
    log = await start_log(disk, fault=faults)
    await append(log, 0)
    faults.spoil("write:before", StoreUnavailable("gone"))
    with pytest.raises(StoreUnavailable):
        await append(log, 1)
    await log.close()
    assert len(await stored(disk)) == 1


async def test_an_unforeseen_error_poisons_the_log() -> None:
    faults = Faults()
    log = await start_log(MemoryDisk(), fault=faults)
    faults.spoil("write:before", RuntimeError("a bug"))
    with pytest.raises(LogPoisoned, match="a bug"):
        await append(log, 0)
    with pytest.raises(LogPoisoned):
        log.check()
    with pytest.raises(RuntimeError, match="a bug"):
        await log.close()


# The clock


async def test_a_small_step_back_of_the_clock_is_waited_for_and_the_commit_written_once() -> None:
    disk, faults, watcher = MemoryDisk(), Faults(), Watcher()
    log = await start_log(disk, fault=faults, watcher=watcher)
    faults.spoil("write:before", ClockWentBack(START_MS - 1, START_MS), ClockWentBack(START_MS, START_MS))
    assert await append(log, 0) == 0
    assert faults.calls.count("write:before") == 3
    assert faults.calls.count("write:after") == 1
    assert watcher.filled == [0, 0, 0]
    assert watcher.durable == [0]
    await log.close()
    assert len(await stored(disk)) == 1


async def test_a_large_step_back_of_the_clock_is_the_operators_business() -> None:
    faults = Faults()
    log = await start_log(MemoryDisk(), fault=faults)
    faults.spoil("write:before", ClockWentBack(START_MS - 5001, START_MS))
    with pytest.raises(ClockWentBack, match=r"0:00:05\.001000 later"):
        await append(log, 0)
    await log.close()


async def test_commit_times_never_decrease_whatever_the_clock_does() -> None:
    disk, clock = MemoryDisk(), ManualClock()
    log = await start_log(disk, clock)
    for step_ms in (5, -500, 1, 600, -1):
        clock.set(clock.now_ms() + step_ms)
        await append(log, 0)
    await log.close()
    await write_log(disk, [1], ManualClock(START_MS - 10_000))  # another process, with another clock
    assert [batch.time_ms - START_MS for batch in await stored(disk)] == [5, 5, 5, 106, 106, 106]


# Back-pressure


async def test_a_full_commit_keeps_callers_waiting_until_it_is_durable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(appender, "_FULL_EVENTS", 3)
    faults = Faults()
    log = await start_log(MemoryDisk(), fault=faults)
    faults.hold("write:before")
    first = asyncio.create_task(append(log, 0))
    await settle()
    assert not log.full
    for number in range(3):
        log.append(event(number))
    assert log.full
    room = asyncio.create_task(log.until_not_full())
    await settle()
    assert not room.done()
    faults.let_go("write:before")
    await room
    await first
    assert not log.full
    assert log.durable_head.next_offset == 4
    await log.close()


async def test_large_payloads_fill_a_commit_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(appender, "_FULL_BYTES", 100)
    disk = MemoryDisk()
    log = await start_log(disk)
    log.append_payload(log.append(event(0)), b"x" * 99)
    assert not log.full
    log.append_payload(log.append(event(1)), b"y")
    assert log.full
    await log.until_not_full()
    await log.close()
    assert {disk.rows[b"p/" + bytes(7) + b"\0"], disk.rows[b"p/" + bytes(7) + b"\1"]} == {b"x" * 99, b"y"}


async def test_nobody_waits_for_room_in_a_log_that_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(appender, "_FULL_EVENTS", 1)
    faults = Faults()
    log = await start_log(MemoryDisk(), fault=faults)
    faults.spoil("sync:before", StoreUnavailable("gone"))
    log.append(event(0))
    with pytest.raises(StoreUnavailable):
        await log.until_not_full()
    await log.until_not_full()
    await log.close()


class Doubtful(MemoryStore):
    """A store that can be made to doubt, at its idle check, that it takes writes."""

    doubt: LedgerError | None = None

    def failure(self) -> LedgerError | None:
        """The doubt."""
        return self.doubt


async def test_a_commit_that_lands_after_the_log_failed_is_not_reported() -> None:
    faults, clock, watcher = Faults(), ManualClock(), Watcher()
    store = Doubtful(fault=faults)
    log = EventLog(store, clock=clock, commit_hook=watcher)
    await log.start()
    faults.hold("sync:before")
    task = asyncio.create_task(append(log, 0))
    await settle()
    store.doubt = StoreUnavailable("no word")
    clock.advance(seconds=1)
    assert log.failure is None, "the commit may know better"
    clock.advance(seconds=1)
    store.doubt = None
    with pytest.raises(StoreUnavailable):
        await task
    faults.let_go("sync:before")
    await settle()
    assert (watcher.durable, log.durable_head.next_offset) == ([], 0)
    with pytest.raises(StoreUnavailable):
        log.check()
    await log.close()


async def test_a_commit_that_is_refused_says_why_itself_though_the_store_has_stopped() -> None:
    faults, clock = Faults(), ManualClock()
    store = Doubtful(fault=faults)
    log = EventLog(store, clock=clock, commit_hook=Watcher())
    await log.start()
    faults.hold("write:before")
    faults.spoil("sync:before", ClockWentBack(START_MS - 5001, START_MS))
    task = asyncio.create_task(append(log, 0))
    await settle()
    store.doubt = LogPoisoned("something stopped")
    clock.advance(seconds=1)
    store.doubt = None
    faults.let_go("write:before")
    with pytest.raises(ClockWentBack):
        await task
    assert isinstance(log.failure, ClockWentBack)
    await log.close()
