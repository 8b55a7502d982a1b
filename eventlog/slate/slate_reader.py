"""A SlateDB store opened for reading, beside the process that writes it: nothing is written, no writer is fenced."""

import asyncio
from typing import Final

from slatedb.uniffi import DbReaderBuilder, Error, ObjectStore, ReaderMode, ReaderOptions

from ledgerq.eventlog.anchor import FileAnchor, ObjectAnchor
from ledgerq.eventlog.clock import SystemClock
from ledgerq.eventlog.errors import InvalidArgument, LedgerError, StoreUnavailable
from ledgerq.eventlog.locations import Location
from ledgerq.eventlog.runtime.log_records import about, logger
from ledgerq.eventlog.slate.binding import Lane
from ledgerq.eventlog.slate.error_mapping import SLATE_ERRORS, salvage_it, translate
from ledgerq.eventlog.slate.lanes import best_lane
from ledgerq.eventlog.slate.objects import Objects
from ledgerq.eventlog.slate.options import StoreOptions
from ledgerq.eventlog.slate.preflight import PREFLIGHT_LIMIT_S, check_readable
from ledgerq.eventlog.slate.reads import SlateReads
from ledgerq.eventlog.store import Anchor

__all__ = ["SlateReader", "open_slate_reader"]

_log = logger("store")
_PINNED_POLL_MS: Final = 3_600_000
_MAX_MEMTABLE_BYTES: Final = 32 * 1024 * 1024
_OPEN_LIMIT_S: Final = 30.0
_READ_LIMIT_S: Final = 30.0
_CLOSE_LIMIT_S: Final = 10.0
_SETTLE_S: Final = 0.02


class SlateReader(SlateReads):
    """A view of a store that follows its writer, or stays at one commit; open it with `open_slate_reader`."""

    def __init__(self, db: object, lane: Lane, location: Location) -> None:
        """Own the open reader `db`."""
        super().__init__(db, lane, location, read_timeout_s=_READ_LIMIT_S)
        self._pinned_seq: int | None = None
        self._pinned_anchor: Anchor | None = None

    def pin(self, anchor: Anchor | None) -> None:
        """Refuse from now on to read when the view is not the present one any more; its anchor is `anchor`."""
        self._pinned_seq = self._db.status().durable_seq
        self._pinned_anchor = anchor

    async def read_anchor(self) -> Anchor | None:
        """The newest anchor that can be read, or None when there is none; of a pinned view, the one found before it.

        A newer anchor names a commit that a pinned view doesn't show, which would look like a loss.
        """
        self._check()
        return await _anchor(self._location) if self._pinned_seq is None else self._pinned_anchor

    def _served(self) -> None:
        if self._pinned_seq is not None and self._db.status().durable_seq != self._pinned_seq:
            raise StoreUnavailable(f"{self.location}: the pinned view moved to a newer commit; open it again")

    async def _failed(self, error: BaseException) -> LedgerError:
        # SlateDB keeps replaced files for about 15 minutes (a checkpoint of its compactor's), even if they are still
        # read.
        if isinstance(error, Error.Data) and "not found" in str(error):
            return StoreUnavailable(
                f"{self.location}: a file of this view is gone ({error}). If the view is older than some minutes the "
                "writer replaced it: open it again. If that doesn't help, the file is lost: "
                + salvage_it(self.location)
            )
        return await super()._failed(error)

    async def close(self) -> None:
        """Close the reader; a second call does nothing."""
        if self._is_closed:
            return
        self._check()
        self._is_closed = True
        try:
            async with asyncio.timeout(_CLOSE_LIMIT_S):
                await self._db.shutdown()
        except (TimeoutError, *SLATE_ERRORS) as error:
            what = "%s: closing a reader did not finish: %r"
            _log.warning(what, self.location, error, extra=about("close_unfinished"))


async def open_slate_reader(
    location: Location, *, poll_interval_ms: int = 500, pinned: bool = False, lane: Lane | None = None
) -> SlateReader:
    """Open a reader that sees new commits within about `poll_interval_ms`, or, `pinned`, only those it found.

    Raises `StoreNotFound` when there is no store, `StoreUnavailable` with the cause.
    """
    if poll_interval_ms < 1:
        raise InvalidArgument(f"poll_interval_ms must be at least 1, not {poll_interval_ms}")
    # With an hour between two reads of the manifest the view stays at the commit that it was opened on.
    poll_ms = _PINNED_POLL_MS if pinned else poll_interval_ms
    reader_options = ReaderOptions(
        manifest_poll_interval_ms=poll_ms,
        checkpoint_lifetime_ms=4 * poll_ms,
        max_memtable_bytes=_MAX_MEMTABLE_BYTES,
        skip_wal_replay=False,
    )
    await check_readable(location)
    # Read before the view is made: then the view holds what it names.
    anchor = await _anchor(location) if pinned else None
    try:
        async with asyncio.timeout(_OPEN_LIMIT_S):
            builder = DbReaderBuilder(location.database, ObjectStore.resolve(location.root))
            builder.with_reader_mode(ReaderMode.FOLLOW_LATEST())
            builder.with_options(reader_options)
            # Without one of its own it has SlateDB's, which takes up to half a gigabyte.
            builder.with_db_cache(StoreOptions().new_cache(), 0)
            began_s = asyncio.get_running_loop().time()
            reader = SlateReader(await builder.build(), lane or best_lane(), location)
            if pinned:
                # SlateDB reads the manifest once more right after opening, with about the requests that opening took,
                # and gives no sign when it is done: give it twice that time. `_served` notices if that was short.
                await asyncio.sleep(max(_SETTLE_S, 2 * (asyncio.get_running_loop().time() - began_s)))
                reader.pin(anchor)
            return reader
    except TimeoutError as error:
        raise StoreUnavailable(
            f"{location.original} could not be opened for reading within {_OPEN_LIMIT_S:g} s: can it be reached?"
        ) from error
    except SLATE_ERRORS as error:
        raise translate(error, location.original) from error


async def _anchor(location: Location) -> Anchor | None:
    if location.is_file:
        try:
            return await asyncio.to_thread(FileAnchor(location.folder, fsync=False).read)
        except OSError as error:
            raise StoreUnavailable(f"{location.original}: its anchor can't be read: {error}") from error
    return await ObjectAnchor(Objects(location, limit_s=PREFLIGHT_LIMIT_S), SystemClock()).read()
