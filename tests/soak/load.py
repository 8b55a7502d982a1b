"""The soak's load: every call of a queue, at a steady rate, mixed by one seed.

`mail` and `files` are worked on by a `Worker` (with async handlers, and with threads), `bulk` by callers that claim and
settle themselves, `slow` by callers that often outlive their lease. In `probe` one caller at a time adds a job, claims
it and acks it, so that the claims measured there have no waiting for jobs in them.
"""

import asyncio
import random
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import suppress
from typing import Any, Final

from ledgerq.eventlog.errors import ClaimLost, Fenced, InvalidState, JobNotFound, LedgerError, PayloadMissing
from ledgerq.eventlog.events import STATES, Enqueued
from ledgerq.projections.fold import Transition
from ledgerq.worker.claims import Claim
from ledgerq.worker.execution import JobContext
from ledgerq.worker.options import NewJob, QueueOptions
from ledgerq.worker.outcomes import Dead, Retry
from ledgerq.worker.worker import Worker
from tests.soak.watched_queue import WatchedQueue, sealed

__all__ = ["OPTIONS", "QUEUES", "Counts", "Load"]

# Retention is short, so that sweeps keep up with what is finished and the store stays as large as it is.
OPTIONS: Final = QueueOptions(
    max_attempts=3,
    lease_s=5.0,
    backoff_base_s=0.05,
    backoff_cap_s=1.0,
    keep_done_s=5,
    keep_cancelled_s=5,
    keep_dead_s=15,
)
_LOOK_OUT_S: Final = 5.0
QUEUES: Final[Mapping[str, QueueOptions]] = {
    "mail": OPTIONS,
    "files": OPTIONS,
    "bulk": OPTIONS,
    "probe": OPTIONS,
    "slow": OPTIONS.model_copy(update={"lease_s": 0.4}),
}
_BURST_S: Final = 0.5
_MAX_BACKLOG_S: Final = 10.0
_PROBE_EVERY_S: Final = 0.05
_PRODUCERS: Final = 8
_BULK_WORKERS: Final = 4
_SLOW_WORKERS: Final = 3
_LARGE_BYTES: Final = (200_000, 900_000)


class Counts:
    """A projection of the soak's own: how many events of each type each queue had."""

    name = "soak-counts"

    def restore(self, rows: Mapping[bytes, bytes]) -> None:
        """Start from these rows."""
        self._counts = Counter({key: int(value) for key, value in rows.items()})

    def apply(self, transition: Transition) -> Mapping[bytes, bytes | None]:
        """Count one event."""
        job = transition.after or transition.before
        key = f"{job.queue if job is not None else ''} {type(transition.event).__name__}".encode()
        self._counts[key] += 1
        return {key: str(self._counts[key]).encode()}


class Load:
    """The load on one open queue. `begin` it; it ends by `stop`, `drain`, or when the queue fails."""

    def __init__(self, queue: WatchedQueue, *, rate: float, seed: int) -> None:
        self.failure: LedgerError | None = None
        self._queue = queue
        self._rate = rate
        self._rng = random.Random(seed)
        self._next_s = time.monotonic()
        self._recent: deque[str] = deque(maxlen=200)
        self._old: deque[str] = deque(maxlen=2)
        self._worker = Worker(queue, concurrency=24, grace=2.0, name="soak")
        self._worker.handler("mail", timeout=0.5)(self._mail)
        self._worker.handler("files")(self._file)
        self._adding: list[asyncio.Task[None]] = []
        self._working: list[asyncio.Task[None]] = []

    def begin(self) -> None:
        """Start everything."""
        adding = [self._produce] * _PRODUCERS + [self._probe, self._operate, self._pause, self._read, self._look_back]
        working: list[Callable[[], Coroutine[Any, Any, None]]] = [self._work, self._follow]
        working += [self._direct] * _BULK_WORKERS + [self._outlive] * _SLOW_WORKERS
        self._adding = [asyncio.create_task(self._guard(run())) for run in adding]
        self._working = [asyncio.create_task(self._guard(run())) for run in working]

    async def stop(self) -> None:
        """End everything; calls under way are cancelled in their midst, the `Worker` gives back what it holds."""
        self._worker.stop()
        worker, *others = self._working
        await _end([*self._adding, *others])
        await asyncio.gather(worker, return_exceptions=True)

    async def drain(self, limit_s: float) -> bool:
        """Add nothing more; whether all jobs came to an end within `limit_s` seconds."""
        await _end(self._adding)
        # The probe ended in its midst: what it left must be worked on as well.
        self._working.append(asyncio.create_task(self._guard(self._clear_probe())))
        for name in QUEUES:
            await self._queue.queue.resume(name, actor="soak", reason="the end")
        try:
            async with asyncio.timeout(limit_s):
                await self._queue.drained(tuple(QUEUES))
        except TimeoutError:
            return False
        return True

    async def failed(self) -> LedgerError:
        """Wait until the queue has failed and all that waits for work has ended of that; returns the failure."""
        await asyncio.gather(*self._working, return_exceptions=True)
        await _end(self._adding)  # some of these sleep
        assert self.failure is not None
        return self.failure

    async def _guard(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except LedgerError as error:
            if isinstance(error, Fenced):
                await self._learn_of_the_fence()
            if self._queue.queue.failure is None:
                self._queue.facts.report([f"! a call raised {type(error).__name__}: {' '.join(str(error).split())}"])
            self.failure = self.failure or error
        except Exception as error:
            self._queue.facts.report([f"! the load broke: {type(error).__name__}: {' '.join(str(error).split())}"])
            raise

    async def _learn_of_the_fence(self) -> None:
        """A read of the store may meet the fence before the queue itself does, which polls once a second."""
        queue, failed = self._queue.queue, asyncio.Event()
        queue.on_failure.append(lambda error: failed.set())
        if queue.failure is None:
            with suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_OUT_S):
                    await failed.wait()

    # ------------------------------------------------------------------ adding

    async def _turn(self, jobs: int) -> None:
        """Wait until so many more jobs are due; after a delay at most half a second's worth comes at once."""
        self._next_s = max(self._next_s, time.monotonic() - _BURST_S) + jobs / self._rate
        await asyncio.sleep(self._next_s - time.monotonic())
        while self._queue.meter.backlog > self._rate * _MAX_BACKLOG_S:
            self._queue.meter.held_back += 1
            await asyncio.sleep(0.1)

    async def _produce(self) -> None:
        rng, queue = self._rng, self._queue
        while True:
            kind = rng.random()
            if kind < 0.06:
                payloads = [self._payload() for _ in range(rng.randrange(5, 40))]
                await self._turn(len(payloads))
                jobs = [one if rng.random() < 0.5 else NewJob(one, priority=rng.randrange(5)) for one in payloads]
                added = await queue.enqueue_many("bulk", jobs)
            else:
                await self._turn(1)
                added = [await queue.enqueue(self._name(), self._payload(), **self._options())]
            self._recent.extend(job.job_id for job in added if job.created)

    async def _probe(self) -> None:
        """Time claims. A claim that was cancelled in its midst gives its job back for the next one."""
        while True:
            await asyncio.sleep(_PROBE_EVERY_S)
            await self._turn(1)
            await self._queue.enqueue("probe", sealed(b"probe"))
            for claim in await self._queue.claim("probe", 10, timed=True):
                await _unless_lost(self._queue.ack(claim))

    async def _clear_probe(self) -> None:
        while True:
            for claim in await self._queue.claim("probe", 10, wait=1.0):
                await _unless_lost(self._queue.ack(claim))

    def _name(self) -> str:
        return self._rng.choices(("mail", "files", "bulk", "slow"), (60, 10, 25, 5))[0]

    def _options(self) -> dict[str, Any]:
        rng, kind = self._rng, self._rng.random()
        if kind < 0.10:
            return {"delay": rng.choice((0.01, 0.3, 2.0))}
        if kind < 0.20:
            return {"unique_key": f"key-{rng.randrange(40)}"}
        if kind < 0.30:
            return {"priority": rng.randrange(2000), "headers": {"number": str(rng.randrange(100))}}
        return {"max_attempts": 2} if kind < 0.35 else {}

    def _payload(self) -> bytes:
        rng = self._rng
        if rng.random() < 0.0005:
            return sealed(rng.randbytes(rng.randrange(*_LARGE_BYTES)))
        return sealed(rng.randbytes(rng.choice((0, 20, 100, 100, 2000))))

    # ------------------------------------------------------------------ working

    async def _work(self) -> None:
        await self._worker.run(signals=False)

    async def _mail(self, job: JobContext) -> None:
        chance = self._rng.random()
        if chance < 0.01:
            raise Dead("no such address")
        if chance < 0.03:
            raise Retry(0.02)
        if chance < 0.08:
            raise RuntimeError("the relay is down")
        # Now and then longer than the handler may take, at most as long as an ordinary call otherwise.
        await asyncio.sleep(1.0 if chance < 0.083 else self._rng.random() * 0.01)

    def _file(self, job: JobContext) -> int:
        if job.attempt == 1 and job.payload[:1] < b"\x10":
            raise RuntimeError("the first try fails")
        return len(job.payload)

    async def _direct(self) -> None:
        rng, queue = self._rng, self._queue
        while True:
            limit = rng.randrange(1, 20)
            claims = await queue.claim("bulk", limit) or await queue.claim("bulk", limit, wait=1.0)
            if rng.random() < 0.6:
                await _unless_lost(queue.ack_many(claims))
                continue
            for claim in claims:
                await _unless_lost(self._settle(claim))

    async def _settle(self, claim: Claim) -> None:
        chance = self._rng.random()
        if chance < 0.80:
            await self._queue.ack(claim)
        elif chance < 0.88:
            await self._queue.nack(claim, "boom")
        elif chance < 0.91:
            await self._queue.nack(claim, "hopeless", dead=True)
        elif chance < 0.97:
            await self._queue.release(claim)
        else:
            await self._queue.ack(claim)
            await self._queue.ack(claim)  # settling twice: only one counts

    async def _outlive(self) -> None:
        rng, queue = self._rng, self._queue
        while True:
            for claim in await queue.claim("slow", rng.randrange(1, 6), wait=1.0):
                chance = rng.random()
                if chance < 0.1:
                    await asyncio.sleep(0.5)
                elif chance < 0.2:
                    await _unless_lost(queue.extend(claim, 0.8))
                    await asyncio.sleep(0.5)
                if chance > 0.05:
                    await _unless_lost(queue.ack(claim))

    # ------------------------------------------------------------------ operating and reading

    async def _operate(self) -> None:
        rng, queue = self._rng, self._queue
        while True:
            await asyncio.sleep(0.1)
            if self._recent:
                await _unless_gone(queue.cancel(rng.choice(self._recent)))
            dead = (await queue.queue.jobs(rng.choice(list(QUEUES)), state="dead", limit=20)).jobs
            if dead:
                await _unless_gone(queue.requeue(rng.choice(dead).job_id))

    async def _pause(self) -> None:
        queue = self._queue.queue
        for name in QUEUES:
            await queue.resume(name, actor="soak", reason="an earlier process may have ended in a pause")
        while True:
            await asyncio.sleep(4.0)
            name = self._rng.choice(("mail", "bulk"))
            await queue.pause(name, actor="soak", reason="a short one")
            await asyncio.sleep(0.3)
            await queue.resume(name, actor="soak", reason="and on")

    async def _read(self) -> None:
        rng, queue = self._rng, self._queue.queue
        while True:
            stats = [await queue.stats(name) for name in QUEUES]
            self._queue.meter.backlog = sum(one.scheduled + one.pending + one.claimed for one in stats)
            page = await queue.jobs(rng.choice(list(QUEUES)), state=rng.choice((*STATES, None)), limit=50)
            if page.next is not None:
                await queue.jobs(page.jobs[0].queue, limit=50)
            if self._recent:
                job_id = rng.choice(self._recent)
                await _unless_gone(queue.history(job_id))
                await _unless_gone(queue.payload(job_id))
            await queue.queues()
            list(queue.collector().collect())
            await asyncio.sleep(0.25)

    async def _look_back(self) -> None:
        """The history of a job that was probably swept long ago: its events are found in the log."""
        while True:
            await asyncio.sleep(10.0)
            if len(self._old) == self._old.maxlen:
                events = await _unless_gone(self._queue.queue.history(self._old[0]))
                if events and type(events[0].event) is not Enqueued:
                    self._queue.facts.report([f"! the history of job {self._old[0]} does not begin with its beginning"])
            if self._recent:
                self._old.append(self._recent[-1])

    async def _follow(self) -> None:
        """A tail of the log, which must leave nothing out."""
        log = self._queue.queue.log
        at = await log.end()
        async for record in log.tail(at):
            if record.offset != at:
                self._queue.facts.report([f"! a follower got offset {record.offset} instead of {at}"])
            at = record.offset + 1


async def _unless_lost(call: Awaitable[Any]) -> None:
    try:
        await call
    except ClaimLost:
        return


async def _unless_gone(call: Awaitable[Any]) -> Any:
    """Pass over jobs that end and are swept while they are read."""
    try:
        return await call
    except (JobNotFound, InvalidState, PayloadMissing):
        return None


async def _end(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
