"""What ends a scripted run of a queue at one call of its store, in each way that a process can end."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final, Literal, get_args

import pytest

from ledgerq.eventlog.errors import LedgerError, StoreUnavailable
from ledgerq.eventlog.memory import MemoryStore
from tests.support.loops import settle
from tests.support.rig import Rig

__all__ = ["CrashPoint", "End", "at_each_call", "each_end", "end_everything", "until_crash"]

End = Literal["passing error", "error", "vanish", "vanish but the batch lands"]
_ENDS: Final[tuple[End, ...]] = get_args(End)


class CrashPoint:
    """The fault of a store: counts the calls, and at one of them the process ends."""

    def __init__(self, at: int | None, end: End) -> None:
        self.calls: list[str] = []
        self.reached = asyncio.Event()
        self.store: MemoryStore | None = None
        self._at = at
        self._end = end

    async def __call__(self, call: str) -> None:
        """Meet the store's call."""
        self.calls.append(call)
        if self._at is None or len(self.calls) <= self._at:
            return
        if self._end == "passing error" and self.reached.is_set():
            return
        if self._end.endswith("error"):
            self.reached.set()
            raise StoreUnavailable(f"away at call {self._at}, {call}")
        if not self.reached.is_set():
            self.reached.set()
            if self._end == "vanish but the batch lands" and self.store is not None:
                self.store.flush()
        await asyncio.Event().wait()


async def end_everything() -> None:
    """Cancel every task until none is left: what clean-up does may stall as well, and is cancelled again."""
    strange: list[BaseException] = []
    for _ in range(20):
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await settle()
        for task in others:
            error = None if not task.done() or task.cancelled() else task.exception()
            if error is not None and not isinstance(error, LedgerError):
                strange.append(error)
    assert not asyncio.all_tasks() - {asyncio.current_task()}
    assert not strange, strange


async def until_crash(rig: Rig, point: CrashPoint, end: End, work: Coroutine[Any, Any, None]) -> None:
    """Do this work up to its end or the crash; what is left of the process is gone afterwards."""
    day = asyncio.create_task(work)
    day.add_done_callback(lambda task: task.cancelled() or task.exception())
    crash = asyncio.create_task(point.reached.wait())
    await asyncio.wait((day, crash), return_when=asyncio.FIRST_COMPLETED)
    await settle()
    if end == "passing error":
        await asyncio.wait((day,))
    if day.done() and (error := day.exception()) is not None and not isinstance(error, LedgerError):
        raise error
    if end.endswith("error") and hasattr(rig, "queue"):
        with contextlib.suppress(LedgerError):
            await rig.queue.close()
    await end_everything()


def each_end(quick: End, step: int) -> pytest.MarkDecorator:
    """Parametrize `end` and `step`: one way at some of the calls in `make test`, and each at all calls in the proof."""
    proof = [pytest.param(end, 1, marks=pytest.mark.proof) for end in _ENDS]
    return pytest.mark.parametrize(("end", "step"), [(quick, step), *proof])


async def at_each_call(
    run: Callable[[Rig, int | None, End], Awaitable[tuple[CrashPoint, Any]]],
    check: Callable[[Rig, Any], Awaitable[Any]],
    end: End,
    step: int,
) -> None:
    """`run` the scenario again and again, each time up to another call of its store, and `check` what it gave."""
    whole, _ = await run(Rig(), None, "error")
    for at, call in [*enumerate(whole.calls)][::step]:
        rig = Rig()
        point, given = await run(rig, at, end)
        assert len(point.calls) > at
        try:
            await check(rig, given)
        except BaseException as error:
            rows = len(rig.disk.rows)
            raise AssertionError(f"after {end!r} at call {at}, {call!r}, with {rows} rows: {error!r}") from error
