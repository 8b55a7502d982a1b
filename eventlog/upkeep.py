"""What a file store with fsync needs in the background: sorted files are synced, then what they replaced is removed.

SlateDB's own garbage collector would remove a log file as soon as a manifest no longer needs it, however new the sorted
file that took its place: a power cut could then leave neither. So here it runs on our schedule, right after everything
it relies on was synced.
"""

from collections.abc import Awaitable, Callable
from typing import Final

from slatedb.uniffi import Admin, AdminBuilder, GarbageCollectorDirectoryOptions, GarbageCollectorOptions, ObjectStore

from ledgerq.eventlog.clock import Clock, sleep_until
from ledgerq.eventlog.locations import Location
from ledgerq.eventlog.logs import Seldom, about, logger
from ledgerq.eventlog.slate_errors import SLATE_ERRORS
from ledgerq.eventlog.slate_options import StoreOptions

__all__ = ["first_needed_wal_id", "run_upkeep"]

_log = logger("store")
_SYNC_EVERY_MS: Final = 10_000
_SAY_EVERY_MS: Final = 600_000


async def run_upkeep(
    location: Location, options: StoreOptions, clock: Clock, sync_behind: Callable[[], Awaitable[None]]
) -> None:
    """Sync every 10 s and collect garbage every `gc_interval_s`, until cancelled; a failed round is tried again.

    The first collection comes with the first sync: a program that is restarted within each interval has garbage too.
    """
    gc_every_ms = round(options.gc_interval_s * 1000)
    gc_due_ms = clock.now_ms()
    seldom = Seldom(period_ms=_SAY_EVERY_MS)
    while True:
        await sleep_until(clock, clock.now_ms() + min(_SYNC_EVERY_MS, gc_every_ms))
        try:
            await sync_behind()
            if clock.now_ms() >= gc_due_ms:
                gc_due_ms = clock.now_ms() + gc_every_ms
                await _collect(location, options)
        except (OSError, *SLATE_ERRORS) as error:
            if seldom.may(clock.now_ms()):
                task = "syncing sorted files" if isinstance(error, OSError) else "removing old files"
                words = location.original, task, error, seldom.take_left_out()
                _log.warning("%s: %s failed, trying again: %s%s", *words, extra=about("upkeep_failed"))


async def first_needed_wal_id(location: Location) -> int:
    """The first log file that an opener has to read: what those before it held is in sorted files."""
    manifest = await _admin(location).read_manifest(None)
    return 0 if manifest is None else int(manifest.replay_after_wal_id) + 1


async def _collect(location: Location, options: StoreOptions) -> None:
    unused = GarbageCollectorDirectoryOptions(
        interval_ms=None, min_age_ms=round(options.gc_age_s * 1000), dry_run=False
    )
    # No wal_fence_options: that collector can lose acknowledged writes.
    kinds = GarbageCollectorOptions(
        manifest_options=unused, wal_options=unused, compacted_options=unused, compactions_options=unused
    )
    await _admin(location).run_gc_once(kinds)


def _admin(location: Location) -> Admin:
    return AdminBuilder(location.database, ObjectStore.resolve(location.root)).build()
