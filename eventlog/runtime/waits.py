"""Waits for work that outlives its caller: for a step to its end, for a disk as long as it gets on."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from ledgerq.eventlog.errors import StoreUnavailable

__all__ = ["Steps", "side_by_side", "to_the_end", "while_synced"]

_T = TypeVar("_T")


class Steps:
    """A count of syncs done, kept in a thread, so that a wait for many of them can see whether the disk gets on."""

    def __init__(self) -> None:
        self.count = 0

    def done(self) -> None:
        """Count one more."""
        self.count += 1


@asynccontextmanager
async def side_by_side(works: Iterable[Coroutine[Any, Any, _T]]) -> AsyncIterator["asyncio.Future[list[_T]]"]:
    """Tasks that work during the block, and their results together; what has not ended with the block is cancelled."""
    tasks = [asyncio.create_task(work) for work in works]
    results = asyncio.gather(*tasks)
    try:
        yield results
    finally:
        # Not `results`: once one of them has failed, that has ended, and the others have not.
        for task in tasks:
            task.cancel()
        await asyncio.gather(results, *tasks, return_exceptions=True)


async def to_the_end(work: Coroutine[Any, Any, _T]) -> _T:
    """Wait for the end of `work` also when this is cancelled, and only then be cancelled."""
    task, cancelled = asyncio.ensure_future(work), False
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError:
            cancelled = True
    if cancelled:
        if not task.cancelled():
            task.exception()  # no caller is left to get the error
        raise asyncio.CancelledError
    return task.result()


async def while_synced(work: Awaitable[_T], steps: Callable[[], int], *, limit_s: float, location: str) -> _T:
    """Wait for `work`, and give it up with `StoreUnavailable` when `steps` have not grown for `limit_s` seconds."""
    task, seen = asyncio.ensure_future(work), -1
    try:
        while not task.done():
            if seen == steps():
                raise StoreUnavailable(
                    f"{location} could not be opened: the disk has synced no file for {limit_s:g} s; check the disk, "
                    "or raise open_timeout_s"
                )
            seen = steps()
            await asyncio.wait({task}, timeout=limit_s)
        return await task
    finally:
        task.cancel()
