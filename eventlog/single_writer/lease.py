"""The lease on an object store, which its writer renews and which runs out when the writer's process is gone.

The object `writer` under the store's prefix holds the writer's `Holder`, how long its lease is (15 s by default),
how often it was renewed, and whether it has ended. A writer renews it in a third of that time, whether or not it
commits, by a conditional write: one of two openers gets it. Its end is reckoned from the object's time, by the
service's clock, so that clocks of different machines need not agree. A writer that closes marks the object as ended;
that a process of this machine is gone is seen at once (runtime/process.py); after any other crash an opener waits out
the lease.

A lease keeps openers from fencing by accident and nothing else: SlateDB's fencing keeps the log right. So a renewal
that fails ends no writer, and a writer whose lease went to another one takes it back when that one is gone and did not
fence it. A writer that takes a store over writes the lease once SlateDB has fenced the old writer, not before.
"""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from itertools import count
from typing import Any, Final, NamedTuple

from obstore.exceptions import BaseError

from ledgerq.eventlog.clock import stopwatch_s
from ledgerq.eventlog.errors import StoreUnavailable
from ledgerq.eventlog.runtime.log_records import about, logger
from ledgerq.eventlog.runtime.process import has_ended, own_identity
from ledgerq.eventlog.single_writer.holder import HOLDER_NAME, Holder, decode_holder
from ledgerq.eventlog.slate.objects import Objects, Version
from ledgerq.eventlog.slate.options import DEFAULT_LEASE_S, MAX_LEASE_S

__all__ = ["LeaseHold", "ServiceClock", "StoreLease", "read_lease"]

_log = logger("store")
# Services give the time of an object in whole seconds.
_ROUNDED_S: Final = 1.0
_RENEWALS: Final = 3
_PUT_TRIES: Final = 5
_LOOK_AROUND_S: Final = 0.25
_THREAD: Final = "ledgerq-lease"


class StoreLease(NamedTuple):
    """The content of the object `writer`: the writer, and for how many seconds yet (0: it has ended, or run out)."""

    holder: Holder | None
    left_s: float
    version: Version


class ServiceClock:
    """The object store's own clock, read once."""

    def __init__(self, objects: Objects, holder: Holder) -> None:
        self._objects = objects
        self._name = f"preflight.{holder.pid}.{holder.opened_ms}"
        self._ahead_s: float | None = None

    async def now_s(self) -> float:
        """Seconds since the Unix epoch. The first time it writes and removes an object. Raises `StoreUnavailable`."""
        if self._ahead_s is None:
            await self._objects.put(self._name, b"")
            found = await self._objects.read(self._name)
            await self._objects.delete(self._name)
            if found is None or found.modified_ms is None:
                raise StoreUnavailable(f"an object that was just written is not there ({self._name}): try again")
            self._ahead_s = found.modified_ms / 1000 - stopwatch_s()
        return self._ahead_s + stopwatch_s()


async def read_lease(objects: Objects, clock: ServiceClock) -> StoreLease | None:
    """The lease of the store, or None when there never was one. Raises `StoreUnavailable`."""
    found = await objects.read(HOLDER_NAME)
    if found is None:
        return None
    decoded = decode_holder(found.content)
    holder = decoded[0] if decoded is not None else None
    if _is_over(found):
        return StoreLease(holder, 0.0, found)
    age_s = await clock.now_s() - (found.modified_ms or 0) / 1000
    return StoreLease(holder, min(max(_length_s(found) + _ROUNDED_S - age_s, 0.0), MAX_LEASE_S + _ROUNDED_S), found)


class LeaseHold:
    """An object store held for writing, by a lease that a thread renews until `release`.

    A thread, since the event loop may be held up for longer than a lease by a handler that computes.
    `took_over`: a writer was alive when this began; it is fenced once SlateDB has opened.
    """

    def __init__(self, objects: Objects, holder: Holder, lease_s: float, *, took_over: bool) -> None:
        """Prepare a lease; `take` or `opened` writes it."""
        self.took_over = took_over
        self.holder = holder
        self.loop = asyncio.get_running_loop()
        self._objects = objects
        self._lease_s = lease_s
        # Two of one process may have been opened in the same millisecond.
        self._serial = next(_serials)
        self._renewals = count()
        self._mine: Version | None = None
        self._has_stopped: Callable[[], bool] = lambda: False
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    async def take(self, over: Version | None) -> bool:
        """Write the lease over one that has ended; False when another opener did. Raises `StoreUnavailable`."""
        _held.add(self.holder)
        self._mine = await self._objects.run(self._write, over)
        if self._mine is None:
            return False
        self._thread = threading.Thread(target=self._run, name=_THREAD)
        self._thread.start()
        return True

    def abandon(self) -> bool:
        """Let others of this process take the lease: the event loop has ended, so nothing is written any more."""
        self._stopping.set()
        _held.discard(self.holder)
        return True

    def ends_with(self, stop: Callable[[], bool]) -> None:
        """Do nothing: only a store on files has threads that outlive its event loop."""

    def keep_until(self, work: "Future[Any]") -> None:
        """Do nothing, for the same reason."""

    async def opened(self, has_stopped: Callable[[], bool]) -> None:
        """Called when SlateDB has opened; `has_stopped`: whether it was fenced or forgotten since, and writes no more.

        Raises `StoreUnavailable`.
        """
        self._has_stopped = has_stopped
        for _ in range(_PUT_TRIES):
            if self._thread is not None or has_stopped():
                return
            # The writer before may renew its lease until it notices that it was fenced.
            await self.take(await self._objects.read(HOLDER_NAME))

    async def release(self) -> None:
        """Write that this writer has ended; a second call does nothing."""
        self._stopping.set()
        thread, self._thread = self._thread, None
        try:
            if thread is not None:
                await self._objects.run(thread.join)
                await self._objects.run(self._end)
        except StoreUnavailable as error:
            what = "the end of the writer's lease was not written, so it runs out in %g s at most: %s"
            _log.info(what, self._lease_s, error, extra=about("lease_not_ended"))
        finally:
            _held.discard(self.holder)

    def _end(self) -> None:
        if self._mine is not None:
            self._write(self._mine, ended=True)
            self._mine = None

    def _write(self, over: Version | None, *, ended: bool = False) -> Version | None:
        written = self._objects.replace_now(HOLDER_NAME, self._content(ended=ended), over)
        if written is None:
            # It may be what this writer wrote before, when no answer came.
            found = self._objects.read_now(HOLDER_NAME)
            decoded = None if found is None else decode_holder(found.content)
            if decoded is not None and decoded[0] == self.holder and decoded[1].get("serial") == self._serial:
                written = self._objects.replace_now(HOLDER_NAME, self._content(ended=ended), found)
        return written

    def _content(self, *, ended: bool = False) -> bytes:
        # A number of its own for each, since equal contents have equal tags.
        lease_ms, renewal = round(self._lease_s * 1000), next(self._renewals)
        return self.holder.encode(lease_ms=lease_ms, serial=self._serial, renewal=renewal, ended=ended)

    def _run(self) -> None:
        was_refused = False
        other, since_s = b"", stopwatch_s()
        while self._wait(self._lease_s / _RENEWALS):
            try:
                if self._has_stopped():
                    _held.discard(self.holder)
                    self._end()
                    return
                if self._mine is not None:
                    self._renew()
                else:
                    found = self._objects.read_now(HOLDER_NAME)
                    if found is not None and found.content != other:
                        other, since_s = found.content, stopwatch_s()
                    self._take_back(found, stopwatch_s() - since_s)
                was_refused = False
            except (BaseError, OSError) as error:
                if not was_refused:
                    what = "the writer's lease was not renewed, trying again; this writer goes on: %s"
                    # The client's errors have pages of details after this line.
                    _log.warning(what, str(error).partition("\n")[0], extra=about("lease_not_renewed"))
                was_refused = True

    def _wait(self, time_s: float) -> bool:
        """Wait for the next renewal; False when this is to end: by `release`, or since the program ends unclosed."""
        over_s = stopwatch_s() + time_s
        while (left_s := over_s - stopwatch_s()) > 0:
            if self._stopping.wait(min(left_s, _LOOK_AROUND_S)) or not _program_goes_on():
                return False
        return not self._stopping.is_set()

    def _renew(self) -> None:
        self._mine = self._write(self._mine)
        if self._mine is None:
            what = "the writer's lease is another one's now; if that has opened the store, this writer is fenced soon"
            _log.warning(what, extra=about("lease_lost"))

    def _take_back(self, found: Version | None, unchanged_s: float) -> None:
        """Take the lease from one that is gone and did not fence this writer."""
        if found is None or _is_over(found) or unchanged_s > _length_s(found):
            self._mine = self._write(found)


def _program_goes_on() -> bool:
    """False when the interpreter only waits for threads such as this one (a daemon could abort it in a request)."""
    others = (thread for thread in threading.enumerate() if not thread.daemon and thread.name != _THREAD)
    return threading.main_thread().is_alive() or any(thread.is_alive() for thread in others)


_serials = count()
# The writers of this process: one that is not among them has ended, though its process has not.
_held: set[Holder] = set()


def _is_over(found: Version) -> bool:
    decoded = decode_holder(found.content)
    if decoded is None:
        return False
    holder, fields = decoded
    is_own = holder.identity != "" and holder.identity == own_identity()
    return fields.get("ended") is True or (holder not in _held if is_own else has_ended(holder.identity))


def _length_s(found: Version) -> float:
    decoded = decode_holder(found.content)
    # An unreadable lease counts for the usual time: it hinders no opener for longer.
    lease_ms = decoded[1].get("lease_ms") if decoded is not None else None
    return min(lease_ms / 1000, MAX_LEASE_S) if isinstance(lease_ms, int) and lease_ms > 0 else DEFAULT_LEASE_S
