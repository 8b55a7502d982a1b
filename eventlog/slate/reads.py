"""Reads from SlateDB, the same for the writer and for readers in other processes."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import cached_property
from typing import Final

from slatedb.uniffi import Db, DbIterator, DbReader

from ledgerq.eventlog.blobs import Blobs
from ledgerq.eventlog.errors import InvalidArgument, LedgerError, QueueClosed, StoreUnavailable
from ledgerq.eventlog.locations import Location
from ledgerq.eventlog.recovery.block_check import find_damaged_files
from ledgerq.eventlog.recovery.lost_rows import find_lost_row
from ledgerq.eventlog.recovery.store_files import FileFault
from ledgerq.eventlog.runtime.event_loop import check_process
from ledgerq.eventlog.runtime.process import own_pid
from ledgerq.eventlog.slate.binding import Lane
from ledgerq.eventlog.slate.error_mapping import SLATE_ERRORS, translate
from ledgerq.eventlog.slate.native_binding import NativeLane
from ledgerq.eventlog.slate.row_sums import RowSum, can_sum, sum_of, total
from ledgerq.eventlog.slate.stored_blobs import stored_blobs
from ledgerq.eventlog.store import Row

__all__ = ["SlateReads"]

_FIRST_PAGE_ROWS: Final = 64
_PAGE_BYTES: Final = 2 * 1024 * 1024
# A point read costs about as much as 25 rows of a scan, but a scan that finds nothing wanted could go on for ever.
_HIT_SHARE: Final = 4
_SCAN_FROM_KEYS: Final = 8
_GETS_AT_ONCE: Final = 64
_SUM_ROWS: Final = 1000


class SlateReads:
    """An open database, read through a lane. No wait is longer than a limit: SlateDB itself tries without end."""

    def __init__(self, db: Db | DbReader, lane: Lane, location: Location, *, read_timeout_s: float) -> None:
        """Read from `db`, the store at `location`, which this object now owns."""
        self._db = db
        self._lane = lane
        self._location = location
        self._url = location.original
        self._pid = own_pid()
        self._is_closed = False
        self._fsync = True
        self._read_timeout_s = read_timeout_s

    @property
    def location(self) -> str:
        """The URL it was opened by, for messages."""
        return self._url

    @cached_property
    def blobs(self) -> Blobs:
        """The large payloads beside it."""
        return stored_blobs(self._location, fsync=self._fsync)

    async def get(self, key: bytes) -> bytes | None:
        """The value of `key`, or None. Raises `RowUnreadable` when just the block that would hold it is damaged."""
        return (await self._gets([key]))[0]

    async def _gets(self, keys: list[bytes]) -> list[bytes | None]:
        """The values of a few keys, read side by side."""
        self._check()
        db, get = self._db, self._lane.get
        try:
            async with asyncio.timeout(self._read_timeout_s):
                if len(keys) == 1:
                    found = [await get(db, keys[0])]
                else:
                    found = await asyncio.gather(*(get(db, key) for key in keys))
            self._served()
        except TimeoutError as error:
            raise self._late() from error
        except SLATE_ERRORS as error:
            lost = await find_lost_row(self._location, keys[0], error) if len(keys) == 1 else None
            raise lost or await self._failed(error) from error
        return found

    async def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """The values of `keys`, in the order asked; cheapest when the keys lie close together."""
        self._check()
        wanted = sorted(set(keys))
        found: dict[bytes, bytes | None] = {}
        if len(wanted) >= _SCAN_FROM_KEYS:
            wanted = await self._scan_dense(wanted, found)
        for at in range(0, len(wanted), _GETS_AT_ONCE):
            some = wanted[at : at + _GETS_AT_ONCE]
            found.update(zip(some, await self._gets(some), strict=True))
        return [found.get(key) for key in keys]

    async def _scan_dense(self, wanted: list[bytes], found: dict[bytes, bytes | None]) -> list[bytes]:
        """Fill `found` by one scan as long as it meets mostly keys of `wanted`; returns the keys not reached."""
        missing = set(wanted)
        page_rows = max(_FIRST_PAGE_ROWS, min(len(wanted), 1000))
        async for rows in self._pages(wanted[0], wanted[-1] + b"\0", False, page_rows):
            hits = [row for row in rows if row[0] in missing]
            found.update(hits)
            if len(hits) * _HIT_SHARE < len(rows):
                last = rows[-1][0]
                return [key for key in wanted if key > last]
        return []

    async def scan(
        self, start: bytes, stop: bytes, *, reverse: bool = False, page_rows: int = 1000
    ) -> AsyncIterator[list[Row]]:
        """Rows with `start <= key < stop` in key order (or the reverse), as of the first page, in non-empty pages.

        Pages hold at most `page_rows` rows, and about 2 MiB; the first one is small.
        """
        if page_rows < 1:
            raise InvalidArgument(f"page_rows must be at least 1, not {page_rows}")
        self._check()
        async for rows in self._pages(start, stop, reverse, page_rows):
            yield rows

    async def sum_rows(self, start: bytes, stop: bytes, secret: bytes) -> RowSum | None:
        """The sum of all rows with `start <= key < stop`, read in threads; None where sums are not compiled."""
        lane, parts = self._lane, list[RowSum]()
        if not can_sum():
            return None
        if not isinstance(lane, NativeLane):
            return total([sum_of(dict(rows), secret) async for rows in self.scan(start, stop)])
        self._check()
        async with self._reading():
            async with asyncio.timeout(self._read_timeout_s):
                iterator = await lane.scan(self._db, start, stop, reverse=False)
            self._served()
            while not parts or parts[-1].rows == _SUM_ROWS:
                self._check()
                async with asyncio.timeout(self._read_timeout_s):
                    parts.append(await lane.next_sum(iterator, _SUM_ROWS, secret, self._read_timeout_s))
        return total(parts)

    async def damaged_files(self, *, remote: bool = False) -> list[FileFault]:
        """The files that are needed now and have a part that can't be read; of objects only when `remote`."""
        self._check()
        return await find_damaged_files(self._location) if remote or self._location.is_file else []

    async def _pages(self, start: bytes, stop: bytes, reverse: bool, page_rows: int) -> AsyncIterator[list[Row]]:
        if start >= stop:
            return
        limit = min(page_rows, _FIRST_PAGE_ROWS)
        async with self._reading():
            async with asyncio.timeout(self._read_timeout_s):
                iterator = await self._lane.scan(self._db, start, stop, reverse=reverse)
            self._served()
            while rows := await self._next_rows(iterator, limit):
                is_last = len(rows) < limit
                if is_last:
                    # It holds files and memory of SlateDB's, and the caller may keep this generator for long.
                    del iterator
                yield rows
                if is_last:
                    return
                self._check()
                row_bytes = sum(len(value) for _, value in rows) // len(rows) + 1
                limit = max(1, min(page_rows, _PAGE_BYTES // row_bytes))

    @asynccontextmanager
    async def _reading(self) -> AsyncIterator[None]:
        """A block whose reads of the database raise errors of ours."""
        try:
            yield
        except TimeoutError as error:
            raise self._late() from error
        except SLATE_ERRORS as error:
            raise await self._failed(error) from error

    async def _next_rows(self, iterator: DbIterator, limit: int) -> list[Row]:
        async with asyncio.timeout(self._read_timeout_s):
            return await self._lane.next_rows(iterator, limit, self._read_timeout_s)

    def _served(self) -> None:
        """Called after each read of the database; a pinned reader makes sure here that the view is still the same."""

    def _check(self) -> None:
        check_process(self._url, self._pid)
        if self._is_closed:
            raise QueueClosed(f"{self._url} was closed; open it again")

    async def _failed(self, error: BaseException) -> LedgerError:
        return translate(error, self._url)

    def _late(self) -> StoreUnavailable:
        return StoreUnavailable(
            f"{self._url} did not answer a read within {self._read_timeout_s:g} s: check that it can be reached, "
            "then try again"
        )
