"""Latency of a job through a queue at a steady rate: until its handler begins, and until its ack is durable."""

import asyncio
import gc
import time
from collections.abc import Callable, Coroutine
from typing import Any, Final

from ledgerq.tools.bench.baseline import Baseline, PendingJob, open_baseline
from ledgerq.tools.bench.measurement import QUEUE, Bench, Measurement, Target, percentile
from ledgerq.worker.execution import JobContext
from ledgerq.worker.queue import Queue
from ledgerq.worker.worker import Worker

__all__ = ["Ways", "measure_latency", "worker_ways"]

# The baseline's latency is mostly waiting for flushes, so here it gets the shortest interval instead of the one that is
# best for throughput.
_BASELINE_FLUSH_INTERVAL_MS: Final = 1
_TIMEOUT_S: Final = 60.0
_POLL_S: Final = 0.01
_NUMBER_BYTES: Final = 8
_TARGETS: Final = {
    ("acked", 50): Target("value", at_most=2),
    ("acked", 99): Target("value", at_most=5),
}


class Ways:
    """The times at which each job was enqueued (the call), claimed (the return, or its handler began), and acked."""

    def __init__(self, jobs: int) -> None:
        self.enqueued_s = [0.0] * jobs
        self.claimed_s = [0.0] * jobs
        self.acked_s = [0.0] * jobs

    def ms(self, until: list[float]) -> list[float]:
        """The milliseconds of each job from `enqueued_s` to `until`."""
        return [(end_s - start_s) * 1000 for start_s, end_s in zip(self.enqueued_s, until, strict=True)]


async def measure_latency(bench: Bench) -> list[Measurement]:
    """Percentiles at a steady rate: from the call of `enqueue` to a worker's handler, and to a durable ack.

    The second is measured with callers that claim and ack, since a worker's ack has no return to be seen.
    """
    rate, jobs = bench.sizes.latency_jobs_per_s, round(bench.sizes.latency_s * bench.sizes.latency_jobs_per_s)
    found = [
        Measurement(
            f"latency-{what}-p{percent}",
            f"enqueue to {what}, {rate} jobs/s, p{percent}",
            "ms",
            better="lower",
            target=_TARGETS.get((what, percent)),
            baseline_is=f"three SlateDB transactions, flush interval {_BASELINE_FLUSH_INTERVAL_MS} ms",
        )
        for what in ("handler", "acked")
        for percent in (50, 99)
    ]
    for _ in bench.turns():
        with bench.new_store("latency") as url:
            async with bench.queue(url) as queue:
                by_worker = await worker_ways(bench, queue, jobs, rate, concurrency=bench.sizes.latency_workers)
        ours, theirs = await _our_ways(bench, jobs), await _their_ways(bench, jobs)
        values = _percentiles(by_worker.ms(by_worker.claimed_s)) + _percentiles(ours.ms(ours.acked_s))
        their_values = _percentiles(theirs.ms(theirs.claimed_s)) + _percentiles(theirs.ms(theirs.acked_s))
        for measurement, value, their_value in zip(found, values, their_values, strict=True):
            measurement.runs.append(value)
            measurement.baseline.append(their_value)
        for what, at in (("handler", 0), ("acked", 2)):
            p50, p99, their_p50, their_p99 = *values[at : at + 2], *their_values[at : at + 2]
            bench.say(
                f"latency: {what} after p50 {p50:.1f} ms, p99 {p99:.1f}; baseline {their_p50:.1f} and {their_p99:.1f}"
            )
    return found


def _percentiles(values_ms: list[float]) -> list[float]:
    return [percentile(values_ms, percent) for percent in (50, 99)]


async def worker_ways(bench: Bench, queue: Queue, jobs: int, jobs_per_s: float, *, concurrency: int) -> Ways:
    """Enqueue at a steady rate while a `Worker` runs, whose handler does nothing; ends when all acks are durable."""
    ways, worker = Ways(jobs), Worker(queue, concurrency=concurrency)

    @worker.handler(QUEUE)
    async def handle(job: JobContext) -> None:
        ways.claimed_s[_number(job.payload)] = time.perf_counter()

    running = asyncio.create_task(worker.run(signals=False))
    await _enqueue_all(bench, ways, jobs_per_s, lambda number, payload: queue.enqueue(QUEUE, payload))
    async with asyncio.timeout(_TIMEOUT_S):
        await queue.drained((QUEUE,))
    worker.stop()
    await running
    return ways


async def _our_ways(bench: Bench, jobs: int) -> Ways:
    ways = Ways(jobs)

    async def work(queue: Queue) -> None:
        while claims := await queue.claim(QUEUE, wait=None):
            number = _number(claims[0].payload)
            ways.claimed_s[number] = time.perf_counter()
            await queue.ack(claims[0])
            ways.acked_s[number] = time.perf_counter()

    with bench.new_store("latency") as url:
        async with bench.queue(url) as queue:
            pool = [asyncio.create_task(work(queue)) for _ in range(bench.sizes.latency_workers)]
            rate = bench.sizes.latency_jobs_per_s
            await _enqueue_all(bench, ways, rate, lambda number, payload: queue.enqueue(QUEUE, payload))
            await _all_acked(ways)
            await _end(pool)
    return ways


async def _their_ways(bench: Bench, jobs: int) -> Ways:
    ways, workers = Ways(jobs), bench.sizes.latency_workers
    arrived: asyncio.Queue[PendingJob] = asyncio.Queue()

    async def work(baseline: Baseline) -> None:
        while (claim := await baseline.claim(await arrived.get())) is not None:
            id, payload = claim
            number = _number(payload)
            ways.claimed_s[number] = time.perf_counter()
            await baseline.ack(id)
            ways.acked_s[number] = time.perf_counter()

    with bench.new_store("latency") as url:
        async with open_baseline(url, flush_interval_ms=_BASELINE_FLUSH_INTERVAL_MS) as baseline:

            async def enqueue(number: int, payload: bytes) -> None:
                arrived.put_nowait(await baseline.enqueue(payload, number % workers))

            pool = [asyncio.create_task(work(baseline)) for _ in range(workers)]
            await _enqueue_all(bench, ways, bench.sizes.latency_jobs_per_s, enqueue)
            await _all_acked(ways)
            await _end(pool)
    return ways


def _number(payload: bytes) -> int:
    return int.from_bytes(payload[:_NUMBER_BYTES])


async def _enqueue_all(
    bench: Bench, ways: Ways, jobs_per_s: float, enqueue: Callable[[int, bytes], Coroutine[Any, Any, Any]]
) -> None:
    """Enqueue each job when its time has come, whether or not the ones before it are through."""
    padding = bytes(max(0, bench.sizes.payload_bytes - _NUMBER_BYTES))
    gc.collect()
    start_s = time.perf_counter()
    tasks: list[asyncio.Task[Any]] = []
    for number in range(len(ways.enqueued_s)):
        await asyncio.sleep(start_s + number / jobs_per_s - time.perf_counter())
        # The task itself would begin a turn of the event loop later.
        ways.enqueued_s[number] = time.perf_counter()
        tasks.append(asyncio.create_task(enqueue(number, number.to_bytes(_NUMBER_BYTES) + padding)))
    await asyncio.gather(*tasks)


async def _all_acked(ways: Ways) -> None:
    end_s = time.perf_counter() + _TIMEOUT_S
    while not all(ways.acked_s):
        if time.perf_counter() > end_s:
            raise RuntimeError(f"{ways.acked_s.count(0.0)} jobs were not acked within {_TIMEOUT_S} s")
        await asyncio.sleep(_POLL_S)


async def _end(pool: list[asyncio.Task[None]]) -> None:
    for task in pool:
        task.cancel()
    await asyncio.gather(*pool, return_exceptions=True)
