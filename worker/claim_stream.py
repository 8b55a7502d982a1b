"""Claims as an asynchronous stream, for pipelines built with aiostream.

    async with (claims(queue, "mail", limit=20) | pipe.map(work, task_limit=10)).stream() as done: ...

The worker (worker.py) is such a pipeline, with leases, time-outs and an orderly end around it.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import Protocol

from aiostream import stream
from aiostream.core import Stream

from ledgerq.worker.claims import Claim

__all__ = ["ClaimSource", "claim_batches", "claims"]


class ClaimSource(Protocol):
    """The protocol of a queue that a pipeline claims from."""

    async def claim(
        self,
        queue: str | Sequence[str],
        limit: int = 1,
        lease: float | None = None,
        wait: float | None = 0.0,
        worker: str | None = None,
    ) -> list[Claim]:
        """Claim jobs, as `Queue.claim` does."""


async def claim_batches(
    source: ClaimSource,
    queue: str | Sequence[str],
    *,
    capacity: Callable[[], Awaitable[int]],
    wait: float | None = None,
    worker: str | None = None,
) -> AsyncGenerator[list[Claim], None]:
    """Batch after batch of claims, each of at most `await capacity()`; ends when `wait` seconds brought nothing."""
    while batch := await source.claim(queue, limit=await capacity(), wait=wait, worker=worker):
        yield batch


def claims(
    source: ClaimSource,
    queue: str | Sequence[str],
    *,
    limit: int = 1,
    wait: float | None = None,
    worker: str | None = None,
) -> Stream[Claim]:
    """A stream of claims that holds at most `limit` not yet handed on; ends when `wait` seconds brought nothing.

    A consumer that leaves it early gives up the claims that it holds: their leases expire by themselves.
    """

    async def capacity() -> int:
        return limit

    async def one_by_one() -> AsyncIterator[Claim]:
        async with aclosing(claim_batches(source, queue, capacity=capacity, wait=wait, worker=worker)) as batches:
            async for batch in batches:
                for claim in batch:
                    yield claim

    return stream.iterate(one_by_one())
