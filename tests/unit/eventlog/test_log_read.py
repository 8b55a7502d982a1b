"""Reading the log: ranges of records, the way from an offset or a time to a batch, and following what comes."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledgerq.eventlog import keys
from ledgerq.eventlog.clock import ManualClock
from ledgerq.eventlog.errors import Fenced, FormatTooNew, InvalidArgument, LogCorrupt, QueueClosed, StoreNotFound
from ledgerq.eventlog.events import Record
from ledgerq.eventlog.memory import MemoryDisk
from tests.support.histories import quick
from tests.support.loops import settle
from tests.support.rig import Faults
from tests.support.small_logs import STEP_MS, event, reader, start_log, write_log

SIZES = (3, 1, 2)
START_MS = ManualClock().now_ms()


async def written() -> MemoryDisk:
    """A disk with the batches of `SIZES`, one each `STEP_MS`."""
    disk = MemoryDisk()
    await write_log(disk, SIZES)
    return disk


@quick
@given(st.lists(st.integers(1, 3), max_size=6), st.integers(-2, 20), st.none() | st.integers(-2, 20))
async def test_a_read_gives_the_records_of_its_range(sizes: list[int], start: int, stop: int | None) -> None:
    disk = MemoryDisk()
    await write_log(disk, sizes)
    expected = [offset for offset in range(sum(sizes)) if offset >= start and (stop is None or offset < stop)]
    records = [record async for record in reader(disk).read(start, stop)]
    assert [record.offset for record in records] == expected
    assert [record.event for record in records] == [event(offset) for offset in expected]


async def test_a_record_carries_its_commits_time_and_epoch() -> None:
    records = [record async for record in reader(await written()).read()]
    assert [record.time_ms - START_MS for record in records] == [10, 10, 10, 20, 30, 30]
    assert {record.epoch for record in records} == {1}


async def test_the_batch_at_an_offset_is_the_last_that_starts_at_or_before_it() -> None:
    log = reader(await written())
    found = [await log.batch_at(offset) for offset in (-1, 0, 2, 3, 4, 5, 6, 1000)]
    assert [batch and batch.base_offset for batch in found] == [None, 0, 0, 3, 4, 4, 4, 4]
    assert await reader(MemoryDisk()).batch_at(0) is None


@quick
@given(
    st.lists(st.tuples(st.integers(1, 3), st.integers(0, 3)), max_size=8),
    st.lists(st.integers(-1, 30), min_size=1, max_size=5),
)
async def test_the_offset_at_a_time_is_that_after_the_last_event_until_then(
    batches: list[tuple[int, int]], times: list[int]
) -> None:
    disk, clock = MemoryDisk(), ManualClock()
    log = await start_log(disk, clock)
    commit_times: list[int] = []
    for size, step_ms in batches:
        clock.advance(seconds=step_ms / 1000)
        for _ in range(size):
            log.append(event(0))
            commit_times.append(clock.now_ms())
        await log.committed()
    await log.close()
    for time in times:
        expected = sum(commit_ms <= START_MS + time for commit_ms in commit_times)
        assert await reader(disk).offset_at_time(START_MS + time) == expected


@pytest.mark.parametrize("removed", [0, 3, 4])
async def test_looking_for_a_time_ends_in_a_log_with_a_gap_too(removed: int) -> None:
    disk = await written()
    del disk.rows[keys.log_key(removed)]
    looks = [reader(disk).offset_at_time(START_MS + ms) for ms in range(0, 50, 5)]
    found = await asyncio.gather(*looks, return_exceptions=True)
    assert {error.offset for error in found if isinstance(error, LogCorrupt)} <= {removed}
    assert all(isinstance(offset, int | LogCorrupt) for offset in found)


# The format


async def test_a_store_without_a_ledger_is_told_from_one_with() -> None:
    assert await reader(await written()).check_format()
    assert not await reader(MemoryDisk()).check_format()
    await reader(await written()).require_format()
    with pytest.raises(StoreNotFound, match="memory:///"):
        await reader(MemoryDisk()).require_format()


async def test_somebody_elses_data_is_refused() -> None:
    disk = MemoryDisk()
    disk.rows[b"theirs"] = b"1"
    with pytest.raises(InvalidArgument, match="theirs"):
        await reader(disk).check_format()
    with pytest.raises(InvalidArgument):
        await start_log(disk)


@pytest.mark.parametrize(("value", "error"), [(b"4", FormatTooNew), (b"1000", FormatTooNew), (b"one", LogCorrupt)])
async def test_another_format_is_refused(value: bytes, error: type[Exception]) -> None:
    disk = await written()
    disk.rows[keys.FORMAT_KEY] = value
    with pytest.raises(error):
        await start_log(disk)


# Following


class Follower:
    """A task that gathers what a tail yields."""

    def __init__(self, records: AsyncIterator[Record]) -> None:
        self.offsets: list[int] = []
        self.task = asyncio.create_task(self._run(records))

    async def _run(self, records: AsyncIterator[Record]) -> None:
        async for record in records:
            self.offsets.append(record.offset)

    async def end(self) -> None:
        """Stop following."""
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


async def test_a_writers_tail_gives_what_is_there_and_then_each_commit() -> None:
    log = await start_log(await written())
    follower = Follower(log.tail(2))
    await settle()
    assert follower.offsets == [2, 3, 4, 5]
    for expected in (6, 7):
        log.append(event(0))
        await log.committed()
        await settle()
        assert follower.offsets[-1] == expected
    await log.close()
    with pytest.raises(QueueClosed):
        await follower.task
    assert follower.offsets == [2, 3, 4, 5, 6, 7]


async def test_a_tail_may_begin_after_the_end() -> None:
    log = await start_log(await written())
    follower = Follower(log.tail(7))
    for _ in range(3):
        log.append(event(0))
        await log.committed()
        await settle()
    assert follower.offsets == [7, 8]
    await follower.end()
    await log.close()


@pytest.mark.parametrize("call", ["write:after", "sync:before"])
async def test_a_writer_reads_and_follows_only_what_is_durable(call: str) -> None:
    faults = Faults()
    log = await start_log(await written(), fault=faults)
    follower = Follower(log.tail(4))
    faults.hold(call)
    log.append(event(0))
    await settle()
    late = Follower(log.tail(4))
    await settle()
    assert [record.offset async for record in log.read(4)] == [4, 5]
    assert follower.offsets == late.offsets == [4, 5]
    faults.let_go(call)
    await log.committed()
    await settle()
    assert [record.offset async for record in log.read(4)] == [4, 5, 6]
    assert follower.offsets == late.offsets == [4, 5, 6]
    await follower.end()
    await late.end()
    await log.close()


async def test_a_fenced_writers_tail_says_so() -> None:
    disk, clock = await written(), ManualClock()
    first = await start_log(disk, clock)
    follower = Follower(first.tail())
    await settle()
    second = await start_log(disk)
    clock.advance(seconds=1)
    with pytest.raises(Fenced):
        await follower.task
    await first.close()
    await second.close()


async def test_a_readers_tail_looks_again_now_and_then() -> None:
    disk, clock = await written(), ManualClock()
    follower = Follower(reader(disk, clock).tail(5))
    await settle()
    await write_log(disk, [2], ManualClock(START_MS + STEP_MS * 9))
    await settle()
    assert follower.offsets == [5]
    clock.advance(seconds=0.499)
    await settle()
    assert follower.offsets == [5]
    clock.advance(seconds=0.001)
    await settle()
    assert follower.offsets == [5, 6, 7]
    await follower.end()
    assert clock.next_due_ms() is None
