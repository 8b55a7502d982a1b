"""Claims as an asynchronous stream, for pipelines built with aiostream.

async with (claims(queue, "mail", limit=20) | pipe.map(work, task_limit=10)).stream() as done: ...
"""

from collections.abc import AsyncIterator, Sequence
from typing import Protocol

from aiostream import stream
from aiostream.core import Stream

from ledgerq.worker.claims import Claim

__all__ = ["ClaimSource", "claims"]


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

    async def one_by_one() -> AsyncIterator[Claim]:
        while batch := await source.claim(queue, limit=limit, wait=wait, worker=worker):
            for claim in batch:
                yield claim

    return stream.iterate(one_by_one())
