"""ledgerq: a durable job queue whose state is provably the fold of a tamper-evident log.

    from ledgerq import Queue, Worker

    queue = await Queue.open("file:///var/lib/jobs")
    await queue.enqueue("mail", b"...")

`Queue` and `Worker` are what programs use, and `ledgerq.events` has the events of the log. `ledgerq.eventlog` and
`ledgerq.projections` are for those who read the log or write a projection of their own; `ledgerq.tools` is the command
line.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import ledgerq.events as events
    from ledgerq.eventlog.clock import Clock, ManualClock, SystemClock
    from ledgerq.eventlog.errors import (
        ClaimLost,
        ClockWentBack,
        DuplicateJobId,
        Fenced,
        FormatTooNew,
        InvalidArgument,
        InvalidQueueName,
        InvalidState,
        JobNotFound,
        LedgerError,
        LogCorrupt,
        LogPoisoned,
        LogRolledBack,
        NotRebuilt,
        OutcomeUnknown,
        PayloadMissing,
        PayloadTooLarge,
        ProjectionDrift,
        ProjectionFailed,
        QueueClosed,
        StoreInUse,
        StoreNotFound,
        StoreUnavailable,
        UnknownEventType,
        WrongLoop,
        WrongProcess,
    )
    from ledgerq.eventlog.memory import MemoryDisk, MemoryStore
    from ledgerq.eventlog.slate.options import StoreOptions
    from ledgerq.projections.fold import Transition
    from ledgerq.projections.job import Job
    from ledgerq.projections.runner import Projection
    from ledgerq.projections.stats import QueueStats
    from ledgerq.projections.view import Page
    from ledgerq.worker.claim_stream import claims
    from ledgerq.worker.claims import Claim, EnqueueResult
    from ledgerq.worker.execution import JobContext
    from ledgerq.worker.metrics.endpoint import Metrics
    from ledgerq.worker.options import NewJob, QueueOptions
    from ledgerq.worker.outcomes import Dead, Retry
    from ledgerq.worker.queue import Queue
    from ledgerq.worker.worker import Worker
    from ledgerq.worker.worker_queue import WorkerQueue

__all__ = [
    "Claim",
    "ClaimLost",
    "Clock",
    "ClockWentBack",
    "Dead",
    "DuplicateJobId",
    "EnqueueResult",
    "Fenced",
    "FormatTooNew",
    "InvalidArgument",
    "InvalidQueueName",
    "InvalidState",
    "Job",
    "JobContext",
    "JobNotFound",
    "LedgerError",
    "LogCorrupt",
    "LogPoisoned",
    "LogRolledBack",
    "ManualClock",
    "MemoryDisk",
    "MemoryStore",
    "Metrics",
    "NewJob",
    "NotRebuilt",
    "OutcomeUnknown",
    "Page",
    "PayloadMissing",
    "PayloadTooLarge",
    "Projection",
    "ProjectionDrift",
    "ProjectionFailed",
    "Queue",
    "QueueClosed",
    "QueueOptions",
    "QueueStats",
    "Retry",
    "StoreInUse",
    "StoreNotFound",
    "StoreOptions",
    "StoreUnavailable",
    "SystemClock",
    "Transition",
    "UnknownEventType",
    "Worker",
    "WorkerQueue",
    "WrongLoop",
    "WrongProcess",
    "claims",
    "events",
]

# Names are imported when they are first used, so that the command line starts at once.
_HOME = {
    "Clock": "ledgerq.eventlog.clock",
    "ManualClock": "ledgerq.eventlog.clock",
    "SystemClock": "ledgerq.eventlog.clock",
    "ClaimLost": "ledgerq.eventlog.errors",
    "ClockWentBack": "ledgerq.eventlog.errors",
    "DuplicateJobId": "ledgerq.eventlog.errors",
    "Fenced": "ledgerq.eventlog.errors",
    "FormatTooNew": "ledgerq.eventlog.errors",
    "InvalidArgument": "ledgerq.eventlog.errors",
    "InvalidQueueName": "ledgerq.eventlog.errors",
    "InvalidState": "ledgerq.eventlog.errors",
    "JobNotFound": "ledgerq.eventlog.errors",
    "LedgerError": "ledgerq.eventlog.errors",
    "LogCorrupt": "ledgerq.eventlog.errors",
    "LogPoisoned": "ledgerq.eventlog.errors",
    "LogRolledBack": "ledgerq.eventlog.errors",
    "NotRebuilt": "ledgerq.eventlog.errors",
    "OutcomeUnknown": "ledgerq.eventlog.errors",
    "PayloadMissing": "ledgerq.eventlog.errors",
    "PayloadTooLarge": "ledgerq.eventlog.errors",
    "ProjectionDrift": "ledgerq.eventlog.errors",
    "ProjectionFailed": "ledgerq.eventlog.errors",
    "QueueClosed": "ledgerq.eventlog.errors",
    "StoreInUse": "ledgerq.eventlog.errors",
    "StoreNotFound": "ledgerq.eventlog.errors",
    "StoreUnavailable": "ledgerq.eventlog.errors",
    "UnknownEventType": "ledgerq.eventlog.errors",
    "WrongLoop": "ledgerq.eventlog.errors",
    "WrongProcess": "ledgerq.eventlog.errors",
    "MemoryDisk": "ledgerq.eventlog.memory",
    "MemoryStore": "ledgerq.eventlog.memory",
    "StoreOptions": "ledgerq.eventlog.slate.options",
    "Transition": "ledgerq.projections.fold",
    "Projection": "ledgerq.projections.runner",
    "Job": "ledgerq.projections.job",
    "QueueStats": "ledgerq.projections.stats",
    "Page": "ledgerq.projections.view",
    "Claim": "ledgerq.worker.claims",
    "EnqueueResult": "ledgerq.worker.claims",
    "Metrics": "ledgerq.worker.metrics.endpoint",
    "NewJob": "ledgerq.worker.options",
    "QueueOptions": "ledgerq.worker.options",
    "Dead": "ledgerq.worker.outcomes",
    "Retry": "ledgerq.worker.outcomes",
    "claims": "ledgerq.worker.claim_stream",
    "Queue": "ledgerq.worker.queue",
    "JobContext": "ledgerq.worker.execution",
    "Worker": "ledgerq.worker.worker",
    "WorkerQueue": "ledgerq.worker.worker_queue",
}


if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        if name == "events":
            return import_module("ledgerq.events")
        if name not in _HOME:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(import_module(_HOME[name]), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
