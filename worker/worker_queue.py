"""What a worker needs of a queue, for those who put something of their own in the place of `Queue`."""

from collections.abc import Callable, Sequence
from typing import Protocol

from ledgerq.eventlog.clock import Clock
from ledgerq.eventlog.errors import LedgerError
from ledgerq.worker.claim_stream import ClaimSource
from ledgerq.worker.claims import Claim
from ledgerq.worker.execution import Settler
from ledgerq.worker.options import QueueOptions

__all__ = ["WorkerQueue"]


class WorkerQueue(ClaimSource, Settler, Protocol):
    """The methods of `Queue` that a `Worker`, and `ledgerq worker` around it, use."""

    @property
    def on_failure(self) -> list[Callable[[LedgerError], None]]:
        """See `Queue.on_failure`."""

    @property
    def clock(self) -> Clock:
        """The clock that time-outs and renewals go by."""

    def options(self, queue: str) -> QueueOptions:
        """The options of a queue."""

    async def extend(self, claim: Claim, lease: float) -> Claim:
        """See `Queue.extend`."""

    async def drained(self, queues: str | Sequence[str]) -> None:
        """See `Queue.drained`."""

    async def close(self) -> None:
        """See `Queue.close`. `ledgerq worker` calls it when the worker has ended; `Worker` itself never does."""
