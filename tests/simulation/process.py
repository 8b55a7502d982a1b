"""A process of a simulated world: its queue, the store that it works on, and why its calls may fail."""

from typing import Protocol

from ledgerq.eventlog.errors import Fenced, LedgerError
from ledgerq.worker.queue import Queue

__all__ = ["Process", "ProcessStore"]


class ProcessStore(Protocol):
    """The protocol of a process's store (store_faults.py)."""

    @property
    def fenced(self) -> bool:
        """Whether a later writer opened the disk."""

    def failure(self) -> LedgerError | None:
        """The error that ended the store, if any."""

    def land(self) -> None:
        """Make durable what was written and not synced."""


class Process:
    """One process with a queue: alive until it is killed, whatever becomes of its queue."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.alive = True
        self.killed = False
        self.closing = False
        self.queue: Queue | None = None
        self.store: ProcessStore | None = None
        self.opened_ms = 0
        self.disturbed_ms = 0
        self.disturbances = 0
        self.causes: set[str] = set()
        """Why its calls may fail: fault, clock, closing."""

    @property
    def healthy(self) -> bool:
        """Whether its queue takes calls."""
        return self.alive and not self.closing and self.queue is not None and self.queue.failure is None

    def excuses(self, error: BaseException) -> bool:
        """Whether there is a reason for this error."""
        fenced = self.store is not None and self.store.fenced
        return isinstance(error, LedgerError) and (bool(self.causes) or (fenced and isinstance(error, Fenced)))
