"""The measures of a writer's own commits: their sizes, and the times of their phases."""

import asyncio
from pathlib import Path

import pytest

from ledgerq import Queue, StoreOptions
from ledgerq.eventlog.clock import stopwatch_s
from ledgerq.eventlog.errors import StoreUnavailable
from ledgerq.eventlog.memory import MemoryDisk
from ledgerq.eventlog.runtime.meters import Meter
from ledgerq.eventlog.slate import opening
from ledgerq.eventlog.slate.binding import PublicLane
from tests.support.rig import Faults
from tests.support.small_logs import append, start_log, stored


def test_a_bucket_holds_what_is_at_most_its_bound() -> None:
    meter = Meter((0.5, 1))
    for value in (0.25, 0.5, 0.75, 1, 2):
        meter.add(value)
    assert (meter.counts, meter.sum) == ([2, 2, 1], 4.5)


async def test_each_durable_commit_is_measured_once() -> None:
    disk = MemoryDisk()
    log = await start_log(disk)
    await asyncio.gather(*(append(log, number) for number in range(100)))
    await append(log, 100)
    batches, meters = await stored(disk), log.meters
    assert (sum(meters.events.counts), meters.events.sum) == (2, 101)
    assert meters.bytes.sum == meters.log_bytes == sum(len(disk.rows[key]) for key in disk.rows if key[:2] == b"l/")
    assert [sum(meter.counts) for meter in meters.phases().values()] == [2, 2, 2, 2, 0]
    assert len(batches) == 2
    await log.close()


async def test_a_commit_that_failed_is_not_measured() -> None:
    faults = Faults()
    log = await start_log(MemoryDisk(), fault=faults)
    faults.spoil("sync:before", StoreUnavailable("away"))
    with pytest.raises(StoreUnavailable):
        await append(log, 0)
    assert sum(log.meters.events.counts) == 0


@pytest.mark.parametrize(("fsync", "is_public"), [(True, False), (False, False), (True, True)])
async def test_the_phases_of_a_commit_on_files_add_up_to_what_the_caller_waited(
    tmp_path: Path, fsync: bool, is_public: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if is_public:
        monkeypatch.setattr(opening, "best_lane", PublicLane)
    async with Queue.open(str(tmp_path), commit_interval_ms=0, store_options=StoreOptions(fsync=fsync)) as queue:
        meters, begun_s = queue.log.meters, stopwatch_s()
        before = {name: (sum(meter.counts), meter.sum) for name, meter in meters.phases().items()}
        for _ in range(20):
            await queue.enqueue("mail", b"x")
        waited_s = stopwatch_s() - begun_s
        measured_s = sum(meter.sum - before[name][1] for name, meter in meters.phases().items())
        counts = {name: sum(meter.counts) - before[name][0] for name, meter in meters.phases().items()}
        assert counts == {"wait": 20, "fill": 20, "write": 20, "flush": 20, "sync": 0 if is_public else 20}
        assert all(meter.sum > 0 for name, meter in meters.phases().items() if counts[name])
        assert 0 < measured_s < waited_s
