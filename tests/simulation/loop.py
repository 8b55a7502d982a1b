"""An event loop without time and without input: whenever nothing can run, its clock jumps to what is due next.

A run on it takes no longer than its computing, and the same calls come in the same order each time. It drives a
`ManualClock`, so that the wall clock of the code under test goes along; that one can be set, this one only goes on.
"""

import asyncio
import contextvars
import math
from collections.abc import Callable, Coroutine, Generator
from typing import Any, Final

from ledgerq.eventlog.clock import ManualClock

__all__ = ["SimLoop", "Stuck"]

_US_PER_MS: Final = 1000
_US_PER_S: Final = 1_000_000


class Stuck(Exception):
    """Nothing can ever run again, or something runs for ever without time passing."""


class _NoInput:
    """A selector that lets time pass instead of waiting for input."""

    def __init__(self, loop: "SimLoop") -> None:
        self._loop = loop

    def select(self, timeout: float | None) -> list[Any]:
        """Let time pass when nothing is ready."""
        self._loop.turn(timeout)
        return []


class SimLoop(asyncio.BaseEventLoop):
    """The simulated event loop. `owner` names whose tasks are created now; `owned` holds their living tasks."""

    def __init__(self, clock: ManualClock, *, max_turns: int) -> None:
        super().__init__()
        self._selector = _NoInput(self)
        self._clock = clock
        self._start_ms = clock.now_ms()
        self._now_us = 0
        self._turns_left = max_turns
        self.before_turn: Callable[[], None] = lambda: None
        self.owner: contextvars.ContextVar[int] = contextvars.ContextVar("owner", default=0)
        self.owned: dict[int, dict[asyncio.Task[Any], None]] = {}
        self.set_task_factory(_owned_task)

    def add_turns(self, turns: int) -> None:
        """Let it turn more often than it was made for, to put things away."""
        self._turns_left = max(self._turns_left, 0) + turns

    def time(self) -> float:
        """Seconds since the beginning of the run."""
        return self._now_us / _US_PER_S

    def now_ms(self) -> int:
        """Milliseconds since the beginning of the run."""
        return self._now_us // _US_PER_MS

    def set_wall_clock(self, by_ms: int) -> None:
        """Set the wall clock forward or back; what became due by that runs."""
        self._start_ms += by_ms
        self._clock.set(self._start_ms + self.now_ms())

    def turn(self, timeout: float | None) -> None:
        """Called before each turn of the loop; `timeout`: seconds until the loop's own next timer, None: none."""
        self._turns_left -= 1
        if self._turns_left < 0:
            raise Stuck("the event loop turns and turns, and time does not pass")
        self.before_turn()
        if (timeout is not None and timeout <= 0) or self._ready:  # type: ignore[attr-defined]
            return
        wait_us = math.inf if timeout is None else math.ceil(timeout * _US_PER_S)
        due_ms = self._clock.next_due_ms()
        if due_ms is not None:
            wait_us = min(wait_us, max(0, (due_ms - self._start_ms) * _US_PER_MS - self._now_us))
        if wait_us == math.inf:
            raise Stuck("every task waits for something that nobody will do")
        self._now_us += int(wait_us)
        self._clock.set(self._start_ms + self.now_ms())

    def run_in_executor(self, executor: Any, func: Any, *args: Any) -> Any:  # type: ignore[override]
        """Refuse: there are no threads here."""
        raise NotImplementedError("a simulated loop has no threads")

    def _process_events(self, event_list: list[Any]) -> None:
        """Do nothing: there are no events."""

    def _write_to_self(self) -> None:
        """Do nothing: the loop never sleeps, so it needs no wake-up."""


def _owned_task(
    loop: asyncio.AbstractEventLoop,
    coro: Coroutine[Any, Any, Any] | Generator[Any, None, Any],
    **options: Any,
) -> "asyncio.Task[Any]":
    """Create a task and remember it under the task that creates it."""
    assert isinstance(loop, SimLoop)
    task: asyncio.Task[Any] = asyncio.Task(coro, loop=loop, **options)
    context = options.get("context")
    owner = loop.owner.get() if context is None else context.get(loop.owner, 0)
    owned = loop.owned.setdefault(owner, {})
    owned[task] = None
    task.add_done_callback(lambda done: owned.pop(done, None))
    return task
