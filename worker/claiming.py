"""The claiming of one worker: for the slots that are free, and ahead, for those that will be soon.

One call waits in line for the free slots. Calls ahead never wait: they ask only for what is there, behind all calls
that wait, so a worker with jobs in hand takes none from one without. While the queues have nothing there are none.
Nothing is claimed ahead from a queue with limits, nor from one behind it: a claim that waits in a worker would keep
another one from running.
"""

import asyncio
from typing import Final

from ledgerq.eventlog.clock import sleep_until
from ledgerq.eventlog.errors import LedgerError
from ledgerq.eventlog.runtime.log_records import LogThrottle, about, logger
from ledgerq.worker.slots import Slots
from ledgerq.worker.worker_queue import WorkerQueue

__all__ = ["Claiming"]

_AGAIN_MS: Final = 1000
_MAX_BATCH: Final = 1000
# Claims are made 8 us each, in one turn of the event loop, so calls ahead are more and smaller.
_MAX_BATCH_AHEAD: Final = 500
_MAX_CALLS_AHEAD: Final = 4

_log = logger("worker")


class Claiming:
    """The claims that a worker has asked for, from the first of `queues` that has jobs."""

    def __init__(self, queue: WorkerQueue, queues: tuple[str, ...], slots: Slots, name: str | None) -> None:
        self.failure: Exception | None = None
        self._queue = queue
        self._queues = queues
        self._ahead = queues
        self._slots = slots
        self._name = name
        self._asked = 0
        self._is_short = True  # the queues had nothing when they were last asked
        self._room = asyncio.Event()
        self._calls: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Claim without end; raises what ends the queue."""
        clock, throttle = self._queue.clock, LogThrottle()
        for name in self._queues:
            if self._queue.options(name).has_limits:
                self._leave_to_slots(name)
        try:
            while True:
                try:
                    if await self._fetch(self._queues, await self._free(), wait=None):
                        self._is_short = False
                    else:
                        await asyncio.sleep(0)  # a queue of the user's own may answer at once
                except LedgerError as error:
                    if error.permanent:
                        raise
                    # The queue itself goes on; if it doesn't, `on_failure` is called before the next try.
                    if throttle.may(clock.now_ms()):
                        words = _AGAIN_MS / 1000, error, throttle.take_left_out()
                        extra = about("claiming_failed")
                        _log.warning("claiming failed, trying again in %g s: %s%s", *words, extra=extra)
                    await sleep_until(clock, clock.now_ms() + _AGAIN_MS)
        finally:
            calls, self._is_short = [*self._calls], True
            for call in calls:
                call.cancel()
            await asyncio.gather(*calls, return_exceptions=True)

    async def _free(self) -> int:
        while (free := self._slots.free - self._asked) <= 0:
            self._room.clear()
            await self._room.wait()
        self._asked += (asked := min(free, _MAX_BATCH))
        return asked

    def _leave_to_slots(self, queue: str) -> None:
        if queue in self._ahead:
            self._ahead = self._ahead[: self._ahead.index(queue)]

    async def _fetch(self, queues: tuple[str, ...], limit: int, wait: float | None) -> int:
        """Claim up to so many, which count as asked for already."""
        try:
            claims = await self._queue.claim(queues, limit=limit, wait=wait, worker=self._name)
        finally:
            self._asked -= limit
        if claims and claims[0].limited:
            self._leave_to_slots(claims[0].queue)
        self._slots.arrive(claims)
        return len(claims)

    def go_on(self) -> None:
        """Ask for more where there is room for more."""
        free = self._slots.free - self._asked
        if self._ahead and not self._is_short and len(self._calls) < _MAX_CALLS_AHEAD:
            ahead = self._slots.ahead
            # In pieces that are worth a call each, and spread over the commits.
            if ahead and free + ahead >= max(1, ahead // _MAX_CALLS_AHEAD):
                self._asked += (limit := min(free + ahead, _MAX_BATCH_AHEAD))
                free -= limit
                call = asyncio.create_task(self._fetch_ahead(limit), name="ledgerq-claim-ahead")
                self._calls.add(call)
                call.add_done_callback(self._calls.discard)
        if free > 0:
            self._room.set()

    async def _fetch_ahead(self, limit: int) -> None:
        try:
            if not await self._fetch(self._ahead, limit, wait=0.0):
                self._is_short = True
        except Exception:
            self._is_short = True
            self.go_on()  # the call that waits, which may have left all slots to this one, knows what to do
