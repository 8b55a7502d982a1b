"""ledgerq: a durable job queue whose state is provably the fold of a tamper-evident log.

    from ledgerq import Queue, Tasks, Worker

    app = Tasks()

    @app.task(queue="mail")
    async def send(user_id: int) -> None: ...

    queue = await Queue.open("file:///var/lib/jobs", tasks=app)
    await send.enqueue(user_id=3)

What else `from ledgerq import ...` gives:

    queues      QueueOptions, NewJob, StoreOptions, and what is returned: EnqueueResult, Claim, Job, Page, QueueStats
    tasks       Tasks, Task, Handle, on (a RetryRule), CallNext (of a middleware)
    operators   Filter and BulkResult, of bulk changes; Schedule, of `queue.schedules`
    workers     JobContext, Retry, Snooze, RateLimited, Dead, Metrics; WorkerQueue, what a worker needs
    the log     events, its events; Projection and Transition, for a projection of your own
    tests       ManualClock, MemoryStore, MemoryDisk; Clock, SystemClock
    errors      LedgerError and, below it, InvalidArgument, JobNotFound, ClaimLost, Fenced, StoreInUse and all others

`ledgerq.sync.Queue` is the queue for threads without an event loop.
`ledgerq.eventlog` and `ledgerq.projections` are for those who read the log or write a projection of their own;
`ledgerq.tools` is the command line. `help(ledgerq.Queue)` and the pages of docs/ have the rest.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import ledgerq.events as events
    from ledgerq.eventlog.clock import Clock as Clock
    from ledgerq.eventlog.clock import ManualClock as ManualClock
    from ledgerq.eventlog.clock import SystemClock as SystemClock
    from ledgerq.eventlog.errors import ClaimLost as ClaimLost
    from ledgerq.eventlog.errors import ClockWentBack as ClockWentBack
    from ledgerq.eventlog.errors import DuplicateJobId as DuplicateJobId
    from ledgerq.eventlog.errors import EffectConflict as EffectConflict
    from ledgerq.eventlog.errors import EffectsTooLarge as EffectsTooLarge
    from ledgerq.eventlog.errors import Fenced as Fenced
    from ledgerq.eventlog.errors import FormatTooNew as FormatTooNew
    from ledgerq.eventlog.errors import InvalidArgument as InvalidArgument
    from ledgerq.eventlog.errors import InvalidQueueName as InvalidQueueName
    from ledgerq.eventlog.errors import InvalidState as InvalidState
    from ledgerq.eventlog.errors import JobCancelled as JobCancelled
    from ledgerq.eventlog.errors import JobFailed as JobFailed
    from ledgerq.eventlog.errors import JobNotFound as JobNotFound
    from ledgerq.eventlog.errors import LedgerError as LedgerError
    from ledgerq.eventlog.errors import LogCorrupt as LogCorrupt
    from ledgerq.eventlog.errors import LogPoisoned as LogPoisoned
    from ledgerq.eventlog.errors import LogRolledBack as LogRolledBack
    from ledgerq.eventlog.errors import NotPublished as NotPublished
    from ledgerq.eventlog.errors import NotRebuilt as NotRebuilt
    from ledgerq.eventlog.errors import OutcomeUnknown as OutcomeUnknown
    from ledgerq.eventlog.errors import PayloadMissing as PayloadMissing
    from ledgerq.eventlog.errors import PayloadTooLarge as PayloadTooLarge
    from ledgerq.eventlog.errors import ProjectionDrift as ProjectionDrift
    from ledgerq.eventlog.errors import ProjectionFailed as ProjectionFailed
    from ledgerq.eventlog.errors import ProofRefused as ProofRefused
    from ledgerq.eventlog.errors import QueueClosed as QueueClosed
    from ledgerq.eventlog.errors import ResultGone as ResultGone
    from ledgerq.eventlog.errors import ResultTooLarge as ResultTooLarge
    from ledgerq.eventlog.errors import ScheduleNotFound as ScheduleNotFound
    from ledgerq.eventlog.errors import StoreInUse as StoreInUse
    from ledgerq.eventlog.errors import StoreNotFound as StoreNotFound
    from ledgerq.eventlog.errors import StoreUnavailable as StoreUnavailable
    from ledgerq.eventlog.errors import TreeForked as TreeForked
    from ledgerq.eventlog.errors import UniqueKeyHeld as UniqueKeyHeld
    from ledgerq.eventlog.errors import UnknownEventType as UnknownEventType
    from ledgerq.eventlog.errors import WrongLoop as WrongLoop
    from ledgerq.eventlog.errors import WrongProcess as WrongProcess
    from ledgerq.eventlog.memory import MemoryDisk as MemoryDisk
    from ledgerq.eventlog.memory import MemoryStore as MemoryStore
    from ledgerq.eventlog.slate.options import StoreOptions as StoreOptions
    from ledgerq.projections.fold import Transition as Transition
    from ledgerq.projections.job import Job as Job
    from ledgerq.projections.runner import Projection as Projection
    from ledgerq.projections.schedule import Schedule as Schedule
    from ledgerq.projections.selection import Filter as Filter
    from ledgerq.projections.stats import QueueStats as QueueStats
    from ledgerq.projections.view import Page as Page
    from ledgerq.worker.bulk import BulkResult as BulkResult
    from ledgerq.worker.claim_stream import claims as claims
    from ledgerq.worker.claims import Claim as Claim
    from ledgerq.worker.claims import EnqueueResult as EnqueueResult
    from ledgerq.worker.engine.checkpoints import Checkpoints as Checkpoints
    from ledgerq.worker.execution import JobContext as JobContext
    from ledgerq.worker.metrics.endpoint import Metrics as Metrics
    from ledgerq.worker.options import NewJob as NewJob
    from ledgerq.worker.options import QueueOptions as QueueOptions
    from ledgerq.worker.outcomes import Dead as Dead
    from ledgerq.worker.outcomes import RateLimited as RateLimited
    from ledgerq.worker.outcomes import Retry as Retry
    from ledgerq.worker.outcomes import Snooze as Snooze
    from ledgerq.worker.queue import Queue as Queue
    from ledgerq.worker.queue_view import QueueView as QueueView
    from ledgerq.worker.remote.service_errors import NotAllowed as NotAllowed
    from ledgerq.worker.remote.service_errors import ServiceError as ServiceError
    from ledgerq.worker.remote.service_errors import ServiceUnavailable as ServiceUnavailable
    from ledgerq.worker.retry_rules import RetryRule as RetryRule
    from ledgerq.worker.retry_rules import on as on
    from ledgerq.worker.tasks.calling import CallNext as CallNext
    from ledgerq.worker.tasks.handle import Handle as Handle
    from ledgerq.worker.tasks.registry import Tasks as Tasks
    from ledgerq.worker.tasks.task import Task as Task
    from ledgerq.worker.worker import Worker as Worker
    from ledgerq.worker.worker_queue import WorkerQueue as WorkerQueue

# What `help` shows and a star gives: what programs begin with. All other names are as public.
__all__ = ["Queue", "Tasks", "Worker", "claims", "events", "on"]

# Names are imported when they are first used, so that the command line starts at once.
_HOME = {
    "Clock": "ledgerq.eventlog.clock",
    "ManualClock": "ledgerq.eventlog.clock",
    "SystemClock": "ledgerq.eventlog.clock",
    "ClaimLost": "ledgerq.eventlog.errors",
    "ClockWentBack": "ledgerq.eventlog.errors",
    "DuplicateJobId": "ledgerq.eventlog.errors",
    "EffectConflict": "ledgerq.eventlog.errors",
    "EffectsTooLarge": "ledgerq.eventlog.errors",
    "Fenced": "ledgerq.eventlog.errors",
    "FormatTooNew": "ledgerq.eventlog.errors",
    "InvalidArgument": "ledgerq.eventlog.errors",
    "InvalidQueueName": "ledgerq.eventlog.errors",
    "InvalidState": "ledgerq.eventlog.errors",
    "JobCancelled": "ledgerq.eventlog.errors",
    "JobFailed": "ledgerq.eventlog.errors",
    "JobNotFound": "ledgerq.eventlog.errors",
    "LedgerError": "ledgerq.eventlog.errors",
    "LogCorrupt": "ledgerq.eventlog.errors",
    "LogPoisoned": "ledgerq.eventlog.errors",
    "LogRolledBack": "ledgerq.eventlog.errors",
    "NotPublished": "ledgerq.eventlog.errors",
    "NotAllowed": "ledgerq.worker.remote.service_errors",
    "NotRebuilt": "ledgerq.eventlog.errors",
    "OutcomeUnknown": "ledgerq.eventlog.errors",
    "PayloadMissing": "ledgerq.eventlog.errors",
    "PayloadTooLarge": "ledgerq.eventlog.errors",
    "ProjectionDrift": "ledgerq.eventlog.errors",
    "ProjectionFailed": "ledgerq.eventlog.errors",
    "ProofRefused": "ledgerq.eventlog.errors",
    "QueueClosed": "ledgerq.eventlog.errors",
    "ResultGone": "ledgerq.eventlog.errors",
    "ResultTooLarge": "ledgerq.eventlog.errors",
    "ScheduleNotFound": "ledgerq.eventlog.errors",
    "ServiceError": "ledgerq.worker.remote.service_errors",
    "ServiceUnavailable": "ledgerq.worker.remote.service_errors",
    "StoreInUse": "ledgerq.eventlog.errors",
    "StoreNotFound": "ledgerq.eventlog.errors",
    "StoreUnavailable": "ledgerq.eventlog.errors",
    "TreeForked": "ledgerq.eventlog.errors",
    "UniqueKeyHeld": "ledgerq.eventlog.errors",
    "UnknownEventType": "ledgerq.eventlog.errors",
    "WrongLoop": "ledgerq.eventlog.errors",
    "WrongProcess": "ledgerq.eventlog.errors",
    "MemoryDisk": "ledgerq.eventlog.memory",
    "MemoryStore": "ledgerq.eventlog.memory",
    "StoreOptions": "ledgerq.eventlog.slate.options",
    "Transition": "ledgerq.projections.fold",
    "Projection": "ledgerq.projections.runner",
    "Job": "ledgerq.projections.job",
    "Schedule": "ledgerq.projections.schedule",
    "Filter": "ledgerq.projections.selection",
    "QueueStats": "ledgerq.projections.stats",
    "Page": "ledgerq.projections.view",
    "BulkResult": "ledgerq.worker.bulk",
    "Claim": "ledgerq.worker.claims",
    "EnqueueResult": "ledgerq.worker.claims",
    "Metrics": "ledgerq.worker.metrics.endpoint",
    "NewJob": "ledgerq.worker.options",
    "QueueOptions": "ledgerq.worker.options",
    "Dead": "ledgerq.worker.outcomes",
    "Retry": "ledgerq.worker.outcomes",
    "RateLimited": "ledgerq.worker.outcomes",
    "Snooze": "ledgerq.worker.outcomes",
    "claims": "ledgerq.worker.claim_stream",
    "Checkpoints": "ledgerq.worker.engine.checkpoints",
    "Queue": "ledgerq.worker.queue",
    "QueueView": "ledgerq.worker.queue_view",
    "RetryRule": "ledgerq.worker.retry_rules",
    "on": "ledgerq.worker.retry_rules",
    "CallNext": "ledgerq.worker.tasks.calling",
    "Handle": "ledgerq.worker.tasks.handle",
    "Tasks": "ledgerq.worker.tasks.registry",
    "Task": "ledgerq.worker.tasks.task",
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
    return sorted({*globals(), *_HOME, *__all__})
