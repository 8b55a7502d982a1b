"""Garbage collection of a file store: nothing that a power cut could make needed, nothing whose sync failed."""

import asyncio
import errno
import os
import time
from pathlib import Path

import pytest

from ledgerq.eventlog.clock import SystemClock
from ledgerq.eventlog.files import fsync
from ledgerq.eventlog.files.file_checks import numbers_of
from ledgerq.eventlog.files.fsync import FileSync
from ledgerq.eventlog.files.garbage import admin_of, collect, newest_synced, sorted_files
from ledgerq.eventlog.locations import parse_location
from ledgerq.eventlog.slate.options import StoreOptions
from ledgerq.worker.queue import Queue

# Each commit goes to a sorted file at once, and nothing is removed by itself.
OPTIONS = StoreOptions(max_wal_flushes_before_l0_flush=1, gc_interval_s=10**6)


@pytest.fixture
async def folder(tmp_path: Path) -> Path:
    """A store with several manifests, sorted files and log files; its writer has closed."""
    for _ in range(2):
        async with Queue.open(str(tmp_path / "store"), store_options=OPTIONS) as queue:
            for number in range(5):
                await queue.enqueue("q", b"%d" % number)
    return tmp_path / "store"


def files_in(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


async def collected(folder: Path, files: FileSync, *, age_ms: int = 0) -> set[str]:
    """One round of collection; gives what went."""
    before = files_in(folder)

    def run(function, *arguments):  # type: ignore[no-untyped-def]
        return asyncio.get_running_loop().run_in_executor(None, function, *arguments)

    # As if a while had passed, so that all files are old enough.
    now_ms = SystemClock().now_ms() + 10_000
    await collect(parse_location(str(folder)), files, age_ms=age_ms, now_ms=now_ms, run=run)
    return before - files_in(folder)


async def synced(folder: Path) -> FileSync:
    """As a writer has it after it opened the store."""
    files = FileSync(folder, fsync=True)
    await asyncio.to_thread(files.opened)
    return files


async def opens(folder: Path) -> None:
    async with Queue.open(str(folder)) as queue:
        assert (await queue.stats("q")).pending == 10


async def test_what_the_newest_synced_manifest_replaced_goes(folder: Path) -> None:
    files = await synced(folder)
    newest = await admin_of(parse_location(str(folder))).read_manifest(None)
    assert newest is not None
    gone = await collected(folder, files)
    files.close()
    assert {name for name in gone if name.startswith("wal/")}
    assert all(int(Path(name).stem) < newest.replay_after_wal_id for name in gone if name.startswith("wal/"))
    # A compaction that was at work when its writer closed holds the manifest that it began with for a while.
    held = {checkpoint.manifest_id for checkpoint in newest.checkpoints}
    assert set(numbers_of(folder, "manifest")) == {newest.id} | held
    assert (folder / "gc" / "manifest.boundary").read_bytes() == str(newest.id - 1).encode()
    assert {f"compacted/{name}" for name in sorted_files(newest)} <= files_in(folder)
    await opens(folder)


async def test_what_is_not_old_enough_stays(folder: Path) -> None:
    files = await synced(folder)
    assert await collected(folder, files, age_ms=10**9) == set()
    files.close()


async def test_an_empty_log_file_stays_since_it_fenced_a_writer(folder: Path) -> None:
    files = await synced(folder)
    fences = {str(path.relative_to(folder)) for path in (folder / "wal").iterdir() if path.stat().st_size == 0}
    assert fences
    assert not fences & await collected(folder, files)
    files.close()


@pytest.mark.proof
@pytest.mark.parametrize("kind", ["compacted", "manifest", "compacted/", "manifest/"])
async def test_nothing_goes_that_a_file_replaced_whose_sync_failed(
    folder: Path, kind: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    files = await synced(folder)
    # Another process, so to speak, goes on, and what it writes behind its commits meets a bad disk.
    async with Queue.open(str(folder), store_options=OPTIONS) as queue:
        for _ in range(3):
            await queue.enqueue("q", b"more")
    sync_path = fsync.sync_path
    failed: set[Path] = set()

    def failing(path: Path) -> None:
        # Each file fails once: another sync of it would be reported as done.
        is_meant = path.is_dir() == kind.endswith("/") and path.relative_to(folder).parts[0] == kind.rstrip("/")
        if is_meant and path not in failed:
            failed.add(path)
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        sync_path(path)

    monkeypatch.setattr(fsync, "sync_path", failing)
    admin, gone = admin_of(parse_location(str(folder))), set()
    for _ in range(3):
        gone |= await collected(folder, files)
    assert failed
    trusted = await newest_synced(admin, files)
    newest = await admin.read_manifest(None)
    assert trusted is not None
    assert newest is not None
    assert trusted.id < newest.id
    assert not {folder / "compacted" / name for name in sorted_files(trusted)} & failed
    assert trusted.id in numbers_of(folder, "manifest")
    assert {f"compacted/{name}" for name in sorted_files(trusted)} <= files_in(folder)
    assert not {
        name for name in gone if name.startswith("wal/") and int(Path(name).stem) >= trusted.replay_after_wal_id
    }
    assert "could not be synced" in caplog.text
    files.close()


async def test_manifests_are_listed_before_the_sorted_files_that_they_name(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = await synced(folder)
    # The writer has closed before: one at work would write manifests and sorted files of its own meanwhile.
    async with Queue.open(str(folder), store_options=OPTIONS) as queue:
        await queue.enqueue("q", b"more")
    sync_path, later = fsync.sync_path, folder.parent / "later"
    newest = max((folder / "manifest").iterdir())
    newest.rename(later)
    order: list[str] = []

    def syncing(path: Path) -> None:
        order.append(path.parent.name)
        if later.exists():  # written while the sorted files are synced
            later.rename(newest)
        sync_path(path)

    monkeypatch.setattr(fsync, "sync_path", syncing)
    await asyncio.to_thread(files.sync_behind)
    assert order.index("compacted") < order.index("manifest")
    assert int(newest.stem) not in files.synced_numbers("manifest")
    files.close()


@pytest.mark.proof
async def test_the_next_opener_syncs_only_what_the_one_before_has_not(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths: list[Path] = []
    sync_path = fsync.sync_path

    def noted(path: Path) -> None:
        paths.append(path)
        sync_path(path)

    monkeypatch.setattr(fsync, "sync_path", noted)
    newest = await admin_of(parse_location(str(folder))).read_manifest(None)
    assert newest is not None
    old = {folder / "compacted" / name for name in sorted_files(newest)}
    assert old
    async with Queue.open(str(folder), store_options=OPTIONS):
        assert not old & set(paths)
    copy = folder.parent / "copy"
    os.system(f"cp -r {folder} {copy}")
    paths.clear()
    async with Queue.open(str(copy), store_options=OPTIONS):
        assert {path.name for path in old} <= {path.name for path in paths}, "a copy was not synced by who copied it"


async def test_a_file_that_came_within_the_same_tick_of_the_clock_is_noticed(folder: Path) -> None:
    files, compacted = await synced(folder), folder / "compacted"
    tick = (time.time_ns() + 10**9,) * 2
    os.utime(compacted, ns=tick)
    await asyncio.to_thread(files.sync_behind)
    (compacted / "later.sst").write_bytes(b"x")
    os.utime(compacted, ns=tick)
    await asyncio.to_thread(files.sync_behind)
    assert files.is_synced("compacted", ["later.sst"])
    files.close()


async def test_a_file_that_came_while_the_listing_of_its_folder_took_long_is_noticed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, compacted = await synced(folder), folder / "compacted"
    tick_ns, now_ms, present = time.time_ns(), SystemClock().now_ms(), files._present
    late_ms = [0]
    os.utime(compacted, ns=(tick_ns, tick_ns))

    def slowly(kind: str) -> set[str]:
        found = present(kind)
        if kind == "compacted" and not late_ms[0]:
            (compacted / "later.sst").write_bytes(b"x")
            os.utime(compacted, ns=(tick_ns, tick_ns))
            late_ms[0] = 1000
        return found

    monkeypatch.setattr(files, "_present", slowly)
    monkeypatch.setattr(SystemClock, "now_ms", lambda _: now_ms + late_ms[0])
    for _ in range(2):
        await asyncio.to_thread(files.sync_behind)
    assert files.is_synced("compacted", ["later.sst"])
    files.close()


async def test_what_cant_be_synced_at_opening_ends_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "synced").unlink()

    def failing(path: Path) -> None:
        if path.parent.name == "compacted":
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(fsync, "sync_path", failing)
    files = FileSync(folder, fsync=True)
    with pytest.raises(OSError, match="compacted"):
        await asyncio.to_thread(files.opened)
    files.close()
