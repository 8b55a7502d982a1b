"""Reading the log: records in order, the verification of the hash chain, the search for an offset or a time.

`LogReader` works on any store opened for reading. writer.py adds the side that appends.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from typing import NamedTuple

from ledgerq.eventlog import keys
from ledgerq.eventlog.clock import Clock, sleep_until
from ledgerq.eventlog.codec import EMPTY_HEAD, NO_DIGEST, Head, RecordBatch, decode_batch, decode_head, digest_of
from ledgerq.eventlog.errors import FormatTooNew, InvalidArgument, LogCorrupt, LogRolledBack, StoreNotFound
from ledgerq.eventlog.events import Record
from ledgerq.eventlog.read_ahead import read_ahead
from ledgerq.eventlog.store import Anchor, ReadStore

__all__ = ["LogReader", "Verified"]

_MAX_OFFSET = 2**63
_MAX_FORMAT_DIGITS = 9  # Python refuses to read a number of thousands of digits
_LOG_STOP = keys.after_prefix(keys.LOG_PREFIX)
_FOLLOW_INTERVAL_MS = 500
# More than what an opener ever finds only in the write-ahead log, and little enough to be read in a moment.
_TAIL_BATCHES = 1500
_TAIL_BYTES = 16 * 1024 * 1024
_TAIL_PAGE_ROWS = 100
_HEAD_DIFFERS = "the head's epoch, time or base offset is not that of the last batch"

Progress = Callable[[int, int], None]
"""Called now and then with the offset reached and the offset to reach."""


class Verified(NamedTuple):
    """The part of the log that `verify` has proven: so many batches and events, ending at this head."""

    batches: int
    events: int
    head: Head


class LogReader:
    """The log of a store opened for reading."""

    def __init__(self, store: ReadStore, *, clock: Clock) -> None:
        self.store = store
        self.clock = clock

    async def check_format(self) -> bool:
        """Whether the store is one of ledgerq's; raises `FormatTooNew`, or `InvalidArgument` for foreign data."""
        return await self.format_version() > 0

    async def format_version(self) -> int:
        """The store's format, 0 where there is no ledgerq store; older ones are read. Raises like `check_format`."""
        value = await self.store.get(keys.FORMAT_KEY)
        if value is None:
            async for rows in self.store.scan(b"\0", b"\xff", page_rows=1):
                raise InvalidArgument(
                    f"{self.store.location} holds a SlateDB database that is not ledgerq's (first key {rows[0][0]!r}): "
                    "choose another location"
                )
            return 0
        if not value.isdigit() or len(value) > _MAX_FORMAT_DIGITS:
            raise LogCorrupt(0, f"the format number {value!r} can't be read")
        if int(value) > keys.FORMAT_VERSION:
            raise FormatTooNew(
                f"{self.store.location} has format {int(value)}, newer than {keys.FORMAT_VERSION}: upgrade ledgerq"
            )
        return max(1, int(value))

    async def require_format(self) -> int:
        """Like `format_version`, and raises `StoreNotFound` when there is no ledgerq store."""
        found = await self.format_version()
        if not found:
            raise StoreNotFound(f"there is no ledgerq store at {self.store.location}: check the URL")
        return found

    async def head(self) -> Head:
        """The head of the log; `EMPTY_HEAD` before the first commit.

        Raises `LogCorrupt` with the log's real end when the head can't be read: the log can be kept up to that end.
        """
        value = await self.store.get(keys.HEAD_KEY)
        try:
            return EMPTY_HEAD if value is None else decode_head(value)
        except LogCorrupt as error:
            last = await self.batch_at(_MAX_OFFSET)
            raise LogCorrupt(0 if last is None else last.next_offset, "the log's head can't be decoded") from error

    async def head_if_readable(self) -> Head:
        """The head, or `EMPTY_HEAD` where it can't be read: for a cut, which writes a new one."""
        try:
            return await self.head()
        except LogCorrupt:
            return EMPTY_HEAD

    async def end(self) -> int:
        """The offset after the last event that may be relied on."""
        return (await self.head()).next_offset

    async def batches(
        self, start: int = 0, stop: int | None = None, *, about: bytes = b""
    ) -> AsyncIterator[RecordBatch]:
        """The record batches that hold offsets in `[start, stop)`, decoded but not verified, as of this call.

        Those that don't hold the bytes `about`, a job's id for instance, are passed over without being decoded.
        """
        first = await self.batch_at(start) if start > 0 else None
        begin = keys.log_key(_in_range(start) if first is None else first.base_offset)
        end = _LOG_STOP if stop is None else keys.log_key(_in_range(stop))
        async with aclosing(read_ahead(self.store.scan(begin, end))) as pages:
            async for rows in pages:
                for key, value in rows if not about else [row for row in rows if about in row[1]]:
                    yield decode_batch(keys.offset_of(key), value)

    async def read(self, start: int = 0, stop: int | None = None) -> AsyncIterator[Record]:
        """The records with `start <= offset < stop` in order, as of this call."""
        async for batch in self.batches(start, stop):
            for record in batch.records():
                if record.offset >= start and (stop is None or record.offset < stop):
                    yield record

    async def tail(self, start: int = 0) -> AsyncIterator[Record]:
        """The records from `start` on, and then each new one once it is durable, without an end."""
        at = start
        while True:
            async for record in self.read(at):
                yield record
                at = record.offset + 1
            await self._news(at)

    async def _news(self, offset: int) -> None:
        """Wait until the log may hold `offset`; a reader can only poll."""
        await sleep_until(self.clock, self.clock.now_ms() + _FOLLOW_INTERVAL_MS)

    async def batch_at(self, offset: int) -> RecordBatch | None:
        """The last batch whose base offset is at most `offset`, or None."""
        pages = self.store.scan(keys.LOG_PREFIX, keys.log_key(_in_range(offset + 1)), reverse=True, page_rows=1)
        async for rows in pages:
            return decode_batch(keys.offset_of(rows[0][0]), rows[0][1])
        return None

    async def offset_at_time(self, time_ms: int) -> int:
        """The offset after the last event whose commit time is at most `time_ms` (commit times never decrease)."""
        low, high = 0, await self.end()
        while low < high:
            batch = await self.batch_at((low + high) // 2)
            if batch is None or batch.next_offset <= low:
                raise LogCorrupt(low, "a record batch is missing")
            if batch.time_ms <= time_ms:
                low = batch.next_offset
            else:
                high = batch.base_offset
        return low

    async def verify(self, *, until: int | None = None, progress: Progress | None = None) -> Verified:
        """Walk the whole hash chain from the first batch to the head, or to the batch that ends at or before `until`.

        Raises `LogCorrupt` with the first offset that is not proven. A forgery that recomputes every digest after the
        changed batch, the head and the anchor, too, is found only by an anchor kept elsewhere: see `check_anchor`.
        """
        if until is not None:
            return await self._verify_until(until, await self.head_if_readable(), progress)
        head = await self.head()
        chain = Chain()
        async with aclosing(self._values(head.next_offset, progress)) as values:
            async for offset, value in values:
                batch = decode_batch(offset, value)
                if offset >= head.next_offset:
                    # No damage if it came while this walked: then the head has moved too.
                    if await self.head() == head:
                        chain.overrun(batch, head)
                    break
                chain.add(batch)
        chain.end(head)
        return chain.proven()

    async def _verify_until(self, until: int, head: Head, progress: Progress | None) -> Verified:
        """Verify up to `until`. What follows may be damaged, but a batch is vouched for by the two that follow it."""
        chain, beyond = Chain(), 0
        proof: Verified | None = None
        try:
            async with aclosing(self._values(until, progress)) as values:
                async for offset, value in values:
                    if proof is None and offset >= until:
                        proof = chain.so_far()
                    batch = decode_batch(offset, value)
                    if proof is None and batch.next_offset > until:
                        proof = chain.so_far()
                    chain.add(batch)
                    beyond += offset >= until
                    if beyond == 2:
                        break
            if chain.next_offset == head.next_offset or chain.next_offset < until:
                chain.end(head)
            chain.proven()
        except LogCorrupt as error:
            if error.offset < until:
                raise
        except FormatTooNew:
            if proof is None:
                raise
        return chain.so_far() if proof is None else proof

    async def _values(self, stop: int, progress: Progress | None) -> AsyncGenerator[tuple[int, bytes], None]:
        """Each record batch, still encoded, with its base offset."""
        offset = 0
        async for rows in self.store.scan(keys.LOG_PREFIX, _LOG_STOP):
            for key, value in rows:
                offset = keys.offset_of(key)
                if key != keys.log_key(offset):
                    place = key[len(keys.LOG_PREFIX) :][:8].ljust(8, b"\0")
                    raise LogCorrupt(int.from_bytes(place), f"the key {key.hex()} is none of a record batch")
                yield offset, value
            if progress is not None:
                progress(min(offset, stop), stop)
            await asyncio.sleep(0)
        if progress is not None:
            progress(stop, stop)

    async def check_anchor(self, anchor: Anchor | None, *, remedy: str = "") -> None:
        """Raise `LogRolledBack` unless the log contains the commit that `anchor` names; `remedy`: what to do then."""
        if anchor is None or anchor.next_offset == 0:
            return
        head = await self.head()
        first, last = anchor.base_offset, anchor.next_offset - 1
        if head.next_offset < anchor.next_offset:
            what = "the log ends before it"
            raise LogRolledBack(last, head.next_offset, what, remedy=remedy, location=self.store.location)
        value = await self.store.get(keys.log_key(first))
        if value is None or digest_of(value) != anchor.digest:
            what = (
                f"the log holds another commit in its place: what stands from offset {first} on is not what was "
                "written, and what stands before it may not be either"
            )
            raise LogRolledBack(
                last, head.next_offset, what, first_offset=first, remedy=remedy, location=self.store.location
            )

    async def check_tail(self, head: Head) -> None:
        """Raise `LogCorrupt` unless the newest batches are those that `head` vouches for, without a gap.

        A store that lost a file in the middle of its write-ahead log opens without an error, and with a right head.
        """
        stop, digest, batches, size_bytes = head.next_offset, head.digest, 0, 0
        pages = self.store.scan(keys.LOG_PREFIX, _LOG_STOP, reverse=True, page_rows=_TAIL_PAGE_ROWS)
        async for rows in pages:
            for key, value in rows:
                batch = decode_batch(keys.offset_of(key), value)
                if batches == 0 and batch.next_offset > stop:
                    # To append at the head would write over what is there.
                    raise after_head(head, batch.next_offset)
                if batch.next_offset != stop:
                    raise LogCorrupt(batch.next_offset, f"the record batch that ends at {stop} is missing")
                if batch.digest != digest:
                    raise LogCorrupt(batch.base_offset, "the record batch is not the one that was written")
                if batches == 0 and Head(stop, digest, batch.epoch, batch.time_ms, batch.base_offset) != head:
                    raise LogCorrupt(stop, _HEAD_DIFFERS)
                stop, digest = batch.base_offset, batch.previous
                batches += 1
                size_bytes += len(value)
                if batches == _TAIL_BATCHES or size_bytes > _TAIL_BYTES:
                    return
        if stop > 0:
            raise LogCorrupt(0, f"the record batch that ends at {stop} is missing")


def _in_range(offset: int) -> int:
    """The nearest offset that a key can hold: a read outside of any log is no error."""
    return min(max(offset, 0), _MAX_OFFSET)


def after_head(head: Head, end: int) -> LogCorrupt:
    """The error for a log that goes on after its head, to `end`, which can be kept if only the head's row is lost."""
    if head == EMPTY_HEAD:
        return LogCorrupt(end, "its head is missing")
    return LogCorrupt(head.next_offset, f"the log goes on to {end} after its head")


class Chain:
    """Verifier of the hash chain, batch by batch: add batch after batch, then `end` with the head.

    Batch B vouches for the batch A before it by A's digest. When that digest is wrong, A or B was changed: it was A
    when B is vouched for by what follows it, and B otherwise. That is why one batch is held back.
    """

    def __init__(self, last: RecordBatch | None = None) -> None:
        """Start with the first batch of the log, or with the one after `last`, which is known to be right."""
        self.next_offset = 0 if last is None else last.next_offset
        self._batches = 0
        self._last = last
        self._suspect: int | None = None

    def add(self, batch: RecordBatch) -> None:
        """Add the next batch in key order; raises `LogCorrupt` when the chain can't go on before it."""
        self._settle(batch.previous)
        if batch.base_offset != self.next_offset:
            what = (
                "a record batch is missing" if batch.base_offset > self.next_offset else "a record batch was inserted"
            )
            raise LogCorrupt(self.next_offset, what)
        last = self._last
        if batch.previous != (NO_DIGEST if last is None else last.digest):
            self._suspect = batch.base_offset if last is None else last.base_offset
        elif last is not None and (batch.epoch < last.epoch or batch.time_ms < last.time_ms):
            raise LogCorrupt(batch.base_offset, "its epoch or its commit time is before that of the batch before it")
        self._last = batch
        self._batches += 1
        self.next_offset = batch.next_offset

    def _settle(self, vouched: bytes) -> None:
        if self._suspect is None or self._last is None:
            return
        if vouched == self._last.digest:
            raise LogCorrupt(self._suspect, "the record batch is not the one that was written")
        raise LogCorrupt(self._last.base_offset, "the record batch is not the one that was written")

    def end(self, head: Head) -> None:
        """End the chain; raises `LogCorrupt` unless the head names this end."""
        self._settle(head.digest)
        if head.next_offset > self.next_offset:
            raise LogCorrupt(self.next_offset, f"the log ends here but its head is at {head.next_offset}")
        if head.next_offset < self.next_offset:
            raise after_head(head, self.next_offset)
        if head.digest != (NO_DIGEST if self._last is None else self._last.digest):
            raise LogCorrupt(0 if self._last is None else self._last.base_offset, "its digest is not the head's")
        if head != self.so_far().head:
            raise LogCorrupt(self.next_offset, _HEAD_DIFFERS)

    def overrun(self, batch: RecordBatch, head: Head) -> None:
        """Raise `LogCorrupt` for `batch`, which stands after the head, unless one before it is to blame."""
        if self._last is None or batch.previous != self._last.digest:
            self.end(head)
        self._settle(batch.previous)
        raise LogCorrupt(head.next_offset, "the log goes on after its head")

    def proven(self) -> Verified:
        """The part proven so far; raises `LogCorrupt` while the last batch contradicts the one before it."""
        if self._suspect is not None:
            raise LogCorrupt(self._suspect, "the record batch is not the one that was written")
        return self.so_far()

    def so_far(self) -> Verified:
        """The part that was added so far; only `proven` verifies its last batch."""
        last = self._last
        if last is None:
            return Verified(0, 0, EMPTY_HEAD)
        head = Head(last.next_offset, last.digest, last.epoch, last.time_ms, last.base_offset)
        return Verified(self._batches, self.next_offset, head)
