"""Why did a write fail? SlateDB tries again without a word; a few requests of our own say what is wrong.

Asked only after a failure, so it may find that all is well again: then nothing is added.
"""

import asyncio
import os
from typing import Final

from ledgerq.eventlog.errors import ClockWentBack, Fenced, InvalidArgument, LedgerError, StoreUnavailable
from ledgerq.eventlog.locations import Location
from ledgerq.eventlog.objects import Objects
from ledgerq.eventlog.threads import DaemonThreads

__all__ = ["CAUSE_LIMIT_S", "full_disk", "with_cause"]

CAUSE_LIMIT_S: Final = 5.0
_DISK_LIMIT_S: Final = 1.0
_FULL_BYTES: Final = 16 * 1024 * 1024
_PROBE: Final = "preflight"
_CLEAR: Final = (Fenced, ClockWentBack, InvalidArgument)


async def with_cause(error: LedgerError, objects: Objects) -> LedgerError:
    """The same error; unless it is clear already, it says as well what keeps the bucket from being written now."""
    if isinstance(error, _CLEAR):
        return error
    try:
        await objects.has_any("manifest/")
        await objects.put(_PROBE, b"")
        await objects.delete(_PROBE)
    except StoreUnavailable as cause:
        error.args = (f"{error}. Asked again, it says: {cause}", *error.args[1:])
    return error


async def full_disk(location: Location) -> str:
    """What to do about a file store's full disk, if it is that; else an empty text."""
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
    return f"only {free_bytes // 1024} KiB are free on its disk: free some space" * (free_bytes < _FULL_BYTES)
