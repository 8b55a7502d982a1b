"""A store in memory: small, without threads, deterministic, and able to fail or stall at any call.

It is what `memory:///` opens, the double for users' tests, and the shortest description of a store's contract. A
`MemoryDisk` is what survives a crash; a `MemoryStore` is one writer's view of it: applied batches not yet synced are
lost with the writer.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from typing import Any, Final

from sortedcontainers import SortedDict

from ledgerq.eventlog.blobs import Blobs, MemoryBlobs
from ledgerq.eventlog.errors import Fenced, LedgerError, LogPoisoned, QueueClosed, RowUnreadable
from ledgerq.eventlog.recovery.store_files import FileFault
from ledgerq.eventlog.slate.row_sums import RowSum, can_sum, sum_of, total
from ledgerq.eventlog.store import Anchor, Batch, Row, check_key

__all__ = ["Fault", "MemoryBatch", "MemoryDisk", "MemoryReader", "MemoryStore"]

Fault = Callable[[str], Awaitable[None]]
"""Awaited at "write:before", "write:after", "sync:before", "sync:after", "get", "scan", "close"; may raise or stall."""

_FIRST_PAGE_ROWS: Final = 64


class MemoryDisk:
    """Durable state: rows, the anchor, which writer opened last, and the files set aside that no event records yet."""

    def __init__(self) -> None:
        self.rows: SortedDict[bytes, bytes] = SortedDict()
        self.anchor: Anchor | None = None
        self.writer_number = 0
        self.damaged: set[bytes] = set()
        self.set_aside: dict[str, list[str]] = {}
        self.blobs: dict[str, bytes] = {}


class MemoryBatch:
    """Changes to be applied together."""

    def __init__(self) -> None:
        self.changes: dict[bytes, bytes | None] = {}

    def put(self, key: bytes, value: bytes) -> None:
        """Set `key` to `value`."""
        check_key(key)
        self.changes[key] = value

    def delete(self, key: bytes) -> None:
        """Remove `key`."""
        check_key(key)
        self.changes[key] = None

    def update(self, changes: Mapping[bytes, bytes | None]) -> None:
        """Set or remove each key."""
        for key in changes:
            check_key(key)
        self.changes.update(changes)


class MemoryReader:
    """A reader of what is durable; with `pinned`, of what was durable when it was opened."""

    def __init__(self, disk: MemoryDisk, *, pinned: bool = False) -> None:
        self._disk = disk
        self._rows: SortedDict[bytes, bytes] = disk.rows.copy() if pinned else disk.rows
        self._is_pinned = pinned
        self._pinned_anchor = disk.anchor
        self._unsynced: dict[bytes, bytes | None] = {}

    @property
    def location(self) -> str:
        """`memory:///`."""
        return "memory:///"

    @property
    def blobs(self) -> Blobs:
        """The large payloads on the disk."""
        return MemoryBlobs(self._disk.blobs)

    async def _meet(self, call: str) -> None:
        """A hook for faults, of which readers have none."""

    async def get(self, key: bytes) -> bytes | None:
        """The value of `key`, or None."""
        await self._meet("get")
        return self._get(key)

    def _get(self, key: bytes) -> bytes | None:
        if key in self._disk.damaged:
            raise RowUnreadable(f"{self.location}: the block of the row {key.hex()} is damaged", "memory")
        if key in self._unsynced:
            return self._unsynced[key]
        return self._rows.get(key)

    async def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """The values of `keys`, in the order asked."""
        await self._meet("get")
        return [self._get(key) for key in keys]

    async def scan(
        self, start: bytes, stop: bytes, *, reverse: bool = False, page_rows: int = 1000
    ) -> AsyncIterator[list[Row]]:
        """Rows with `start <= key < stop`, as of the first page."""
        await self._meet("scan")
        rows = [(key, self._rows[key]) for key in self._rows.irange(start, stop, (True, False))]
        if any(start <= key < stop for key in self._disk.damaged):
            raise LogPoisoned(f"{self.location}: a block of the rows from {start.hex()} on is damaged")
        changed = {key: value for key, value in self._unsynced.items() if start <= key < stop}
        if changed:
            merged = dict(rows) | changed
            rows = sorted((key, value) for key, value in merged.items() if value is not None)
        if reverse:
            rows.reverse()
        size = min(page_rows, _FIRST_PAGE_ROWS)
        at = 0
        while at < len(rows):
            yield rows[at : at + size]
            at, size = at + size, page_rows
            await self._meet("scan")

    async def sum_rows(self, start: bytes, stop: bytes, secret: bytes) -> RowSum | None:
        """The sum of all rows with `start <= key < stop`, None where sums are not compiled."""
        return total([sum_of(dict(rows), secret) async for rows in self.scan(start, stop)]) if can_sum() else None

    async def read_anchor(self) -> Anchor | None:
        """The anchor of the last synced commit, or of the one that a pinned reader shows."""
        return self._pinned_anchor if self._is_pinned else self._disk.anchor

    async def damaged_files(self, *, remote: bool = False) -> list[FileFault]:
        """No files: there are none in memory."""
        return []

    async def close(self) -> None:
        """Close the reader, which holds nothing."""


class MemoryStore(MemoryReader):
    """A writer on a `MemoryDisk`; a later one on the same disk fences it. `fault` is awaited around each call."""

    def __init__(self, disk: MemoryDisk | None = None, *, fault: Fault | None = None) -> None:
        super().__init__(disk if disk is not None else MemoryDisk())
        self._disk.writer_number += 1
        self._number = self._disk.writer_number
        self._fault = fault
        self._closed = False
        self._writing, self._syncing = asyncio.Lock(), asyncio.Lock()
        self._pending = 0
        self._errors: dict[str, Exception] = {}

    async def _meet(self, call: str) -> None:
        if self._fault is not None:
            await self._fault(call)
        error = self.failure()
        if error is not None:
            raise error

    def batch(self) -> Batch:
        """A new, empty batch."""
        return MemoryBatch()

    async def write(self, batch: Batch) -> None:
        """Apply `batch`; it is lost with this writer until `sync` has returned."""
        assert isinstance(batch, MemoryBatch)
        await self._meet("write:before")
        self._unsynced.update(batch.changes)
        await self._meet("write:after")

    async def sync(self, anchor: Anchor) -> None:
        """Make everything written so far durable, and keep the anchor."""
        await self._meet("sync:before")
        self.flush(anchor)
        await self._meet("sync:after")

    async def commit(self, batch: Batch, anchor: Anchor) -> None:
        """Write, then sync. Calls may overlap; those behind one that failed fail as well, and aren't written."""
        self._pending += 1
        try:
            async with self._writing:
                await self._once(self.write(batch), "write")
            async with self._syncing:
                await self._once(self.sync(anchor), "sync")
        finally:
            self._pending -= 1
            if not self._pending:
                self._errors.pop("write", None)

    async def _once(self, call: Coroutine[Any, Any, None], kind: str) -> None:
        if (error := self._errors.get(kind)) is not None:
            call.close()
            raise error.with_traceback(None)
        try:
            await call
        except Exception as failure:
            self._errors[kind] = failure
            raise

    def flush(self, anchor: Anchor | None = None) -> None:
        """Move the applied batches to the disk, as a sync does; a simulation has writes that outlive their caller."""
        rows = self._disk.rows
        for key, value in self._unsynced.items():
            if value is None:
                rows.pop(key, None)
            else:
                rows[key] = value
        self._unsynced = {}
        if anchor is not None:
            self._disk.anchor = anchor

    async def set_aside(self) -> list[tuple[str, list[str]]]:
        """The files set aside on the disk that no event records yet, as if there were files."""
        return list(self._disk.set_aside.items())

    async def set_aside_recorded(self, folder: str) -> None:
        """Called when the event of the files in `folder` is durable."""
        self._disk.set_aside.pop(folder, None)

    def failure(self) -> LedgerError | None:
        """`Fenced` when a later writer opened the same disk, `QueueClosed` after `close`."""
        if self._number != self._disk.writer_number:
            return Fenced("another writer opened the store in memory; this one writes no more")
        if self._closed:
            return QueueClosed("the store in memory is closed")
        return None

    async def close(self) -> None:
        """Close the writer; what was not synced is lost."""
        if not self._closed:
            self._closed = True
            self._unsynced = {}
            if self._fault is not None:
                await self._fault("close")
