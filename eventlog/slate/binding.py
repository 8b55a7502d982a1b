"""The few calls into SlateDB's binding that `slate_store.py` needs: one small protocol with three implementations.

`PublicLane` uses the binding's public methods; `fast_binding.FastLane` does the same several times faster with its
private parts, as long as they look as expected; `native_binding.NativeLane` hands over rows and commits in compiled
code, where that was built. All raise the binding's own errors (except in `put`, `delete` and `update`).
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
from ledgerq.eventlog.store import MAX_KEY_BYTES, Row, check_key

__all__ = ["BlockingCalls", "GatheredBatch", "Lane", "PublicLane", "SlateBatch", "scan_options"]

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


class GatheredBatch(SlateBatch):
    """A batch that only gathers its rows: they are handed over when it is written, in the thread that writes it."""

    __slots__ = ("_rows",)

    def __init__(self) -> None:
        super().__init__()
        self._rows: dict[bytes, bytes | None] | None = {}

    def put(self, key: bytes, value: bytes) -> None:
        """Set `key` (1 to 65,535 bytes) to `value`."""
        if type(value) is not bytes:
            raise TypeError(f"a value is bytes, not {type(value).__name__}")
        self._set(key, value)

    def delete(self, key: bytes) -> None:
        """Remove `key`."""
        self._set(key, None)

    def _set(self, key: bytes, value: bytes | None) -> None:
        if type(key) is not bytes:
            raise TypeError(f"a key is bytes, not {type(key).__name__}")
        check_key(key)
        self._unwritten()[key] = value
        self.is_empty = False

    def update(self, changes: Mapping[bytes, bytes | None]) -> None:
        """Set each key to its value, or remove it. What is not bytes is refused when the batch is written."""
        if not changes:
            return
        if b"" in changes or max(map(len, changes)) > MAX_KEY_BYTES:
            for key in changes:
                check_key(key)
        self._unwritten().update(changes)
        self.is_empty = False

    def take(self) -> dict[bytes, bytes | None]:
        """The rows, for the lane that writes them; none when they were taken before."""
        rows, self._rows = self._rows, None
        return rows or {}

    def _unwritten(self) -> dict[bytes, bytes | None]:
        if self._rows is None:
            raise InvalidArgument("the batch was consumed: it can be written once")
        return self._rows


class BlockingCalls(Protocol):
    """Calls for threads, which drive SlateDB's futures themselves: the event loop is woken once, not six times.

    Both raise `TimeoutError` when nothing happens for `limit_s` seconds.
    """

    def write_blocking(self, db: Db, batch: SlateBatch, limit_s: float) -> None:
        """Apply a batch; it may not be durable yet."""

    def flush_wal_blocking(self, db: Db, limit_s: float) -> None:
        """Make everything that was written durable in the write-ahead log."""


class Lane(Protocol):
    """The protocol of all lanes; each call raises the binding's errors."""

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

    async def next_rows(self, rows: DbIterator, limit: int, limit_s: float) -> list[Row]:
        """Up to `limit` further rows; fewer mean that there are no more. It may give up after `limit_s`."""


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

    async def next_rows(self, rows: DbIterator, limit: int, limit_s: float) -> list[Row]:
        """Up to `limit` further rows; fewer mean that there are no more. It may give up after `limit_s`."""
        return [(row.key, row.value) for row in await rows.next_batch(limit)]
