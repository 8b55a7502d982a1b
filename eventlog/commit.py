"""The commit, the hook through which projections add to it, and the waking of its callers."""

import asyncio
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Final, Protocol

from ledgerq.eventlog.clock import stopwatch_s
from ledgerq.eventlog.errors import LedgerError
from ledgerq.eventlog.events import Event
from ledgerq.eventlog.store import Batch

__all__ = ["PIECE_ROWS", "Answers", "Commit", "CommitHook", "pieces"]

# So many rows are gathered, or events encoded, in one turn of the event loop: less than 1 ms.
PIECE_ROWS: Final = 2000
PIECE_CALLERS: Final = 100


def pieces(rows: Mapping[bytes, bytes | None]) -> Iterator[dict[bytes, bytes | None]]:
    """These rows in pieces of `PIECE_ROWS`."""
    left = iter(rows.items())
    while piece := dict(islice(left, PIECE_ROWS)):
        yield piece


class Commit:
    """Events and rows that are written together. The time is set when it opens, so that decisions and facts agree."""

    __slots__ = (
        "base_offset",
        "distances",
        "events",
        "kinds",
        "opened_s",
        "payload_bytes",
        "payloads",
        "time_ms",
        "waiters",
    )

    def __init__(self, base_offset: int, time_ms: int) -> None:
        self.base_offset = base_offset
        self.time_ms = time_ms
        self.opened_s = stopwatch_s()
        self.kinds = bytearray()
        self.events: list[Event] = []
        self.distances: list[int] = []
        self.payloads: dict[bytes, bytes | None] = {}
        self.payload_bytes = 0
        self.waiters: list[asyncio.Future[None]] = []

    def fail(self, error: LedgerError) -> None:
        """Fail the future of each waiting caller; cancelled ones are left alone."""
        for waiter in self.waiters:
            if not waiter.done():
                waiter.set_exception(error)


class Answers:
    """Wakes the callers of durable commits in order, `PIECE_CALLERS` of them in one turn of the event loop."""

    def __init__(self) -> None:
        self._waiters: deque[asyncio.Future[None]] = deque()

    async def given(self) -> None:
        """Wait until all callers are woken."""
        if self._waiters:
            last: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiters.append(last)
            await last

    def give(self, waiters: list[asyncio.Future[None]]) -> None:
        """Resolve the futures of these callers; cancelled ones are left alone."""
        is_at_it = bool(self._waiters)
        self._waiters.extend(waiters)
        if not is_at_it:
            self._wake()

    def _wake(self) -> None:
        for _ in range(min(PIECE_CALLERS, len(self._waiters))):
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)
        if self._waiters:
            asyncio.get_running_loop().call_soon(self._wake)


class CommitHook(Protocol):
    """The hook that keeps projections beside the log; the log calls it in commit order."""

    def fill(self, commit: Commit, batch: Batch) -> Iterable[Mapping[bytes, bytes | None]] | None:
        """Add to `batch` what follows from the commit's events. May be called again for the same commit.

        What it returns is added as well, a piece in each turn of the event loop; events are staged for the next commit
        meanwhile.
        """

    def committed(self, commit: Commit) -> None:
        """Called when the commit is durable, right before its waiters are woken."""

    def failed(self, error: LedgerError) -> None:
        """Called once, when no commit will follow any more."""
