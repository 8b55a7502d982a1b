"""A damaged store salvaged into a new one: the longest proven log, every payload that is left, and a true report."""

import asyncio
import random
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from ledgerq.eventlog import keys
from ledgerq.eventlog.clock import ManualClock
from ledgerq.eventlog.errors import FormatTooNew, InvalidArgument, StoreNotFound
from ledgerq.eventlog.events import DeadLettered, Rebuilt
from ledgerq.eventlog.locations import parse_location
from ledgerq.eventlog.log import LogReader
from ledgerq.eventlog.memory import MemoryDisk, MemoryReader, MemoryStore
from ledgerq.eventlog.recovery.damaged_store import damaged_store
from ledgerq.eventlog.recovery.sorted_files import read_sst
from ledgerq.eventlog.slate.options import StoreOptions
from ledgerq.eventlog.stores import open_store
from ledgerq.projections.audit import audit
from ledgerq.projections.rebuild import rebuild
from ledgerq.projections.repair import row_writer
from ledgerq.projections.repair.copying import KEEP_DEAD_MS
from ledgerq.projections.repair.salvage import SalvageReport, salvage
from ledgerq.worker.options import QueueOptions, to_ms
from ledgerq.worker.queue import Queue
from tests.damage.matrix import END_MS, build_stores, scratch_folder
from tests.support.crashes import ENDS, Crash, End, crashed_run
from tests.support.ledger_checks import check_ledger
from tests.support.operators import WHO
from tests.tiers import sampled


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stores of the damage matrix."""
    root = tmp_path_factory.mktemp("stores")
    asyncio.run(build_stores(root))
    return root


@pytest.fixture(params=sampled(["crashed", "closed"]))
def folder(root: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A copy to be damaged."""
    return Path(shutil.copytree(root / request.param, tmp_path / "store"))


async def salvaged(folder: Path, disk: MemoryDisk | None = None) -> tuple[SalvageReport, MemoryDisk]:
    disk = disk or MemoryDisk()
    async with damaged_store(parse_location(str(folder))) as damaged:
        return await salvage(damaged, MemoryStore(disk), clock=ManualClock(END_MS), **WHO), disk


def log_rows(disk: MemoryDisk, end: int) -> dict[bytes, bytes]:
    return {k: v for k, v in disk.rows.items() if k.startswith(keys.LOG_PREFIX) and keys.offset_of(k) < end}


async def events_of(disk: MemoryDisk) -> list[Any]:
    return [record.event async for record in LogReader(MemoryReader(disk), clock=ManualClock()).read()]


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def flip(path: Path, byte: int, bit: int = 0) -> None:
    data = bytearray(path.read_bytes())
    data[byte] ^= 1 << bit
    path.write_bytes(bytes(data))


async def test_an_undamaged_store_comes_back_as_it_is(folder: Path) -> None:
    before = tree(folder)
    report, disk = await salvaged(folder)
    assert tree(folder) == before
    assert report.is_whole
    assert (report.faults, report.stretches, report.lost_jobs) == ([], [], [])
    assert (report.other_batches, report.why_ended) == (0, "")
    assert report.anchor is not None
    assert report.end == report.anchor.next_offset
    assert sum(report.kept.values()) == report.rebuilt.jobs
    found = await audit(MemoryReader(disk), clock=ManualClock(), deep=True)
    assert found.clean
    await check_ledger(disk)
    last = (await events_of(disk))[-1]
    assert (type(last), last.actor, last.reason) == (Rebuilt, *WHO.values())


@pytest.mark.parametrize("what", sampled(["manifest", "anchor", "compactions", "gc"], quick=2))
async def test_no_file_of_slatedb_beside_those_with_rows_is_needed(folder: Path, what: str) -> None:
    path = folder / what
    shutil.rmtree(path, ignore_errors=True) if what != "anchor" else path.write_bytes(b"")
    report, disk = await salvaged(folder)
    assert report.is_whole
    assert (await audit(MemoryReader(disk), clock=ManualClock(), deep=True)).clean
    assert (report.manifest is None) == (what == "manifest")
    if what == "anchor":
        assert report.anchor is None
        assert report.promised is not None


async def test_files_that_no_manifest_names_are_read_too(folder: Path) -> None:
    aside = folder / "set-aside" / "2026" / "wal"
    aside.mkdir(parents=True)
    for path in [*folder.glob("wal/*.sst"), *folder.glob("compacted/*.sst")]:
        path.rename(aside / path.name)
    report, _ = await salvaged(folder)
    assert report.is_whole


@pytest.mark.proof
async def test_a_lost_payload_costs_its_job_by_name(root: Path, tmp_path: Path) -> None:
    """Each block of payloads in turn: the jobs that are lost are those of the block, and of no other."""
    folder = Path(shutil.copytree(root / "closed", tmp_path / "store"))
    _, undamaged = await salvaged(folder)
    tried = 0
    for path in sorted(folder.glob("compacted/*.sst")):
        data = path.read_bytes()
        for part in read_sst(data):
            offsets = {keys.offset_of(row.key) for row in part.rows if row.key.startswith(keys.PAYLOAD_PREFIX)}
            if not offsets or tried > 12:
                continue
            tried += 1
            flip(path, part.start + 20)
            report, disk = await salvaged(folder)
            path.write_bytes(data)
            assert [fault.path for fault in report.faults] == [f"compacted/{path.name}"]
            if not report.is_reached:
                continue  # the block holds batches of the log too
            assert {lost.job.offset for lost in report.rebuilt.lost} <= offsets
            assert log_rows(disk, report.end) == log_rows(undamaged, report.end)
            letters = [event for event in await events_of(disk) if isinstance(event, DeadLettered)]
            dead = [lost.job.id for lost in report.rebuilt.lost if lost.is_dead_letter]
            assert [letter.id for letter in letters] == dead
            assert all((letter.actor, letter.sweep_at_ms) == ("ann", END_MS + KEEP_DEAD_MS) for letter in letters)
            gone, texts = frozenset(lost.job.id for lost in report.rebuilt.lost), report.rebuilt.lost_texts
            await check_ledger(disk, without_payload=gone, without_text=texts)
            found = await audit(MemoryReader(disk), clock=ManualClock(), deep=True)
            finished = [lost for lost in report.rebuilt.lost if not lost.is_dead_letter]
            assert found.difference_count == len(finished) + len(texts)
    assert tried > 5


async def test_a_gap_is_named_and_what_follows_it_is_left_out(folder: Path) -> None:
    whole, undamaged = await salvaged(folder)
    gone = sorted(log_rows(undamaged, whole.end))[20]
    hit = 0
    for path in [*folder.glob("wal/*.sst"), *folder.glob("compacted/*.sst")]:
        for part in read_sst(path.read_bytes()):
            if any(row.key == gone and row.value is not None for row in part.rows):
                flip(path, part.start + 30)
                hit += 1
    assert hit
    report, disk = await salvaged(folder)
    assert not report.is_whole
    assert report.end <= keys.offset_of(gone)
    assert log_rows(disk, report.end) == log_rows(undamaged, report.end)
    assert report.stretches
    assert report.stretches[0].start > report.end
    assert report.stretches[-1].stop == whole.end
    assert report.lost_jobs
    assert all(job.offset >= report.end for job in report.lost_jobs)
    lost = frozenset(letter.job.id for letter in report.rebuilt.lost)
    await check_ledger(disk, without_payload=lost, without_text=report.rebuilt.lost_texts)


async def test_of_two_histories_the_one_that_the_store_became_is_taken(tmp_path: Path) -> None:
    """A log that an operator cut, and then less came after the cut than before: the old end is still in the files."""
    url, clock = str(tmp_path / "store"), ManualClock(END_MS)
    async with Queue.open(url, clock=clock) as queue:
        for number in range(20):
            await queue.enqueue("mail", b"old %d" % number)
    store = await open_store(url, clock=clock)
    await rebuild(store, clock=clock, until=5, **WHO)
    await store.close()
    async with Queue.open(url, clock=clock) as queue:
        await queue.enqueue("mail", b"new")
        end = await queue.log.end()
    for anchor in (True, False):
        if not anchor:
            (tmp_path / "store" / "anchor").unlink()
        report, disk = await salvaged(tmp_path / "store")
        assert report.is_whole
        assert end < 20
        assert report.end == end + 1  # the writer's last event
        assert report.rebuilt.jobs == 5
        await check_ledger(disk)


async def test_a_target_that_holds_something_is_refused(folder: Path) -> None:
    disk = MemoryDisk()
    async with Queue.open(store=MemoryStore(disk), clock=ManualClock(END_MS)) as queue:
        await queue.enqueue("mail", b"x")
    before = dict(disk.rows)
    with pytest.raises(InvalidArgument, match="holds a ledgerq store already"):
        await salvaged(folder, disk)
    assert dict(disk.rows) == before


@pytest.mark.proof
@pytest.mark.parametrize("end", ENDS)
async def test_a_salvage_that_was_interrupted_is_run_again(
    root: Path, end: End, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_writer, "_BATCH_ROWS", 300)
    _, wanted = await salvaged(root / "closed")

    async def work(store: MemoryStore) -> object:
        async with damaged_store(parse_location(str(root / "closed"))) as damaged:
            return await salvage(damaged, store, clock=ManualClock(END_MS), **WHO)

    count = Crash()
    await crashed_run(MemoryDisk(), work, count)
    for at in range(0, len(count.calls), max(1, len(count.calls) // 6)):
        disk = MemoryDisk()
        await crashed_run(disk, work, Crash(at, end))
        if disk.rows and dict(disk.rows) != dict(wanted.rows) and keys.REBUILD_KEY in disk.rows:
            await salvaged(root / "closed", disk)
            assert log_rows(disk, 3000) == log_rows(wanted, 3000)
        await check_ledger(disk) if disk.rows else None


async def test_where_nothing_is_nothing_is_made(tmp_path: Path) -> None:
    disk = MemoryDisk()
    with pytest.raises(StoreNotFound):
        await salvaged(tmp_path / "nowhere", disk)
    (tmp_path / "empty").mkdir()
    with pytest.raises(StoreNotFound, match="none holds the log's first event"):
        await salvaged(tmp_path / "empty", disk)
    assert not disk.rows


async def test_of_compressed_files_only_slatedb_reads_the_rows(tmp_path: Path) -> None:
    options = StoreOptions(settings={"compression_codec": "Zstd"})
    async with Queue.open(str(tmp_path / "store"), clock=ManualClock(END_MS), store_options=options) as queue:
        await queue.enqueue("mail", b"x")
    with pytest.raises(StoreNotFound, match=r"only SlateDB reads: rebuild-projections .* --into NEW"):
        await salvaged(tmp_path / "store")


async def test_a_newer_store_is_refused(tmp_path: Path) -> None:
    store = await open_store(str(tmp_path / "store"), clock=ManualClock(END_MS))
    async with Queue.open(store=store, clock=ManualClock(END_MS)) as queue:
        await queue.enqueue("mail", b"x")
        batch = store.batch()
        batch.put(keys.FORMAT_KEY, b"9")
        await store.write(batch)
    with pytest.raises(FormatTooNew, match="format 9"):
        await salvaged(tmp_path / "store")


def test_dead_letters_of_a_salvage_are_kept_as_long_as_a_queue_keeps_them() -> None:
    assert to_ms(QueueOptions().keep_dead_s) == KEEP_DEAD_MS


async def test_a_head_vouches_for_the_end_only_when_no_later_one_may_be_in_what_cant_be_read(
    root: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(root / "crashed", tmp_path / "store"))
    (folder / "anchor").write_bytes(b"")
    logs = [path for path in sorted((folder / "wal").iterdir()) if path.stat().st_size]
    flip(logs[0], 30)
    report, _ = await salvaged(folder)
    assert (report.anchor, report.is_end_known, report.is_reached) == (None, True, True)
    flip(logs[-1], 30)
    report, _ = await salvaged(folder)
    assert report.promised is not None
    assert report.promised.next_offset == report.end
    assert (report.is_end_known, report.is_reached, report.is_whole) == (False, False, False)


async def many_blocks(folder: Path) -> tuple[Path, list[int]]:
    """A crashed store without an anchor whose last commit has several blocks: its log file, and where they are."""
    queue = await Queue.open(str(folder), clock=ManualClock(END_MS))
    await queue.enqueue("mail", b"first")
    await queue.enqueue_many("mail", [bytes([n % 256]) * 200 for n in range(1000)])
    crashed = Path(shutil.copytree(folder, folder.parent / "crashed"))
    await queue.close()
    (crashed / "anchor").write_bytes(b"")
    path = max(path for path in (crashed / "wal").iterdir() if path.stat().st_size)
    parts = [part for part in read_sst(path.read_bytes()) if part.kind == "block"]
    assert len(parts) > 3
    return path, [part.start for part in parts]


async def test_no_block_of_the_last_log_file_can_be_lost_without_a_word(tmp_path: Path) -> None:
    path, starts = await many_blocks(tmp_path / "store")
    found: set[bool] = set()
    for start in starts:
        flip(path, start + 30)
        report, _ = await salvaged(path.parent.parent)
        flip(path, start + 30)
        assert report.is_reached <= (report.end == 1002)
        assert report.is_whole == (report.end == 1002 and not report.rebuilt.lost)
        found.add(report.end == 1002)
    assert found == {True, False}, "the batch is in one block, the payloads are in others"


@pytest.mark.parametrize("damaged", ["the file that is needed", "the manifest too"])
async def test_what_a_manifest_needs_and_is_missing_makes_the_end_unknown(
    root: Path, tmp_path: Path, damaged: str
) -> None:
    folder = Path(shutil.copytree(root / "closed", tmp_path / "store"))
    (folder / "anchor").write_bytes(b"")
    report, _ = await salvaged(folder)
    assert report.is_whole
    newest = max((folder / "manifest").iterdir())
    max((folder / "compacted").iterdir()).unlink()
    if damaged != "the file that is needed":
        newest.write_bytes(b"")
    report, _ = await salvaged(folder)
    assert (report.is_end_known, report.is_reached, report.is_whole) == (False, False, False)


async def test_an_old_sorted_file_hides_no_head_when_a_later_log_file_has_one(root: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(root / "crashed", tmp_path / "store"))
    (folder / "anchor").write_bytes(b"")
    path = min((folder / "compacted").iterdir())
    for part in read_sst(path.read_bytes()):
        if part.kind == "block":
            flip(path, part.start + 30)
    report, _ = await salvaged(folder)
    assert (report.is_end_known, bool(report.faults)) == (True, True)


def damage(folder: Path, rng: random.Random, count: int) -> None:
    """So many damages: files cut, zeroed, deleted, exchanged, bits flipped, stretches overwritten."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    for _ in range(count):
        path = rng.choice(files)
        data = bytearray(path.read_bytes()) if path.exists() else bytearray()
        if not data:
            continue
        at = rng.randrange(len(data))
        match rng.randrange(8):
            case 0:
                path.unlink()
                continue
            case 1:
                del data[at:]
            case 2:
                data = bytearray(len(data))
            case 3:
                other = rng.choice(files)
                data = bytearray(other.read_bytes()) if other.exists() else data
            case 4:
                data[at : at + 500] = rng.randbytes(min(500, len(data) - at))
            case _:
                data[at] ^= 1 << rng.randrange(8)
        path.write_bytes(data)


async def damaged_at_random(root: Path, scratch: Path, seeds: Iterable[int]) -> int:
    """Damage copies ten times at once, and salvage them; returns how many came back whole."""
    undamaged = {name: await salvaged(root / name) for name in ("crashed", "closed")}
    count = 0
    for seed in seeds:
        rng = random.Random(seed)
        name = rng.choice(("crashed", "closed"))
        shutil.rmtree(scratch, ignore_errors=True)
        shutil.copytree(root / name, scratch)
        damage(scratch, rng, 10)
        whole, rows = undamaged[name]
        try:
            report, disk = await salvaged(scratch)
        except StoreNotFound:
            continue  # the first event of the log is lost
        finally:
            left = tree(scratch)
            shutil.rmtree(scratch, ignore_errors=True)
        assert log_rows(disk, report.end) == log_rows(rows, report.end), seed
        # Without the anchor nothing tells of a file that is gone, empty, or another one's copy.
        faults = {fault.path for fault in report.faults}
        was = {path: data for path, data in tree(root / name).items() if path.endswith(".sst") and path not in faults}
        if report.anchor or all(left.get(path) == data for path, data in was.items()):
            assert report.is_reached <= (report.end == whole.end), seed
        assert report.is_reached or report.end != whole.end or not report.is_end_known or not report.promised, seed
        assert report.end == whole.end or report.faults or report.stretches, seed
        lost = frozenset(letter.job.id for letter in report.rebuilt.lost)
        await check_ledger(disk, without_payload=lost, without_text=report.rebuilt.lost_texts)
        count += report.is_whole
    return count


@pytest.mark.proof
async def test_ten_random_damages_never_give_a_wrong_answer(root: Path, tmp_path: Path) -> None:
    await damaged_at_random(root, tmp_path / "store", seeds=range(12))


@pytest.mark.proof
async def test_ten_random_damages_never_give_a_wrong_answer_in_hundreds_of_stores(root: Path) -> None:
    folder = Path(scratch_folder() or "/tmp") / "ledgerq-random-damage"
    await damaged_at_random(root, folder, seeds=range(100, 500))
