"""Time as an argument: nothing in ledgerq reads the system clock except through a `Clock` handed to it.

A clock gives the wall time in whole milliseconds since the Unix epoch and calls back at a given wall time. Waits are
built on `call_at` alone, so a `ManualClock` drives leases, retries, retention and time-outs from a test, step by step.
"""

import asyncio
import heapq
import itertools
import time
from collections.abc import Callable
from typing import Protocol

__all__ = ["Clock", "ManualClock", "SystemClock", "Timer", "sleep_until"]

# A wall clock can be set, and a laptop sleeps: a long wait looks again at least this often.
_MAX_WAIT_S = 30.0


class Timer(Protocol):
    """A callback that is due at some time and can be called off."""

    def cancel(self) -> None:
        """Call it off; does nothing when it already ran."""


class Clock(Protocol):
    """Wall time in ms since the Unix epoch, and callbacks at such times."""

    def now_ms(self) -> int:
        """The time now, in whole milliseconds since the Unix epoch."""

    def call_at(self, when_ms: int, callback: Callable[[], None]) -> Timer:
        """Run `callback` once, on the event loop, as soon as `now_ms() >= when_ms`; never inside this call."""


class _SystemTimer:
    def __init__(self, when_ms: int, callback: Callable[[], None]) -> None:
        self._when_ms = when_ms
        self._callback = callback
        self._loop = asyncio.get_running_loop()
        self._handle = self._loop.call_later(self._wait_s(), self._ring)

    def _wait_s(self) -> float:
        return min(max(0.0, self._when_ms / 1000 - time.time()), _MAX_WAIT_S)

    def _ring(self) -> None:
        # Timers of the loop may ring a little early against the wall clock.
        if time.time() * 1000 < self._when_ms:
            self._handle = self._loop.call_later(max(self._wait_s(), 0.0005), self._ring)
        else:
            self._callback()

    def cancel(self) -> None:
        self._handle.cancel()


class SystemClock:
    """The system's wall clock, with timers on the running event loop."""

    def now_ms(self) -> int:
        """The time now, in whole milliseconds since the Unix epoch."""
        return time.time_ns() // 1_000_000

    def call_at(self, when_ms: int, callback: Callable[[], None]) -> Timer:
        """Run `callback` on the running loop when the wall clock has reached `when_ms`."""
        return _SystemTimer(when_ms, callback)


class _ManualTimer:
    def __init__(self, callback: Callable[[], None]) -> None:
        self.callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        self.callback = None


class ManualClock:
    """A clock that stands still until it is told to move: for tests and simulation."""

    def __init__(self, now_ms: int = 1_700_000_000_000) -> None:
        self._now_ms = now_ms
        self._timers: list[tuple[int, int, _ManualTimer]] = []
        self._order = itertools.count()

    def now_ms(self) -> int:
        """The time it was set to, in milliseconds."""
        return self._now_ms

    def call_at(self, when_ms: int, callback: Callable[[], None]) -> Timer:
        """Keep `callback` until `advance` or `set` reaches `when_ms`; one already due runs on the loop's next turn."""
        timer = _ManualTimer(callback)
        heapq.heappush(self._timers, (when_ms, next(self._order), timer))
        if when_ms <= self._now_ms:
            asyncio.get_running_loop().call_soon(self._ring)
        return timer

    def next_due_ms(self) -> int | None:
        """When the earliest live timer is due, or None."""
        while self._timers and self._timers[0][2].callback is None:
            heapq.heappop(self._timers)
        return self._timers[0][0] if self._timers else None

    def advance(self, ms: int) -> None:
        """Move forward by `ms` and run every callback that became due, in order of their times."""
        self.set(self._now_ms + ms)

    def set(self, now_ms: int) -> None:
        """Set the time, forward or back; forward runs what became due."""
        self._now_ms = now_ms
        self._ring()

    def _ring(self) -> None:
        while (due := self.next_due_ms()) is not None and due <= self._now_ms:
            timer = heapq.heappop(self._timers)[2]
            callback, timer.callback = timer.callback, None
            if callback is not None:
                callback()


async def sleep_until(clock: Clock, when_ms: int) -> None:
    """Sleep until `clock` has reached `when_ms` (milliseconds since the Unix epoch)."""
    woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    timer = clock.call_at(when_ms, lambda: None if woken.done() else woken.set_result(None))
    try:
        await woken
    finally:
        timer.cancel()
