"""The protocol of a queue that a worker uses, for those who replace `Queue` by an object of their own."""

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
        """The functions called when the queue fails, as `Queue.on_failure`."""

    @property
    def clock(self) -> Clock:
        """The clock that time-outs and renewals go by."""

    def options(self, queue: str) -> QueueOptions:
        """The options of a queue."""

    async def extend(self, claim: Claim, lease: float) -> Claim:
        """Renew a lease, as `Queue.extend` does."""

    async def drained(self, queues: str | Sequence[str]) -> None:
        """Wait for the queues to be empty, as `Queue.drained` does."""

    async def close(self) -> None:
        """Close the queue. `ledgerq worker` calls it when the worker has ended; `Worker` itself never does."""
