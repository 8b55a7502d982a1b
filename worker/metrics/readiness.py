"""The readiness of a queue, as on `/readyz`: not failed, committing, and its store within reach."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from ledgerq.eventlog import keys
from ledgerq.eventlog.errors import InvalidArgument, LedgerError, StoreNotFound, StoreUnavailable
from ledgerq.eventlog.locations import Location, parse_location
from ledgerq.eventlog.runtime.threads import DaemonThreads
from ledgerq.eventlog.slate.objects import Objects
from ledgerq.eventlog.store import ReadStore
from ledgerq.worker.queue import Queue

__all__ = ["QueueReadiness", "StoreProbe", "one_line"]

_PROBE_LIMIT_S: Final = 3.0
_PROBE_VALID_S: Final = 10.0
# A commit takes milliseconds on a disk and well below a second in a bucket.
_STUCK_COMMIT_MS: Final = 10_000

StoreRead = Callable[[], Awaitable[object]]


def one_line(error: BaseException) -> str:
    """The text of an error, without line breaks; its type's name when it has no text."""
    return " ".join(str(error).split()) or type(error).__name__


class StoreProbe:
    """A probe of the store that costs one request and takes a bounded time; there are never two at once."""

    def __init__(
        self,
        store: ReadStore,
        *,
        read: StoreRead | None = None,
        limit_s: float = _PROBE_LIMIT_S,
        valid_s: float = _PROBE_VALID_S,
    ) -> None:
        """An answer counts for `valid_s` seconds. `read` raises when the store is out of reach (None: one request)."""
        self._location = store.location
        self._limit_s = limit_s
        self._valid_s = valid_s
        self._threads = DaemonThreads("ledgerq-probe")
        self._check = read or self._usual(store)
        self._looking: asyncio.Task[None] | None = None
        self._began_s = 0.0
        self._seen_s: float | None = None
        self._reason: str | None = None

    async def reason(self) -> str | None:
        """Why the store can't be reached, on one line; None when it can."""
        loop = asyncio.get_running_loop()
        if self._seen_s is not None and loop.time() - self._seen_s < self._valid_s:
            return self._reason
        if self._looking is None:
            self._began_s = loop.time()
            self._looking = asyncio.create_task(self._find_out(), name="ledgerq-probe")
        left_s = max(0.0, self._began_s + self._limit_s - loop.time())
        # A probe that hangs is not given up, or the next one would run beside it.
        done, _ = await asyncio.wait({self._looking}, timeout=left_s)
        return self._reason if done else f"{self._location} did not answer within {self._limit_s:g} s"

    def close(self) -> None:
        """End the probe."""
        if self._looking is not None:
            self._looking.cancel()
        self._threads.shutdown()

    async def _find_out(self) -> None:
        try:
            await self._check()
            self._reason = None
        except Exception as error:
            # Whatever it is, the store does not answer as it should.
            self._reason = one_line(error)
        finally:
            self._looking = None
            self._seen_s = asyncio.get_running_loop().time()

    def _usual(self, store: ReadStore) -> StoreRead:
        """The usual probe, one request to the storage: a read from the store itself may be answered from memory."""
        try:
            location = parse_location(store.location)
        except InvalidArgument:
            return lambda: store.get(keys.HEAD_KEY)  # a store of the user's own
        if location.is_memory:
            return lambda: store.get(keys.HEAD_KEY)
        if location.is_file:
            # In threads of its own: a disk that hangs must not keep the process from ending.
            return lambda: asyncio.get_running_loop().run_in_executor(self._threads, _see_folder, location)
        # Making a client takes some milliseconds, so one serves for all probes.
        objects = Objects(location, limit_s=self._limit_s)
        return lambda: _see_objects(location, objects)


def _see_folder(location: Location) -> None:
    try:
        is_there = any(location.folder.glob("manifest/*.manifest"))
    except OSError as error:
        raise StoreUnavailable(f"{location.original} can't be read: {error.strerror or error}") from error
    if not is_there:
        raise StoreNotFound(f"the files of {location.original} are gone")


async def _see_objects(location: Location, objects: Objects) -> None:
    if not await objects.has_any("manifest/"):
        raise StoreNotFound(f"the objects of {location.original} are gone")


class QueueReadiness:
    """The reasons why a queue is not ready, if it isn't."""

    def __init__(self, queue: Queue, probe: StoreProbe | None = None) -> None:
        self._queue = queue
        self.probe = probe or StoreProbe(queue.log.store)

    async def reasons(self) -> list[str]:
        """One line for each thing that is wrong; none when the queue is ready. An idle queue is."""
        log = self._queue.log
        try:
            log.check()
        except LedgerError as error:
            return [one_line(error)]
        reasons: list[str] = []
        since_ms = log.waiting_since_ms
        waited_ms = 0 if since_ms is None else self._queue.clock.now_ms() - since_ms
        if waited_ms > _STUCK_COMMIT_MS:
            reasons.append(f"{self._queue.location}: a commit has not become durable for {waited_ms / 1000:.0f} s")
        reason = await self.probe.reason()
        return reasons if reason is None else [*reasons, reason]
