"""A disk that hangs in the sync of a commit: the store stays held until it answers, for the anchor may yet be written.

The sync waits for an event, and the limit of the commit ends when that has begun: nothing depends on the machine.
"""

import asyncio
import gc
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ledgerq.eventlog.anchor import FileAnchor
from ledgerq.eventlog.clock import SystemClock
from ledgerq.eventlog.errors import OutcomeUnknown, StoreInUse
from ledgerq.eventlog.files.fsync import FileSync
from ledgerq.eventlog.slate import opening
from ledgerq.eventlog.slate.binding import PublicLane
from ledgerq.eventlog.slate.lanes import best_lane
from ledgerq.eventlog.slate.options import StoreOptions
from ledgerq.eventlog.store import Anchor
from ledgerq.eventlog.stores import open_store
from ledgerq.worker.queue import Queue
from tests.support.ledger_checks import check_ledger
from tests.support.loops import set_forward
from tests.tiers import sampled

LIMIT_S = 60.0
IMPATIENT = StoreOptions(commit_timeout_s=0.2)


class HungDisk:
    """Once it `is_armed` the next sync of a thread hangs, until `answers` is set."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.is_armed = False
        self.monkeypatch = monkeypatch
        self.asked, self.answers, self.has_landed = threading.Event(), threading.Event(), threading.Event()
        fsync, fdatasync = os.fsync, os.fdatasync

        def hanging(fd: int) -> None:
            if self.is_armed:
                self.is_armed = False
                self.asked.set()
                assert self.answers.wait(LIMIT_S)
            fsync(fd)

        def anchored(fd: int) -> None:
            fdatasync(fd)
            if self.asked.is_set():
                self.has_landed.set()

        monkeypatch.setattr(os, "fsync", hanging)
        monkeypatch.setattr(os, "fdatasync", anchored)


@pytest.fixture
def url(tmp_path: Path) -> str:
    return str(tmp_path / "store")


@pytest.fixture
def hung(monkeypatch: pytest.MonkeyPatch) -> Iterator[HungDisk]:
    disk = HungDisk(monkeypatch)
    yield disk
    disk.answers.set()


async def is_in_use(url: str) -> bool:
    try:
        store = await open_store(url, clock=SystemClock())
    except StoreInUse:
        return True
    await store.close()
    return False


async def hang(url: str, disk: HungDisk) -> Queue:
    """A queue whose last commit hangs in its sync."""
    queue = await Queue.open(url)
    await queue.enqueue("q", b"before")
    disk.is_armed = True
    hanging = asyncio.ensure_future(queue.enqueue("q", b"hangs"))
    assert await asyncio.to_thread(disk.asked.wait, LIMIT_S)
    set_forward(disk.monkeypatch, 2 * StoreOptions().commit_timeout_s)
    with pytest.raises(OutcomeUnknown):
        await hanging
    # Closing has to give up too.
    vars(queue.log.store)["_options"] = IMPATIENT
    return queue


async def opens_with_all(url: str) -> None:
    """As soon as it is free; both jobs and the anchor of the second are there."""
    async with Queue.open(url, wait=LIMIT_S) as queue:
        assert (await queue.stats("q")).pending == 2
        await check_ledger(queue.log.store)


async def test_a_store_whose_close_gave_up_is_held_until_the_disk_answers(url: str, hung: HungDisk) -> None:
    queue = await hang(url, hung)
    await queue.close()
    assert await is_in_use(url)
    assert not hung.has_landed.is_set()
    anchor = FileAnchor(Path(url), fsync=False).read()
    hung.answers.set()
    await opens_with_all(url)
    assert hung.has_landed.is_set()
    after = FileAnchor(Path(url), fsync=False).read()
    assert anchor is not None
    assert after is not None
    assert after.next_offset > anchor.next_offset


@pytest.mark.parametrize("lane", sampled([best_lane, PublicLane]))
@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("closed", sampled([False, True]))
def test_a_loop_that_ended_meanwhile_leaves_the_store_held_too(
    url: str, hung: HungDisk, lane: Any, kept: bool, closed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "best_lane", lane)
    queues: list[Queue] = []

    async def first() -> None:
        queues.append(await hang(url, hung))
        if closed:
            await queues[0].close()

    asyncio.run(first())
    if not kept:
        queues.clear()
        gc.collect()
    assert asyncio.run(is_in_use(url))
    assert not hung.has_landed.is_set()
    hung.answers.set()
    asyncio.run(opens_with_all(url))
    assert hung.has_landed.is_set()


def test_what_comes_to_its_sync_after_the_files_were_closed_writes_no_anchor(tmp_path: Path) -> None:
    for fsync in (True, False):
        files = FileSync(tmp_path, fsync=fsync)
        files.opened()
        assert files.close()
        with pytest.raises(OSError, match="its files were closed"):
            files.commit(Anchor(0, 1, bytes(32), 1, 1))
        assert not (tmp_path / "anchor").exists()


def test_files_are_not_closed_under_a_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = FileSync(tmp_path, fsync=True)
    files.opened()
    tried: list[bool] = []
    monkeypatch.setattr(os, "fdatasync", lambda fd: tried.append(files.close(wait=False)))
    files.commit(Anchor(0, 1, bytes(32), 1, 1))
    assert tried == [False]
    assert files.close(wait=False)
