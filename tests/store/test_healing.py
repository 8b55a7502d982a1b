"""Healing at open goes no further than what is proven, and leaves nothing half done, also when it is cut short."""

import asyncio
import gc
import shutil
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from ledgerq.eventlog.anchor import SLOT_BYTES, decode_slot
from ledgerq.eventlog.clock import SystemClock
from ledgerq.eventlog.errors import LedgerError, LogPoisoned, RowUnreadable, StoreInUse
from ledgerq.eventlog.locations import parse_location
from ledgerq.eventlog.memory import MemoryDisk, MemoryStore
from ledgerq.eventlog.recovery import healing, set_aside
from ledgerq.eventlog.recovery.damaged_store import damaged_store
from ledgerq.eventlog.recovery.set_aside import SetAside, move_aside, read_set_aside
from ledgerq.eventlog.runtime.waits import to_the_end
from ledgerq.eventlog.single_writer.hold import hold_store
from ledgerq.eventlog.slate.options import StoreOptions
from ledgerq.projections.repair.salvage import SalvageReport, salvage
from ledgerq.worker.queue import Queue
from tests.support.ledger_checks import check_ledger
from tests.tiers import sampled

JOBS = 25


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Several manifests, lists of compactions and sorted files, and many log files that are in none."""
    place = tmp_path_factory.mktemp("healing")

    async def make() -> None:
        for _ in range(3):
            async with Queue.open(str(place / "made")):
                pass
        async with Queue.open(str(place / "made")) as queue:
            for number in range(JOBS):
                await queue.enqueue("q", b"%d" % number)
            shutil.copytree(place / "made", place / "store")

    asyncio.run(make())
    return place / "store"


@pytest.fixture
def folder(pristine: Path, tmp_path: Path) -> Path:
    """A copy of it, to be harmed."""
    return Path(shutil.copytree(pristine, tmp_path / "store"))


def log_files(folder: Path) -> list[Path]:
    """Those with data, oldest first."""
    return [path for path in sorted((folder / "wal").iterdir()) if path.stat().st_size]


def flip(file: Path) -> Path:
    data = bytearray(file.read_bytes())
    data[30] ^= 1
    file.write_bytes(data)
    return file


def empty_newest(folder: Path) -> list[Path]:
    """The two newest manifests never reached the disk."""
    found = sorted((folder / "manifest").iterdir())[-2:]
    for file in found:
        file.write_bytes(b"")
    return found


def files_of(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and "writer" not in path.name}


async def opens(folder: Path) -> None:
    """All jobs are there."""
    async with Queue.open(str(folder)) as queue:
        assert (await queue.stats("q")).pending == JOBS
        await check_ledger(queue.log.store)


@pytest.mark.parametrize("harm", sampled(["flipped", "empty", "missing"]))
async def test_without_an_anchor_nothing_vouches_for_what_would_be_left_out(folder: Path, harm: str) -> None:
    (folder / "anchor").unlink()
    second = log_files(folder)[-JOBS]
    if harm == "flipped":
        flip(second)
    elif harm == "empty":
        second.write_bytes(b"")
    else:
        second.unlink()
    with pytest.raises(LedgerError):
        await Queue.open(str(folder))
    assert read_set_aside(folder) == []


def damage_slot(folder: Path, *, newer: bool) -> None:
    data = bytearray((folder / "anchor").read_bytes())
    slots = {at: decode_slot(bytes(data[at : at + SLOT_BYTES])) for at in (0, 4096)}
    found = sorted((slot[0], at) for at, slot in slots.items() if slot is not None)
    data[found[newer][1] + 60] ^= 1
    (folder / "anchor").write_bytes(data)


async def salvaged(folder: Path) -> SalvageReport:
    async with damaged_store(parse_location(str(folder))) as damaged:
        target = MemoryStore(MemoryDisk())
        return await salvage(damaged, target, clock=SystemClock(), actor="operator", reason="a damaged disk")


async def test_a_damaged_slot_of_the_anchor_alone_is_no_damage(folder: Path) -> None:
    damage_slot(folder, newer=True)
    await opens(folder)


async def test_a_slot_that_cant_be_read_may_have_promised_what_a_damaged_log_file_held(folder: Path) -> None:
    damage_slot(folder, newer=True)
    flip(log_files(folder)[-1])
    with pytest.raises(LogPoisoned, match="--salvage"):
        await Queue.open(str(folder))
    assert read_set_aside(folder) == []
    report = await salvaged(folder)
    assert report.promised == report.anchor
    assert (report.is_end_known, report.is_reached, report.is_whole) == (False, False, False)


@pytest.mark.parametrize("manifests", ["whole", "empty"])
async def test_a_commit_after_the_readable_anchor_clears_the_doubt(folder: Path, manifests: str) -> None:
    damage_slot(folder, newer=True)
    if manifests == "empty":
        empty_newest(folder)
    report = await salvaged(folder)
    assert report.anchor is not None
    assert report.end > report.anchor.next_offset
    assert (report.is_end_known, report.is_reached, report.is_whole) == (True, True, True)


async def test_a_damaged_log_file_that_is_needed_is_named_soon(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tries: list[object] = []
    real = healing._try

    async def counted(*arguments: object) -> object:
        tries.append(arguments)
        return await real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(healing, "_try", counted)
    harmed = flip(log_files(folder)[-20])
    before = files_of(folder)
    with pytest.raises(LogPoisoned) as caught:
        await Queue.open(str(folder))
    assert "--salvage" in str(caught.value)
    assert files_of(folder) >= before
    assert len(tries) <= 2, harmed


@pytest.mark.parametrize("done", sampled(range(8)))
async def test_what_was_moved_in_part_is_finished_by_the_next_opener(
    folder: Path, done: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty_newest(folder)
    rename, count = Path.rename, [done]

    def dying(self: Path, target: Path) -> Path:
        if "set-aside" in str(target):
            if count[0] == 0:
                raise OSError("killed, so to speak")
            count[0] -= 1
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", dying)
    try:
        await opens(folder)
    except LedgerError as error:
        assert "so to speak" in str(error)  # noqa: PT017
    monkeypatch.undo()
    await opens(folder)


async def test_an_opening_that_is_given_up_holds_the_store_until_all_is_moved(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifests = empty_newest(folder)
    move, begun, may_end = set_aside.move_aside, threading.Event(), threading.Event()

    def slow(store: Path, files: Mapping[str, str], synced: Callable[[], None]) -> SetAside:
        begun.set()
        may_end.wait(60)
        return move(store, files, synced)

    monkeypatch.setattr(healing, "move_aside", slow)
    opening = asyncio.ensure_future(Queue.open(str(folder), store_options=StoreOptions(open_timeout_s=60)))
    await asyncio.to_thread(begun.wait, 60)
    for _ in range(3):
        opening.cancel()
        await asyncio.sleep(0)
    with pytest.raises(StoreInUse):
        await Queue.open(str(folder))
    may_end.set()
    with pytest.raises(asyncio.CancelledError):
        await opening
    assert {f"manifest/{file.name}" for file in manifests} <= set(read_set_aside(folder)[0].files)
    monkeypatch.undo()
    await opens(folder)


@pytest.mark.proof
async def test_two_log_files_that_were_exchanged_are_no_dead_end(folder: Path) -> None:
    first, second = log_files(folder)[-10:-8]
    one, other = first.read_bytes(), second.read_bytes()
    first.write_bytes(other)
    second.write_bytes(one)
    with pytest.raises(LogPoisoned, match="--salvage"):
        await Queue.open(str(folder))


@pytest.mark.parametrize("thorough", [False, True])
async def test_a_search_that_ran_out_of_time_gives_up_no_payload_that_an_older_manifest_may_hold(
    folder: Path, thorough: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def damaged(*_: object, **__: object) -> None:
        raise RowUnreadable("a block of payloads")

    async def endless(*_: object, **__: object) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(healing, "check_files", damaged)
    monkeypatch.setattr(healing, "find_set_aside", endless)
    hold = await hold_store(
        parse_location(str(folder)), clock=SystemClock(), options=StoreOptions(), take_over=False, wait=0
    )
    with pytest.raises(RowUnreadable):
        await healing.heal(parse_location(str(folder)), hold, thorough=thorough, limit_s=0.2)
    await hold.release()
    assert read_set_aside(folder) == []


@pytest.mark.proof
async def test_a_search_has_half_of_the_time_of_an_opening(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def endless(*_: object, **__: object) -> None:
        await asyncio.Event().wait()

    flip(log_files(folder)[-20])
    monkeypatch.setattr(healing, "find_set_aside", endless)
    with pytest.raises(LogPoisoned, match="--salvage"):
        await Queue.open(str(folder), store_options=StoreOptions(open_timeout_s=3))


async def test_what_fails_when_nobody_waits_any_more_is_no_complaint_of_asyncio() -> None:
    complaints: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    fails = asyncio.Event()

    async def work() -> None:
        await fails.wait()
        raise OSError("nobody is told")

    waiting = asyncio.ensure_future(to_the_end(work()))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.sleep(0)
    assert not waiting.done()
    fails.set()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    del waiting
    gc.collect()
    await asyncio.sleep(0)
    assert complaints == []


def test_manifests_are_moved_when_all_else_is_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("manifest/2.manifest", "wal/7.sst", "compactions/3.compactions")
    for name in names:
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(b"x")
    there: list[tuple[Path, bool]] = []
    note = "ledgerq.eventlog.recovery.set_aside.sync_path"
    monkeypatch.setattr(note, lambda path: there.append((path, (tmp_path / names[0]).exists())))
    move_aside(tmp_path, dict.fromkeys(names, "wrong"), lambda: None)
    assert (tmp_path / "wal", True) in there
    assert (tmp_path / "compactions", True) in there
    assert not any((tmp_path / name).exists() for name in names)
