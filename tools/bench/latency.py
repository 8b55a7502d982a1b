"""Latency: of a job through a queue at a steady rate, and of a claim while a large backlog is drained."""

import asyncio
import gc
import time
from typing import Final

from ledgerq.tools.bench.baseline import Baseline, PendingJob, open_baseline
from ledgerq.tools.bench.measurement import QUEUE, Bench, Measurement, Target, percentile
from ledgerq.tools.bench.throughput import fill
from ledgerq.worker.queue import Queue

__all__ = ["measure_drain", "measure_latency"]

# The baseline's latency is mostly waiting for flushes, so here it gets the shortest interval instead of the one that is
# best for throughput.
_BASELINE_FLUSH_INTERVAL_MS: Final = 1
_ACK_TIMEOUT_S: Final = 60.0
_DECILES: Final = 10
_MAX_FLAT_RATIO: Final = 1.5


class _Ways:
    """The times at which each job was enqueued (the call), claimed and acked (the returns), recorded by the workers."""

    def __init__(self, jobs: int) -> None:
        self.enqueued_s = [0.0] * jobs
        self.claimed_s = [0.0] * jobs
        self.acked_s = [0.0] * jobs

    def ms(self, until: list[float]) -> list[float]:
        return [(end_s - start_s) * 1000 for start_s, end_s in zip(self.enqueued_s, until, strict=True)]


async def measure_latency(bench: Bench) -> list[Measurement]:
    """Percentiles at a steady rate: from the call of `enqueue` to the return of `claim`, and to the return of `ack`."""
    sizes = bench.sizes
    rate = f"{sizes.latency_jobs_per_s} jobs/s"
    found = [
        Measurement(
            f"latency-{what}-p{percent}",
            f"enqueue to {what}, {rate}, p{percent}",
            "ms",
            better="lower",
            baseline_is=f"three SlateDB transactions, flush interval {_BASELINE_FLUSH_INTERVAL_MS} ms",
        )
        for what in ("claimed", "acked")
        for percent in (50, 99)
    ]
    for _ in range(bench.runs):
        ours, theirs = await _our_ways(bench), await _their_ways(bench)
        for numbers, ways in ((0, ours), (1, theirs)):
            claimed, acked = ways.ms(ways.claimed_s), ways.ms(ways.acked_s)
            values = [percentile(some, percent) for some in (claimed, acked) for percent in (50, 99)]
            for measurement, value in zip(found, values, strict=True):
                (measurement.baseline if numbers else measurement.runs).append(value)
        p50, p99, their_p50, their_p99 = (
            found[2].runs[-1],
            found[3].runs[-1],
            found[2].baseline[-1],
            found[3].baseline[-1],
        )
        bench.say(f"latency: acked after p50 {p50:.1f} ms, p99 {p99:.1f}; baseline {their_p50:.1f} and {their_p99:.1f}")
    return found


def _job_count(bench: Bench) -> int:
    return round(bench.sizes.latency_s * bench.sizes.latency_jobs_per_s)


async def _our_ways(bench: Bench) -> _Ways:
    jobs, workers = _job_count(bench), bench.sizes.latency_workers
    ways = _Ways(jobs)
    padding = bytes(max(0, bench.sizes.payload_bytes - 8))

    async def work(queue: Queue) -> None:
        while claims := await queue.claim(QUEUE, wait=None):
            number = int.from_bytes(claims[0].payload[:8])
            ways.claimed_s[number] = time.perf_counter()
            await queue.ack(claims[0])
            ways.acked_s[number] = time.perf_counter()

    async def enqueue(queue: Queue, number: int) -> None:
        ways.enqueued_s[number] = time.perf_counter()
        await queue.enqueue(QUEUE, number.to_bytes(8) + padding)

    with bench.new_store("latency") as url:
        async with bench.queue(url) as queue:
            pool = [asyncio.create_task(work(queue)) for _ in range(workers)]
            await _at_a_steady_rate(bench, [enqueue(queue, number) for number in range(jobs)])
            await _all_acked(ways)
            await _end(pool)
    return ways


async def _their_ways(bench: Bench) -> _Ways:
    jobs, workers = _job_count(bench), bench.sizes.latency_workers
    ways = _Ways(jobs)
    padding = bytes(max(0, bench.sizes.payload_bytes - 8))
    arrived: asyncio.Queue[PendingJob] = asyncio.Queue()

    async def work(baseline: Baseline) -> None:
        while (claim := await baseline.claim(await arrived.get())) is not None:
            id, payload = claim
            number = int.from_bytes(payload[:8])
            ways.claimed_s[number] = time.perf_counter()
            await baseline.ack(id)
            ways.acked_s[number] = time.perf_counter()

    async def enqueue(baseline: Baseline, number: int) -> None:
        ways.enqueued_s[number] = time.perf_counter()
        arrived.put_nowait(await baseline.enqueue(number.to_bytes(8) + padding, number % workers))

    with bench.new_store("latency") as url:
        async with open_baseline(url, flush_interval_ms=_BASELINE_FLUSH_INTERVAL_MS) as baseline:
            pool = [asyncio.create_task(work(baseline)) for _ in range(workers)]
            await _at_a_steady_rate(bench, [enqueue(baseline, number) for number in range(jobs)])
            await _all_acked(ways)
            await _end(pool)
    return ways


async def _at_a_steady_rate(bench: Bench, calls: list["asyncio._CoroutineLike[None]"]) -> None:
    """Start each call when its time has come, whether or not the ones before it are through."""
    gc.collect()
    step_s, start_s = 1 / bench.sizes.latency_jobs_per_s, time.perf_counter()
    tasks: list[asyncio.Task[None]] = []
    for number, call in enumerate(calls):
        await asyncio.sleep(start_s + number * step_s - time.perf_counter())
        tasks.append(asyncio.create_task(call))
    await asyncio.gather(*tasks)


async def _all_acked(ways: _Ways) -> None:
    end_s = time.perf_counter() + _ACK_TIMEOUT_S
    while not all(ways.acked_s):
        if time.perf_counter() > end_s:
            raise RuntimeError(f"{ways.acked_s.count(0.0)} jobs were not acked within {_ACK_TIMEOUT_S} s")
        await asyncio.sleep(0.01)


async def _end(pool: list[asyncio.Task[None]]) -> None:
    for task in pool:
        task.cancel()
    await asyncio.gather(*pool, return_exceptions=True)


async def measure_drain(bench: Bench) -> list[Measurement]:
    """Latency of `claim()` by tenths of a drain: flat when what was claimed before costs later claims nothing."""
    sizes = bench.sizes
    found = Measurement(
        "drain-flatness",
        f"claim latency while {sizes.drain_jobs:,} jobs are drained: median of the last tenth / of the first",
        "times",
        better="lower",
        target=Target("value", at_most=_MAX_FLAT_RATIO),
    )
    found.details["claim_ms_by_tenth"] = []
    for _ in range(bench.runs):
        with bench.new_store("drain") as url:
            async with bench.queue(url) as queue:
                await fill(bench, queue, sizes.drain_jobs)
                latencies_ms = await _claim_latencies(queue, sizes.callers)
        step = len(latencies_ms) // _DECILES
        tenths = [latencies_ms[at * step : (at + 1) * step] for at in range(_DECILES)]
        medians = [percentile(tenth, 50) for tenth in tenths]
        found.runs.append(medians[-1] / medians[0])
        found.details["claim_ms_by_tenth"].append(
            [{"p50": p50, "p99": percentile(tenth, 99)} for p50, tenth in zip(medians, tenths, strict=True)]
        )
        shown = ", ".join(f"{p50:.1f}" for p50 in medians)
        bench.say(f"drain: claim p50 in ms by tenths: {shown}")
    return [found]


async def _claim_latencies(queue: Queue, workers: int) -> list[float]:
    """The latencies in the order in which the claims returned."""
    latencies_ms: list[float] = []

    async def work() -> None:
        while True:
            start_s = time.perf_counter()
            claims = await queue.claim(QUEUE)
            if not claims:
                return
            latencies_ms.append((time.perf_counter() - start_s) * 1000)
            await queue.ack(claims[0])

    gc.collect()
    await asyncio.gather(*[work() for _ in range(workers)])
    return latencies_ms
