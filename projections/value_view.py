"""The view of keys and their values for readers, from any store opened for reading."""

from ledgerq.eventlog.codec import digest_of
from ledgerq.eventlog.errors import InvalidArgument
from ledgerq.eventlog.events import KvSet, ValueEvent
from ledgerq.eventlog.keys import VALUE_PREFIX, after_prefix, value_key
from ledgerq.eventlog.log import LogReader
from ledgerq.eventlog.side_records import decode_value_row
from ledgerq.projections.values import KvKey, KvPage, KvPast, KvValue

__all__ = ["ValueView"]

_MAX_KEYS = 10_000
_PAGE_ROWS = 100


class ValueView:
    """The keys and values of a ledger."""

    def __init__(self, log: LogReader) -> None:
        self.log = log
        self.store = log.store

    async def get(self, key: str) -> KvValue | None:
        """The value of a key; None where it has none."""
        row = await self.store.get(value_key(key))
        if row is None:
            return None
        found = decode_value_row(row)
        return KvValue(found.value, found.offset)

    async def keys(self, prefix: str = "", *, limit: int = 100, after: str | None = None) -> KvPage:
        """At most `limit` (1 to 10,000) keys that begin with `prefix`, in order of their bytes in UTF-8.

        `after` is the `next` of the page before.
        """
        if type(limit) is not int or not 1 <= limit <= _MAX_KEYS:
            raise InvalidArgument(f"limit is a whole number from 1 to {_MAX_KEYS}, not {limit!r}")
        begin = value_key(prefix) if prefix else VALUE_PREFIX
        start = begin if after is None else value_key(after) + b"\0"
        if after is not None and not start.startswith(begin):
            raise InvalidArgument(f"after={after!r} is not the `next` of a page of this listing")
        # UTF-8 has no byte 0xff.
        stop = after_prefix(VALUE_PREFIX) if not prefix else begin + b"\xff"
        found: list[KvKey] = []
        async for rows in self.store.scan(start, stop, page_rows=min(limit + 1, _PAGE_ROWS)):
            for key, row in rows:
                if len(found) == limit:
                    return KvPage(found, found[-1].key)
                parts = decode_value_row(row)
                found.append(KvKey(key[len(VALUE_PREFIX) :].decode(), parts.offset, len(parts.value)))
        return KvPage(found, None)

    async def at(self, key: str, offset: int) -> KvPast | None:
        """What a key had after the events below `offset`; None where it had no value.

        Of a value that was overwritten or deleted since then the log has the digest, and no more: see `KvPast`. Reads
        the log up to there, unless the value is still the same.
        """
        end = await self.log.end()
        if type(offset) is not int or not 0 <= offset <= end:
            raise InvalidArgument(f"offset {offset} is not in the log, which holds 0 to {end - 1}: give 0 to {end}")
        row = await self.store.get(value_key(key))
        now = None if row is None else decode_value_row(row)
        if now is not None and now.offset < offset:
            return KvPast(now.offset, digest_of(now.sealed), now.value)
        last: KvPast | None = None
        async for batch in self.log.batches(0, offset, about=key.encode()):
            for at, event, _ in batch.steps():
                if at < offset and isinstance(event, ValueEvent) and event.key == key:
                    last = KvPast(at, event.digest, None) if isinstance(event, KvSet) else None
        return last
