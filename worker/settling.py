"""Settlements on their way: made when handlers have ended, and over when their outcomes are durable.

A handler's slot is free meanwhile, so their number and the bytes that they keep have limits of their own.
"""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Final

from ledgerq.eventlog.clock import Clock
from ledgerq.eventlog.errors import ClaimLost
from ledgerq.worker.execution import Settler
from ledgerq.worker.job_logging import Outcome
from ledgerq.worker.running import Running

__all__ = ["Settling"]

# An ack takes some 10 us of the event loop.
_ACKS_AT_ONCE: Final = 250


class Settling:
    """The settlements of one worker that are not durable yet.

    `settled` is called for each when its outcome is durable, or will never be known; `failed` with the error of a
    queue that settles nothing any more; `committed` with the ms that an ack took to become durable.
    """

    def __init__(
        self,
        queue: Settler,
        clock: Clock,
        *,
        limit: int,
        limit_bytes: int,
        settled: Callable[[Running], None],
        failed: Callable[[Exception], None],
        committed: Callable[[int], None],
    ) -> None:
        self.jobs = 0
        self.tasks: set[asyncio.Task[None]] = set()
        self._queue = queue
        self._clock = clock
        self._limit = limit
        self._limit_bytes = limit_bytes
        self._bytes = 0
        self._settled = settled
        self._failed = failed
        self._committed = committed
        self._acks: list[Running] = []

    @property
    def full(self) -> bool:
        """Whether no handler may begin until more is durable."""
        return self.jobs >= self._limit or self._bytes >= self._limit_bytes

    def add(self, running: Running) -> None:
        """Settle what has ended: an ack goes out with the next `flush`, anything else by itself."""
        self.jobs += 1
        self._bytes += running.size_bytes
        if running.is_done:
            self._acks.append(running)
        else:
            self._start(self._settle(running), [running])

    def flush(self) -> None:
        """Ack what has ended well since the last call."""
        acks, self._acks = self._acks, []
        for at in range(0, len(acks), _ACKS_AT_ONCE):
            batch = acks[at : at + _ACKS_AT_ONCE]
            self._start(self._ack(batch), batch)

    def _start(self, settling: Coroutine[Any, Any, None], settled: list[Running]) -> None:
        def over(task: asyncio.Task[None]) -> None:
            self.tasks.discard(task)
            if task.cancelled():  # even before its first step
                for running in settled:
                    self._end(running, "unknown")

        task = asyncio.create_task(settling, name="ledgerq-settle")
        self.tasks.add(task)
        task.add_done_callback(over)

    async def _ack(self, acks: list[Running]) -> None:
        queue, begun_ms = self._queue, self._clock.now_ms()
        lost: frozenset[int] | None = frozenset()  # None: all
        outcome: Outcome = "unknown"
        try:
            claims = [running.claim for running in acks]
            if any(running.result is not None for running in acks):
                await queue.ack_many(claims, [running.result for running in acks])
            elif len(acks) == 1:
                await queue.ack(acks[0].claim)
            else:
                await queue.ack_many(claims)
            outcome = "done"
            self._committed(self._clock.now_ms() - begun_ms)
        except ClaimLost as error:
            outcome = "done"
            lost = error.offsets or None
        except Exception as error:
            self._failed(error)
        for running in acks:
            is_lost = lost is None or running.claim.offset in lost
            self._end(running, "lost" if is_lost else outcome)

    async def _settle(self, running: Running) -> None:
        outcome: Outcome = "unknown"
        try:
            begun_ms = self._clock.now_ms()
            outcome = await running.settle()
            if outcome == "done":
                self._committed(self._clock.now_ms() - begun_ms)
        except ClaimLost:
            outcome = "lost"
        except Exception as error:
            self._failed(error)
        self._end(running, outcome)

    def _end(self, running: Running, outcome: Outcome) -> None:
        self.jobs -= 1
        self._bytes -= running.size_bytes
        try:
            running.settled(outcome)
        except Exception as error:  # of the user's logging
            self._failed(error)
        self._settled(running)
