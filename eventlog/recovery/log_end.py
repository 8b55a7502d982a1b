"""The readable part of a log of which a block is damaged."""

from typing import Final

from ledgerq.eventlog import keys
from ledgerq.eventlog.codec import decode_batch
from ledgerq.eventlog.errors import LogCorrupt, LogPoisoned
from ledgerq.eventlog.log import Chain, Verified
from ledgerq.eventlog.store import ReadStore

__all__ = ["readable_part"]

_MAX_SPAN: Final = 16_384


async def readable_part(store: ReadStore) -> Verified:
    """The chain from the first batch to the last one before a block that can't be read, or before one that is wrong."""
    chain, span = Chain(), _MAX_SPAN
    while True:
        # A scan reads ahead, and fails as a whole where a block of it can't be read: so it is made shorter.
        start, stop = keys.log_key(chain.next_offset), keys.log_key(chain.next_offset + span)
        try:
            rows = [row async for page in store.scan(start, stop) for row in page]
        except LogPoisoned:
            if span == 1:
                break
            span //= 2
            continue
        try:
            for key, value in rows:
                chain.add(decode_batch(keys.offset_of(key), value))
        except LogCorrupt:
            break
        if not rows:
            break
        span = min(2 * span, _MAX_SPAN)
    return chain.so_far()
