"""Detection of a writer of an object store whose ledgerq knows no leases: its commits are its only sign."""

from ledgerq.eventlog.clock import SystemClock
from ledgerq.eventlog.errors import LedgerError
from ledgerq.eventlog.events import Rebuilt, WriterClosed
from ledgerq.eventlog.locations import Location
from ledgerq.eventlog.log import LogReader
from ledgerq.eventlog.single_writer.lease import ServiceClock
from ledgerq.eventlog.slate.objects import Objects
from ledgerq.eventlog.slate.options import DEFAULT_LEASE_S
from ledgerq.eventlog.slate.slate_reader import open_slate_reader

__all__ = ["older_writer_left_s"]


async def older_writer_left_s(location: Location, objects: Objects, clock: ServiceClock) -> float:
    """The seconds for which the last commit still counts as a sign of life, for a store without any lease.

    0 when there is no store, its writer closed, or the log can't be read: the opening reports that.
    """
    if not await objects.has_any("manifest/"):
        return 0.0
    try:
        reader = await open_slate_reader(location, pinned=True)
        try:
            log = LogReader(reader, clock=SystemClock())
            head = await log.head()
            last = await log.batch_at(head.base_offset) if head.next_offset else None
        finally:
            await reader.close()
    except LedgerError:
        return 0.0
    if last is None or isinstance(last.events[-1], WriterClosed | Rebuilt):
        return 0.0
    age_s = await clock.now_s() - last.time_ms / 1000
    # A time far ahead is a wrong clock's, and no reason to wait for it to come.
    return DEFAULT_LEASE_S - age_s if abs(age_s) < DEFAULT_LEASE_S else 0.0
