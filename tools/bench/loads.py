"""The work that is measured, on ledgerq's queue and on the baseline's: each function does it once, and counts its jobs.

`callers` tasks share the jobs, each of which waits for one call before it makes the next.
"""

import asyncio

from ledgerq.tools.bench.baseline import Baseline
from ledgerq.tools.bench.measurement import QUEUE, Bench
from ledgerq.worker.execution import JobContext
from ledgerq.worker.queue import Queue
from ledgerq.worker.worker import Worker

__all__ = [
    "baseline_drain",
    "baseline_drain_in_bulk",
    "baseline_enqueue",
    "baseline_fill",
    "drain",
    "drain_by_worker",
    "drain_in_bulk",
    "enqueue",
    "fill",
]


async def fill(bench: Bench, queue: Queue, jobs: int) -> int:
    """Enqueue `jobs` jobs in bulk."""
    payload, step = bench.payload, bench.sizes.jobs_per_call
    for at in range(0, jobs, step):
        await queue.enqueue_many(QUEUE, [payload] * min(step, jobs - at))
    return jobs


async def enqueue(bench: Bench, queue: Queue, callers: int, jobs: int) -> int:
    """Enqueue `jobs` jobs one by one."""
    payload = bench.payload

    async def produce(share: int) -> None:
        for _ in range(share):
            await queue.enqueue(QUEUE, payload)

    await asyncio.gather(*[produce(share) for share in _shares(callers, jobs)])
    return jobs


async def drain(bench: Bench, queue: Queue, callers: int, jobs: int) -> int:
    """Claim and ack everything one by one."""

    async def work() -> int:
        done = 0
        while claims := await queue.claim(QUEUE):
            await queue.ack(claims[0])
            done += 1
        return done

    return sum(await asyncio.gather(*[work() for _ in range(callers)]))


async def drain_by_worker(bench: Bench, queue: Queue, callers: int, jobs: int) -> int:
    """Let a `Worker` handle everything, so many jobs at a time, with a handler that does nothing."""
    worker, done = Worker(queue, concurrency=callers), 0

    @worker.handler(QUEUE)
    async def handle(job: JobContext) -> None:
        nonlocal done
        done += 1

    await worker.run(until_empty=True, signals=False)
    return done


async def drain_in_bulk(bench: Bench, queue: Queue) -> int:
    """Claim and ack everything in bulk."""
    done = 0
    while claims := await queue.claim(QUEUE, limit=bench.sizes.jobs_per_call):
        await queue.ack_many(claims)
        done += len(claims)
    return done


async def baseline_fill(bench: Bench, baseline: Baseline, jobs: int) -> int:
    """Like `fill`."""
    payload, step = bench.payload, bench.sizes.jobs_per_call
    for at in range(0, jobs, step):
        await baseline.enqueue_many([payload] * min(step, jobs - at))
    return jobs


async def baseline_enqueue(bench: Bench, baseline: Baseline, callers: int, jobs: int) -> int:
    """Like `enqueue`."""
    payload = bench.payload

    async def produce(caller: int, share: int) -> None:
        for _ in range(share):
            await baseline.enqueue(payload, caller)

    await asyncio.gather(*[produce(caller, share) for caller, share in enumerate(_shares(callers, jobs))])
    return jobs


async def baseline_drain(bench: Bench, baseline: Baseline, callers: int, jobs: int) -> int:
    """Like `drain`."""

    async def work() -> int:
        done = 0
        while (claim := await baseline.claim()) is not None:
            await baseline.ack(claim[0])
            done += 1
        return done

    return sum(await asyncio.gather(*[work() for _ in range(callers)]))


async def baseline_drain_in_bulk(bench: Bench, baseline: Baseline) -> int:
    """Like `drain_in_bulk`."""
    done = 0
    while claims := await baseline.claim_many(bench.sizes.jobs_per_call):
        await baseline.ack_many(claims)
        done += len(claims)
    return done


def _shares(callers: int, jobs: int) -> list[int]:
    return [(jobs + caller) // callers for caller in range(callers)]
