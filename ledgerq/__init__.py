"""ledgerq: a durable job queue whose state is provably the fold of a tamper-evident log.

    from ledgerq import Queue, Worker

    queue = await Queue.open("file:///var/lib/jobs")
    await queue.enqueue("mail", b"...")

`Queue` and `Worker` are what programs use. `ledgerq.eventlog` and `ledgerq.projections` are for those who read the log
or write a projection of their own; `ledgerq.tools` is the command line.
"""

from ledgerq.eventlog.clock import Clock, ManualClock, SystemClock
from ledgerq.eventlog.errors import *  # noqa: F403
from ledgerq.eventlog.errors import __all__ as _errors
from ledgerq.eventlog.slate_options import StoreOptions
from ledgerq.projections.fold import Transition
from ledgerq.projections.host import Projection
from ledgerq.projections.job import Job
from ledgerq.projections.stats import QueueStats
from ledgerq.projections.view import Page
from ledgerq.worker.claims import Claim, Enqueued
from ledgerq.worker.options import NewJob, QueueOptions
from ledgerq.worker.outcomes import Dead, Retry
from ledgerq.worker.pipeline import claims
from ledgerq.worker.queue import Queue
from ledgerq.worker.running import JobContext
from ledgerq.worker.worker import Worker

__all__ = [
    "Claim",
    "Clock",
    "Dead",
    "Enqueued",
    "Job",
    "JobContext",
    "ManualClock",
    "NewJob",
    "Page",
    "Projection",
    "Queue",
    "QueueOptions",
    "QueueStats",
    "Retry",
    "StoreOptions",
    "SystemClock",
    "Transition",
    "Worker",
    "claims",
    *_errors,
]
