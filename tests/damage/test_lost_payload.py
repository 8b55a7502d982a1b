"""One damaged block of payloads on a real file store: its jobs are dead letters by name, and all others run."""

import asyncio
import logging
import shutil
from pathlib import Path

import pytest

from ledgerq.eventlog import keys
from ledgerq.eventlog.clock import SystemClock
from ledgerq.eventlog.errors import LogPoisoned, PayloadMissing, RowUnreadable
from ledgerq.eventlog.locations import parse_location
from ledgerq.eventlog.memory import MemoryDisk, MemoryReader, MemoryStore
from ledgerq.eventlog.recovery.damaged_store import damaged_store
from ledgerq.eventlog.recovery.sorted_files import Part, damaged_block_of, read_sst
from ledgerq.eventlog.stores import open_reader, open_store
from ledgerq.projections.audit import audit
from ledgerq.projections.payloads import UNREADABLE
from ledgerq.projections.repair.copying import copy_into
from ledgerq.projections.repair.salvage import salvage
from ledgerq.worker.execution import JobContext
from ledgerq.worker.queue import Queue
from ledgerq.worker.worker import Worker
from tests.support.ledger_checks import check_ledger
from tests.support.operators import WHO

JOBS = 1500


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A closed store whose payloads lie in a sorted file with a filter, since its log files were collected."""
    folder = tmp_path_factory.mktemp("whole") / "store"

    async def fill() -> None:
        async with Queue.open(str(folder)) as queue:
            await queue.enqueue_many("mail", [b"%d" % number + bytes(100) for number in range(JOBS)])

    asyncio.run(fill())
    for path in folder.glob("wal/*.sst"):
        path.unlink()
    return folder


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "store"))


def file_with_payloads(folder: Path) -> tuple[Path, list[Part]]:
    for path in folder.glob("compacted/*.sst"):
        parts = list(read_sst(path.read_bytes()))
        if any(row.key.startswith(keys.PAYLOAD_PREFIX) for part in parts for row in part.rows):
            return path, parts
    raise AssertionError("no payloads")


def damage(folder: Path, kind: str) -> set[int]:
    """Flip a bit of a block of payloads, or of another part of their file; returns the payloads of the block."""
    path, parts = file_with_payloads(folder)
    if kind == "block":
        blocks = [part for part in parts if part.rows and part.rows[0].key.startswith(keys.PAYLOAD_PREFIX)]
        part = blocks[len(blocks) // 2]
    else:
        (part,) = [part for part in parts if part.kind == kind]
    data = bytearray(path.read_bytes())
    data[part.start + 8] ^= 1
    path.write_bytes(data)
    return {keys.offset_of(row.key) for row in part.rows if row.key.startswith(keys.PAYLOAD_PREFIX)}


@pytest.mark.proof
async def test_a_worker_goes_on_behind_a_damaged_block(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    lost = damage(folder, "block")
    assert lost
    done = 0

    async def handle(job: JobContext) -> None:
        nonlocal done
        done += 1

    async with Queue.open(str(folder)) as queue:
        worker = Worker(queue, concurrency=20)
        worker.handler("mail")(handle)
        with caplog.at_level(logging.ERROR):
            await worker.run(until_empty=True)
        dead = (await queue.jobs("mail", state="dead", limit=JOBS)).jobs
        assert {job.offset for job in dead} == lost
        assert all(job.error.startswith(UNREADABLE) for job in dead)
        assert done == JOBS - len(lost)
        with pytest.raises(PayloadMissing, match="its block in a file"):
            await queue.payload(dead[0].job_id)
        text = caplog.text
        assert any(job.job_id in text for job in dead)
    reader = await open_reader(str(folder), pinned=True)
    report = await audit(reader, clock=SystemClock(), deep=True)
    await reader.close()
    assert not report.differences
    assert (report.lost_payloads, [fault.path[:9] for fault in report.damaged_files]) == (len(lost), ["compacted"])
    assert not report.clean


@pytest.mark.parametrize("kind", ["index", "filter"])
async def test_damage_that_hides_a_whole_file_kills_no_job(folder: Path, kind: str) -> None:
    """A payload that a salvage can still bring back is not lost, so its job is no dead letter."""
    damage(folder, kind)
    with pytest.raises(LogPoisoned, match=r"rebuild-projections .*/store --into NEW --salvage"):
        async with Queue.open(str(folder)) as queue:
            while await queue.claim("mail", limit=100):
                pass
    disk = MemoryDisk()
    async with damaged_store(parse_location(str(folder))) as damaged:
        report = await salvage(damaged, MemoryStore(disk), clock=SystemClock(), **WHO)
    assert report.is_whole
    fold = await check_ledger(disk)
    assert sum(job.state != "dead" for job in fold.jobs.values()) == JOBS


@pytest.mark.proof
async def test_a_copy_costs_the_jobs_of_the_block_and_says_which(folder: Path) -> None:
    lost = damage(folder, "block")
    disk = MemoryDisk()
    reader = await open_reader(str(folder), pinned=True)
    report = await copy_into(reader, MemoryStore(disk), clock=SystemClock(), **WHO)
    await reader.close()
    assert {letter.job.offset for letter in report.lost} == lost
    assert all(letter.why.startswith(UNREADABLE) for letter in report.lost)
    fold = await check_ledger(disk, without_payload={letter.job.id for letter in report.lost})
    assert {job.offset for job in fold.jobs.values() if job.state == "dead"} == lost
    assert (await audit(MemoryReader(disk), clock=SystemClock(), deep=True)).clean


async def test_a_row_is_unreadable_only_when_its_own_block_is(folder: Path) -> None:
    lost = damage(folder, "block")
    store = await open_store(str(folder), clock=SystemClock())
    for offset in (min(lost), max(lost)):
        with pytest.raises(RowUnreadable, match=r"damaged \(compacted/.*, byte \d+ to .*--salvage"):
            await store.get(keys.payload_key(offset))
    assert await store.get(keys.payload_key(min(lost) - 2))
    assert await store.get(keys.payload_key(max(lost) + 2))
    await store.close()
    path, _ = file_with_payloads(folder)
    data = path.read_bytes()
    assert damaged_block_of(data, keys.payload_key(min(lost))) is not None
    assert damaged_block_of(data, keys.payload_key(1)) is None
    assert damaged_block_of(data[:-1], keys.payload_key(min(lost))) is None
