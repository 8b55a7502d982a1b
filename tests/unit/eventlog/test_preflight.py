"""The preflight of a store on files: each thing that makes SlateDB hang is named, with what to do about it."""

import errno
import os
import threading
import time
from pathlib import Path

import pytest

from ledgerq.eventlog.clock import PLAUSIBLE_MS, SystemClock
from ledgerq.eventlog.errors import StoreNotFound, StoreUnavailable
from ledgerq.eventlog.locations import parse_location
from ledgerq.eventlog.slate.opening import open_slate
from ledgerq.eventlog.slate.preflight import check_readable, check_writable


async def test_a_new_folder_is_made_in_one_that_exists(tmp_path: Path) -> None:
    await check_writable(parse_location(f"{tmp_path}/new"), create=True)
    assert list((tmp_path / "new").iterdir()) == []
    with pytest.raises(StoreUnavailable, match="the folder that should hold it does not exist"):
        await check_writable(parse_location(f"{tmp_path}/no/new"), create=True)


async def test_nothing_is_made_without_create(tmp_path: Path) -> None:
    with pytest.raises(StoreNotFound):
        await check_readable(parse_location(f"{tmp_path}/s"))
    with pytest.raises(StoreNotFound):
        await check_writable(parse_location(f"{tmp_path}/s"), create=False)
    assert list(tmp_path.iterdir()) == []


async def test_an_empty_folder_holds_no_store(tmp_path: Path) -> None:
    with pytest.raises(StoreNotFound):
        await check_readable(parse_location(str(tmp_path)))


async def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for place in ("file", "file/store"):
        with pytest.raises(StoreUnavailable, match="it is not a folder"):
            await open_slate(parse_location(f"{tmp_path}/{place}"), clock=SystemClock())


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
async def test_a_folder_without_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(StoreUnavailable, match="may not write"):
            await check_writable(parse_location(str(tmp_path)), create=True)
    finally:
        tmp_path.chmod(0o700)


@pytest.mark.parametrize(
    ("code", "remedy"),
    [
        (errno.EROFS, "read-only; mount it for writing"),
        (errno.EACCES, "may not write"),
        (errno.ENOSPC, "the disk is full"),
        (errno.EDQUOT, "quota"),
        (errno.EIO, "check the disk"),
    ],
)
async def test_each_failure_to_write_has_its_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, remedy: str
) -> None:
    def fail(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "pwrite", fail)
    with pytest.raises(StoreUnavailable, match=remedy):
        await check_writable(parse_location(str(tmp_path)), create=True)


async def test_a_disk_that_is_nearly_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.statvfs(tmp_path)
    fields = list(real[:10])
    # The blocks that are free to a user, and those free at all.
    fields[4] = fields[3] = 1
    monkeypatch.setattr(os, "statvfs", lambda _: os.statvfs_result(fields))
    with pytest.raises(StoreUnavailable, match="free some space"):
        await check_writable(parse_location(str(tmp_path)), create=True)


async def test_a_disk_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    released = threading.Event()
    monkeypatch.setattr(os, "statvfs", lambda _: released.wait(30))
    try:
        with pytest.raises(StoreUnavailable, match=r"did not answer within 0\.05 s"):
            await check_writable(parse_location(str(tmp_path)), create=True, limit_s=0.05)
    finally:
        released.set()


# The clock


@pytest.mark.parametrize("now_s", [-1, -315_619_200])
async def test_before_1970_nothing_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, now_s: int) -> None:
    location = parse_location(f"{tmp_path}/s")
    await (await open_slate(location, clock=SystemClock())).close()
    monkeypatch.setattr(time, "time_ns", lambda: now_s * 10**9)
    with pytest.raises(StoreUnavailable, match="the system's clock shows a time before 1970; set the clock"):
        await check_writable(location, create=True)
    with pytest.raises(StoreUnavailable, match="before 1970"):
        await check_readable(location)


async def test_a_clock_that_was_never_set_is_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    location = parse_location(f"{tmp_path}/s")
    await check_writable(location, create=True)
    assert caplog.messages == []
    monkeypatch.setattr(time, "time_ns", lambda: (PLAUSIBLE_MS - 1) * 10**6)
    await check_writable(location, create=True)
    (message,) = caplog.messages
    assert "the system's clock shows 2019-12-31 23:59:59 UTC, which can't be right" in message
    monkeypatch.setattr(time, "time_ns", lambda: PLAUSIBLE_MS * 10**6)
    await check_writable(location, create=True)
    assert len(caplog.messages) == 1
