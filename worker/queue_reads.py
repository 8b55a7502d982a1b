"""The reading half of a queue: jobs, their payloads, results, histories and counters, and waits for the ends of jobs.

Each answer is durable when it is given. Next: queue_effects.py has what is committed together, queue.py the rest.
"""

from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Any

from ledgerq.eventlog.entropy import job_id_bytes
from ledgerq.eventlog.errors import InvalidState
from ledgerq.eventlog.events import Record, State
from ledgerq.eventlog.keys import queue_names
from ledgerq.eventlog.side_records import PayloadRecord
from ledgerq.projections.job import Job
from ledgerq.projections.metrics.counters import DEFAULT_LIMIT_QUEUES
from ledgerq.projections.progress import Progress
from ledgerq.projections.stats import QueueStats
from ledgerq.projections.view import Page
from ledgerq.worker.engine import commands
from ledgerq.worker.engine.core import Core
from ledgerq.worker.metrics.queue_metrics import QueueCollector, QueueGauges
from ledgerq.worker.options import seconds_ms
from ledgerq.worker.sync.blocking import Owner

if TYPE_CHECKING:
    from ledgerq.worker.tasks.handle import Handle
    from ledgerq.worker.tasks.registry import Tasks

__all__ = ["QueueReads"]


class QueueReads:
    """The methods of a `Queue` that read; see there."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._gauges = QueueGauges(core)
        self.owner = Owner.here(f"the queue on {core.log.store.location}")
        """The event loop that owns it, through which other threads call."""
        self.tasks: Tasks | None = None
        """The tasks that are enqueued to it."""

    async def get(self, job_id: str) -> Job:
        """A job that is not swept yet, in a durable state. Raises `JobNotFound`."""
        job = await commands.find(self._core, job_id)
        if self._core.writer_state.undurable(job.id):
            await self._core.log.committed()
        return await self._core.view.with_texts(job)

    async def payload(self, job_id: str) -> PayloadRecord:
        """The headers and the bytes of a job that is not swept yet.

        Raises `JobNotFound`, `PayloadMissing`, `InvalidState` for a large payload.
        """
        job = await self.get(job_id)
        if (blob := job.blob) is not None:
            raise InvalidState(f"the payload of job {job_id} has {blob.size_bytes} bytes: read it with open_payload")
        return await self._core.view.payload(job)

    async def open_payload(self, job_id: str) -> AsyncIterator[bytes]:
        """The payload in pieces, also a large one: `async for piece in queue.open_payload(job_id)`.

        Raises `JobNotFound`, and `PayloadMissing`, at the end when the bytes are not those that were given.
        """
        async for piece in self._core.view.open_payload(await self.get(job_id)):
            yield piece

    async def result(self, job: str | Job) -> bytes | None:
        """What a job (or the one with this id) was acked with, None when that is nothing, or nothing yet.

        Raises `JobNotFound`, `ResultGone`.
        """
        return await self._core.view.result(job if isinstance(job, Job) else await self.get(job))

    async def progress(self, job_id: str) -> Progress | None:
        """What the job's current try has reported last, by `job.progress`; None without a report, or a running try."""
        self._core.log.check()
        found = self._core.reports.newest.get(job_id_bytes(job_id))
        return None if found is None else found[1]

    def handle(self, job_id: str) -> "Handle[Any]":
        """The handle of a job, to wait for its end: of one that this process enqueued, or another before a restart."""
        from ledgerq.worker.tasks.handle import Handle

        return Handle(self, job_id)

    async def finished(self, job_id: str, timeout: float | None = None) -> Job:  # noqa: ASYNC109
        """Wait until a job is done, dead or cancelled; returns it as it was then.

        Raises `TimeoutError` after `timeout` seconds (None: never), `JobNotFound` for one that is not there (any more).
        """
        timeout_ms = None if timeout is None else seconds_ms("timeout", timeout)
        job = await self._core.finished(job_id_bytes(job_id), job_id, timeout_ms)
        return await self._core.view.with_texts(job)

    async def history(self, job_id: str) -> list[Record]:
        """All events of a job in order, also of one that was swept. Raises `JobNotFound`."""
        return await self._core.durably(self._core.view.history(job_id_bytes(job_id)))

    async def jobs(self, queue: str, state: State | None = None, limit: int = 100, after: str | None = None) -> Page:
        """A page of a queue's jobs, all states or one; give `page.next` as `after` for the next one."""
        return await self._core.durably(self._core.view.jobs(queue, state=state, limit=limit, after=after))

    async def stats(self, queue: str) -> QueueStats:
        """How many jobs are in each state now, and how many transitions there were since the beginning."""
        return await self._core.durably(self._core.view.stats(queue))

    async def queues(self) -> list[str]:
        """The names of all queues that ever had an event, in order."""
        return await self._core.durably(self._core.view.queues())

    def collector(self, limit: int = DEFAULT_LIMIT_QUEUES) -> QueueCollector:
        """Metrics for Prometheus: `prometheus_client.REGISTRY.register(queue.collector())`.

        `limit`: how many queues have series of their own (those that came first); the rest is queue="other".
        """
        return QueueCollector(self._gauges, limit)

    async def drained(self, queues: str | Sequence[str]) -> None:
        """Wait until none of these queues holds an unfinished job (scheduled, pending or claimed)."""
        await self._core.drained(queue_names(queues))
