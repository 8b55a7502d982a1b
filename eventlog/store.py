"""The store's protocol: ordered keys, atomic batches, a way to make them durable, and an anchor.

Two implementations stand behind these protocols: `SlateStore` (slate/slate_store.py) and `MemoryStore` (memory.py).
The same contract test runs on both. A store knows nothing of events; one process at a time writes it, many may read it.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Final, NamedTuple, Protocol

from ledgerq.eventlog.blobs import Blobs
from ledgerq.eventlog.errors import InvalidArgument, LedgerError
from ledgerq.eventlog.recovery.store_files import FileFault
from ledgerq.eventlog.runtime.meters import CommitTimes
from ledgerq.eventlog.slate.row_sums import RowSum

__all__ = ["MAX_KEY_BYTES", "Anchor", "Batch", "ReadStore", "Row", "Store", "check_key"]

Row = tuple[bytes, bytes]
# Slatedb 0.17.0 takes longer keys, earlier ones did not, and nothing here needs them.
MAX_KEY_BYTES: Final = 65_535


def check_key(key: bytes) -> None:
    """Raise `InvalidArgument` for a key that no store takes: every `Batch` calls this."""
    if not 0 < len(key) <= MAX_KEY_BYTES:
        raise InvalidArgument(f"a key has 1 to {MAX_KEY_BYTES} bytes, not {len(key)}: {key[:40]!r}")


class Anchor(NamedTuple):
    """A commit that was durable once, kept outside the store's own files so that a rolled-back store is noticed.

    `base_offset` is the first offset of a record batch, `digest` the BLAKE2b-256 of its value (all zero bytes when the
    log was still empty), `next_offset` the offset after it, `epoch` its writer, `time_ms` its commit time.
    """

    base_offset: int
    next_offset: int
    digest: bytes
    epoch: int
    time_ms: int


class Batch(Protocol):
    """A batch of changes, applied together or not at all. Of several changes to one key the last one counts."""

    def put(self, key: bytes, value: bytes) -> None:
        """Set `key` (1 to 65,535 bytes) to `value` (may be empty)."""

    def delete(self, key: bytes) -> None:
        """Remove `key`; one that is not there is no error."""

    def update(self, changes: Mapping[bytes, bytes | None]) -> None:
        """Set each key to its value, and remove those whose value is None: the same in one call, which costs less."""


class ReadStore(Protocol):
    """A store opened for reading."""

    @property
    def location(self) -> str:
        """The URL it was opened by, for messages."""

    @property
    def blobs(self) -> Blobs:
        """The large payloads beside it; a reader only reads them."""

    async def get(self, key: bytes) -> bytes | None:
        """The value of `key`, or None. Raises `RowUnreadable` when just the block that would hold it is damaged."""

    async def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """The values of `keys`, in the order asked; cheapest when the keys lie close together.

        Raises `LogPoisoned` when one of them can't be read: `get` raises for that one alone.
        """

    def scan(
        self, start: bytes, stop: bytes, *, reverse: bool = False, page_rows: int = 1000
    ) -> AsyncIterator[list[Row]]:
        """Rows with `start <= key < stop` in key order (or the reverse), as of the first page, in non-empty pages.

        Pages hold at most `page_rows` rows; the first page may be smaller, so that reading only a range's head is
        cheap.
        """

    async def sum_rows(self, start: bytes, stop: bytes, secret: bytes) -> RowSum | None:
        """The sum of all rows with `start <= key < stop`, as of this call: see `RowSum`; None where it can't be had."""

    async def read_anchor(self) -> Anchor | None:
        """The newest anchor that can be read, or None when there is none."""

    async def damaged_files(self, *, remote: bool = False) -> list[FileFault]:
        """The files that are needed now and have a part that can't be read; every block of each is checked.

        An object store's files are checked only with `remote`, since that fetches every byte of them.
        """

    async def close(self) -> None:
        """Close the store; a second call does nothing."""


class Store(ReadStore, Protocol):
    """A store opened for writing. Opening fences every earlier writer of the same store."""

    def batch(self) -> Batch:
        """A new, empty batch; it can be written once."""

    async def write(self, batch: Batch) -> None:
        """Apply `batch` atomically after those written before; this store's reads see it, it may not be durable yet.

        Raises `Fenced`, `ClockWentBack` (nothing was written, try later), `StoreUnavailable`, `OutcomeUnknown`.
        """

    async def sync(self, anchor: Anchor) -> None:
        """Wait until every batch written before this call is durable, and keep `anchor` as the store's kind does.

        A file store writes each anchor before it returns, an object store at most once a minute and at close.
        Raises like `write`; after an error it is unknown which of those batches are durable.
        """

    async def commit(self, batch: Batch, anchor: Anchor) -> CommitTimes | None:
        """`write(batch)` and then `sync(anchor)`, in one call that may cost less. Raises what they raise.

        Calls may overlap: batches are applied in the order of the calls, and when one fails, so do those called after
        it. Behind one that was not written none is written; once all of them have failed they may be tried again.
        Returns how long its parts took, if the store measures that.
        """

    async def set_aside(self) -> list[tuple[str, list[str]]]:
        """Files that were set aside and that no event records yet: for each time the folder and the files' names."""

    async def set_aside_recorded(self, folder: str) -> None:
        """Called when the event of the files in `folder` is durable."""

    def failure(self) -> LedgerError | None:
        """Why the store no longer takes writes (`Fenced`, ...), as far as it has noticed by itself; else None."""
