"""How far the log of a store can be read when a block of it is damaged."""

from typing import Final

from ledgerq.eventlog import keys
from ledgerq.eventlog.codec import decode_batch
from ledgerq.eventlog.errors import LogCorrupt, LogPoisoned
from ledgerq.eventlog.log import Chain, Verified
from ledgerq.eventlog.store import ReadStore

__all__ = ["readable_part"]

_PAGE_ROWS: Final = 100


async def readable_part(store: ReadStore) -> Verified:
    """The chain from the first batch to the last one before a block that can't be read, or before one that is wrong."""
    chain, page_rows = Chain(), _PAGE_ROWS
    while True:
        before = chain.next_offset
        try:
            async for rows in store.scan(keys.log_key(before), keys.after_prefix(keys.LOG_PREFIX), page_rows=page_rows):
                for key, value in rows:
                    chain.add(decode_batch(keys.offset_of(key), value))
            return chain.so_far()
        except LogCorrupt:
            return chain.so_far()
        except LogPoisoned:
            # Of a page that holds such a block nothing is had, so the last one is read row by row.
            if page_rows == 1 and chain.next_offset == before:
                return chain.so_far()
            page_rows = _PAGE_ROWS if chain.next_offset > before and page_rows > 1 else 1
