"""Opening a SlateDB store for writing: what a power cut left is mended first, then SlateDB opens it."""

import asyncio
from typing import Final

from slatedb.uniffi import DbBuilder, ObjectStore

from ledgerq.eventlog.clock import Clock
from ledgerq.eventlog.errors import Fenced, LogPoisoned, StoreUnavailable
from ledgerq.eventlog.fastlane import best_lane
from ledgerq.eventlog.healing import heal
from ledgerq.eventlog.lane import Lane
from ledgerq.eventlog.locations import Location
from ledgerq.eventlog.preflight import PREFLIGHT_LIMIT_S, check_writable
from ledgerq.eventlog.private_folders import make_parts
from ledgerq.eventlog.slate import SlateStore
from ledgerq.eventlog.slate_errors import SLATE_ERRORS, translate
from ledgerq.eventlog.slate_metrics import SlateMetrics
from ledgerq.eventlog.slate_options import StoreOptions

__all__ = ["open_slate"]

_TRIES_HEALED: Final = 64


async def open_slate(
    location: Location,
    *,
    clock: Clock,
    options: StoreOptions | None = None,
    create: bool = True,
    lane: Lane | None = None,
) -> SlateStore:
    """Open the store at `location` for writing, which fences every earlier writer of it.

    Raises `StoreUnavailable` with the cause, `StoreNotFound` when there is none and `create` is False.
    """
    options = options or StoreOptions()
    await check_writable(location, create=create, limit_s=min(PREFLIGHT_LIMIT_S, options.open_timeout_s))
    try:
        async with asyncio.timeout(options.open_timeout_s):
            healed = location.is_file and await heal(location) is not None
        try:
            return await _open(location, clock, options, lane, tries=_TRIES_HEALED if healed else 1)
        except LogPoisoned:
            async with asyncio.timeout(options.open_timeout_s):
                # What SlateDB finds in a file's middle, nothing before it has looked for.
                if not location.is_file or await heal(location, thorough=True) is None:
                    raise
        return await _open(location, clock, options, lane, tries=_TRIES_HEALED)
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
    location: Location, clock: Clock, options: StoreOptions, lane: Lane | None, *, tries: int
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
            db = await builder.build()
        store = SlateStore(db, lane or best_lane(), location, clock, options, metrics)
        try:
            await store.started()
        except BaseException:
            await store.close()
            raise
        return store
    except SLATE_ERRORS as error:
        translated = translate(error, location.original)
        if isinstance(translated, Fenced) and tries > 1:
            return await _open(location, clock, options, lane, tries=tries - 1)
        raise translated from error
