"""The background upkeep of a file store with fsync: sorted files are synced, then what they replaced is removed."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from ledgerq.eventlog.clock import Clock, SystemClock, sleep_until
from ledgerq.eventlog.files.file_checks import trusted_files
from ledgerq.eventlog.files.fsync import FileSync, recorded_manifest
from ledgerq.eventlog.files.garbage import admin_of, collect, newest_synced
from ledgerq.eventlog.locations import Location
from ledgerq.eventlog.runtime.log_records import LogThrottle, about, logger
from ledgerq.eventlog.slate.error_mapping import SLATE_ERRORS

if TYPE_CHECKING:
    import asyncio

__all__ = ["Upkeep"]

_log = logger("store")
_SYNC_EVERY_MS: Final = 10_000
_SAY_EVERY_MS: Final = 600_000


class Upkeep:
    """The syncs of one store's files beside its commits, at opening, now and then, and at close."""

    def __init__(self, location: Location, files: FileSync, run: "Callable[..., asyncio.Future[Any]]") -> None:
        """Sync and collect `files`; `run` calls a function in a thread."""
        self._location = location
        self._files = files
        self._run = run
        self._noted = 0

    async def opened(self) -> None:
        """Make durable what an earlier writer left. Raises OSError and SlateDB's errors."""
        number = await self._run(recorded_manifest, self._location.folder)
        names = await trusted_files(self._location)
        newest = await admin_of(self._location).read_manifest(None)
        # What the log files before this one held is in sorted files.
        first_wal_id = 0 if newest is None else newest.replay_after_wal_id + 1
        await self._run(lambda: self._files.opened(first_wal_id, manifest_id=number, sorted_files=names))
        await self._record_manifest()

    async def sync(self) -> None:
        """Sync what is new, and record it for the next opener. Raises OSError and SlateDB's errors."""
        await self._run(self._files.sync_behind)
        await self._record_manifest()

    async def _record_manifest(self) -> None:
        numbers = self._files.synced_numbers("manifest")
        if numbers and numbers[0] > self._noted:
            manifest = await newest_synced(admin_of(self._location), self._files)
            if manifest is not None and manifest.id > self._noted:
                self._noted = manifest.id
                await self._run(self._files.record_manifest, manifest.id)

    async def keep_up(
        self, clock: Clock, *, gc_interval_s: float, gc_age_s: float, has_stopped: Callable[[], bool]
    ) -> None:
        """Sync every 10 s and collect garbage every `gc_interval_s`, until cancelled; a failed round is tried again.

        It ends when the writer `has_stopped`: the files are those of the one that fenced it then.

        The first collection comes with the first sync: a program that is restarted within each interval has garbage
        too.
        """
        gc_every_ms, gc_age_ms = round(gc_interval_s * 1000), round(gc_age_s * 1000)
        gc_due_ms = clock.now_ms()
        throttle = LogThrottle(period_ms=_SAY_EVERY_MS)
        while True:
            await sleep_until(clock, clock.now_ms() + min(_SYNC_EVERY_MS, gc_every_ms))
            if has_stopped():
                return
            try:
                await self.sync()
                if clock.now_ms() >= gc_due_ms:
                    gc_due_ms = clock.now_ms() + gc_every_ms
                    # Files have the system's times, whichever clock the queue was given.
                    now_ms = SystemClock().now_ms()
                    await collect(self._location, self._files, age_ms=gc_age_ms, now_ms=now_ms, run=self._run)
            except (OSError, *SLATE_ERRORS) as error:
                if throttle.may(clock.now_ms()):
                    task = "syncing or removing files"
                    words = self._location.original, task, error, throttle.take_left_out()
                    _log.warning("%s: %s failed, trying again: %s%s", *words, extra=about("upkeep_failed"))
