"""The keys whose newest values are not durable yet, as a writer keeps them: what is read for a decision is exact.

All other keys are only in the store, and memory does not grow with them.
"""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

from ledgerq.eventlog.commit import Commit
from ledgerq.eventlog.events import KvSet, ValueEvent
from ledgerq.eventlog.keys import value_key
from ledgerq.eventlog.side_records import decode_value_row, encode_value_row
from ledgerq.eventlog.store import ReadStore

__all__ = ["KeptValues"]

Versions = dict[str, tuple[int, bool]]
"""By key, in order: the offset of its last event, and whether it has a value since then."""


class KeptValues:
    """What the events that are not durable have set and deleted."""

    def __init__(self) -> None:
        self.undurable: Versions = {}
        self._watches: list[Versions] = []

    def apply(self, event: ValueEvent, sealed: bytes, offset: int, commit: Commit) -> None:
        """Follow an event that was just staged in this commit, and stage its row."""
        key, is_set = event.key, isinstance(event, KvSet)
        row = commit.payloads[value_key(key)] = encode_value_row(offset, sealed) if is_set else None
        commit.payload_bytes += 0 if row is None else len(row)
        self.undurable.pop(key, None)  # so that it is the last one in order
        self.undurable[key] = (offset, is_set)
        for watch in self._watches:
            watch[key] = (offset, is_set)

    def committed(self, next_offset: int) -> None:
        """Forget what is durable: all events below this offset."""
        durable: list[str] = []
        for key, (offset, _) in self.undurable.items():
            if offset >= next_offset:
                break
            durable.append(key)
        for key in durable:
            del self.undurable[key]

    @asynccontextmanager
    async def versions(self, store: ReadStore, keys: Sequence[str]) -> AsyncIterator[Callable[[str], int]]:
        """Read the versions of these keys; yields what has the newest version of each, durable or not, 0 for none."""
        newer = {key: self.undurable[key] for key in keys if key in self.undurable}
        wanted = [key for key in keys if key not in newer]
        self._watches.append(newer)
        try:
            rows = await store.get_many([value_key(key) for key in wanted]) if wanted else []
            stored = {
                key: 0 if row is None else decode_value_row(row).offset for key, row in zip(wanted, rows, strict=True)
            }

            def newest(key: str) -> int:
                offset, is_set = newer.get(key) or (stored[key], True)
                return offset if is_set else 0

            yield newest
        finally:
            self._watches = [watch for watch in self._watches if watch is not newer]
