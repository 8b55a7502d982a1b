"""The limits that a writer keeps in memory, as the staged events leave them, durable or not yet.

There are as many as queues, so a decision needs no look-up. Their rows go with the commit of their events and claims.
"""

from ledgerq.eventlog import keys
from ledgerq.eventlog.store import ReadStore
from ledgerq.projections.index_keys import LIMIT
from ledgerq.projections.indexes import decode_limits, limit_rows
from ledgerq.projections.limits import Limits, LimitTable

__all__ = ["KeptLimits"]


class KeptLimits(LimitTable):
    """The limits by queue, and which of them the open commit changes."""

    def __init__(self) -> None:
        super().__init__()
        self._changed: dict[str, None] = {}

    async def read(self, store: ReadStore) -> None:
        """Take them over from the store; raises `ProjectionDrift` for a row that can't be read."""
        async for rows in store.scan(LIMIT, keys.after_prefix(LIMIT)):
            for key, value in rows:
                super().put(decode_limits(key, value))

    def put(self, limits: Limits) -> None:
        """Set the limits of a queue as they are now."""
        super().put(limits)
        self._changed[limits.queue] = None

    def add_changes(self, changes: dict[bytes, bytes | None]) -> None:
        """Add the rows that the open commit changes; called when it closes."""
        for queue in self._changed:
            changes |= limit_rows(self.by_queue[queue])
        self._changed = {}
