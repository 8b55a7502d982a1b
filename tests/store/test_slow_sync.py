"""A disk that syncs slowly: a store opens however long that takes, as long as the disk gets on.

Time is not waited for: each sync puts the event loop's clock forward, and lets the loop see what is due by then.
"""

import asyncio
import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ledgerq.eventlog.clock import SystemClock
from ledgerq.eventlog.errors import StoreInUse, StoreUnavailable
from ledgerq.eventlog.files import fsync
from ledgerq.eventlog.recovery import healing, set_aside
from ledgerq.eventlog.recovery.set_aside import SetAside
from ledgerq.eventlog.slate.options import StoreOptions
from ledgerq.eventlog.stores import open_store
from ledgerq.worker.queue import Queue

LIMIT_S = 60


class SlowDisk:
    """A disk each of whose syncs takes `sync_s`, by the running event loop's clock."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, sync_s: float, also: Callable[[], None] = lambda: None) -> None:
        self.syncs = 0
        self._ahead_s = 0.0
        self._sync_s = sync_s
        self._also = also
        self._loop = asyncio.get_running_loop()
        monkeypatch.setattr(self._loop, "time", lambda: time.monotonic() + self._ahead_s)
        monkeypatch.setattr(os, "fsync", self._sync)

    def _sync(self, fd: int) -> None:
        self.syncs += 1
        self._ahead_s += self._sync_s
        if threading.current_thread() is not threading.main_thread():
            # Two turns of the loop: what is due is found in one, and has its effect in the next.
            for _ in range(2):
                seen = threading.Event()
                self._loop.call_soon_threadsafe(seen.set)
                assert seen.wait(LIMIT_S)
        self._also()


async def test_a_new_store_opens_though_each_sync_takes_five_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = SlowDisk(monkeypatch, sync_s=5)
    store = await open_store(str(tmp_path / "store"), clock=SystemClock())
    assert disk.syncs * 5 > 30, "more than the whole limit of opening"
    monkeypatch.undo()
    await store.close()


async def test_an_older_store_opens_too_however_many_files_its_writer_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = await Queue.open(str(tmp_path / "store"))
    for number in range(20):
        await queue.enqueue("mail", b"%d" % number)
    # As after kill -9: the files lie there as they are, and nothing tells what of them is on the disk.
    copy = tmp_path / "copy"
    shutil.copytree(tmp_path / "store", copy)
    await queue.close()
    disk = SlowDisk(monkeypatch, sync_s=5)
    store = await open_store(str(copy), clock=SystemClock())
    assert disk.syncs > 20
    monkeypatch.undo()
    await store.close()


async def killed(tmp_path: Path) -> Path:
    """A store as after kill -9 and a power cut: the two newest manifests have lost their data."""
    for _ in range(2):
        async with Queue.open(str(tmp_path / "store")) as queue:
            await queue.enqueue("mail", b"x")
    async with Queue.open(str(tmp_path / "store")) as queue:
        await queue.enqueue("mail", b"x")
        copy = Path(shutil.copytree(tmp_path / "store", tmp_path / "copy"))
    for file in sorted((copy / "manifest").iterdir())[-2:]:
        file.write_bytes(b"")
    return copy


async def test_files_are_moved_for_longer_than_the_whole_limit_of_opening(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = await killed(tmp_path)
    synced: list[int] = []
    move = set_aside.move_aside

    def counted(*given: Any) -> SetAside:
        before = disk.syncs
        done = move(*given)
        synced.append(disk.syncs - before)
        return done

    monkeypatch.setattr(healing, "move_aside", counted)
    disk = SlowDisk(monkeypatch, sync_s=5)
    store = await open_store(str(copy), clock=SystemClock())
    assert synced[0] * 5 > 30
    monkeypatch.undo()
    await store.close()
    async with Queue.open(str(copy)) as queue:
        assert (await queue.stats("mail")).pending == 3


@pytest.mark.proof
async def test_a_disk_that_hangs_while_files_are_moved_keeps_the_store_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = await killed(tmp_path)
    answers, real = threading.Event(), fsync.sync_path

    def hang(path: Path) -> None:
        if path == copy:
            assert answers.wait(LIMIT_S)
        real(path)

    monkeypatch.setattr(set_aside, "sync_path", hang)
    impatient = StoreOptions(open_timeout_s=1)
    with pytest.raises(StoreUnavailable, match="the disk has synced no file for 1 s"):
        await open_store(str(copy), clock=SystemClock(), options=impatient)
    with pytest.raises(StoreInUse):
        await open_store(str(copy), clock=SystemClock())
    answers.set()
    async with Queue.open(str(copy), wait=LIMIT_S) as queue:
        assert (await queue.stats("mail")).pending == 3


async def test_a_disk_that_does_not_get_on_is_given_up_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    released = threading.Event()
    disk = SlowDisk(monkeypatch, sync_s=0)

    def hang() -> None:
        # The third sync never ends, and the loop's clock goes on meanwhile.
        if disk.syncs == 3:
            for _ in range(200):
                disk._ahead_s += 1
                seen = threading.Event()
                disk._loop.call_soon_threadsafe(seen.set)
                if released.is_set() or not seen.wait(LIMIT_S):
                    return
            released.wait(LIMIT_S)

    disk._also = hang
    opening = asyncio.ensure_future(open_store(str(tmp_path / "store"), clock=SystemClock()))
    opening.add_done_callback(lambda _: released.set())
    with pytest.raises(StoreUnavailable, match="the disk has synced no file for 30 s; check the disk"):
        await opening
