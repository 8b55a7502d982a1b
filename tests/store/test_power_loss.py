"""File stores after a power cut: a loss is noticed and named, and a commit is synced before its report."""

import asyncio
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from ledgerq.eventlog.clock import ManualClock, SystemClock
from ledgerq.eventlog.errors import LedgerError, LogRolledBack
from ledgerq.eventlog.events import WriterOpened
from ledgerq.eventlog.slate.options import StoreOptions
from ledgerq.worker.queue import Queue
from tests.support.ledger_checks import check_ledger
from tests.tiers import sampled

JOBS = 8
OPEN_LIMIT_S = 60.0
WRITER = f"""
import asyncio, os, signal, sys
from ledgerq.worker.queue import Queue

async def main():
    queue = await Queue.open(sys.argv[1])
    for i in range({JOBS}):
        await queue.enqueue("q", b"%d" % i)
    os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main())
"""


@pytest.fixture(scope="module")
def abandoned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store whose writer vanished after its last commit was reported."""
    folder = tmp_path_factory.mktemp("abandoned") / "store"
    done = subprocess.run([sys.executable, "-c", WRITER, folder.as_uri()], check=False, capture_output=True)
    assert done.returncode == -9, done.stderr.decode()
    return folder


@pytest.fixture
def folder(abandoned: Path, tmp_path: Path) -> Path:
    """A copy of it, to be harmed."""
    return Path(shutil.copytree(abandoned, tmp_path / "store"))


def newest_log_file(folder: Path, back: int = 0) -> Path:
    """The newest file of the write-ahead log, or one of those before it."""
    return sorted((folder / "wal").glob("*.sst"))[-1 - back]


def empty(folder: Path) -> None:
    """The file is there, its data never reached the disk."""
    newest_log_file(folder).write_bytes(b"")


def cut(folder: Path) -> None:
    """Half of its data reached the disk."""
    file = newest_log_file(folder)
    os.truncate(file, file.stat().st_size // 2)


def zeroed(folder: Path) -> None:
    """The file has its length, its data never reached the disk."""
    file = newest_log_file(folder)
    file.write_bytes(bytes(file.stat().st_size))


def remove(folder: Path) -> None:
    """Its name never reached the disk."""
    newest_log_file(folder).unlink()


def remove_several(folder: Path) -> None:
    """The names of the newest three never reached the disk."""
    for _ in range(3):
        newest_log_file(folder).unlink()


def empty_the_one_before(folder: Path) -> None:
    """Files reach the disk in any order."""
    newest_log_file(folder, back=1).write_bytes(b"")


HARMS: list[Callable[[Path], None]] = [empty, cut, zeroed, remove, remove_several, empty_the_one_before]


async def open_queue(folder: Path, *, accept_rollback: bool = False) -> Queue:
    """Open it, with a clock that stands still, within a bounded time."""
    async with asyncio.timeout(OPEN_LIMIT_S):
        clock = ManualClock(SystemClock().now_ms())
        return await Queue.open(folder.as_uri(), clock=clock, accept_rollback=accept_rollback)


async def test_without_a_loss_everything_is_there(folder: Path) -> None:
    queue = await open_queue(folder)
    assert (await queue.stats("q")).pending == JOBS
    await check_ledger(queue.log.store)
    await queue.close()


@pytest.mark.parametrize("harm", sampled(HARMS, quick=2), ids=lambda harm: harm.__name__)
async def test_a_lost_tail_is_never_passed_over_in_silence(folder: Path, harm: Callable[[Path], None]) -> None:
    harm(folder)
    with pytest.raises(LedgerError) as caught:
        await open_queue(folder)
    assert str(caught.value)
    with pytest.raises(type(caught.value)):
        await open_queue(folder)


@pytest.mark.parametrize("harm", sampled([remove_several, empty, remove]), ids=lambda harm: harm.__name__)
async def test_a_loss_that_was_accepted_is_in_the_log(folder: Path, harm: Callable[[Path], None]) -> None:
    harm(folder)
    with pytest.raises(LogRolledBack) as caught:
        await open_queue(folder)
    assert caught.value.head_offset <= caught.value.anchored_offset
    queue = await open_queue(folder, accept_rollback=True)
    opened = [record.event async for record in queue.log.read() if type(record.event) is WriterOpened]
    assert [event.rolled_back_from for event in opened] == [None, caught.value.anchored_offset]
    lost = 3 if harm is remove_several else 1
    assert (await queue.stats("q")).pending == JOBS - lost
    claims = await queue.claim("q", limit=100)
    assert [claim.payload for claim in claims] == [b"%d" % i for i in range(JOBS - lost)]
    await queue.ack_many(claims)
    await check_ledger(queue.log.store)
    await queue.close()
    again = await open_queue(folder)
    assert (await again.stats("q")).done == JOBS - lost
    await again.close()


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of what was synced, in order; tests add their own marks between them."""
    names: list[str] = []

    def recorder(sync: Callable[[int], None]) -> Callable[[int], None]:
        def record(fd: int) -> None:
            sync(fd)
            names.append(Path(f"/proc/self/fd/{fd}").readlink().name)

        return record

    for name in ("fsync", "fdatasync"):
        monkeypatch.setattr(os, name, recorder(getattr(os, name)))
    return names


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="names of open files are looked up in /proc")
async def test_each_commit_is_synced_before_it_is_reported(tmp_path: Path, synced: list[str]) -> None:
    folder = tmp_path / "store"
    async with Queue.open(folder.as_uri(), clock=ManualClock(SystemClock().now_ms())) as queue:
        for i in range(20):
            mark = len(synced)
            await (queue.enqueue("q", b"x") if i % 2 else queue.enqueue_many("q", [b"x"] * 50))
            reported = synced[mark:]
            on_disk = newest_log_file(folder).name
            assert reported[:2] == [on_disk, "wal"], "the log file, then the folder that names it"
            assert reported[2] == "anchor", "the anchor follows what it vouches for"
        assert {file.name for file in (folder / "wal").glob("*.sst")} <= set(synced)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="names of open files are looked up in /proc")
async def test_a_commit_whose_sync_hangs_is_not_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with Queue.open((tmp_path / "store").as_uri()) as queue:
        loop = asyncio.get_running_loop()
        hanging, go_on = asyncio.Event(), threading.Event()
        fdatasync = os.fdatasync

        def hang(fd: int) -> None:
            loop.call_soon_threadsafe(hanging.set)
            go_on.wait()
            fdatasync(fd)

        monkeypatch.setattr(os, "fdatasync", hang)
        enqueuing = asyncio.create_task(queue.enqueue("q", b"x"))
        try:
            async with asyncio.timeout(OPEN_LIMIT_S):
                await hanging.wait()
            assert not enqueuing.done()
        finally:
            go_on.set()
        await enqueuing


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="names of open files are looked up in /proc")
async def test_an_opener_syncs_the_log_files_that_it_builds_on_and_no_others(tmp_path: Path, synced: list[str]) -> None:
    folder = tmp_path / "store"
    behind, ahead = 20, 10

    async def commits(queue: Queue, count: int) -> None:
        for _ in range(count):
            await queue.enqueue("q", b"x")

    unsynced = StoreOptions(fsync=False)
    async with Queue.open(folder.as_uri(), store_options=unsynced) as queue:
        await commits(queue, behind)
    old = {file.name for file in (folder / "wal").glob("*.sst")}
    abandoned = await Queue.open(folder.as_uri(), store_options=unsynced)
    await commits(abandoned, ahead)
    new = {file.name for file in (folder / "wal").glob("*.sst")} - old
    synced.clear()
    async with Queue.open(folder.as_uri(), take_over=True) as queue:
        missing = (new | {file.name for file in (folder / "compacted").glob("*.sst")}) - set(synced)
        assert len(new) >= ahead
        assert missing == set(), "what the state is made of"
        assert len(old & set(synced)) <= 2, "what sorted files hold as well may be tens of thousands of files"
        assert (await queue.stats("q")).pending == behind + ahead
    await abandoned.close()
