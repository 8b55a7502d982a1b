"""The open commit of a log: events are staged in it, and what stands beside the log with them.

Next: writer.py closes it and makes it durable.
"""

import asyncio
from typing import Final, TypeVar

from msgspec.structs import replace

from ledgerq.eventlog import keys
from ledgerq.eventlog.clock import Clock
from ledgerq.eventlog.codec import KIND_OF, digest_of
from ledgerq.eventlog.commit import Commit
from ledgerq.eventlog.entropy import Entropy, SystemEntropy
from ledgerq.eventlog.errors import LedgerError, QueueClosed
from ledgerq.eventlog.events import TEXT_FIELDS, Event, Sealed
from ledgerq.eventlog.log import LogReader
from ledgerq.eventlog.runtime.event_loop import check_owner, loop_or_none
from ledgerq.eventlog.runtime.process import own_pid
from ledgerq.eventlog.side_records import SALT_BYTES, encode_sealed, read_secret
from ledgerq.eventlog.store import Store

__all__ = ["Appender"]

# A commit takes no more callers once it is this full, so that one flush stays short; a bulk call may fill it further.
_FULL_EVENTS: Final = 10_000
_FULL_BYTES: Final = 8 * 1024 * 1024
EventT = TypeVar("EventT", bound=Event)


class Appender(LogReader):
    """The open commit of a log, and who may add to it: the one event loop that owns the log."""

    def __init__(self, store: Store, *, clock: Clock, entropy: Entropy | None = None) -> None:
        super().__init__(store, clock=clock)
        self.store: Store = store
        self.next_offset = 0
        self.failure: LedgerError | None = None
        self.time_ms = 0  # of the newest commit: of the open one, when there is one
        self.secret = b""
        self.has_secret = True
        self._entropy = entropy or SystemEntropy()
        self._open: Commit | None = None
        self._wake = asyncio.Event()
        self._closing = False
        self._loop = asyncio.get_running_loop()
        self._pid = own_pid()

    async def find_secret(self) -> None:
        """Read the store's secret; one that has none gets a new one with its next commit."""
        found = await read_secret(self.store)
        self.has_secret = found is not None
        self.secret = found or self._entropy.take(keys.SECRET_BYTES)

    def check(self) -> None:
        """Raise the error that forbids an append: the log's failure, `QueueClosed`, `WrongProcess`, or `WrongLoop`."""
        if own_pid() != self._pid:
            self.check_owner()
        if self.failure is not None:
            # One error is raised for every call: it must not gather the frames, and what is in them, of all of them.
            raise self.failure.with_traceback(None)
        if self._closing:
            raise QueueClosed(f"the queue on {self.store.location} is closed; open it again")
        if loop_or_none() is not self._loop:
            self.check_owner()

    def check_owner(self) -> None:
        """Raise `WrongProcess` in a forked child, `WrongLoop` on another loop than the one that opened it or none."""
        check_owner(f"the queue on {self.store.location}", self._pid, self._loop)

    def due_by_ms(self) -> int:
        """The time by which something must be due to be staged now: that of its commit, which may be old."""
        now_ms = self.clock.now_ms()
        return now_ms if self._open is None else min(now_ms, self._open.time_ms)

    def upcoming_ms(self) -> int:
        """The time that an event staged now has in the log."""
        return max(self.time_ms, self.clock.now_ms()) if self._open is None else self._open.time_ms

    @property
    def next_time_ms(self) -> int:
        """The commit time of what is staged now; it never goes back."""
        return self.time_ms if self._open is not None else max(self.time_ms, self.clock.now_ms())

    @property
    def full(self) -> bool:
        """Whether callers should wait for `until_not_full` before they append."""
        commit = self._open
        return commit is not None and (len(commit.events) >= _FULL_EVENTS or commit.payload_bytes >= _FULL_BYTES)

    def commit(self) -> Commit:
        """The open commit; a new one opens when there is none."""
        if (commit := self._open) is None:
            if self.failure is not None:
                raise self.failure.with_traceback(None)
            self.time_ms = max(self.time_ms, self.clock.now_ms())
            commit = self._open = Commit(self.next_offset, self.time_ms)
            if not self.has_secret:
                self.has_secret = True
                commit.payloads[keys.SECRET_KEY] = self.secret
            self._wake.set()
        return commit

    def append(self, event: Event, last: int | None = None) -> int:
        """Stage one event in the open commit and return its offset. Durable when `committed` returns.

        `last` is the offset of the event before of the same job, None for a first one and for events of no job.
        """
        commit = self._open or self.commit()
        commit.kinds.append(KIND_OF[type(event)])
        commit.events.append(event)
        offset = self.next_offset
        commit.distances.append(0 if last is None else offset - last)
        self.next_offset = offset + 1
        return offset

    def seal(self, event: EventT) -> EventT:
        """The event with its text put beside the log, in the commit to which it must be appended next."""
        name = TEXT_FIELDS.get(type(event))
        text = None if name is None else getattr(event, name)
        if name is None or type(text) is not str or not text:
            return event  # a text that came with an event before stays where it is
        return replace(event, **{name: self.put_beside(text)})

    def put_beside(self, value: str | bytes) -> Sealed:
        """Stage a text or a result beside the log, for the event that must be appended next."""
        commit, offset = self.commit(), self.next_offset
        row = encode_sealed(self._entropy.take(SALT_BYTES), value)
        commit.payloads[keys.text_key(offset)] = row
        commit.payload_bytes += len(row)
        return Sealed(offset, len(row), digest_of(row))

    def append_payload(self, offset: int, record: bytes) -> None:
        """Stage the payload record of the enqueued event at `offset`."""
        commit = self._open or self.commit()
        commit.payloads[keys.payload_key(offset)] = record
        commit.payload_bytes += len(record)
