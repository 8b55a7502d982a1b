"""The values of keys, which jobs and transactions set: what the fold keeps of them, and their rows beside the log.

Of a key only the newest value is kept: the log has when it had which one, and the digests of all of them.
"""

import json
from collections.abc import AsyncIterator, Mapping
from typing import Any, Final, NamedTuple

from ledgerq.eventlog.codec import digest_of
from ledgerq.eventlog.errors import InvalidArgument, LogCorrupt, LogPoisoned, RowUnreadable
from ledgerq.eventlog.events import KvDeleted, KvSet, ValueEvent
from ledgerq.eventlog.keys import VALUE_PREFIX, after_prefix, value_key
from ledgerq.eventlog.side_records import decode_value_row
from ledgerq.eventlog.store import ReadStore

__all__ = ["KvKey", "KvPage", "KvPast", "KvValue", "SetKeys", "SetValue", "StoredValue", "stored_values", "value_fault"]

MISSING: Final = "the value is missing"
UNREADABLE: Final = "the value can't be read: its block in a file of the store is damaged"
_PAGE_ROWS: Final = 256


class KvValue(NamedTuple):
    """The value of a key, and its version: the offset of the event that set it."""

    value: bytes
    version: int

    def json(self) -> Any:
        """The value, which is JSON; raises `ValueError` for one that isn't."""
        return json.loads(self.value)


class KvKey(NamedTuple):
    """A key of a listing, the version and the number of bytes of its value."""

    key: str
    version: int
    value_bytes: int


class KvPage(NamedTuple):
    """A page of a listing of keys; `next` is what to give as `after` for more, None at the end."""

    keys: list[KvKey]
    next: str | None


class KvPast(NamedTuple):
    """The value that a key had at some offset of the log, set by the event at `version`.

    `value` None: it was overwritten or deleted since then, and is not kept. `digest`: of salt and value, as in the log.
    """

    version: int
    digest: bytes
    value: bytes | None


class SetValue(NamedTuple):
    """What the log has of a key's value: the offset of its event, and size and digest of salt and value."""

    offset: int
    size_bytes: int
    digest: bytes


class SetKeys(dict[str, SetValue]):
    """The fold of the events of keys: all keys that have a value."""

    # Unless it begins in the middle of the log, a key that has no value can't be deleted.
    is_whole = True

    def apply(self, offset: int, event: ValueEvent) -> None:
        """Follow an event; raises `LogCorrupt` for one that no writer made."""
        try:
            value_key(event.key)
        except InvalidArgument as error:
            raise LogCorrupt(offset, f"{event.key[:40]!r} is no key") from error
        if isinstance(event, KvSet):
            self[event.key] = SetValue(offset, event.size_bytes, event.digest)
        elif self.pop(event.key, None) is None and self.is_whole:
            raise LogCorrupt(offset, f"the event {KvDeleted.__name__} makes no sense where {event.key!r} has no value")


class StoredValue(NamedTuple):
    """A row of the values' range: what the log has of it (None: nothing), the row, and what is wrong with it."""

    key: bytes
    wanted: SetValue | None
    row: bytes | None
    fault: str


def value_fault(wanted: SetValue, row: bytes | None) -> str:
    """Why the row found under a key is not that of its value; empty when it is."""
    if row is None:
        return MISSING
    found = decode_value_row(row)
    if digest_of(found.sealed) != wanted.digest:
        return f"a value with digest {digest_of(found.sealed).hex()}"
    return "" if found.offset == wanted.offset else f"a value of version {found.offset}"


async def stored_values(store: ReadStore, wanted: Mapping[str, SetValue]) -> AsyncIterator[StoredValue]:
    """Each row of the values' range, and each value that is `wanted` and has none that can be read."""
    left = {value_key(key): value for key, value in wanted.items()}
    pages = store.scan(VALUE_PREFIX, after_prefix(VALUE_PREFIX), page_rows=_PAGE_ROWS)
    try:
        async for page in pages:
            for key, row in page:
                value = left.pop(key, None)
                yield StoredValue(key, value, row, "" if value is None else value_fault(value, row))
    except LogPoisoned:
        pass  # a scan ends at the first block that can't be read: the rest is read one by one
    for key, value in sorted(left.items()):
        fault = ""
        try:
            found = await store.get(key)
        except RowUnreadable as error:
            found, fault = error.found, f"{UNREADABLE} ({error.where})"
        wrong = value_fault(value, found)
        yield StoredValue(key, value, found, (fault or wrong) if wrong else "")


def missing_text(fault: str) -> str | None:
    """What was found in the place of a value: None for nothing."""
    return None if fault == MISSING else fault
