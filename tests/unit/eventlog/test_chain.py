"""The hash chain: whatever was done to the stored log is found, and named by its first bad offset."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledgerq.eventlog import keys
from ledgerq.eventlog.clock import ManualClock
from ledgerq.eventlog.codec import EMPTY_HEAD, decode_batch
from ledgerq.eventlog.errors import FormatTooNew, LogCorrupt
from ledgerq.eventlog.log import Verified
from ledgerq.eventlog.memory import MemoryDisk
from ledgerq.eventlog.writer import EventLog
from tests.support.histories import quick
from tests.support.small_logs import (
    STEP_MS,
    change_batch,
    change_head,
    event,
    reader,
    relink,
    start_log,
    stored_head,
    write_log,
)

SIZES = (3, 1, 2, 1, 3)
BASES = (0, 3, 4, 6, 7)
NEXT = 10
START_MS = ManualClock().now_ms()


async def written() -> MemoryDisk:
    """A disk with the five batches of `SIZES`."""
    disk = MemoryDisk()
    assert await write_log(disk, SIZES) == list(BASES)
    return disk


async def first_bad_offset(disk: MemoryDisk, until: int | None = None) -> int:
    """Where the proof ends."""
    with pytest.raises(LogCorrupt) as caught:
        await reader(disk).verify(until=until)
    assert f"--until {caught.value.offset}" in str(caught.value)
    return caught.value.offset


def move(disk: MemoryDisk, source: int, target: int) -> None:
    """Store the value of the batch at `source` at `target`."""
    disk.rows[keys.log_key(target)] = disk.rows[keys.log_key(source)]


def swap(disk: MemoryDisk, a: int, b: int) -> None:
    """Exchange the values of two batches."""
    key_a, key_b = keys.log_key(a), keys.log_key(b)
    disk.rows[key_a], disk.rows[key_b] = disk.rows[key_b], disk.rows[key_a]


async def test_an_untouched_log_is_proven_to_its_head() -> None:
    disk = await written()
    assert await reader(disk).verify() == Verified(5, NEXT, stored_head(disk))


async def test_an_empty_log_is_proven() -> None:
    assert await reader(MemoryDisk()).verify() == Verified(0, 0, EMPTY_HEAD)


async def test_a_log_of_several_writers_is_proven() -> None:
    disk = await written()
    await write_log(disk, [2, 2], ManualClock(START_MS + 1000))
    proof = await reader(disk).verify()
    assert (proof.batches, proof.events, proof.head.epoch) == (7, NEXT + 4, 2)


async def test_progress_is_told() -> None:
    told: list[tuple[int, int]] = []
    await reader(await written()).verify(progress=lambda done, total: told.append((done, total)))
    assert told[-1] == (NEXT, NEXT)


@pytest.mark.parametrize("base", BASES)
async def test_a_changed_event_is_found_at_its_batch(base: int) -> None:
    disk = await written()
    change_batch(disk, base, number=99)
    assert await first_bad_offset(disk) == base


@pytest.mark.parametrize("base", BASES)
async def test_a_changed_previous_digest_is_found_at_its_batch(base: int) -> None:
    disk = await written()
    change_batch(disk, base, previous=b"\x11" * 32)
    assert await first_bad_offset(disk) == base


@pytest.mark.parametrize("base", BASES)
async def test_any_one_changed_byte_is_found_at_its_batch(base: int) -> None:
    disk = await written()
    value = disk.rows[keys.log_key(base)]
    for at in range(len(value)):
        disk.rows[keys.log_key(base)] = value[:at] + bytes([value[at] ^ 1]) + value[at + 1 :]
        with pytest.raises((LogCorrupt, FormatTooNew)) as caught:
            await reader(disk).verify()
        if isinstance(caught.value, LogCorrupt):
            assert caught.value.offset == base, at


@pytest.mark.parametrize("base", BASES)
async def test_a_removed_batch_is_found_where_it_was(base: int) -> None:
    disk = await written()
    del disk.rows[keys.log_key(base)]
    assert await first_bad_offset(disk) == base


@pytest.mark.parametrize(("a", "b"), [(0, 3), (3, 6), (3, 4), (6, 7), (0, 7)])
async def test_swapped_batches_are_found_at_the_first_of_them(a: int, b: int) -> None:
    disk = await written()
    swap(disk, a, b)
    assert await first_bad_offset(disk) == a


@pytest.mark.parametrize(("source", "target", "expected"), [(0, 1, 3), (3, 5, 6), (3, 4, 4), (7, 8, NEXT), (7, 3, 3)])
async def test_a_duplicated_batch_is_found_where_it_does_not_fit(source: int, target: int, expected: int) -> None:
    disk = await written()
    move(disk, source, target)
    assert await first_bad_offset(disk) == expected


async def test_a_batch_put_after_the_end_is_found() -> None:
    disk = await written()
    move(disk, 7, NEXT)
    assert await first_bad_offset(disk) == NEXT


async def test_a_changed_last_batch_is_found_although_another_stands_after_the_end() -> None:
    disk = await written()
    move(disk, 7, NEXT)
    change_batch(disk, 7, number=99)
    assert await first_bad_offset(disk) == 7


@pytest.mark.parametrize("base", BASES)
async def test_a_batch_that_cannot_be_decoded_is_found(base: int) -> None:
    disk = await written()
    disk.rows[keys.log_key(base)] = b"\xc1"
    assert await first_bad_offset(disk) == base


@pytest.mark.parametrize("base", BASES[1:])
@pytest.mark.parametrize("change", [{"epoch": 0}, {"time_ms": START_MS}])
async def test_an_epoch_or_a_time_before_that_of_the_batch_before_is_found(base: int, change: dict[str, Any]) -> None:
    disk = await written()
    change_batch(disk, base, **change)
    relink(disk)
    assert await first_bad_offset(disk) == base


async def test_times_and_epochs_may_stay_the_same() -> None:
    disk = await written()
    for base in BASES:
        change_batch(disk, base, time_ms=START_MS)
    relink(disk)
    change_head(disk, time_ms=START_MS)
    assert (await reader(disk).verify()).events == NEXT


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"next_offset": NEXT + 1}, NEXT),
        ({"next_offset": NEXT - 1}, NEXT - 1),
        ({"next_offset": 7}, 7),
        ({"digest": b"\x11" * 32}, 7),
        ({"epoch": 0}, NEXT),
        ({"epoch": 9}, NEXT),
        ({"time_ms": START_MS}, NEXT),
        ({"base_offset": 6}, NEXT),
    ],
)
async def test_a_changed_head_is_found(change: dict[str, int | bytes], expected: int) -> None:
    disk = await written()
    change_head(disk, **change)
    assert await first_bad_offset(disk) == expected


async def test_a_missing_head_is_found() -> None:
    disk = await written()
    del disk.rows[keys.HEAD_KEY]
    assert await first_bad_offset(disk) == 0


async def test_a_head_without_a_log_is_found() -> None:
    disk = await written()
    for base in BASES:
        del disk.rows[keys.log_key(base)]
    assert await first_bad_offset(disk) == 0


async def test_a_log_of_one_batch_is_proven_by_its_head() -> None:
    disk = MemoryDisk()
    await write_log(disk, [2])
    assert await reader(disk).verify() == Verified(1, 2, stored_head(disk))
    change_batch(disk, 0, number=99)
    assert await first_bad_offset(disk) == 0


async def test_a_key_of_the_wrong_length_among_the_batches_is_found() -> None:
    disk = await written()
    disk.rows[b"l/\0"] = disk.rows.pop(keys.log_key(0))
    assert await first_bad_offset(disk) == 0


@pytest.mark.parametrize(
    ("until", "batches", "events"),
    [(-1, 0, 0), (0, 0, 0), (1, 0, 0), (3, 1, 3), (4, 2, 4), (5, 2, 4), (6, 3, 6), (9, 4, 7), (10, 5, 10), (99, 5, 10)],
)
async def test_until_proves_the_batches_that_end_at_or_before_it(until: int, batches: int, events: int) -> None:
    disk = await written()
    proof = await reader(disk).verify(until=until)
    assert (proof.batches, proof.events, proof.head.next_offset) == (batches, events, events)
    if batches:
        base = BASES[batches - 1]
        last = decode_batch(base, disk.rows[keys.log_key(base)])
        assert proof.head == (events, last.digest, 1, START_MS + batches * STEP_MS, base)


DAMAGES: list[Callable[[MemoryDisk, int], object]] = [
    lambda disk, base: change_batch(disk, base, number=99),
    lambda disk, base: change_batch(disk, base, previous=b"\x11" * 32),
    lambda disk, base: disk.rows.pop(keys.log_key(base)),
    lambda disk, base: disk.rows.update({keys.log_key(base): b"\xc1"}),
    lambda disk, base: disk.rows.update({keys.log_key(base): b"\x91\x09"}),  # of a newer version
]


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("base", BASES)
async def test_what_stands_before_a_damage_is_proven_until_there(
    damage: Callable[[MemoryDisk, int], object], base: int
) -> None:
    disk = await written()
    damage(disk, base)
    assert (await reader(disk).verify(until=base)).events == base


@pytest.mark.parametrize("damage", DAMAGES[:3])
@pytest.mark.parametrize("base", BASES)
async def test_a_damage_before_until_is_found_even_in_the_last_batch_before_it(
    damage: Callable[[MemoryDisk, int], object], base: int
) -> None:
    disk = await written()
    damage(disk, base)
    following = {0: 3, 3: 4, 4: 6, 6: 7, 7: NEXT}[base]
    assert await first_bad_offset(disk, until=following) == base


@quick
@given(st.lists(st.integers(1, 4), min_size=1, max_size=6), st.data())
async def test_one_change_anywhere_is_found_at_its_batch(sizes: list[int], data: st.DataObject) -> None:
    disk = MemoryDisk()
    bases = await write_log(disk, sizes)
    base = data.draw(st.sampled_from(bases))
    data.draw(st.sampled_from(DAMAGES[:4]))(disk, base)
    assert await first_bad_offset(disk) == base


async def test_a_log_that_grows_while_it_is_verified_is_proven_to_the_head_of_the_start() -> None:
    disk = await written()
    verifying: list[EventLog] = []

    async def grow(call: str) -> None:
        if call == "scan" and verifying:
            log = verifying.pop()
            log.append(event(99))
            await log.committed()

    log = await start_log(disk, ManualClock(START_MS + 1000), fault=grow)
    verifying.append(log)
    assert (await log.verify()).events == NEXT
    assert log.durable_head.next_offset == NEXT + 1
    assert (await log.verify()).events == NEXT + 1
    await log.close()
