"""The log's appender: group commit. Events are staged in the open commit; one task writes commits in order.

While one commit is being made durable the next one fills, so the cost of a flush is shared by all callers that came
meanwhile. A commit is one atomic batch: the record batch, payloads, what the `CommitHook` adds, and the head. Only when
it is durable do the callers waiting for it go on.

After a failed write it is unknown what the store holds, so nothing more is appended: every waiter gets an error, and
the next opening reads what is true.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import Final

from ledgerq.eventlog.appender import Appender
from ledgerq.eventlog.clock import Clock, Timer
from ledgerq.eventlog.codec import Head, RecordBatch
from ledgerq.eventlog.commit import Answers, Commit, CommitHook
from ledgerq.eventlog.entropy import Entropy
from ledgerq.eventlog.errors import LedgerError, QueueClosed
from ledgerq.eventlog.flights import Flight, Flights
from ledgerq.eventlog.pace import MAX_IN_FLIGHT, CommitPace
from ledgerq.eventlog.runtime.meters import CommitMeters, CommitTimes
from ledgerq.eventlog.store import Anchor, Store

__all__ = ["MAX_COMMIT_BYTES", "Commit", "EventLog", "CommitHook"]

MAX_COMMIT_BYTES: Final = 64 * 1024 * 1024
_STORE_CHECK_INTERVAL_MS: Final = 1000
# A commit of so many events is encoded and filled in one turn of the event loop.
_AT_ONCE_EVENTS: Final = 150


class EventLog(Appender):
    """The log of a store opened for writing. One event loop owns it; `start` it before the first append."""

    def __init__(
        self,
        store: Store,
        *,
        clock: Clock,
        commit_hook: CommitHook,
        pace: CommitPace | None = None,
        entropy: Entropy | None = None,
    ) -> None:
        super().__init__(store, clock=clock, entropy=entropy)
        self.epoch = 0
        self.meters = CommitMeters()
        self._commit_hook = commit_hook
        self._pace = pace or CommitPace()
        self._durable: Head = Head(0, b"", 0, 0, 0)
        self._flights = Flights(
            store, commit_hook, meters=self.meters, landed=self._landed, failed=self._fail, refused=self._wake.set
        )
        self._wake_timer: asyncio.TimerHandle | None = None
        self._is_launching = False
        self._answers = Answers()
        self._gathering = asyncio.Lock()
        self._is_gathering = False
        self._news_waiters: list[asyncio.Future[None]] = []
        self._timer: Timer | None = None
        self._task: asyncio.Task[None] | None = None

    async def start(self, *, accept_rollback: bool = False) -> int | None:
        """Read and check the head, take the next epoch, and begin to commit.

        Returns the offset of a rollback that was accepted, else None. Raises `LogRolledBack`, `LogCorrupt`,
        `FormatTooNew`.
        """
        await self.check_format()
        head = await self.head()
        rolled_back_from: int | None = None
        anchor = await self.store.read_anchor()
        try:
            await self.check_anchor(anchor)
        except LedgerError as error:
            if not accept_rollback:
                raise
            rolled_back_from = getattr(error, "anchored_offset", None)
        await self.check_tail(head)
        self._durable = self._flights.last = head
        self.epoch = self._flights.epoch = max(head.epoch, anchor.epoch if anchor is not None else 0) + 1
        self.next_offset = head.next_offset
        self.time_ms = head.time_ms
        await self.find_secret()
        self._task = asyncio.create_task(self._run(), name="ledgerq-commit")
        self._watch_store()
        return rolled_back_from

    def _watch_store(self, *, seen: bool = False) -> None:
        """Poll the store for failures: an idle writer must learn that it was fenced, too."""
        if self.failure is None and not self._closing:
            error = self.store.failure()
            if error is not None and (seen or not self._flights.under_way):
                self._fail(error)
            else:
                # A commit that is on its way may get a better error from the store: it has until the next poll.
                watch = partial(self._watch_store, seen=error is not None)
                self._timer = self.clock.call_at(self.clock.now_ms() + _STORE_CHECK_INTERVAL_MS, watch)

    @property
    def durable_head(self) -> Head:
        """The head of the last durable commit."""
        return self._durable

    @property
    def waiting_since_ms(self) -> int | None:
        """When the oldest commit that is not durable was opened, in ms since the Unix epoch; None: nothing waits."""
        commit = self._flights.under_way[0].commit if self._flights.under_way else self._open
        return None if commit is None else commit.time_ms

    async def until_not_full(self) -> None:
        """Wait until the open commit takes more."""
        while self.full:
            await self.committed()

    @asynccontextmanager
    async def gathering(self) -> AsyncIterator[None]:
        """Keep all that is staged in the block in one commit, however many turns of the event loop that takes.

        Waits for its turn, and like `until_not_full`. Raises like `check`.
        """
        async with self._gathering:
            await self.until_not_full()
            self.check()
            self._is_gathering = True
            try:
                yield
            finally:
                self._is_gathering = False
                if self._open is not None or self._closing:
                    self._wake.set()

    @asynccontextmanager
    async def between_commits(self) -> AsyncIterator[Callable[[Mapping[bytes, bytes]], Awaitable[None]]]:
        """Write rows that no event has: with the open commit, if there is one, else by themselves, once it is quiet.

        Yields what writes them. No commit is closed meanwhile. Raises like `check`, and like `Store.commit`.
        """
        async with self.gathering():
            while self._open is None and self._flights.under_way:
                await self.committed()
            self.check()
            yield self._write_rows

    async def _write_rows(self, rows: Mapping[bytes, bytes]) -> None:
        if self._open is not None:
            self._open.payloads.update(rows)
            return
        head, batch = self._durable, self.store.batch()
        batch.update(rows)
        # Nothing is on its way, so the anchor is that of the last commit once more.
        await self.store.commit(
            batch, Anchor(head.base_offset, head.next_offset, head.digest, head.epoch, head.time_ms)
        )

    def committed(self) -> asyncio.Future[None]:
        """A future of the caller's own: done when everything staged so far is durable, or failed with why not."""
        future: asyncio.Future[None] = self._loop.create_future()
        commit = self._open
        if self.failure is not None:
            future.set_exception(self.failure)
        elif commit is not None:
            commit.waiters.append(future)
            if len(commit.events) >= self._pace.enough_events:
                self._enough(commit)
        elif self._flights.under_way:
            self._flights.under_way[-1].commit.waiters.append(future)
        else:
            future.set_result(None)
        return future

    async def _run(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            if self.failure is not None:
                if self._flights.unforeseen is not None:
                    raise self._flights.unforeseen
                return
            try:
                if self._flights.refusal is not None:
                    await self._flights.retry()
                # Callers of a commit that just became durable may have more for the next one.
                await self._answers.given()
                commit = self._open
                if commit is None:
                    if self._closing and not self._flights.under_way:
                        return
                elif self._may_close(commit):
                    self._close(commit)
                    await self._flights.launch(commit)
            except BaseException as error:
                self._flights.end(error)
                if not isinstance(error, LedgerError):
                    raise
            finally:
                self._is_launching = False

    def _may_close(self, commit: Commit) -> bool:
        """Whether the open commit is to be closed now; else something will wake the task when it may be."""
        in_flight, events = len(self._flights.under_way), len(commit.events)
        if self._is_gathering or in_flight >= MAX_IN_FLIGHT or self._flights.refusal is not None:
            return False
        if in_flight and events < self._pace.enough_events:
            return False
        now_s = self._loop.time()
        wait_s = self._pace.wait_s(now_s, events)
        if wait_s <= 0 or self._closing:
            return True
        if not in_flight:
            self._pace.waits(now_s)
        if self._wake_timer is not None:
            self._wake_timer.cancel()
        self._wake_timer = self._loop.call_later(wait_s, self._wake.set)
        return False

    def _enough(self, commit: Commit) -> None:
        """Close the open commit now that it has enough events: right here where another cohort is to follow it."""
        is_small = len(commit.events) <= _AT_ONCE_EVENTS
        if not (self._pace.makes_cohorts and is_small and not self._is_launching and self._may_close(commit)):
            self._wake.set()
            return
        self._close(commit)
        try:
            self._flights.launch_at_once(commit)
        except BaseException as error:
            # Its callers learn of it as those of any failed commit do; this one only happens to have sent it.
            self._flights.end(error)
            if not isinstance(error, Exception):
                raise
        finally:
            self._is_launching = False

    def _close(self, commit: Commit) -> None:
        self._open = None
        self._is_launching = True
        self._pace.closed(self._loop.time(), len(commit.events), in_flight=len(self._flights.under_way))

    def _landed(self, flight: Flight, head: Head, times: CommitTimes | None) -> None:
        self._durable = head
        self._commit_hook.committed(flight.commit)
        events = len(flight.commit.events) + self._flights.events + (len(self._open.events) if self._open else 0)
        self._pace.landed(times, events)
        self._answers.give(flight.commit.waiters)
        self._tell_news()
        self._wake.set()

    def _fail(self, error: LedgerError) -> None:
        if self.failure is not None:
            return
        self.failure = error
        commits = self._flights.abandon()
        if self._open is not None:
            commits.append(self._open)
        self._open = None
        self._commit_hook.failed(error)
        for commit in commits:
            commit.fail(error)
        self._tell_news()
        self._wake.set()

    def _tell_news(self) -> None:
        waiters, self._news_waiters = self._news_waiters, []
        self._answers.give(waiters)

    async def end(self) -> int:
        """Like `LogReader.end`; what is on its way is in the store already."""
        return self._durable.next_offset

    async def batches(
        self, start: int = 0, stop: int | None = None, *, about: bytes = b""
    ) -> AsyncIterator[RecordBatch]:
        """Like `LogReader.batches`; what is on its way is in the store already, but may not be relied on."""
        durable = self._durable.next_offset
        async for batch in super().batches(start, durable if stop is None else min(stop, durable), about=about):
            yield batch

    async def _news(self, offset: int) -> None:
        self.check_owner()
        while self._durable.next_offset <= offset:
            if self.failure is not None:
                raise self.failure
            if self._closing:
                raise QueueClosed(f"the queue on {self.store.location} was closed")
            waiter: asyncio.Future[None] = self._loop.create_future()
            self._news_waiters.append(waiter)
            await waiter

    async def stop(self) -> None:
        """Commit what is staged and end the commit task; the store stays open."""
        self._closing = True
        self._wake.set()
        for timer in (self._timer, self._wake_timer):
            if timer is not None:
                timer.cancel()
        try:
            if self._task is not None:
                await asyncio.shield(self._task)
        finally:
            await self._flights.ended()
            await self._answers.given()
            self._tell_news()

    async def close(self) -> None:
        """Like `stop`, and closes the store; a second call does nothing."""
        if not self._closing:
            try:
                await self.stop()
            finally:
                await self.store.close()
