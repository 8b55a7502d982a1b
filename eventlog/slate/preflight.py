"""The preflight: can the store be reached, and written? Checked before SlateDB opens, whose silent retries never end.

A few requests with few retries and a time limit; a problem is raised as `StoreUnavailable` with the cause and what to
do about it. Once a write has failed, they are made again, to find the cause.
"""

import asyncio
import errno
import os
from pathlib import Path
from typing import Final

from ledgerq.eventlog.clock import PLAUSIBLE_MS, SystemClock, time_text
from ledgerq.eventlog.errors import (
    ClockWentBack,
    Fenced,
    InvalidArgument,
    LedgerError,
    StoreNotFound,
    StoreUnavailable,
)
from ledgerq.eventlog.files.file_checks import check_files
from ledgerq.eventlog.files.odd_files import new_file, refuse_odd_files
from ledgerq.eventlog.files.private_folders import STORE_FOLDERS, make_private
from ledgerq.eventlog.locations import Location
from ledgerq.eventlog.runtime.log_records import about, logger
from ledgerq.eventlog.runtime.redaction import redacted
from ledgerq.eventlog.runtime.threads import DaemonThreads
from ledgerq.eventlog.slate.objects import Objects

__all__ = [
    "CAUSE_LIMIT_S",
    "PREFLIGHT_LIMIT_S",
    "check_clock",
    "check_readable",
    "check_writable",
    "full_disk",
    "with_cause",
]

_log = logger("store")

PREFLIGHT_LIMIT_S: Final = 10.0
CAUSE_LIMIT_S: Final = 5.0
_DISK_LIMIT_S: Final = 1.0
# SlateDB hangs on a full disk, and this little is full within seconds.
_MIN_FREE_BYTES: Final = 16 * 1024 * 1024
_PROBE: Final = "preflight"
_ANCHOR: Final = "anchor"
# Errors that need no further cause.
_CLEAR: Final = (Fenced, ClockWentBack, InvalidArgument)
_PROBE_BYTES: Final = 4096
_REMEDIES: Final = {
    errno.EACCES: "this user may not read or may not write there; change its owner or mode, or choose another folder",
    errno.EPERM: "this user may not read or may not write there; change its owner or mode, or choose another folder",
    errno.EROFS: "the file system is read-only; mount it for writing, or choose another folder",
    errno.ENOSPC: "the disk is full; free some space",
    errno.EDQUOT: "the disk quota is used up; free some space",
    errno.ENOTDIR: "it is not a folder; choose another place",
    errno.EISDIR: "it is a folder; remove it, or choose another place",
    errno.EEXIST: "it is not a folder; choose another place",
    errno.ENOENT: "the folder that should hold it does not exist; create it, or check the path",
    errno.ENAMETOOLONG: "its name is too long; choose a shorter one",
}


async def check_writable(location: Location, *, create: bool, limit_s: float = PREFLIGHT_LIMIT_S) -> None:
    """Check that a store can be written at `location`; makes the folder of a new file store when `create` is True.

    Raises `StoreUnavailable`, and `StoreNotFound` when there is no store and `create` is False.
    """
    await _bounded(location, limit_s, writing=True, create=create)


async def check_readable(location: Location, *, limit_s: float = PREFLIGHT_LIMIT_S) -> None:
    """Check that there is a store at `location`, writing nothing. Raises `StoreNotFound`, `StoreUnavailable`."""
    await _bounded(location, limit_s, writing=False, create=False)


async def _bounded(location: Location, limit_s: float, *, writing: bool, create: bool) -> None:
    check_clock(location, writing=writing)
    try:
        async with asyncio.timeout(limit_s):
            if location.is_file:
                # In a thread: a network file system can hang.
                await asyncio.to_thread(_check_folder, location, writing=writing, create=create)
                if not writing:
                    await _check_files(location)
            else:
                await _check_objects(location, limit_s, writing=writing, create=create)
    except TimeoutError as error:
        raise StoreUnavailable(
            f"{location.original} did not answer within {limit_s:g} s: check the network, the endpoint or the disk"
        ) from error


def check_clock(location: Location, *, writing: bool) -> None:
    """Check the system's clock, which SlateDB uses whichever one the queue was given: it panics before 1970.

    Raises `StoreUnavailable` then; warns of a clock that was never set when the store is to be written.
    """
    now_ms = SystemClock().now_ms()
    if now_ms == 0:
        raise StoreUnavailable(
            f"{location.original} can't be used: the system's clock shows a time before 1970; set the clock"
        )
    if writing and now_ms < PLAUSIBLE_MS:
        _log.warning(
            "%s: the system's clock shows %s, which can't be right. Job ids and the log will have that time, and all "
            "that is due later will be due at once when the clock is set: set it first",
            location.original,
            time_text(now_ms),
            extra=about("clock_not_set", now_ms=now_ms),
        )


async def _check_objects(location: Location, limit_s: float, *, writing: bool, create: bool) -> None:
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    endpoint = endpoint or os.environ.get("AWS_ENDPOINT", "")
    allow_http = os.environ.get("AWS_ALLOW_HTTP", "").lower() in ("1", "true", "yes")
    if location.scheme == "s3" and endpoint.startswith("http://") and not allow_http:
        raise StoreUnavailable(
            f"{location.original}: the endpoint {redacted(endpoint)} has no TLS; if that is meant, set "
            "AWS_ALLOW_HTTP=true"
        )
    # The requests end by themselves, with a reason, a little before the outer limit would cut them off without one.
    objects = Objects(location, limit_s=limit_s * 0.8)
    if not await objects.has_any("manifest/") and not create:
        raise _not_found(location)
    if writing:
        await objects.put(_PROBE, bytes(_PROBE_BYTES))
        await objects.delete(_PROBE)


async def _check_files(location: Location) -> None:
    try:
        await check_files(location, writing=False)
    except OSError as error:
        raise _explain(location, error) from error


def _check_folder(location: Location, *, writing: bool, create: bool) -> None:
    folder = location.folder
    try:
        if create and not folder.is_dir():
            make_private(folder)
        if not create and not _has_manifest(folder):
            raise _not_found(location)
        if writing:
            _probe(location, folder)
        _check_parts(folder, writing=writing)
        refuse_odd_files(location, writing=writing)
    except OSError as error:
        raise _explain(location, error) from error


def _has_manifest(folder: Path) -> bool:
    try:
        with os.scandir(folder / "manifest") as found:
            return any(entry.name.endswith(".manifest") for entry in found)
    except (FileNotFoundError, NotADirectoryError):
        return False


def _check_parts(folder: Path, *, writing: bool) -> None:
    """Raise OSError for a part of the store that can't be used: made, for instance, when root opened it once."""
    wanted = os.R_OK | (os.W_OK if writing else 0)
    for name in STORE_FOLDERS:
        if (folder / name).exists():
            if not (folder / name).is_dir():
                raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder / name))
            if not os.access(folder / name, wanted | os.X_OK):
                raise OSError(errno.EACCES, os.strerror(errno.EACCES), str(folder / name))
    if (folder / _ANCHOR).is_dir():
        raise OSError(errno.EISDIR, os.strerror(errno.EISDIR), str(folder / _ANCHOR))
    if (folder / _ANCHOR).exists() and not os.access(folder / _ANCHOR, wanted):
        raise OSError(errno.EACCES, os.strerror(errno.EACCES), str(folder / _ANCHOR))


def _probe(location: Location, folder: Path) -> None:
    disk = os.statvfs(folder)
    free_bytes = disk.f_bavail * disk.f_frsize
    if free_bytes < _MIN_FREE_BYTES:
        raise StoreUnavailable(
            f"{location.original}: only {free_bytes // 1024} KiB are free on its disk, and at least "
            f"{_MIN_FREE_BYTES // 1024} KiB are needed; free some space"
        )
    with new_file(folder, _PROBE) as (_, fd):
        os.pwrite(fd, bytes(_PROBE_BYTES), 0)


def _explain(location: Location, error: OSError) -> StoreUnavailable:
    remedy = _REMEDIES.get(error.errno or 0, "check the disk")
    name = Path(error.filename or "").name
    where = f" ({error.filename})" if name in (*STORE_FOLDERS, _ANCHOR) else ""
    return StoreUnavailable(f"{location.original} can't be used: {error.strerror or error}{where}; {remedy}")


def _not_found(location: Location) -> StoreNotFound:
    return StoreNotFound(
        f"there is no store at {location.original}; check the URL, or open it for writing to create one"
    )


async def with_cause(error: LedgerError, objects: Objects) -> LedgerError:
    """The same error; unless it is clear already, with what keeps the bucket from being written now.

    Asked after a failure, so all may be well again: then nothing is added.
    """
    if isinstance(error, _CLEAR):
        return error
    try:
        await objects.has_any("manifest/")
        await objects.put(_PROBE, b"")
        await objects.delete(_PROBE)
    except StoreUnavailable as cause:
        error.args = (f"{error}. At a second try: {cause}", *error.args[1:])
    return error


async def full_disk(location: Location) -> str:
    """The remedy for a file store's full disk, if it is full; else an empty text."""
    if not location.is_file:
        return ""
    threads = DaemonThreads("ledgerq-disk")
    try:
        async with asyncio.timeout(_DISK_LIMIT_S):
            disk = await asyncio.get_running_loop().run_in_executor(threads, os.statvfs, location.folder)
    except (OSError, TimeoutError):
        return ""
    finally:
        threads.shutdown()
    free_bytes = disk.f_bavail * disk.f_frsize
    return f"only {free_bytes // 1024} KiB are free on its disk: free some space" * (free_bytes < _MIN_FREE_BYTES)
