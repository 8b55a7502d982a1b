"""The writer of a rebuild's rows: in batches, under a marker that keeps every queue from opening until the last event.

Used by rebuild.py, in place, and by copying.py, into a new store.
"""

import asyncio
from collections.abc import Iterable, Mapping
from typing import Final, Self

from ledgerq.eventlog import keys
from ledgerq.eventlog.codec import pack
from ledgerq.eventlog.errors import LedgerError
from ledgerq.eventlog.events import KvDeleted, Rebuilt
from ledgerq.eventlog.store import Anchor, Batch, Store
from ledgerq.eventlog.writer import Commit, EventLog
from ledgerq.projections.fold import Transition
from ledgerq.projections.runner import ProjectionHost

__all__ = ["COMMIT_EVENTS", "COPY_MARKER", "FORMAT", "Finish", "RowWriter", "append_lost_keys", "finish"]

_BATCH_ROWS: Final = 20_000
_BATCH_BYTES: Final = 8 * 1024 * 1024
COMMIT_EVENTS: Final = 2000
COPY_MARKER: Final = pack(("copy",))
FORMAT: Final = str(keys.FORMAT_VERSION).encode()


class RowWriter:
    """Writes rows in batches of bounded size, with the marker in the first one.

    A batch is committed while the next one is being made, so leave its block, or `flush`, before relying on it.
    """

    def __init__(self, store: Store, anchor: Anchor, marker: bytes) -> None:
        self.rows_put = 0
        self.rows_deleted = 0
        self._store = store
        self._anchor = anchor
        self._first: dict[bytes, bytes | None] = {keys.REBUILD_KEY: marker}
        self._rows: dict[bytes, bytes | None] = {}
        self._bytes = 0
        self._commit: asyncio.Task[object] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        """Wait for the commit on its way; what is not committed yet is dropped, for an error has ended the work."""
        if self._commit is not None:
            await asyncio.gather(self._commit, return_exceptions=True)

    async def set(self, key: bytes, value: bytes | None, *, count: bool = True) -> None:
        """Set one row, or remove it."""
        await self.set_many({key: value}, count=count)

    async def set_many(self, rows: Mapping[bytes, bytes | None], *, count: bool = True) -> None:
        """Set rows, and remove those whose value is None."""
        size_bytes = sum(map(len, rows)) + sum(map(len, filter(None, rows.values())))
        if len(rows) > 1 and (len(rows) > _BATCH_ROWS or size_bytes > _BATCH_BYTES):
            for key, value in rows.items():
                await self.set(key, value, count=count)
            return
        if count:
            deleted = [*rows.values()].count(None)
            self.rows_deleted += deleted
            self.rows_put += len(rows) - deleted
        self._rows.update(rows)
        self._bytes += size_bytes
        if len(self._rows) >= _BATCH_ROWS or self._bytes >= _BATCH_BYTES:
            await self._begin_commit()

    async def flush(self) -> None:
        """Make the rows so far durable."""
        await self._begin_commit()
        await self._committed()

    async def _begin_commit(self) -> None:
        """Begin to commit the rows so far, once the commit before has ended: two batches are in memory at most."""
        await self._committed()
        if self._rows:
            batch = self._store.batch()
            batch.update(self._first | self._rows)
            self._first, self._rows, self._bytes = {}, {}, 0
            self._commit = asyncio.create_task(self._store.commit(batch, self._anchor))
            # Its turn, in which it begins.
            await asyncio.sleep(0)

    async def _committed(self) -> None:
        if self._commit is not None:
            commit, self._commit = self._commit, None
            await commit


class Finish:
    """The hook of the commits that end a rebuild: the last removes the marker; and projections follow them.

    All rows are of the present format by then, so the last commit sets the format.
    """

    def __init__(self, host: ProjectionHost) -> None:
        self._host = host
        self._filled: tuple[Commit, dict[bytes, bytes | None]] | None = None

    def fill(self, commit: Commit, batch: Batch) -> None:
        """Add the rows that follow from these events."""
        if self._filled is None or self._filled[0] is not commit:
            events = enumerate(commit.events, commit.base_offset)
            transitions = [Transition(offset, commit.time_ms, event, None, None) for offset, event in events]
            is_last = type(commit.events[-1]) is Rebuilt
            changes: dict[bytes, bytes | None] = {keys.REBUILD_KEY: None, keys.FORMAT_KEY: FORMAT} if is_last else {}
            self._host.project(transitions, commit.base_offset + len(commit.events), changes)
            self._filled = (commit, changes)
        batch.update(self._filled[1])

    def committed(self, commit: Commit) -> None:
        """Do nothing: all is done."""

    def failed(self, error: LedgerError) -> None:
        """Do nothing: the commit's waiters get the error."""


async def append_lost_keys(log: EventLog, lost: Iterable[str]) -> None:
    """Record that these keys have no value any more."""
    for number, key in enumerate(lost, 1):
        log.append(KvDeleted(key, lost=True))
        if number % COMMIT_EVENTS == 0:
            await log.committed()
    await log.committed()


async def finish(log: EventLog, last: Rebuilt, *, lost_keys: Iterable[str], accept_rollback: bool) -> None:
    """Write the events that end a rebuild, through a log whose hook removes the marker with the last."""
    await log.start(accept_rollback=accept_rollback)
    try:
        await append_lost_keys(log, lost_keys)
        log.append(last)
        await log.committed()
    finally:
        await log.stop()
