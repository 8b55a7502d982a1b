"""A scripted load in which everything happens to jobs that can: what Prometheus watches in tests, and for the picture.

    LEDGERQ_LOAD=URL ledgerq worker tests.monitoring.scripted_load:make --metrics-port 9464

`make` opens the queue, has a producer enqueue in beats, ten a second, and returns the worker. Chance is seeded.
"""

import asyncio
import contextlib
import math
import os
import time
from collections.abc import Awaitable, Callable
from random import Random
from typing import Final

from ledgerq import Claim, Dead, InvalidState, JobContext, Queue, QueueClosed, QueueOptions, StoreOptions, Worker

__all__ = ["QUEUES", "URL_VARIABLE", "make", "options"]

URL_VARIABLE: Final = "LEDGERQ_LOAD"
BEAT_S: Final = 0.1
WAVE_BEATS: Final = 600

QUEUES: Final = {
    # Quick; one in ten fails at first. Done jobs are swept soon.
    "mail": QueueOptions(backoff_base_s=0.2, keep_done_s=2),
    # In threads; comes in bursts.
    "images": QueueOptions(keep_done_s=5),
    # Three in ten are dead letters.
    "invoices": QueueOptions(),
    # Some hang, and run into their time limit.
    "reports": QueueOptions(max_attempts=2, backoff_base_s=0.2),
    # Delayed; some are cancelled before they are due.
    "reminders": QueueOptions(keep_cancelled_s=2),
    # Claimed by hand: acked, given back, or forgotten until their lease ends.
    "orders": QueueOptions(lease_s=1, max_attempts=3),
    # Long, with a short lease that is renewed; some are taken away from their handler.
    "backups": QueueOptions(lease_s=0.9),
    # Paused.
    "newsletter": QueueOptions(),
}
OPERATOR: Final = {"actor": "ada", "reason": "a scripted load"}

_tasks: set[asyncio.Task[None]] = set()


def options() -> StoreOptions:
    """Small files, so that flushing and compaction happen within seconds."""
    return StoreOptions(l0_sst_bytes=1024 * 1024, max_wal_flushes_before_l0_flush=50, gc_interval_s=5, gc_age_s=5)


async def make() -> Worker:
    """The worker; its producer runs beside it until the process ends."""
    queue = await Queue.open(os.environ[URL_VARIABLE], queues=QUEUES, store_options=options())
    worker = Worker(queue, concurrency=16)
    _handlers(worker, queue)
    load = Load(queue)
    task = asyncio.create_task(load.run())
    _tasks.add(task)
    return worker


def _handlers(worker: Worker, queue: Queue) -> None:
    random = Random(1)

    @worker.handler("mail")
    async def mail(job: JobContext) -> None:
        await asyncio.sleep(random.expovariate(1 / 0.004))
        if job.attempt == 1 and random.random() < 0.1:
            raise ConnectionError("the relay does not answer")

    @worker.handler("images")
    def images(job: JobContext) -> None:
        time.sleep(random.uniform(0.02, 0.06))

    @worker.handler("invoices")
    async def invoices(job: JobContext) -> None:
        await asyncio.sleep(random.expovariate(1 / 0.02))
        if job.payload.endswith((b"0", b"5", b"7")):
            raise Dead("no such customer")

    @worker.handler("reports", timeout=0.5)
    async def reports(job: JobContext) -> None:
        await asyncio.sleep(60 if job.payload == b"hangs" else random.uniform(0.05, 0.3))

    @worker.handler("reminders")
    async def reminders(job: JobContext) -> None:
        await asyncio.sleep(0.001)

    @worker.handler("backups")
    async def backups(job: JobContext) -> None:
        if job.payload == b"taken" and job.attempt == 1:
            await queue.nack(job.claim, "another hand is quicker", delay=0)
        else:
            await asyncio.sleep(random.uniform(1, 2))


class Load:
    """The producer, and those who claim by hand."""

    def __init__(self, queue: Queue) -> None:
        self._queue = queue
        self._random = Random(2)

    async def run(self) -> None:
        """Beat until the queue is closed."""
        with contextlib.suppress(QueueClosed):
            await self._beats()

    async def _beats(self) -> None:
        queue = self._queue
        if not (await queue.stats("newsletter")).paused:
            await queue.pause("newsletter", **OPERATOR)
            await queue.limit("newsletter", max_running=100, actor="load", reason="a limit to show")
        loop = asyncio.get_running_loop()
        beat, due = 0, loop.time()
        while True:
            for every, step in self._steps():
                if beat % every == 0:
                    await step(beat)
            beat, due = beat + 1, max(due + BEAT_S, loop.time())
            await asyncio.sleep(due - loop.time())

    def _steps(self) -> list[tuple[int, Callable[[int], Awaitable[None]]]]:
        return [
            *((1, self._mail), (1, self._invoices), (1, self._reminders), (2, self._images), (3, self._look)),
            *((5, self._orders), (5, self._reports), (10, self._backups), (10, self._operate), (2, self._newsletter)),
            (50, self._hang),
        ]

    async def _mail(self, beat: int) -> None:
        tide = 1 + math.sin(2 * math.pi * beat / WAVE_BEATS)
        await self._queue.enqueue_many("mail", [b"m" * 400 for _ in range(4 + round(5 * tide))])

    async def _images(self, beat: int) -> None:
        burst = 400 if beat % 300 == 50 else 4
        await self._queue.enqueue_many("images", [b"i" * 200] * burst)

    async def _invoices(self, beat: int) -> None:
        await self._queue.enqueue("invoices", b"%d" % beat)

    async def _reports(self, beat: int) -> None:
        await self._queue.enqueue("reports", b"quick")

    async def _hang(self, beat: int) -> None:
        await self._queue.enqueue("reports", b"hangs")

    async def _reminders(self, beat: int) -> None:
        queue = self._queue
        await queue.enqueue("reminders", b"r", delay=self._random.uniform(0.5, 3))
        if beat % 4 == 0:
            far = await queue.enqueue("reminders", b"never", delay=3600)
            await queue.cancel(far.job_id, **OPERATOR)

    async def _newsletter(self, beat: int) -> None:
        await self._queue.enqueue("newsletter", b"n")

    async def _orders(self, beat: int) -> None:
        queue = self._queue
        await queue.enqueue_many("orders", [b"a", b"b", b"c"])
        claims: list[Claim] = await queue.claim("orders", limit=3)
        for claim, settle in zip(claims, (queue.ack, queue.release, None), strict=False):
            if settle is not None:
                await settle(claim)

    async def _backups(self, beat: int) -> None:
        await self._queue.enqueue("backups", b"taken" if beat % 30 == 0 else b"long")

    async def _look(self, beat: int) -> None:
        for name in ("invoices", "mail"):
            for job in (await self._queue.jobs(name, limit=5)).jobs:
                await self._queue.history(job.job_id)

    async def _operate(self, beat: int) -> None:
        """Give a dead job a new start, and ask a running one to stop."""
        queue = self._queue
        dead = await queue.jobs("invoices", state="dead", limit=1)
        for job in dead.jobs:
            await queue.requeue(job.job_id, **OPERATOR)
        if beat % 20 == 0:
            running = await queue.jobs("backups", state="claimed", limit=1)
            for job in running.jobs:
                with contextlib.suppress(InvalidState):  # it may have ended meanwhile
                    await queue.cancel(job.job_id, **OPERATOR)
