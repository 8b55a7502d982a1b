"""Commits that overlap: order, cohorts, failures and refusals, on a store that stalls where a test says so."""

import asyncio

import pytest

from ledgerq.eventlog import writer
from ledgerq.eventlog.clock import ManualClock
from ledgerq.eventlog.errors import ClockWentBack, LedgerError, OutcomeUnknown, StoreUnavailable
from ledgerq.eventlog.memory import MemoryDisk, MemoryStore
from ledgerq.eventlog.pace import CommitPace
from ledgerq.eventlog.writer import EventLog
from tests.support.loops import settle
from tests.support.rig import Faults
from tests.support.small_logs import Watcher, append, event, stored

START_MS = ManualClock().now_ms()


async def overlapping_log(disk: MemoryDisk, faults: Faults, watcher: Watcher | None = None) -> EventLog:
    """A log whose commits overlap, on this disk."""
    store = MemoryStore(disk, fault=faults)
    log = EventLog(store, clock=ManualClock(), commit_hook=watcher or Watcher(), pace=CommitPace(overlap=True))
    await log.start()
    return log


async def two_in_flight(log: EventLog, faults: Faults) -> list[asyncio.Task[int]]:
    """Callers of one commit that stalls in its sync, and of a second one that is written behind it."""
    await append(log, 0)
    faults.hold("sync:before")
    tasks = [asyncio.create_task(append(log, number)) for number in (1, 2)]
    await settle()
    tasks += [asyncio.create_task(append(log, number)) for number in (3, 4)]
    await settle()
    return tasks


async def test_a_second_commit_is_written_while_the_first_is_synced() -> None:
    disk, faults, watcher = MemoryDisk(), Faults(), Watcher()
    log = await overlapping_log(disk, faults, watcher)
    callers, rounds = 8, 20

    async def caller(number: int) -> None:
        for _ in range(rounds):
            await append(log, number)

    tasks = [asyncio.create_task(caller(number)) for number in range(callers)]
    writes: list[int] = []
    while not all(task.done() for task in tasks):
        faults.hold("sync:before")
        await settle()
        writes.append(faults.calls.count("write:after") - faults.calls.count("sync:after"))
        faults.let_go("sync:before")
        await settle(3)
    await asyncio.gather(*tasks)
    await log.close()
    assert max(writes) == 2
    batches = await stored(disk)
    assert [batch.base_offset for batch in batches] == watcher.durable
    assert sum(len(batch.events) for batch in batches) == callers * rounds
    # Cohorts of a half each: neither all callers in one commit, nor one commit for each of them.
    sizes = [len(batch.events) for batch in batches[2:-2]]
    assert max(sizes) < callers
    assert sum(sizes) / len(sizes) > callers / 3


async def test_never_more_than_two_are_in_flight_and_the_rest_share_the_third() -> None:
    disk, faults = MemoryDisk(), Faults()
    log = await overlapping_log(disk, faults)
    tasks = await two_in_flight(log, faults)
    for number in range(5, 12):
        tasks.append(asyncio.create_task(append(log, number)))
        await settle()
    assert len(log._flights.under_way) <= 2
    faults.let_go("sync:before")
    assert await asyncio.gather(*tasks) == list(range(1, 12))
    await log.close()
    assert len(await stored(disk)) <= 5


async def test_callers_are_answered_in_the_order_of_the_log() -> None:
    faults, watcher = Faults(), Watcher()
    log = await overlapping_log(MemoryDisk(), faults, watcher)
    tasks = await two_in_flight(log, faults)
    answered: list[int] = []
    for task in tasks:
        task.add_done_callback(lambda done: answered.append(done.result()))
    faults.let_go("sync:before")
    await asyncio.gather(*tasks)
    await settle()
    assert answered == sorted(answered)
    assert watcher.durable == sorted(watcher.durable)
    await log.close()


@pytest.mark.parametrize("error", [StoreUnavailable("gone"), OutcomeUnknown("no word")])
async def test_a_failed_commit_fails_all_behind_it(error: LedgerError) -> None:
    faults, watcher = Faults(), Watcher()
    log = await overlapping_log(MemoryDisk(), faults, watcher)
    tasks = await two_in_flight(log, faults)
    assert len(log._flights.under_way) == 2
    faults.spoil("sync:after", error)
    faults.let_go("sync:before")
    assert await asyncio.gather(*tasks, return_exceptions=True) == [error] * 4
    assert log.failure is error
    assert watcher.failures == [error]
    assert log.durable_head.next_offset == 1
    await log.close()


async def test_a_commit_that_was_refused_is_written_before_the_one_behind_it() -> None:
    disk, faults, watcher = MemoryDisk(), Faults(), Watcher()
    log = await overlapping_log(disk, faults, watcher)
    await append(log, 0)
    faults.hold("write:before")
    tasks = [asyncio.create_task(append(log, number)) for number in (1, 2)]
    await settle()
    tasks += [asyncio.create_task(append(log, number)) for number in (3, 4)]
    await settle()
    assert len(log._flights.under_way) == 2

    async def refuse_once(call: str) -> None:
        if call == "write:before" and refusals:
            raise refusals.pop()
        await faults(call)

    refusals = [ClockWentBack(START_MS - 1, START_MS)]
    log.store._fault = refuse_once  # type: ignore[attr-defined]
    # The first one stalls in its write still: it is refused when it goes on, and the one behind it with it.
    faults.spoil("write:after", ClockWentBack(START_MS - 1, START_MS))
    faults.let_go("write:before")
    assert await asyncio.gather(*tasks) == [1, 2, 3, 4]
    await log.close()
    batches = await stored(disk)
    assert [record.event for batch in batches for record in batch.records()] == [event(number) for number in range(5)]
    assert watcher.durable == [batch.base_offset for batch in batches]


async def test_a_bulk_call_is_not_cut_in_two() -> None:
    disk, faults = MemoryDisk(), Faults()
    log = await overlapping_log(disk, faults)
    tasks = await two_in_flight(log, faults)
    faults.let_go("sync:before")
    await asyncio.gather(*tasks)

    async def bulk() -> None:
        async with log.gathering():
            for number in range(6):
                log.append(event(number))
                await asyncio.sleep(0)
        await log.committed()

    others = [asyncio.create_task(append(log, number)) for number in range(3)]
    await asyncio.gather(bulk(), *others)
    await log.close()
    sizes = [len(batch.events) for batch in await stored(disk)]
    assert any(size >= 6 for size in sizes)


async def test_large_commits_overlap_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "_AT_ONCE_EVENTS", 1)
    disk, faults = MemoryDisk(), Faults()
    log = await overlapping_log(disk, faults)
    tasks = await two_in_flight(log, faults)
    assert len(log._flights.under_way) == 2
    faults.let_go("sync:before")
    assert await asyncio.gather(*tasks) == [1, 2, 3, 4]
    await log.close()


async def test_closing_waits_for_both() -> None:
    disk, faults = MemoryDisk(), Faults()
    log = await overlapping_log(disk, faults)
    tasks = await two_in_flight(log, faults)
    closing = asyncio.create_task(log.close())
    await settle()
    assert not closing.done()
    faults.let_go("sync:before")
    await closing
    assert await asyncio.gather(*tasks) == [1, 2, 3, 4]
    assert len(await stored(disk)) == 3


async def test_a_crash_between_both_keeps_the_first_or_both() -> None:
    disk, faults = MemoryDisk(), Faults()
    log = await overlapping_log(disk, faults)
    tasks = await two_in_flight(log, faults)
    MemoryStore(disk)  # another writer: this one ends here
    faults.let_go("sync:before")
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(result, LedgerError) for result in results)
    assert [len(batch.events) for batch in await stored(disk)] in ([1], [1, 2], [1, 2, 2])
    await log.close()
