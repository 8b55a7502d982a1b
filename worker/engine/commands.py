"""The commands of operators to jobs and queues. Each stages an event with actor and reason."""

import asyncio

from ledgerq.eventlog.entropy import job_id_bytes, job_id_text
from ledgerq.eventlog.events import QueuePaused, QueueResumed
from ledgerq.eventlog.keys import queue_name_bytes
from ledgerq.projections.job import Job
from ledgerq.worker.engine import decisions
from ledgerq.worker.engine.core import Core

__all__ = ["cancel", "find", "requeue", "set_paused"]


async def find(core: Core, job_id: str) -> Job:
    """The newest state of a job, staged or stored; raises `JobNotFound`."""
    core.log.check()
    async with core.refusing():
        job = await core.writer_state.require(job_id_bytes(job_id), job_id)
    core.log.check()
    return job


async def cancel(core: Core, job_id: str, *, actor: str, reason: str) -> Job:
    """Cancel a job, as `Queue.cancel` does."""
    core.log.check()
    async with core.operating:
        await asyncio.sleep(0)  # a store in memory answers at once: thousands of calls would be one turn of the loop
        await core.log.until_not_full()
        job = await find(core, job_id)
        options = core.options(job.queue)
        async with core.refusing():
            events = decisions.cancel(job, options=options, now_ms=core.clock.now_ms(), actor=actor, reason=reason)
        for event in events:
            job = core.writer_state.apply(job, event) or job
    await core.log.committed()
    return await core.view.with_texts(job)


async def requeue(core: Core, job_id: str, *, actor: str, reason: str) -> Job:
    """Requeue a dead job, as `Queue.requeue` does."""
    core.log.check()
    async with core.operating:
        await asyncio.sleep(0)  # a store in memory answers at once: thousands of calls would be one turn of the loop
        await core.log.until_not_full()
        job = await find(core, job_id)
        async with core.admission.unique(job) as holder:
            if job.spec.unique_key is not None:
                # It may have changed while the key was waited for.
                job = await find(core, job_id)
            other = None if holder is None else job_id_text(holder)
            async with core.refusing():
                now_ms = core.clock.now_ms()
                event = decisions.requeue(job, now_ms=now_ms, unique_holder=other, actor=actor, reason=reason)
            job = core.writer_state.apply(job, event) or job
            core.admission.requeued(job)
        core.dispatcher.serve()
    await core.log.committed()
    return await core.view.with_texts(job)


async def set_paused(core: Core, queue: str, paused: bool, *, actor: str, reason: str) -> None:
    """Pause or resume a queue, as `Queue.pause` and `Queue.resume` do."""
    core.log.check()
    queue_name_bytes(queue)
    actor, reason = decisions.operator(actor, reason)
    if core.writer_state.paused(queue) != paused:
        core.writer_state.apply_other(
            QueuePaused(queue, actor, reason) if paused else QueueResumed(queue, actor, reason)
        )
        if not paused:
            core.dispatcher.dispatch(queue)
    await core.log.committed()
