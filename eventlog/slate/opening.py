"""Opening a SlateDB store for writing: what a power cut left is mended first, then SlateDB opens it."""

import asyncio
import weakref
from contextlib import suppress
from typing import Final

from slatedb.uniffi import DbBuilder, ObjectStore

from ledgerq.eventlog.clock import Clock
from ledgerq.eventlog.errors import Fenced, LogPoisoned, RowUnreadable, StoreUnavailable
from ledgerq.eventlog.files.file_checks import check_files
from ledgerq.eventlog.files.private_folders import make_parts
from ledgerq.eventlog.locations import Location
from ledgerq.eventlog.recovery.healing import heal
from ledgerq.eventlog.runtime.waits import to_the_end
from ledgerq.eventlog.single_writer.hold import Hold, check_wait, hold_store
from ledgerq.eventlog.slate.binding import Lane
from ledgerq.eventlog.slate.error_mapping import SLATE_ERRORS, translate
from ledgerq.eventlog.slate.fencing import FenceCheck, own_epoch, writer_epoch
from ledgerq.eventlog.slate.lanes import best_lane
from ledgerq.eventlog.slate.metrics import SlateMetrics
from ledgerq.eventlog.slate.options import StoreOptions
from ledgerq.eventlog.slate.preflight import PREFLIGHT_LIMIT_S, check_writable
from ledgerq.eventlog.slate.slate_store import SlateStore

__all__ = ["open_slate"]

_TRIES_HEALED: Final = 64


async def open_slate(
    location: Location,
    *,
    clock: Clock,
    options: StoreOptions | None = None,
    create: bool = True,
    take_over: bool = False,
    wait: float | None = 0.0,
    share: bool = False,
    lane: Lane | None = None,
) -> SlateStore:
    """Open the store at `location` for writing, which fences every earlier writer of it.

    One that is alive is waited for, `wait` seconds long (None: without end), and then fenced only if `take_over`.
    Raises `StoreInUse` otherwise, `StoreUnavailable` with the cause, `StoreNotFound` when there is none and `create` is
    False.
    """
    options = options or StoreOptions()
    check_wait(take_over, wait)
    await check_writable(location, create=create, limit_s=min(PREFLIGHT_LIMIT_S, options.open_timeout_s))
    hold = await hold_store(location, clock=clock, options=options, take_over=take_over, wait=wait, share=share)
    try:
        store = await _open_held(location, hold, clock, options, lane)
    except BaseException:
        await to_the_end(hold.release())
        raise
    store.held(hold)
    return store


async def _open_held(
    location: Location, hold: Hold, clock: Clock, options: StoreOptions, lane: Lane | None
) -> SlateStore:
    try:
        limit_s, healed = options.open_timeout_s, False
        if location.is_file and hold.took_over:
            # Its writer is at work until SlateDB has opened, and nothing of it may be moved.
            async with asyncio.timeout(limit_s):
                with suppress(RowUnreadable):  # it costs the jobs of a block
                    await check_files(location, writing=True)
        elif location.is_file:
            healed = await heal(location, hold, limit_s=limit_s) is not None
        try:
            return await _open(location, hold, clock, options, lane, tries=_TRIES_HEALED if healed else 1)
        except LogPoisoned:
            # What SlateDB finds in a file's middle, nothing before it has looked for.
            if not location.is_file or hold.took_over:
                raise
            if await heal(location, hold, thorough=True, limit_s=limit_s) is None:
                raise
        return await _open(location, hold, clock, options, lane, tries=_TRIES_HEALED)
    except TimeoutError as error:
        raise StoreUnavailable(
            f"{location.original} could not be opened within {options.open_timeout_s:g} s: check that it can be "
            "reached, or raise open_timeout_s"
        ) from error
    except OSError as error:
        raise StoreUnavailable(f"{location.original} could not be opened: {error}") from error
    except SLATE_ERRORS as error:
        raise translate(error, location.original) from error


async def _open(
    location: Location, hold: Hold, clock: Clock, options: StoreOptions, lane: Lane | None, *, tries: int
) -> SlateStore:
    """Open what is there. Below a manifest that was set aside each opening takes the next epoch, until it is new.

    `open_timeout_s` is for SlateDB; what has to be synced then takes its time.
    """
    if location.is_file:
        await asyncio.to_thread(make_parts, location.folder)
    builder = DbBuilder(location.database, ObjectStore.resolve(location.root))
    builder.with_settings(options.slate_settings(embedded_gc=not (location.is_file and options.fsync)))
    builder.with_db_cache(options.new_cache(), 0)
    metrics = SlateMetrics()
    builder.with_metrics_recorder(metrics)
    try:
        async with asyncio.timeout(options.open_timeout_s):
            # On files nothing is refused but by another writer.
            epoch_before = 0 if location.is_file else await writer_epoch(location)
            db = await builder.build()
        store = SlateStore(db, lane or best_lane(), location, clock, options, metrics)
        # A store that was dropped without `close` writes no more either.
        this = weakref.ref(store)
        try:
            await hold.opened(lambda: (opened := this()) is None or opened.is_fenced)
            if not location.is_file:
                async with asyncio.timeout(options.open_timeout_s):
                    store.fence = FenceCheck(location, own_epoch(epoch_before, await writer_epoch(location)))
            await store.started()
        except BaseException:
            await store.close()
            raise
        return store
    except SLATE_ERRORS as error:
        translated = translate(error, location.original)
        if isinstance(translated, Fenced) and tries > 1:
            return await _open(location, hold, clock, options, lane, tries=tries - 1)
        raise translated from error
