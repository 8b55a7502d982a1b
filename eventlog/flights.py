"""The commits on their way to the disk: encoded in order, handed to the store, and ended in order.

A commit that was cut from the log is encoded with the digest of the one before it, filled by the hook, and given to the
store at once, whether or not the one before it is durable. A large one is filled a piece in each turn of the event
loop. However they end in the store, they are reported oldest first; after a failure none is reported any more. Commits
that the store refused, since the clock had gone back a little, are handed to it again, all of them in order.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Final

from ledgerq.eventlog import keys
from ledgerq.eventlog.clock import stopwatch_s
from ledgerq.eventlog.codec import Head, digest_of, encode_batch, encode_batch_pieces, encode_head
from ledgerq.eventlog.commit import PIECE_ROWS, Commit, CommitHook, pieces
from ledgerq.eventlog.errors import ClockWentBack, LedgerError, LogPoisoned
from ledgerq.eventlog.runtime.meters import CommitMeters, CommitTimes
from ledgerq.eventlog.store import Anchor, Batch, Store

__all__ = ["Flight", "Flights"]

# A clock that is set back a little (NTP) is waited for; more than that is the operator's business.
_MAX_CLOCK_STEP_MS: Final = 5000


class Flight:
    """One commit on its way. `head` is the log's head once it is durable."""

    __slots__ = ("batch", "begun_s", "commit", "filled_s", "head", "task", "value")

    def __init__(self, commit: Commit) -> None:
        self.commit = commit
        self.begun_s = self.filled_s = stopwatch_s()
        self.value: bytes | None = None
        self.head: Head | None = None
        self.batch: Batch | None = None
        self.task: asyncio.Task[CommitTimes | None] | None = None


class Flights:
    """The flights of one log."""

    def __init__(
        self,
        store: Store,
        hook: CommitHook,
        *,
        meters: CommitMeters,
        landed: Callable[[Flight, Head, CommitTimes | None], None],
        failed: Callable[[LedgerError], None],
        refused: Callable[[], None],
    ) -> None:
        """`landed` gets each that is durable, in order, or `failed` the error. After `refused`, `retry` is due."""
        self.epoch = 0
        self.last = Head(0, b"", 0, 0, 0)  # the head after the newest flight
        self.under_way: deque[Flight] = deque()
        self.refusal: ClockWentBack | None = None
        self.unforeseen: BaseException | None = None
        self._store = store
        self._hook = hook
        self._meters = meters
        self._landed = landed
        self._failed = failed
        self._refused = refused
        self._tasks: set[asyncio.Task[CommitTimes | None]] = set()

    @property
    def events(self) -> int:
        """How many events are under way."""
        return sum(len(flight.commit.events) for flight in self.under_way)

    def launch_at_once(self, commit: Commit) -> None:
        """Send a small commit, without giving the event loop to others."""
        flight = Flight(commit)
        self.under_way.append(flight)
        for _ in self._fill(flight):
            pass
        self._submit(flight)

    async def launch(self, commit: Commit) -> None:
        """Send a commit; a large one takes several turns of the event loop, which stage for the next one."""
        flight = Flight(commit)
        self.under_way.append(flight)
        await self._send(flight)

    async def retry(self) -> None:
        """Send again those that were refused, once the clock has caught up."""
        refusal = self.refusal
        assert refusal is not None
        for flight in self.under_way:
            flight.task = None
        await asyncio.sleep(max(refusal.last_ms - refusal.now_ms, 1) / 1000)
        for flight in list(self.under_way):
            flight.begun_s = stopwatch_s()
            await self._send(flight)
        # Only now: until all of them are sent, no other commit may be.
        self.refusal = None

    def abandon(self) -> list[Commit]:
        """Forget all flights: they are not reported, whatever becomes of them."""
        commits = [flight.commit for flight in self.under_way]
        self.under_way.clear()
        return commits

    async def ended(self) -> None:
        """Wait until the store is done with all of them, abandoned ones too."""
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _send(self, flight: Flight) -> None:
        for _ in self._fill(flight):
            await asyncio.sleep(0)
        self._submit(flight)

    def _fill(self, flight: Flight) -> Iterator[None]:
        """Encode and fill; yields where others should have the event loop."""
        commit, store, hook = flight.commit, self._store, self._hook
        if flight.value is None:
            yield from self._encode(flight)
        assert flight.value is not None
        assert flight.head is not None
        batch = flight.batch = store.batch()
        # Before anything is waited for: what is staged from then on is no part of this commit.
        rest = hook.fill(commit, batch)
        if commit.base_offset == 0:
            batch.put(keys.FORMAT_KEY, str(keys.FORMAT_VERSION).encode())
        batch.put(keys.log_key(commit.base_offset), flight.value)
        if len(commit.payloads) <= PIECE_ROWS:
            batch.update(commit.payloads)
        else:
            rest = chain(pieces(commit.payloads), rest or ())
        for piece in rest or ():
            batch.update(piece)
            yield
        batch.put(keys.HEAD_KEY, encode_head(flight.head))

    def _encode(self, flight: Flight) -> Iterator[None]:
        commit = flight.commit
        fields = self.epoch, self.last.digest, commit.time_ms, bytes(commit.kinds), commit.events, commit.distances
        if len(commit.events) <= PIECE_ROWS:
            value = encode_batch(*fields)
        else:
            # Before anything is waited for, as above; it is called again for the batch that is written.
            self._hook.fill(commit, self._store.batch())
            parts: list[bytes] = []
            for part in encode_batch_pieces(*fields, PIECE_ROWS):
                parts.append(part)
                yield
            value = b"".join(parts)
        next_offset = commit.base_offset + len(commit.events)
        flight.value = value
        self.last = flight.head = Head(next_offset, digest_of(value), self.epoch, commit.time_ms, commit.base_offset)

    def _submit(self, flight: Flight) -> None:
        batch, head = flight.batch, flight.head
        assert batch is not None
        assert head is not None
        flight.batch = None
        if flight not in self.under_way:
            return  # abandoned while it was filled
        flight.filled_s = stopwatch_s()
        anchor = Anchor(head.base_offset, head.next_offset, head.digest, head.epoch, head.time_ms)
        task = flight.task = asyncio.create_task(self._commit(flight, batch, anchor), name="ledgerq-flight")
        self._tasks.add(task)
        task.add_done_callback(self._task_done)

    async def _commit(self, flight: Flight, batch: Batch, anchor: Anchor) -> CommitTimes | None:
        """Call the store, unless one before has failed by now: the store may have forgotten that one already."""
        for before in self.under_way:
            if before is flight:
                return await self._store.commit(batch, anchor)
            if before.task is not None and before.task.done() and (error := before.task.exception()) is not None:
                raise error
        return None  # abandoned before its turn came

    def _task_done(self, task: asyncio.Task[CommitTimes | None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # looked at below, or of no interest any more
        while self.under_way and (task_of := self.under_way[0].task) is not None and task_of.done():
            error = asyncio.CancelledError() if task_of.cancelled() else task_of.exception()
            if error is None:
                flight = self.under_way.popleft()
                try:
                    self._report(flight, task_of.result())
                except BaseException as unforeseen:
                    # Its callers are among those that are to learn of it.
                    self.under_way.appendleft(flight)
                    error = unforeseen
            if error is not None:
                self.end(error)
                return

    def _report(self, flight: Flight, times: CommitTimes | None) -> None:
        assert flight.value is not None
        assert flight.head is not None
        self._meters.add(
            events=len(flight.commit.events),
            log_bytes=len(flight.value),
            payload_bytes=flight.commit.payload_bytes,
            wait_s=flight.begun_s - flight.commit.opened_s,
            fill_s=flight.filled_s - flight.begun_s,
            times=times or CommitTimes(0.0, stopwatch_s() - flight.filled_s, None),
        )
        self._landed(flight, flight.head, times)

    def end(self, error: BaseException) -> None:
        """End all flights with the error of the oldest, or let them be tried again."""
        if isinstance(error, ClockWentBack) and error.last_ms - error.now_ms <= _MAX_CLOCK_STEP_MS:
            # None behind it was written either; each must have been refused before the first is sent again.
            if all(flight.task is not None and flight.task.done() for flight in self.under_way):
                self.refusal = error
                self._refused()
        elif isinstance(error, LedgerError):
            self._failed(error)
        else:
            self.unforeseen = error
            self._failed(LogPoisoned(f"a commit failed in an unforeseen way ({error!r}); open the queue again"))
