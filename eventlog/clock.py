"""Time as an argument: nothing in ledgerq reads the system clock except through a `Clock` handed to it.

A clock gives the wall time in whole milliseconds since the Unix epoch and calls back at a given wall time. Waits are
built on `call_at` alone, so a `ManualClock` drives leases, retries, retention and time-outs from a test, step by step.
"""

import asyncio
import heapq
import itertools
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final, Protocol

__all__ = ["PLAUSIBLE_MS", "Clock", "ManualClock", "SystemClock", "Timer", "sleep_until", "stopwatch_s", "time_text"]

PLAUSIBLE_MS: Final = 1_577_836_800_000
"""2020-01-01: a clock with an earlier time was never set; there was no ledgerq then."""
_MAX_TEXT_MS: Final = 253_402_300_799_999

# A wall clock can be set, and a laptop sleeps: a long wait reads the clock again at least this often.
_MAX_WAIT_S = 30.0
# A wall clock that is slewed differs from the one that can't be set by less than this.
_SLEWED_S = 1.0


def time_text(time_ms: int) -> str:
    """The text of a time for messages, in UTC; a number that is no time is given as it is."""
    if not 0 <= time_ms <= _MAX_TEXT_MS:
        return f"{time_ms} ms"
    return datetime.fromtimestamp(time_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


class Timer(Protocol):
    """A callback that is due at some time and can be cancelled."""

    def cancel(self) -> None:
        """Cancel the callback; does nothing when it already ran."""


class Clock(Protocol):
    """Wall time in ms since the Unix epoch, and callbacks at such times.

    A clock that is set back makes no wait longer: a callback runs once the time that it was to take has passed, though
    by the clock it is early. One that is set forward makes waits shorter.
    """

    def now_ms(self) -> int:
        """The time now, in whole milliseconds since the Unix epoch."""

    def call_at(self, when_ms: int, callback: Callable[[], None]) -> Timer:
        """Run `callback` once, on the event loop, when it is `when_ms`; never inside this call."""


class _SystemTimer:
    def __init__(self, when_ms: int, callback: Callable[[], None]) -> None:
        self._when_ms = when_ms
        self._callback = callback
        self._loop = asyncio.get_running_loop()
        left_s = self._left_s()
        self._over_s = self._loop.time() + left_s
        self._handle = self._loop.call_later(min(left_s, _MAX_WAIT_S), self._ring)

    def _left_s(self) -> float:
        return max(0.0, self._when_ms / 1000 - time.time())

    def _ring(self) -> None:
        left_s, wait_s = self._left_s(), self._over_s - self._loop.time()
        if left_s == 0 or (wait_s <= 0 and left_s > _SLEWED_S):
            self._callback()
        else:
            # Timers of the loop may ring a little early against the wall clock.
            wait_s = max(min(left_s, wait_s if wait_s > 0 else left_s, _MAX_WAIT_S), 0.0005)
            self._handle = self._loop.call_later(wait_s, self._ring)

    def cancel(self) -> None:
        self._handle.cancel()


class SystemClock:
    """The system's wall clock, with timers on the running event loop."""

    def now_ms(self) -> int:
        """The time now, in whole milliseconds since the Unix epoch; 0 before it, where nothing can be dated."""
        return max(0, time.time_ns() // 1_000_000)

    def call_at(self, when_ms: int, callback: Callable[[], None]) -> Timer:
        """Run `callback` on the running loop when it is `when_ms`, or the wait until then is over."""
        return _SystemTimer(when_ms, callback)


class _ManualTimer:
    def __init__(self, callback: Callable[[], None]) -> None:
        self.callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        self.callback = None


class ManualClock:
    """A clock that stands still until `advance` or `set` moves it: for tests and simulation."""

    def __init__(self, now_ms: int = 1_700_000_000_000) -> None:
        self._now_ms = now_ms
        self._timers: list[tuple[int, int, _ManualTimer]] = []
        self._order = itertools.count()

    def now_ms(self) -> int:
        """The time it was set to, in milliseconds."""
        return self._now_ms

    def call_at(self, when_ms: int, callback: Callable[[], None]) -> Timer:
        """Keep `callback` until `advance` or `set` brings its time; one already due runs on the loop's next turn."""
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

    def advance(self, *, seconds: float) -> None:
        """Move forward by `seconds`, to the millisecond, and run every callback that became due, in order of times."""
        self.set(self._now_ms + round(seconds * 1000))

    def set(self, now_ms: int) -> None:
        """Set the time. Forward runs what became due; back leaves each timer the wait that it had."""
        back_ms = self._now_ms - now_ms
        if back_ms > 0:
            self._timers = [(when_ms - back_ms, order, timer) for when_ms, order, timer in self._timers]
        self._now_ms = now_ms
        self._ring()

    def _ring(self) -> None:
        while (due := self.next_due_ms()) is not None and due <= self._now_ms:
            timer = heapq.heappop(self._timers)[2]
            callback, timer.callback = timer.callback, None
            if callback is not None:
                callback()


stopwatch_s: Final[Callable[[], float]] = time.perf_counter
"""Seconds on a clock that can't be set, from an arbitrary beginning: only to measure how long something took."""


async def sleep_until(clock: Clock, when_ms: int) -> None:
    """Sleep until it is `when_ms` (milliseconds since the Unix epoch) by `clock`; not longer when that is set back."""
    woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    timer = clock.call_at(when_ms, lambda: None if woken.done() else woken.set_result(None))
    try:
        await woken
    finally:
        timer.cancel()
