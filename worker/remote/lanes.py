"""The lanes of a client: calls made at the same time go in one request, and those made meanwhile in the next.

A few requests are on their way at a time, so a caller alone does not wait for others, and a hundred callers cost one.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, NamedTuple

from ledgerq.eventlog.errors import QueueClosed
from ledgerq.worker.remote import wire

__all__ = ["Lanes", "Results"]

_LANES: Final = 2
# Below the limit of a request; a call that is larger goes alone.
_MAX_REQUEST_BYTES: Final = 8 * 1024 * 1024
_CLOSE_LIMIT_S: Final = 5.0

Results = tuple[list[wire.OpResult], bool]
"""One result for each call, and whether they were sent more than once."""


class _Group(NamedTuple):
    """Calls that one caller made together, encoded; they stay together."""

    ops: Sequence[bytes]
    size_bytes: int
    future: "asyncio.Future[Results]"


class Lanes:
    """The lanes; `send` sends encoded calls and returns their results, `check` raises where none may be made."""

    def __init__(self, send: Callable[[list[bytes]], Awaitable[Results]], check: Callable[[], None]) -> None:
        self._send = send
        self._check = check
        self._waiting: deque[_Group] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        self._running = 0
        self._closed = False
        self._starting = False

    async def call(self, ops: Sequence[bytes]) -> Results:
        """The results of these calls, at most 1,000 and 8 MiB or one that is larger."""
        if self._closed:
            raise QueueClosed("the connection to the service was closed")
        self._check()
        future: asyncio.Future[Results] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Group(ops, sum(map(len, ops)), future))
        if not self._starting and self._running < _LANES:
            # In the next turn of the event loop: what else is called in this one goes along.
            self._starting = True
            asyncio.get_running_loop().call_soon(self._start)
        return await future

    def _start(self) -> None:
        self._starting = False
        if self._waiting and not self._closed and self._running < _LANES:
            self._running += 1
            task = asyncio.create_task(self._run(), name="ledgerq-lane")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _run(self) -> None:
        while self._waiting:
            groups = self._take()
            try:
                results, repeated = await self._send([op for group in groups for op in group.ops])
            except asyncio.CancelledError:
                _fail(groups, QueueClosed("the connection to the service was closed: the outcome is not known"))
                raise
            except Exception as error:
                _fail(groups, error)
                continue
            at = 0
            for group in groups:
                if not group.future.done():
                    group.future.set_result((results[at : at + len(group.ops)], repeated))
                at += len(group.ops)
        # In the same turn in which nothing was left: who calls from now on starts another one.
        self._running -= 1

    def _take(self) -> list[_Group]:
        groups: list[_Group] = []
        ops = size_bytes = 0
        while self._waiting:
            group = self._waiting[0]
            ops, size_bytes = ops + len(group.ops), size_bytes + group.size_bytes
            if groups and (ops > wire.MAX_OPS or size_bytes > _MAX_REQUEST_BYTES):
                break
            groups.append(self._waiting.popleft())
        return groups

    async def close(self) -> None:
        """Take no more calls; those that were made have some seconds."""
        self._start()
        self._closed = True
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=_CLOSE_LIMIT_S)
        tasks = [*self._tasks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        _fail(self._waiting, QueueClosed("the connection to the service was closed"))
        self._waiting.clear()


def _fail(groups: Sequence[_Group] | deque[_Group], error: Exception) -> None:
    for group in groups:
        if not group.future.done():
            group.future.set_exception(error)
