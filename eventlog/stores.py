"""Opening a store, for writing or reading, by its URL."""

from typing import Final

from ledgerq.eventlog.clock import Clock
from ledgerq.eventlog.errors import LogPoisoned, StoreNotFound, StoreUnavailable
from ledgerq.eventlog.locations import parse_location
from ledgerq.eventlog.log import LogReader
from ledgerq.eventlog.memory import MemoryStore
from ledgerq.eventlog.runtime.event_loop import running_loop
from ledgerq.eventlog.single_writer.hold import check_wait
from ledgerq.eventlog.slate.opening import open_slate
from ledgerq.eventlog.slate.options import StoreOptions
from ledgerq.eventlog.slate.slate_reader import open_slate_reader
from ledgerq.eventlog.store import ReadStore, Store

__all__ = ["open_log", "open_reader", "open_store"]

_PIN_TRIES: Final = 3
_POLL_MS: Final = 500


async def open_store(
    url: str,
    *,
    clock: Clock,
    options: StoreOptions | None = None,
    create: bool = True,
    take_over: bool = False,
    wait: float | None = 0.0,
    share: bool = False,
) -> Store:
    """Open the store at `url` for writing, which fences every earlier writer of it.

    A writer that is alive is not fenced by accident: it is waited for, up to `wait` seconds (None: without end), and
    fenced only if `take_over`. `share`: this writer serves the store to other processes of this machine, which learn
    that from its lock. Raises `StoreInUse` when it is still there, `InvalidArgument` for a URL that names no
    store, `StoreUnavailable` with the cause when it can't be opened, `StoreNotFound` when there is none and `create` is
    False. Each `memory:///` is a new, private store.
    """
    running_loop()
    location = parse_location(url)
    check_wait(take_over, wait)
    if location.is_memory:
        return MemoryStore()
    return await open_slate(
        location, clock=clock, options=options, create=create, take_over=take_over, wait=wait, share=share
    )


async def open_reader(url: str, *, pinned: bool = False, poll_interval_ms: int = 500) -> ReadStore:
    """Open the store at `url` for reading, beside its writer; it writes nothing and fences no writer.

    New commits are seen within about `poll_interval_ms`, or never when `pinned`. Raises `InvalidArgument`,
    `StoreNotFound`, `StoreUnavailable`.
    """
    running_loop()
    location = parse_location(url)
    if location.is_memory:
        raise StoreNotFound(f"{url}: a memory store is readable only through the object that opened it")
    return await open_slate_reader(location, poll_interval_ms=poll_interval_ms, pinned=pinned)


async def open_log(url: str, *, clock: Clock, pinned: bool, may_be_damaged: bool = False) -> LogReader:
    """The log of the store at `url`, opened read-only, of a format that is one of ours.

    With `may_be_damaged` also one whose format can't be read. Raises `StoreNotFound`, `StoreUnavailable`, ...
    """
    for left in reversed(range(_PIN_TRIES)):
        store = await open_reader(url, pinned=pinned, poll_interval_ms=_POLL_MS)
        log = LogReader(store, clock=clock)
        try:
            await log.require_format()
        except BaseException as error:
            if may_be_damaged and isinstance(error, LogPoisoned):
                break
            await store.close()
            # Beside a busy writer a view may move on while it is being pinned.
            if left and pinned and isinstance(error, StoreUnavailable):
                continue
            raise
        break
    return log
