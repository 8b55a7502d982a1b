"""A commit: what is staged to be written together, and what projections add to it."""

import asyncio
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Final, Protocol

from ledgerq.eventlog.clock import stopwatch_s
from ledgerq.eventlog.errors import LedgerError
from ledgerq.eventlog.events import Event
from ledgerq.eventlog.store import Batch

__all__ = ["PIECE_ROWS", "Commit", "Projector", "pieces"]

# So many rows are handed to the store in one turn of the event loop: 2 or 3 ms.
PIECE_ROWS: Final = 500


def pieces(rows: Mapping[bytes, bytes | None]) -> Iterator[dict[bytes, bytes | None]]:
    """These rows, `PIECE_ROWS` at a time."""
    left = iter(rows.items())
    while piece := dict(islice(left, PIECE_ROWS)):
        yield piece


class Commit:
    """What will be written together. The time is set when it opens, so that decisions and facts agree."""

    __slots__ = ("base_offset", "events", "kinds", "opened_s", "payload_bytes", "payloads", "time_ms", "waiters")

    def __init__(self, base_offset: int, time_ms: int) -> None:
        self.base_offset = base_offset
        self.time_ms = time_ms
        self.opened_s = stopwatch_s()
        self.kinds = bytearray()
        self.events: list[Event] = []
        self.payloads: dict[bytes, bytes | None] = {}
        self.payload_bytes = 0
        self.waiters: list[asyncio.Future[None]] = []

    def resolve(self, error: LedgerError | None) -> None:
        """Tell everyone who waits; those who stopped waiting don't hear it."""
        for waiter in self.waiters:
            if not waiter.done():
                if error is None:
                    waiter.set_result(None)
                else:
                    waiter.set_exception(error)


class Projector(Protocol):
    """What keeps projections beside the log; called by the log, in commit order."""

    def fill(self, commit: Commit, batch: Batch) -> Iterable[Mapping[bytes, bytes | None]] | None:
        """Add to `batch` what follows from the commit's events. May be called again for the same commit.

        What it returns is added as well, a piece in each turn of the event loop; events are staged for the next commit
        meanwhile.
        """

    def committed(self, commit: Commit) -> None:
        """The commit is durable; its waiters are told right after."""

    def failed(self, error: LedgerError) -> None:
        """No commit will follow; called once."""
