"""The anchor: a log that lost commits, or another log in its place, is noticed when it is opened."""

import pytest

from ledgerq.eventlog.clock import ManualClock
from ledgerq.eventlog.errors import LogRolledBack
from ledgerq.eventlog.memory import MemoryDisk
from ledgerq.eventlog.store import Anchor
from tests.support.small_logs import reader, start_log, stored_bases, write_log

SIZES = (3, 1, 2, 1, 3)
NEXT = 10
START_MS = ManualClock().now_ms()


async def written() -> MemoryDisk:
    """A disk with the five batches of `SIZES`."""
    disk = MemoryDisk()
    await write_log(disk, SIZES)
    return disk


def anchor_of(disk: MemoryDisk) -> Anchor:
    """The anchor that the last commit left."""
    assert disk.anchor is not None
    return disk.anchor


async def test_a_log_contains_the_anchors_of_all_its_commits() -> None:
    disk = MemoryDisk()
    anchors = []
    for i in range(3):
        await write_log(disk, [2], ManualClock(START_MS + i * 1000))
        anchors.append(anchor_of(disk))
    for anchor in anchors:
        await reader(disk).check_anchor(anchor)


async def test_no_anchor_and_the_anchor_of_an_empty_log_ask_for_nothing() -> None:
    await reader(MemoryDisk()).check_anchor(None)
    await reader(MemoryDisk()).check_anchor(Anchor(0, 0, bytes(32), 0, 0))


async def test_a_shorter_log_was_rolled_back() -> None:
    disk, older = await written(), MemoryDisk()
    await write_log(older, SIZES[:3])
    with pytest.raises(LogRolledBack, match="the log ends before it") as caught:
        await reader(older).check_anchor(anchor_of(disk))
    assert (caught.value.anchored_offset, caught.value.head_offset) == (NEXT - 1, 6)


async def test_another_history_of_the_same_length_was_rolled_back() -> None:
    disk, other = await written(), MemoryDisk()
    await write_log(other, SIZES, ManualClock(START_MS + 1))
    with pytest.raises(LogRolledBack, match="another commit in its place"):
        await reader(other).check_anchor(anchor_of(disk))


async def test_a_log_without_the_anchored_batch_was_rolled_back() -> None:
    disk, other = await written(), MemoryDisk()
    await write_log(other, [NEXT + 1])
    with pytest.raises(LogRolledBack, match="another commit"):
        await reader(other).check_anchor(anchor_of(disk))


async def test_a_rolled_back_log_is_opened_only_when_the_loss_is_accepted() -> None:
    disk, older = await written(), MemoryDisk()
    await write_log(older, SIZES[:3])
    older.anchor = anchor_of(disk)._replace(epoch=7)
    with pytest.raises(LogRolledBack):
        await start_log(older)
    log = await start_log(older, accept_rollback=True)
    assert log.epoch == 8  # above the epoch of the lost commits, whose writer may still be alive
    assert stored_bases(older) == [0, 3, 4]
    await log.close()
