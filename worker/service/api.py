"""The calls of the service, as routes.py lists them: each takes a `Call` and returns the message that answers it."""

import asyncio
from typing import Final

from ledgerq.eventlog.clock import sleep_until
from ledgerq.eventlog.errors import InvalidArgument, JobNotFound
from ledgerq.eventlog.events import STATES, Enqueued
from ledgerq.eventlog.keys import queue_name_bytes
from ledgerq.projections.job import FINISHED, Job
from ledgerq.projections.texts import records_with_texts
from ledgerq.worker.claims import EnqueueResult
from ledgerq.worker.options import QueueOptions, seconds_ms
from ledgerq.worker.queue import Queue
from ledgerq.worker.remote import wire
from ledgerq.worker.remote.claim_messages import message_of
from ledgerq.worker.remote.ops import Ops, new_jobs
from ledgerq.worker.remote.service_errors import NotAllowed
from ledgerq.worker.service.call import Call

__all__ = ["Api"]

_MAX_PAGE_ROWS: Final = 1000
_MAX_OFFSET: Final = 2**63


class Api:
    """The calls on one queue object. `queues`: the options of those that have their own."""

    def __init__(self, queue: Queue, queues: dict[str, QueueOptions], default: QueueOptions) -> None:
        self.ops_of = Ops(queue)
        self.queue = queue
        self._queues = queues
        self._default = default

    # ------------------------------------------------------------------ producers and workers

    async def ops(self, call: Call) -> wire.OpsAnswer:
        """Up to 1,000 enqueue, ack, nack, release and extend calls, each with its own result."""
        body: wire.OpsBody = call.body
        return wire.OpsAnswer(results=await self.ops_of.run(body.ops, call.caller.allow))

    async def enqueue(self, call: Call) -> wire.JobsAnswer:
        """Add jobs to a queue: all in one commit, or none."""
        body: wire.JobsBody = call.body
        call.caller.allow("enqueue", call.name)
        results = await self.queue.enqueue_many(call.name, new_jobs(body.jobs))
        return wire.JobsAnswer(jobs=[_added(result) for result in results])

    async def claim(self, call: Call) -> wire.ClaimsAnswer:
        """Claim jobs; waits for some when there are none. The claims outlive this writer, their leases begin now."""
        body: wire.ClaimBody = call.body
        for queue in body.queues:
            queue_name_bytes(queue)
            call.caller.allow("work", queue)
        wait, worker = body.wait, body.worker or call.caller.name or None
        claims = await self.queue.claim(body.queues, body.limit, body.lease, wait, worker, kept=not call.is_own)
        call.undo = lambda: self.ops_of.give_back(claims)
        return wire.ClaimsAnswer(claims=[message_of(claim) for claim in claims])

    async def heartbeat(self, call: Call) -> wire.HeartbeatAnswer:
        """Renew claims, and learn which are lost and which of their jobs are to stop."""
        body: wire.HeartbeatBody = call.body
        return await self.ops_of.heartbeat(body.claims, body.lease, call.caller.allow)

    # ------------------------------------------------------------------ reads

    async def _job(self, call: Call) -> Job:
        job = await self.queue.get(call.name)
        if not call.caller.sees(job.queue):
            raise JobNotFound(f"there is no job {call.name} in the queues of this token")
        return job

    async def job(self, call: Call) -> wire.JobAnswer:
        """A job's state; with `wait`, once it is finished, or as it is after so many seconds."""
        job, wait = await self._job(call), call.number("wait", 0, wire.MAX_WAIT_S)
        if wait and job.state not in FINISHED:
            try:
                job = await self.queue.finished(call.name, wait)
            except TimeoutError:
                job = await self._job(call)
        return wire.JobAnswer(job=_job_fields(job))

    async def history(self, call: Call) -> wire.EventsAnswer:
        """All events of a job, also of one that was swept."""
        records = await self.queue.history(call.name)
        first = records[0].event
        if not isinstance(first, Enqueued) or not call.caller.sees(first.queue):
            raise JobNotFound(f"there is no job {call.name} in the queues of this token")
        return wire.EventsAnswer(events=[wire.record_fields(record) for record in records])

    async def payload(self, call: Call) -> wire.PayloadAnswer:
        """The payload and the headers of a job that is not swept yet."""
        await self._job(call)
        record = await self.queue.payload(call.name)
        return wire.PayloadAnswer(payload=record.payload, headers=record.headers)

    async def result(self, call: Call) -> wire.ResultAnswer:
        """What a job was acked with."""
        return wire.ResultAnswer(result=await self.queue.result(await self._job(call)))

    async def queues(self, call: Call) -> wire.QueuesAnswer:
        """The names of the queues that ever had a job."""
        return wire.QueuesAnswer(queues=[name for name in await self.queue.queues() if call.caller.sees(name)])

    async def stats(self, call: Call) -> wire.StatsAnswer:
        """The counters of a queue."""
        call.caller.allow("read", call.name)
        return wire.StatsAnswer(stats=(await self.queue.stats(call.name))._asdict())

    async def jobs(self, call: Call) -> wire.JobsPage:
        """A page of a queue's jobs, all states or one."""
        call.caller.allow("read", call.name)
        state, limit = call.text("state"), int(call.number("limit", 100, _MAX_PAGE_ROWS))
        found = next((one for one in STATES if one == state), None)
        if state is not None and found is None:
            raise InvalidArgument(f"state is one of {', '.join(STATES)}, not {state!r}")
        page = await self.queue.jobs(call.name, found, limit, call.text("after"))
        return wire.JobsPage(jobs=[_job_fields(job) for job in page.jobs], next=page.next)

    async def log(self, call: Call) -> wire.EventsAnswer:
        """Events of the log from an offset on; only for tokens of all queues."""
        if call.caller.prefixes is not None:
            raise NotAllowed(f"the token {call.caller.name!r} is for some queues, and the log is of all")
        start, limit = int(call.number("from", 0, _MAX_OFFSET)), int(call.number("limit", 100, _MAX_PAGE_ROWS))
        log = self.queue.log
        found = [record async for record in log.read(start, start + limit)]
        await log.committed()
        found = await records_with_texts(log.store, found)
        return wire.EventsAnswer(events=[wire.record_fields(record) for record in found], next=start + len(found))

    async def options(self, call: Call) -> wire.OptionsAnswer:
        """The options of queues, which workers go by."""
        own = {name: options.model_dump() for name, options in self._queues.items() if call.caller.sees(name)}
        return wire.OptionsAnswer(default=self._default.model_dump(), queues=own)

    async def writer(self, call: Call) -> wire.WriterAnswer:
        """The writer's epoch; with `wait`, after so many seconds, or as soon as it ends."""
        wait_ms = seconds_ms("wait", call.number("wait", 0, wire.MAX_WAIT_S))
        if wait_ms:
            clock = self.queue.clock
            await sleep_until(clock, clock.now_ms() + wait_ms)
        return wire.WriterAnswer(epoch=self.ops_of.epoch)

    async def drained(self, call: Call) -> wire.DrainedAnswer:
        """Whether a queue holds no unfinished job; with `wait`, for so many seconds at most."""
        wait = call.number("wait", 0, wire.MAX_WAIT_S)
        names = call.query.get("queue", [])
        if not names:
            raise InvalidArgument("name a queue, as in ?queue=mail; several by repeating it")
        for name in names:
            queue_name_bytes(name)
            call.caller.allow("work", name)
        return wire.DrainedAnswer(drained=await self._drained(names, seconds_ms("wait", wait)))

    async def _drained(self, names: list[str], wait_ms: int) -> bool:
        stats = [await self.queue.stats(name) for name in names]
        if not any(one.scheduled or one.pending or one.claimed for one in stats):
            return True
        if not wait_ms:
            return False
        clock = self.queue.clock
        over: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def end() -> None:
            if not over.done():
                over.set_result(None)

        timer = clock.call_at(clock.now_ms() + wait_ms, end)
        waiting = asyncio.ensure_future(self.queue.drained(names))
        try:
            await asyncio.wait({waiting, over}, return_when=asyncio.FIRST_COMPLETED)
            if waiting.done():
                waiting.result()
            return waiting.done()
        finally:
            timer.cancel()
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)

    # ------------------------------------------------------------------ operations

    def actor(self, call: Call) -> str:
        """Who does it, for the log: the token's name; only where there are no tokens, whom the caller names."""
        body: wire.ReasonBody = call.body
        return call.caller.name or body.actor or "anyone"

    async def cancel(self, call: Call) -> wire.JobAnswer:
        """Cancel a waiting job, or ask the worker of a claimed one to stop."""
        await self._job(call)
        job = await self.queue.cancel(call.name, actor=self.actor(call), reason=call.body.reason)
        return wire.JobAnswer(job=_job_fields(job))

    async def requeue(self, call: Call) -> wire.JobAnswer:
        """Give a dead job a new start."""
        await self._job(call)
        job = await self.queue.requeue(call.name, actor=self.actor(call), reason=call.body.reason)
        return wire.JobAnswer(job=_job_fields(job))

    async def pause(self, call: Call) -> wire.Done:
        """Let no jobs of a queue be claimed until it is resumed."""
        call.caller.allow("operate", call.name)
        await self.queue.pause(call.name, actor=self.actor(call), reason=call.body.reason)
        return wire.Done()

    async def resume(self, call: Call) -> wire.Done:
        """Let jobs of a queue be claimed again."""
        call.caller.allow("operate", call.name)
        await self.queue.resume(call.name, actor=self.actor(call), reason=call.body.reason)
        return wire.Done()


def _added(result: EnqueueResult) -> wire.Added:
    return wire.Added(id=result.job_id, created=result.created, replaced=result.replaced)


def _job_fields(job: Job) -> dict[str, object]:
    return {"id": job.job_id, **wire.fields_of(job)}
