"""The reads and the operations of a queue on another machine."""

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, TypeVar
from urllib.parse import quote

from ledgerq.eventlog.clock import Clock
from ledgerq.eventlog.entropy import job_id_bytes
from ledgerq.eventlog.errors import LedgerError
from ledgerq.eventlog.events import Record, State
from ledgerq.eventlog.keys import queue_name_bytes, queue_names
from ledgerq.eventlog.side_records import PayloadRecord
from ledgerq.projections.job import FINISHED, Job
from ledgerq.projections.stats import QueueStats
from ledgerq.projections.view import Page
from ledgerq.worker.engine.decisions import operator
from ledgerq.worker.options import seconds_ms
from ledgerq.worker.remote import wire
from ledgerq.worker.remote.remote_operations import RemoteBulk, RemoteSchedules
from ledgerq.worker.remote.transport import Transport
from ledgerq.worker.sync.blocking import Owner

if TYPE_CHECKING:
    from ledgerq.worker.tasks.handle import Handle
    from ledgerq.worker.tasks.registry import Tasks

__all__ = ["RemoteReads"]

T = TypeVar("T", bound=wire.Message)

_POLL_S: Final = 25.0


class RemoteReads:
    """The methods of a `RemoteQueue` that read, and those of operators; see there."""

    def __init__(self, transport: Transport, clock: Clock) -> None:
        self._transport = transport
        self._clock = clock
        self.bulk = RemoteBulk(transport)
        """Changes of many jobs at once."""
        self.schedules = RemoteSchedules(transport)
        """What is enqueued again and again."""
        self.owner = Owner.here("the connection to the service")
        """The event loop that owns it, through which other threads call."""
        self.tasks: Tasks | None = None
        """The tasks that are enqueued to it."""

    @property
    def failure(self) -> LedgerError | None:
        """The error for which nothing can be called any more, or None."""
        return None

    def _check(self) -> None:
        if (failure := self.failure) is not None:
            raise failure

    async def _get(self, path: str, answer: type[T], wait_s: float = 0.0, **query: Any) -> T:
        self._check()
        given = {name: value for name, value in query.items() if value is not None}
        if wait_s:
            given["wait"] = f"{wait_s:.3f}"
        found, _ = await self._transport.call("GET", path, answer, query=given or None, wait_s=wait_s)
        return found

    async def get(self, job_id: str) -> Job:
        """A job that is not swept yet. Raises `JobNotFound`."""
        return wire.job_of((await self._get(_of_job(job_id), wire.JobAnswer)).job)

    async def payload(self, job_id: str) -> PayloadRecord:
        """The headers and the bytes of a job. Raises `JobNotFound`, `PayloadMissing`."""
        found = await self._get(_of_job(job_id, "payload"), wire.PayloadAnswer)
        return PayloadRecord(b"", found.headers, found.payload)

    async def result(self, job: str | Job) -> bytes | None:
        """What a job was acked with, as `Queue.result` has it."""
        job_id = job.job_id if isinstance(job, Job) else job
        return (await self._get(_of_job(job_id, "result"), wire.ResultAnswer)).result

    def handle(self, job_id: str) -> "Handle[Any]":
        """The handle of a job, to wait for its end."""
        from ledgerq.worker.tasks.handle import Handle

        return Handle(self, job_id)

    async def finished(self, job_id: str, timeout: float | None = None) -> Job:  # noqa: ASYNC109
        """Wait until a job is done, dead or cancelled, as `Queue.finished` does."""
        timeout_ms = None if timeout is None else seconds_ms("timeout", timeout)
        loop = asyncio.get_running_loop()
        over_s = None if timeout_ms is None else loop.time() + timeout_ms / 1000
        while True:
            left_s = _POLL_S if over_s is None else max(0.0, min(_POLL_S, over_s - loop.time()))
            job = wire.job_of((await self._get(_of_job(job_id), wire.JobAnswer, left_s)).job)
            if job.state in FINISHED:
                return job
            if over_s is not None and loop.time() >= over_s:
                raise TimeoutError(f"job {job_id} is not finished after {timeout:g} s")

    async def history(self, job_id: str) -> list[Record]:
        """All events of a job in order, also of one that was swept. Raises `JobNotFound`."""
        found = await self._get(_of_job(job_id, "history"), wire.EventsAnswer)
        return [wire.record_of(fields) for fields in found.events]

    async def records(self, start: int = 0, limit: int = 100) -> list[Record]:
        """The events of the log from offset `start` on, at most 1,000."""
        found = await self._get("/v1/log", wire.EventsAnswer, **{"from": start, "limit": limit})
        return [wire.record_of(fields) for fields in found.events]

    async def jobs(self, queue: str, state: State | None = None, limit: int = 100, after: str | None = None) -> Page:
        """A page of a queue's jobs, at most 1,000, as `Queue.jobs` has it."""
        page = await self._get(_of_queue(queue, "jobs"), wire.JobsPage, state=state, limit=limit, after=after)
        return Page([wire.job_of(fields) for fields in page.jobs], page.next)

    async def stats(self, queue: str) -> QueueStats:
        """The counters of a queue."""
        return QueueStats(**(await self._get(_of_queue(queue, "stats"), wire.StatsAnswer)).stats)

    async def queues(self) -> list[str]:
        """The names of all queues that the token is for."""
        return (await self._get("/v1/queues", wire.QueuesAnswer)).queues

    async def drained(self, queues: str | Sequence[str]) -> None:
        """Wait until none of these queues holds an unfinished job."""
        names = list(queue_names(queues))
        while not (await self._get("/v1/drained", wire.DrainedAnswer, _POLL_S, queue=names)).drained:
            pass

    # ------------------------------------------------------------------ operate

    async def _post(self, path: str, answer: type[T], actor: str, reason: str) -> T:
        self._check()
        actor, reason = operator(actor, reason)
        body = wire.ReasonBody(reason=reason, actor=actor)
        found, _ = await self._transport.call("POST", path, answer, body=body)
        return found

    async def cancel(self, job_id: str, *, actor: str, reason: str) -> Job:
        """Cancel a job, as `Queue.cancel` does."""
        return wire.job_of((await self._post(_of_job(job_id, "cancel"), wire.JobAnswer, actor, reason)).job)

    async def requeue(self, job_id: str, *, actor: str, reason: str) -> Job:
        """Give a dead job a new start, as `Queue.requeue` does."""
        return wire.job_of((await self._post(_of_job(job_id, "requeue"), wire.JobAnswer, actor, reason)).job)

    async def pause(self, queue: str, *, actor: str, reason: str) -> None:
        """Let no jobs of a queue be claimed until `resume`."""
        await self._post(_of_queue(queue, "pause"), wire.Done, actor, reason)

    async def resume(self, queue: str, *, actor: str, reason: str) -> None:
        """Let jobs of this queue be claimed again."""
        await self._post(_of_queue(queue, "resume"), wire.Done, actor, reason)


def _of_job(job_id: str, what: str = "") -> str:
    job_id_bytes(job_id)
    return f"/v1/jobs/{job_id}{'/' if what else ''}{what}"


def _of_queue(queue: str, what: str) -> str:
    queue_name_bytes(queue)
    return f"/v1/queues/{quote(queue, safe='')}/{what}"
