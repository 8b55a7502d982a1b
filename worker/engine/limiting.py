"""The limits of queues as claims meet them: how many jobs may be claimed now, and when a claim that waits goes on.

Theory of operation.

State held. The limits themselves, and how much of each rate is used, are in `WriterState.limits`; how many jobs of a
queue are claimed is in its counters. Here is only which queues have none (`unlimited`), and from which nothing could be
claimed when that was last asked (`refused`).

Invariants. While a claim waits for a queue that is in `refused`, something will call `dispatch` for it: the end of a
claim (`settled`), a timer at the time from which its rate or its hold lets a claim through, or the event that changes
its limits. All times are those that events get in the log, so what one writer decided the next one goes on with.

What is asked of a queue's rate in one turn of the event loop can't differ from what is done in it: the answer is kept.
"""

import asyncio
from collections.abc import Callable
from typing import Final

from ledgerq.eventlog.clock import Clock, Timer
from ledgerq.eventlog.events import LimitsSet
from ledgerq.projections.limits import Limits
from ledgerq.worker.engine.writer_state import WriterState
from ledgerq.worker.limits import queue_limits, same_limits
from ledgerq.worker.options import QueueOptions

__all__ = ["Limiting"]

_ANY: Final = 1 << 62


class Limiting:
    """The limits of one queue object's queues; `dispatch` serves the claims that wait for a queue."""

    def __init__(
        self,
        writer_state: WriterState,
        *,
        clock: Clock,
        options_of: Callable[[str], QueueOptions],
        dispatch: Callable[[str], None],
    ) -> None:
        self.unlimited: set[str] = set()
        self.refused: set[str] = set()
        self._writer_state = writer_state
        self._clock = clock
        self._options_of = options_of
        self._dispatch = dispatch
        self._recorded: set[str] = set()
        self._timers: dict[str, tuple[int, Timer]] = {}
        self._soon: set[str] = set()

    def room(self, queue: str) -> int:
        """How many jobs of this queue may be claimed now, as far as the queue's own limits go."""
        limits = self._writer_state.limits.by_queue.get(queue)
        if limits is None:
            if queue in self._recorded:
                self.unlimited.add(queue)
            return _ANY
        room = self._room(limits)
        if room:
            self.refused.discard(queue)
        else:
            self.refused.add(queue)
        return room

    def _room(self, limits: Limits) -> int:
        time_ms, room, setting = self._writer_state.log.upcoming_ms(), _ANY, limits.setting
        if limits.held_until_ms > time_ms:
            return 0
        if setting is not None and setting.max_running:
            room = max(0, setting.max_running - self._writer_state.running(limits.queue))
        if setting is not None and setting.count:
            room = min(room, limits.tokens(setting, time_ms))
        return room

    def record(self, queue: str) -> None:
        """Record the limits of the program's options where the log has others: before the first claim of a queue."""
        if queue in self._recorded:
            return
        self._recorded.add(queue)
        wanted = queue_limits(queue, self._options_of(queue))
        setting = self._writer_state.limits.of(queue).setting
        if (setting is None or setting.origin == "code") and not same_limits(setting, wanted):
            self.set(wanted)

    def set(self, event: LimitsSet) -> None:
        """Stage the event of other limits."""
        self._writer_state.apply_limits(event)
        self.changed(event.queue)

    def changed(self, queue: str) -> None:
        """Follow a change of a queue's limits, or of what holds it back: claims that wait may go on."""
        self.unlimited.discard(queue)
        self.dispatch_soon(queue)

    def settled(self, queue: str) -> None:
        """Follow the end of a claim: a claim that waits may go on."""
        if queue in self.refused:
            self.dispatch_soon(queue)

    def dispatch_soon(self, queue: str) -> None:
        """Serve the claims that wait for the queue, in the next turn: this may be in the midst of staging."""
        if queue not in self._soon:
            self._soon.add(queue)
            asyncio.get_running_loop().call_soon(self._serve, queue)

    def _serve(self, queue: str) -> None:
        self._soon.discard(queue)
        self._dispatch(queue)

    def wake_later(self, queue: str) -> None:
        """Have the queue served once time alone lets a claim through; nothing where that is not what is waited for."""
        limits = self._writer_state.limits.of(queue)
        setting, now_ms = limits.setting, self._clock.now_ms()
        due_ms = limits.held_until_ms
        if setting is not None and setting.count:
            due_ms = max(due_ms, limits.opens_ms(setting))
        if due_ms <= self._writer_state.log.upcoming_ms():
            return  # all jobs that may be are claimed: the end of one goes on
        due_ms = max(due_ms, now_ms + 1)
        armed = self._timers.get(queue)
        if armed is not None:
            if armed[0] == due_ms:
                return
            armed[1].cancel()
        self._timers[queue] = (due_ms, self._clock.call_at(due_ms, lambda: self._ring(queue)))

    def _ring(self, queue: str) -> None:
        self._timers.pop(queue, None)
        self._dispatch(queue)

    def close(self) -> None:
        """Cancel all timers."""
        for _, timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
