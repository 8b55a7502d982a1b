"""A queue in memory for tests of programs with tasks: its clock stands still, its jobs run when a test asks for it."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any, Final, TypeVar

from ledgerq.eventlog.clock import ManualClock
from ledgerq.eventlog.entropy import SeededEntropy
from ledgerq.eventlog.errors import InvalidArgument
from ledgerq.eventlog.events import State
from ledgerq.eventlog.keys import payload_key
from ledgerq.eventlog.memory import MemoryDisk, MemoryStore
from ledgerq.eventlog.side_records import decode_payload
from ledgerq.projections.index_keys import JOB
from ledgerq.projections.indexes import decode_job
from ledgerq.projections.job import Job
from ledgerq.worker.engine.core import DEFAULT_OPTIONS
from ledgerq.worker.options import QueueOptions, to_ms
from ledgerq.worker.queue import Queue
from ledgerq.worker.tasks.handle import Handle
from ledgerq.worker.tasks.registry import Tasks
from ledgerq.worker.tasks.task import Task
from ledgerq.worker.worker import Worker

__all__ = ["MemoryQueue", "memory_queue"]

R = TypeVar("R")

_MAX_STEPS: Final = 10_000
# So many turns of the event loop a worker needs to renew its leases.
_RENEWAL_TURNS: Final = 10
_PENDING: Final[tuple[State, ...]] = ("pending",)
_CLAIMED: Final[tuple[State, ...]] = ("claimed",)


class MemoryQueue(Queue):
    """A `Queue` in memory, which runs its own jobs in `drain`."""

    _disk: MemoryDisk

    @property
    def clock(self) -> ManualClock:
        """The clock, which stands still until `drain` or the test moves it: `queue.clock.advance(seconds=60)`."""
        assert isinstance(self._clock, ManualClock)
        return self._clock

    async def drain(self, now: datetime | None = None) -> None:
        """Run the jobs of all tasks to their ends, retries and jobs for later too, by moving the clock to each.

        `now`: no further than to this time, at which the clock stands then, with the ticks of schedules up to it; what
        is due later is left. Without it no schedule is waited for, since their ticks have no end. A job that is
        dead does not raise here: its handle has its error. Jobs of paused queues wait.
        """
        if now is not None and (not isinstance(now, datetime) or now.utcoffset() is None):
            raise InvalidArgument(f"now is a datetime with a time zone, not {now!r}: add tzinfo, say UTC")
        worker = Worker(self, tasks=self.tasks)
        running = asyncio.create_task(worker.run(signals=False))
        driving = asyncio.create_task(self._drive(None if now is None else to_ms(now.timestamp())))
        try:
            await asyncio.wait({running, driving}, return_when=asyncio.FIRST_COMPLETED)
            if driving.done():
                driving.result()
        finally:
            driving.cancel()
            worker.stop()
            await asyncio.gather(driving, return_exceptions=True)
            await running

    async def _drive(self, until_ms: int | None) -> None:
        """Move the clock from job to job."""
        queues = sorted({task.queue for task in self.tasks or ()})
        for _ in range(_MAX_STEPS):
            running = [queue for queue in queues if not self._core.writer_state.paused(queue)]
            await self._until_still(running)
            changed = self._core.next_change()  # before the look: what is due by then may be promoted meanwhile
            job = await self._next_due(running)
            ticks = [] if until_ms is None else self._core.writer_state.schedules.by_name.values()
            tick_ms = min((ms for schedule in ticks if (ms := schedule.waits_until_ms)), default=None)
            times = [tick_ms, None if job is None else job.due_ms]
            due_ms = min((ms for ms in times if ms is not None), default=None)
            if due_ms is None or (until_ms is not None and due_ms > until_ms):
                break
            if job is None or due_ms < job.due_ms:
                await self._until(due_ms, running)
                await changed
                continue
            if self.tasks is None or self.tasks.get(job.task or "") is None:
                raise InvalidArgument(f"job {job.job_id} is for the task {job.task!r}, which these tasks don't have")
            await self._until(job.due_ms, running)
            await changed
        else:
            raise InvalidArgument(f"drain moved the clock {_MAX_STEPS} times, and jobs are still left: do they end?")
        if until_ms is not None and until_ms > self.clock.now_ms():
            self.clock.set(until_ms)

    async def _until(self, due_ms: int, queues: Sequence[str]) -> None:
        """Move the clock to this time: from timer to timer where a job is claimed, whose lease is renewed meanwhile."""
        clock = self.clock
        while clock.now_ms() < due_ms:
            if not self._core.jobs_in(queues, _CLAIMED):
                clock.set(due_ms)
                return
            clock.set(max(clock.now_ms(), min(due_ms, clock.next_due_ms() or due_ms)))
            for _ in range(_RENEWAL_TURNS):
                await asyncio.sleep(0)

    async def _until_still(self, queues: Sequence[str]) -> None:
        """Wait until no job can go on now: none is pending, and if one is claimed, a scheduled one is waited for."""
        core = self._core
        while True:
            core.log.check()
            changed = core.next_change()
            if not core.jobs_in(queues, _PENDING):
                await core.log.committed()
                awaited = await core.writer_state.jobs([*core.end_waits.waiters])
                is_waiting = any(job is not None and job.state == "scheduled" for job in awaited)
                if not core.jobs_in(queues, _PENDING) and (is_waiting or not core.jobs_in(queues, _CLAIMED)):
                    return
            await changed

    async def _next_due(self, queues: Sequence[str]) -> Job | None:
        pages = [await self.jobs(queue, state="scheduled", limit=1) for queue in queues]
        return min((page.jobs[0] for page in pages if page.jobs), key=lambda job: job.due_ms, default=None)

    def enqueued(self, task: Task[Any, R], /, *args: Any, **kwargs: Any) -> list[Handle[R]]:
        """The jobs of a task that were enqueued with these arguments, whatever their others, and whatever came of them.

        In the order of enqueueing; a job that was swept is not among them.
        """
        if not isinstance(task, Task):
            raise InvalidArgument(f"enqueued takes a task, as in queue.enqueued(send), not {task!r}")
        rows, signature = self._disk.rows, task.signature
        wanted = signature.bind(args, kwargs, partly=True)
        jobs = [decode_job(value) for key, value in rows.items() if key.startswith(JOB)]
        found: list[Handle[R]] = []
        for job in sorted(jobs, key=lambda job: job.offset):
            if job.task == task.name:
                arguments = signature.decode(decode_payload(rows[payload_key(job.payload_offset)]).payload)
                if all(arguments[name] == value for name, value in wanted.items()):
                    found.append(Handle(self, job.job_id, signature))
        return found


@asynccontextmanager
async def memory_queue(
    tasks: Tasks, *, default: QueueOptions = DEFAULT_OPTIONS, queues: Mapping[str, QueueOptions] | None = None
) -> AsyncIterator[MemoryQueue]:
    """Open a queue in memory for these tasks, with a clock that stands still and the same ids at each run.

    async with memory_queue(app) as queue: await send.enqueue(user_id=3); await queue.drain()
    """
    if not isinstance(tasks, Tasks):
        raise InvalidArgument(f"memory_queue takes what Tasks() makes, not {tasks!r}")
    disk = MemoryDisk()
    opening = MemoryQueue.open(
        store=MemoryStore(disk),
        clock=ManualClock(),
        entropy=SeededEntropy(0),
        default=default,
        queues=queues,
        tasks=tasks,
    )
    async with opening as queue:
        queue._disk = disk
        yield queue
