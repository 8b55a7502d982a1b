"""A store that fails or hangs at one of its calls, and the end of the process then."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Literal, get_args

from ledgerq.eventlog.errors import StoreUnavailable
from ledgerq.eventlog.memory import MemoryDisk, MemoryStore

__all__ = ["ENDS", "Crash", "End", "crashed_run"]

End = Literal["error", "vanish", "vanish but the batch lands"]
ENDS: tuple[End, ...] = get_args(End)


class Crash:
    """The fault of a store: counts its calls; from the `at`-th one on each raises, or none returns."""

    def __init__(self, at: int | None = None, end: End = "error") -> None:
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
        if not self.reached.is_set():
            self.reached.set()
            if self._end == "vanish but the batch lands" and self.store is not None:
                self.store.flush()
        if self._end == "error":
            raise StoreUnavailable(f"away at call {self._at}, {call}")
        await asyncio.Event().wait()


async def crashed_run(disk: MemoryDisk, work: Callable[[MemoryStore], Awaitable[object]], crash: Crash) -> bool:
    """Do `work` on a store that crashes; returns whether it came to its end. No task of it is left."""
    store = MemoryStore(disk, fault=crash)
    crash.store = store

    async def run() -> None:
        await work(store)

    others = asyncio.all_tasks()
    task = asyncio.create_task(run())
    reached = asyncio.create_task(crash.reached.wait())
    await asyncio.wait((task, reached), return_when=asyncio.FIRST_COMPLETED)
    if crash.reached.is_set():
        for _ in range(5):
            await asyncio.sleep(0)
    ended = task.done() and task.exception() is None
    if task.done() and not isinstance(task.exception(), StoreUnavailable | None):
        await task
    while left := asyncio.all_tasks() - others:
        for one in left:
            one.cancel()
        await asyncio.gather(*left, return_exceptions=True)
    return ended
