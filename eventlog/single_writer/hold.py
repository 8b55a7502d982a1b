"""The hold on a store that its writer has, so that a second opener is refused instead of fencing the first.

On a file store that is a lock (lock.py), which ends with its process; on an object store a lease
(lease.py), so that after a crash an opener on another machine waits for up to `StoreOptions.lease_s`, 15 s. Both
are taken before SlateDB opens and given back after it has closed, and no commit waits for them.
"""

import asyncio
import errno
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Final, NamedTuple, Protocol, TypeVar

from ledgerq.eventlog.clock import Clock, sleep_until
from ledgerq.eventlog.errors import InvalidArgument, LedgerError, StoreInUse, StoreUnavailable
from ledgerq.eventlog.locations import Location
from ledgerq.eventlog.runtime.log_records import about, logger
from ledgerq.eventlog.runtime.threads import DaemonThreads
from ledgerq.eventlog.runtime.waits import to_the_end
from ledgerq.eventlog.single_writer.holder import Holder, in_use, new_holder
from ledgerq.eventlog.single_writer.lease import LeaseHold, ServiceClock, StoreLease, read_lease
from ledgerq.eventlog.single_writer.lock import FileHold, Held, hold_folder, live_writer
from ledgerq.eventlog.single_writer.older_writer import older_writer_left_s
from ledgerq.eventlog.slate.objects import Objects
from ledgerq.eventlog.slate.options import StoreOptions

__all__ = ["Hold", "check_wait", "current_writer", "hold_store"]

_log = logger("store")
_T = TypeVar("_T")
_LIMIT_S: Final = 10.0
_REQUEST_LIMIT_S: Final = 5.0
_LOCK_POLL_MS: Final = 50
# Each poll is a billed request.
_LEASE_POLL_MS: Final = 1000
_MAX_WAIT_S: Final = 1e9
_REMEDIES: Final = {
    errno.EACCES: "this user may not read or write it; change its owner or mode",
    errno.EPERM: "this user may not read or write it; change its owner or mode",
    errno.ENOSPC: "the disk is full; free some space",
    errno.EDQUOT: "the disk quota is used up; free some space",
}
_REMOVE: Final = "remove it: it only names the store's writer"


class Hold(Protocol):
    """A store that this process holds for writing.

    `took_over`: another writer was (or may have been) alive when this began, until SlateDB has opened and fenced it.
    """

    took_over: bool
    holder: Holder
    loop: asyncio.AbstractEventLoop

    def abandon(self) -> bool:
        """Release at once, as far as that can be: for a hold whose event loop has ended.

        False, and nothing is done, while a commit hangs that may still write an anchor.
        """

    def ends_with(self, stop: Callable[[], bool]) -> None:
        """Allow `abandon` only once `stop` returns True: the writer writes nothing more."""

    def keep_until(self, work: "Future[Any]") -> None:
        """Delay the release until `work` in a thread has ended, though `release` returns at once."""

    async def opened(self, has_stopped: Callable[[], bool]) -> None:
        """Called when SlateDB has opened; `has_stopped`, from any thread: whether it writes no more."""

    async def release(self) -> None:
        """Let others open the store; a second call does nothing."""


# Of this process: a store whose event loop ended before it was closed writes no more, so it must not hold up others.
_holds: weakref.WeakSet[Hold] = weakref.WeakSet()


def _abandoned(holder: Holder | None) -> bool:
    """Release the hold of a store of this process whose event loop has ended; whether there was one."""
    found = [hold for hold in list(_holds) if hold.holder == holder and hold.loop.is_closed() and hold.abandon()]
    for hold in found:
        _holds.discard(hold)
    return bool(found)


class _Busy(NamedTuple):
    holder: Holder | None
    left_s: float | None  # of its lease
    is_opening: bool


def check_wait(take_over: bool, wait: float | None, *, is_open: bool = False) -> None:
    """Raise `InvalidArgument` for a wait that is no number of seconds, or after which nothing would be taken over.

    Neither means anything for a store that `is_open` already.
    """
    if is_open and (take_over or wait != 0):
        raise InvalidArgument("take_over and wait are for opening a store by its URL: this one is open already")
    is_number = isinstance(wait, int | float) and not isinstance(wait, bool)
    if wait is not None and not (is_number and 0 <= wait <= _MAX_WAIT_S):
        raise InvalidArgument(f"wait is a number of seconds from 0 on, or None to wait without end, not {wait!r}")
    if take_over and wait is None:
        raise InvalidArgument("wait=None waits without end, so nothing would be taken over: give a number of seconds")


async def hold_store(
    location: Location,
    *,
    clock: Clock,
    options: StoreOptions,
    take_over: bool,
    wait: float | None,
    share: bool = False,
) -> Hold:
    """Hold the store at `location`, which may not be in memory, for writing.

    While its writer lives this waits for up to `wait` seconds (None: without end), then takes it over if `take_over`.
    `share`: others learn that this writer serves the store to them. Raises `StoreInUse`, and `StoreUnavailable` when
    that can't be found out.
    """
    holder = new_holder(clock, shares=share)
    one = _FileStore(location, holder) if location.is_file else _ObjectStore(location, holder, options.lease_s)
    begun_ms = clock.now_ms()
    over_ms = None if wait is None else begun_ms + round(wait * 1000)
    while True:
        is_over = over_ms is not None and clock.now_ms() >= over_ms
        found = await one.hold(take_over=take_over and is_over)
        if not isinstance(found, _Busy):
            _holds.add(found)
            return found
        if _abandoned(found.holder):
            continue
        # Two that take a store over do so one after the other.
        limit_ms = over_ms
        if limit_ms is not None and take_over and found.is_opening:
            limit_ms += round(options.open_timeout_s * 1000)
        now_ms = clock.now_ms()
        if limit_ms is not None and now_ms >= limit_ms:
            until_ms = None if found.left_s is None else now_ms + round(found.left_s * 1000)
            raise in_use(location.original, found.holder, until_ms=until_ms)
        next_ms = now_ms + one.poll_ms
        await sleep_until(clock, next_ms if over_ms is None or over_ms <= now_ms else min(next_ms, over_ms))


async def current_writer(location: Location, clock: Clock) -> StoreInUse | None:
    """The current writer of the store at `location`, as the error that an opener would get; None if there is none.

    On an object store this may write and remove a small object. Raises `StoreUnavailable` when that can't be found out.
    """
    holder = new_holder(clock)
    one = _FileStore(location, holder) if location.is_file else _ObjectStore(location, holder, 0.0)
    found = await one.check()
    if found is None:
        return None
    until_ms = None if found.left_s is None else clock.now_ms() + round(found.left_s * 1000)
    return in_use(location.original, found.holder, until_ms=until_ms)


class _FileStore:
    poll_ms = _LOCK_POLL_MS

    def __init__(self, location: Location, holder: Holder) -> None:
        self._location = location
        self._holder = holder

    async def hold(self, *, take_over: bool) -> Hold | _Busy:
        folder = self._location.folder
        found = await _in_thread(
            self._location, lambda: hold_folder(folder, self._holder, take_over=take_over), _release
        )
        if isinstance(found, Held):
            return _Busy(found.holder, None, found.is_opening)
        if found.without_locks is not None:
            what = "%s: its file system has no locks (%s): another process that opens the store will fence this one"
            _log.warning(what, self._location.original, found.without_locks.strerror, extra=about("no_lock"))
        return _LockHold(self._location, self._holder, found)

    async def check(self) -> _Busy | None:
        folder = self._location.folder
        found = await _in_thread(self._location, lambda: live_writer(folder), lambda _: None)
        return None if found is None else _Busy(found.holder, None, found.is_opening)


class _LockHold:
    def __init__(self, location: Location, holder: Holder, hold: FileHold) -> None:
        # Without locks there is no sign of a writer, and what opening would set aside may be a live one's.
        self.took_over = hold.took_over or hold.without_locks is not None
        self.holder = holder
        self.loop = asyncio.get_running_loop()
        self._location = location
        self._hold = hold
        self._stop: Callable[[], bool] = lambda: True
        self._work: Future[Any] | None = None

    def ends_with(self, stop: Callable[[], bool]) -> None:
        self._stop = stop

    def keep_until(self, work: "Future[Any]") -> None:
        self._work = work

    def abandon(self) -> bool:
        if not self._stop() or (self._work is not None and not self._work.done()):
            return False
        self._hold.release()
        return True

    async def opened(self, has_stopped: Callable[[], bool]) -> None:
        await _in_thread(self._location, self._hold.opened, lambda _: None)

    async def release(self) -> None:
        if self._work is not None and not self._work.done():
            self._work.add_done_callback(lambda _: self.abandon())
            return
        try:
            await _in_thread(self._location, self._hold.release, lambda _: None)
        except LedgerError as error:
            _log.warning("%s: the writer's lock was not given back: %s", self._location.original, error)


class _ObjectStore:
    poll_ms = _LEASE_POLL_MS

    def __init__(self, location: Location, holder: Holder, lease_s: float) -> None:
        self._location = location
        self._holder = holder
        self._lease_s = lease_s
        self._objects = Objects(location, limit_s=_REQUEST_LIMIT_S)
        self._clock = ServiceClock(self._objects, holder)

    async def hold(self, *, take_over: bool) -> Hold | _Busy:
        found, left_s = await self._read()
        if left_s > 0 and not take_over:
            return _Busy(None if found is None else found.holder, left_s, is_opening=False)
        hold = LeaseHold(self._objects, self._holder, self._lease_s, took_over=left_s > 0)
        if hold.took_over:
            return hold
        try:
            # When this is cancelled the request is on its way, and what it wrote must not hinder the next opener.
            is_mine = await to_the_end(hold.take(None if found is None else found.version))
        except BaseException:
            await to_the_end(hold.release())
            raise
        if not is_mine:
            await hold.release()
            other = await self.check() or _Busy(None, None, is_opening=True)
            return other._replace(is_opening=True)
        return hold

    async def check(self) -> _Busy | None:
        found, left_s = await self._read()
        return _Busy(None if found is None else found.holder, left_s, is_opening=False) if left_s > 0 else None

    async def _read(self) -> tuple[StoreLease | None, float]:
        found = await read_lease(self._objects, self._clock)
        if found is not None:
            return found, found.left_s
        return None, await older_writer_left_s(self._location, self._objects, self._clock)


async def _in_thread(location: Location, call: Callable[[], _T], undo: Callable[[_T], object]) -> _T:
    """Run a call that may hang; a result that comes after its caller was cancelled is undone."""
    threads = DaemonThreads("ledgerq-lock")
    future = threads.submit(call)
    try:
        try:
            async with asyncio.timeout(_LIMIT_S):
                return await asyncio.wrap_future(future)
        except BaseException:
            future.add_done_callback(lambda done: _undo(done, undo))
            raise
    except TimeoutError as error:
        raise StoreUnavailable(f"{location.original} did not answer within {_LIMIT_S:g} s: check the disk") from error
    except OSError as error:
        what = f" ({error.filename})" if error.filename else ""
        remedy = _REMEDIES.get(error.errno or 0, _REMOVE)
        raise StoreUnavailable(
            f"{location.original} can't be used: {error.strerror or error}{what}; {remedy}"
        ) from error
    finally:
        threads.shutdown()


def _undo(done: "Future[_T]", undo: Callable[[_T], object]) -> None:
    if not done.cancelled() and done.exception() is None:
        undo(done.result())


def _release(found: FileHold | Held) -> None:
    if isinstance(found, FileHold):
        found.release()
