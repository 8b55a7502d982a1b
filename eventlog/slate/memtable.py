"""The flush of the memory to a sorted file now and then, so that the next opener has few log files to read."""

from collections.abc import Coroutine
from typing import Any

from slatedb.uniffi import Db, FlushOptions, FlushType

from ledgerq.eventlog.locations import Location
from ledgerq.eventlog.runtime.log_records import about, logger
from ledgerq.eventlog.slate.error_mapping import SLATE_ERRORS

__all__ = ["MemtableFlush"]

_log = logger("store")


class MemtableFlush:
    """Counts the log files of one writer; one flush at a time."""

    def __init__(self, db: Db, location: Location, *, every_wal_flushes: int) -> None:
        """Flush the memory of `db` after so many log files."""
        self._db = db
        self._location = location
        self._limit = every_wal_flushes
        self._wal_flushes = 0
        self._is_running = False

    def due(self) -> Coroutine[Any, Any, None] | None:
        """Count one log file more; returns the work to do when it is time for it."""
        self._wal_flushes += 1
        if self._wal_flushes < self._limit or self._is_running:
            return None
        self._wal_flushes = 0
        self._is_running = True
        return self._flush()

    async def _flush(self) -> None:
        try:
            await self._db.flush_with_options(FlushOptions(flush_type=FlushType.MEM_TABLE))
        except SLATE_ERRORS as error:
            what = "%s: moving the log to a sorted file failed: %s"
            _log.info(what, self._location.original, error, extra=about("flush_failed"))
        finally:
            self._is_running = False
