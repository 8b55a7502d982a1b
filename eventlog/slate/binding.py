"""The few calls into SlateDB's binding that `slate_store.py` needs, behind one small protocol with two implementations.

`PublicLane` uses the binding's public methods; `fast_binding.FastLane` does the same several times faster with its
private parts, as long as they look as expected. Both raise the binding's own errors (except in `put` and `delete`).
"""

from collections.abc import Mapping
from typing import Final, Protocol

from slatedb.uniffi import (
    Db,
    DbIterator,
    DbReader,
    DurabilityLevel,
    Error,
    FlushOptions,
    FlushType,
    IterationOrder,
    KeyRange,
    ScanOptions,
    WriteBatch,
    WriteHandle,
    WriteOptions,
)

from ledgerq.eventlog.errors import InvalidArgument
from ledgerq.eventlog.store import Row, check_key

__all__ = ["BlockingCalls", "Lane", "PublicLane", "SlateBatch", "scan_options"]

_READ_AHEAD_BYTES: Final = 64 * 1024


def scan_options(*, reverse: bool) -> ScanOptions:
    """The options for reading ranges: with what was applied, durable or not, and blocks are cached."""
    return ScanOptions(
        durability_filter=DurabilityLevel.MEMORY,
        dirty=False,
        read_ahead_bytes=_READ_AHEAD_BYTES,
        cache_blocks=True,
        max_fetch_tasks=1,
        order=IterationOrder.DESCENDING if reverse else IterationOrder.ASCENDING,
    )


class SlateBatch:
    """A write batch of SlateDB."""

    __slots__ = ("is_empty", "raw")

    def __init__(self) -> None:
        self.raw = WriteBatch()
        # SlateDB refuses an empty batch, so the store must know.
        self.is_empty = True

    def put(self, key: bytes, value: bytes) -> None:
        """Set `key` (1 to 65,535 bytes) to `value`."""
        check_key(key)
        try:
            self.raw.put(key, value)
        except Error as error:
            raise InvalidArgument(f"put of {key[:40]!r}: {error}") from error
        self.is_empty = False

    def delete(self, key: bytes) -> None:
        """Remove `key`."""
        check_key(key)
        try:
            self.raw.delete(key)
        except Error as error:
            raise InvalidArgument(f"delete of {key[:40]!r}: {error}") from error
        self.is_empty = False

    def update(self, changes: Mapping[bytes, bytes | None]) -> None:
        """Set each key to its value, or remove it."""
        for key, value in changes.items():
            if value is None:
                self.delete(key)
            else:
                self.put(key, value)


class BlockingCalls(Protocol):
    """Calls for threads, which drive SlateDB's futures themselves: the event loop is woken once, not six times.

    Both raise `TimeoutError` when nothing happens for `limit_s` seconds.
    """

    def write_blocking(self, db: Db, batch: SlateBatch, limit_s: float) -> None:
        """Apply a batch; it may not be durable yet."""

    def flush_wal_blocking(self, db: Db, limit_s: float) -> None:
        """Make everything that was written durable in the write-ahead log."""


class Lane(Protocol):
    """The protocol of both lanes; each call raises the binding's errors."""

    def batch(self) -> SlateBatch:
        """A new, empty batch."""

    async def write(self, db: Db, batch: SlateBatch) -> WriteHandle:
        """Apply a batch; it may not be durable yet."""

    async def flush_wal(self, db: Db) -> None:
        """Make everything that was written durable in the write-ahead log."""

    @property
    def blocking(self) -> BlockingCalls | None:
        """The calls for threads; None when the lane has none."""

    async def get(self, db: Db | DbReader, key: bytes) -> bytes | None:
        """The value of `key`, or None."""

    async def scan(self, db: Db | DbReader, start: bytes, stop: bytes, *, reverse: bool) -> DbIterator:
        """An iterator over `start <= key < stop`."""

    async def next_rows(self, rows: DbIterator, limit: int) -> list[Row]:
        """Up to `limit` further rows; fewer mean that there are no more."""


class PublicLane:
    """The lane that uses the binding's public methods."""

    blocking: BlockingCalls | None = None

    def batch(self) -> SlateBatch:
        """A new, empty batch."""
        return SlateBatch()

    async def write(self, db: Db, batch: SlateBatch) -> WriteHandle:
        """Apply a batch; it may not be durable yet."""
        return await db.write_with_options(batch.raw, WriteOptions())

    async def flush_wal(self, db: Db) -> None:
        """Make everything that was written durable in the write-ahead log."""
        await db.flush_with_options(FlushOptions(flush_type=FlushType.WAL))

    async def get(self, db: Db | DbReader, key: bytes) -> bytes | None:
        """The value of `key`, or None."""
        found: bytes | None = await db.get(key)
        return found

    async def scan(self, db: Db | DbReader, start: bytes, stop: bytes, *, reverse: bool) -> DbIterator:
        """An iterator over `start <= key < stop`."""
        key_range = KeyRange(start=start or None, start_inclusive=True, end=stop, end_inclusive=False)
        return await db.scan_with_options(key_range, scan_options(reverse=reverse))

    async def next_rows(self, rows: DbIterator, limit: int) -> list[Row]:
        """Up to `limit` further rows; fewer mean that there are no more."""
        return [(row.key, row.value) for row in await rows.next_batch(limit)]
