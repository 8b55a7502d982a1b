"""The order of overlapping commits in a store: each is written in its turn, and one flush serves all that are written.

A commit runs in a thread of its own. While one is being flushed and synced, the next is already written into SlateDB,
so that its own flush can follow at once.
"""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

from ledgerq.eventlog.clock import stopwatch_s
from ledgerq.eventlog.runtime.meters import CommitTimes
from ledgerq.eventlog.store import Anchor

__all__ = ["CommitTurns"]


class CommitTurns:
    """The turns of one store's commits. `take` and `given_back` on the event loop, `run` in threads.

    Where no threads make commits, `one_by_one` stands for the first two and `writing` for a part of the third.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._flushing = threading.Lock()
        self._one_by_one = asyncio.Lock()
        self._taken = 0
        self._pending = 0
        self._written: tuple[int, Anchor | None] = (0, None)
        self._durable = 0
        self._write_error: BaseException | None = None
        self._flush_error: BaseException | None = None

    def take(self) -> tuple[int, int]:
        """The turn of a commit that begins now, and how many are before it; `given_back` must follow."""
        self._taken += 1
        self._pending += 1
        return self._taken, self._pending - 1

    def given_back(self) -> None:
        """Count a commit as ended. Once all have, those that were refused may be tried again."""
        self._pending -= 1
        if not self._pending:
            self._write_error = None

    @asynccontextmanager
    async def one_by_one(self) -> AsyncIterator[None]:
        """Take a turn for the block, which begins when those before it have ended."""
        self.take()
        try:
            async with self._one_by_one:
                yield
        finally:
            self.given_back()

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Write in the block, in turn; raises the error of a write before, and keeps its own for those behind it."""
        if self._write_error is not None:
            raise self._write_error.with_traceback(None)
        try:
            yield
        except BaseException as error:
            self._write_error = error
            raise

    def run(
        self,
        turn: int,
        anchor: Anchor,
        write: Callable[[], None],
        flush: Callable[[Anchor], float | None],
        limit_s: float,
    ) -> CommitTimes:
        """Write in turn, and make durable. Blocks.

        `flush` makes durable what was written, up to the commit of the anchor it gets, and keeps that; it returns the
        seconds that syncing files took, if there are any. Raises what `write` raises, also for the commits behind one
        whose write failed: none of them is written then. What `flush` raises is raised for all later ones, too.
        `TimeoutError`: the turn did not come within `limit_s`.
        """
        begun_s = stopwatch_s()
        self._write(turn, anchor, write, limit_s)
        with self._flushing:
            written_s = stopwatch_s()
            sync_s = self._make_durable(turn, flush)
            flush_s = stopwatch_s() - written_s - (sync_s or 0.0)
        return CommitTimes(written_s - begun_s, flush_s, sync_s)

    def _write(self, turn: int, anchor: Anchor, write: Callable[[], None], limit_s: float) -> None:
        with self._changed:
            if not self._changed.wait_for(lambda: self._written[0] == turn - 1, limit_s):
                raise TimeoutError
        newest = self._written[1]
        try:
            with self.writing():
                write()
            newest = anchor
        finally:
            with self._changed:
                self._written = (turn, newest)
                self._changed.notify_all()

    def _make_durable(self, turn: int, flush: Callable[[Anchor], float | None]) -> float | None:
        if self._flush_error is not None:
            # After a failed sync the kernel may have dropped the data, so another sync would prove nothing.
            raise self._flush_error.with_traceback(None)
        if self._durable >= turn:
            return None
        # Taken before the flush: what is written during it may miss it.
        written, anchor = self._written
        assert anchor is not None
        try:
            sync_s = flush(anchor)
        except BaseException as error:
            self._flush_error = error
            raise
        self._durable = written
        return sync_s
