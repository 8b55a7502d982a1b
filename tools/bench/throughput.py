"""Throughput: enqueueing, and claiming with acking, one by one by many callers and in bulk, beside the baseline.

Ours and the baseline take turns within each run, so that other load on the machine affects both.
"""

import asyncio
import gc
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial

from ledgerq.eventlog.locations import parse_location
from ledgerq.tools.bench.baseline import Baseline, open_baseline
from ledgerq.tools.bench.measurement import QUEUE, Bench, Measurement, Target
from ledgerq.worker.queue import Queue

__all__ = ["choose_flush_interval", "measure_bulk", "measure_claim", "measure_enqueue"]

FLUSH_INTERVALS_MS = (1, 2, 5, 10, 20, 50)
_ONE_BY_ONE = "one SlateDB transaction per transition, by as many callers"
_IN_BULK = "one SlateDB write batch per call"


async def choose_flush_interval(bench: Bench) -> dict[str, float]:
    """Find the flush interval with which the baseline gets most done, and keep it in `bench`; returns what was tried.

    Each try counts jobs enqueued, claimed and acked, per second.
    """
    jobs, tried = bench.sizes.probe_jobs, dict[str, float]()
    for interval_ms in FLUSH_INTERVALS_MS:
        with bench.new_store("probe") as url:
            async with open_baseline(url, flush_interval_ms=interval_ms) as baseline:
                start_s = time.perf_counter()
                await _baseline_enqueue(bench, baseline, jobs)
                await _baseline_drain(bench, baseline)
                tried[str(interval_ms)] = jobs / (time.perf_counter() - start_s)
    bench.flush_interval_ms = int(max(tried, key=tried.__getitem__))
    bench.say(f"baseline: best with a flush interval of {bench.flush_interval_ms} ms")
    return tried


async def measure_enqueue(bench: Bench) -> list[Measurement]:
    """Measure enqueues per second, each awaited."""
    title = f"enqueue, one by one, {bench.sizes.callers} producers"

    async def ours(queue: Queue) -> float:
        return await _rate(bench.sizes.jobs, partial(_enqueue, bench, queue, bench.sizes.jobs))

    async def theirs(baseline: Baseline) -> float:
        jobs = bench.sizes.baseline_jobs
        return await _rate(jobs, partial(_baseline_enqueue, bench, baseline, jobs))

    return await _one_by_one(bench, "enqueue", title, Target("ratio", at_least=12), ours, theirs)


async def measure_claim(bench: Bench) -> list[Measurement]:
    """Measure jobs per second claimed and acked one by one, from a backlog."""
    title = f"claim and ack, one by one, {bench.sizes.callers} workers"

    async def ours(queue: Queue) -> float:
        await fill(bench, queue, bench.sizes.jobs)
        return await _rate(bench.sizes.jobs, partial(_drain, bench, queue))

    async def theirs(baseline: Baseline) -> float:
        await _baseline_fill(bench, baseline, bench.sizes.baseline_jobs)
        return await _rate(bench.sizes.baseline_jobs, partial(_baseline_drain, bench, baseline))

    return await _one_by_one(bench, "claim", title, Target("ratio", at_least=10), ours, theirs)


async def _one_by_one(
    bench: Bench,
    name: str,
    title: str,
    target: Target,
    ours: Callable[[Queue], Awaitable[float]],
    theirs: Callable[[Baseline], Awaitable[float]],
) -> list[Measurement]:
    """The cases: as asked for, and also without fsync, as the baseline is: only that compares the same promise."""
    found = [Measurement(name, title, "jobs/s", target=target, baseline_is=_ONE_BY_ONE)]
    if bench.fsync and parse_location(bench.root).is_file:
        title = f"{title}, without fsync"
        found.append(Measurement(f"{name}-no-fsync", title, "jobs/s", target=target, baseline_is=_ONE_BY_ONE))
    for _ in range(bench.runs):
        for one in found:
            async with _ours(bench, fsync=bench.fsync and one is found[0]) as queue:
                one.runs.append(await ours(queue))
        async with _theirs(bench) as baseline:
            rate = await theirs(baseline)
        for one in found:
            one.baseline.append(rate)
            _tell(bench, one)
    return found


async def measure_bulk(bench: Bench) -> list[Measurement]:
    """Measure both in bulk: `enqueue_many`, then `claim(limit=...)` with `ack_many`."""
    sizes = bench.sizes
    each = f"{sizes.jobs_per_call} a call"
    enqueued = Measurement("bulk-enqueue", f"enqueue in bulk, {each}", "jobs/s", baseline_is=_IN_BULK)
    claimed = Measurement("bulk-claim", f"claim and ack in bulk, {each}", "jobs/s", baseline_is=_IN_BULK)
    jobs, baseline_jobs = (calls * sizes.jobs_per_call for calls in (sizes.bulk_calls, sizes.baseline_bulk_calls))
    for _ in range(bench.runs):
        async with _ours(bench, fsync=bench.fsync) as queue:
            enqueued.runs.append(await _rate(jobs, partial(fill, bench, queue, jobs)))
            claimed.runs.append(await _rate(jobs, partial(drain_in_bulk, bench, queue)))
        async with _theirs(bench) as baseline:
            enqueued.baseline.append(
                await _rate(baseline_jobs, partial(_baseline_fill, bench, baseline, baseline_jobs))
            )
            claimed.baseline.append(await _rate(baseline_jobs, partial(_baseline_drain_in_bulk, bench, baseline)))
        _tell(bench, enqueued)
        _tell(bench, claimed)
    return [enqueued, claimed]


# ---------------------------------------------------------------------- ours


async def fill(bench: Bench, queue: Queue, jobs: int) -> int:
    """Enqueue `jobs` jobs in bulk."""
    payload, step = bench.payload, bench.sizes.jobs_per_call
    for at in range(0, jobs, step):
        await queue.enqueue_many(QUEUE, [payload] * min(step, jobs - at))
    return jobs


async def drain_in_bulk(bench: Bench, queue: Queue) -> int:
    """Claim and ack everything in bulk."""
    done = 0
    while claims := await queue.claim(QUEUE, limit=bench.sizes.jobs_per_call):
        await queue.ack_many(claims)
        done += len(claims)
    return done


async def _enqueue(bench: Bench, queue: Queue, jobs: int) -> int:
    payload = bench.payload

    async def produce(share: int) -> None:
        for _ in range(share):
            await queue.enqueue(QUEUE, payload)

    await asyncio.gather(*[produce(share) for share in _shares(bench, jobs)])
    return jobs


async def _drain(bench: Bench, queue: Queue) -> int:
    async def work() -> int:
        done = 0
        while claims := await queue.claim(QUEUE):
            await queue.ack(claims[0])
            done += 1
        return done

    return sum(await asyncio.gather(*[work() for _ in range(bench.sizes.callers)]))


# ---------------------------------------------------------------------- theirs


async def _baseline_fill(bench: Bench, baseline: Baseline, jobs: int) -> int:
    payload, step = bench.payload, bench.sizes.jobs_per_call
    for at in range(0, jobs, step):
        await baseline.enqueue_many([payload] * min(step, jobs - at))
    return jobs


async def _baseline_drain_in_bulk(bench: Bench, baseline: Baseline) -> int:
    done = 0
    while claims := await baseline.claim_many(bench.sizes.jobs_per_call):
        await baseline.ack_many(claims)
        done += len(claims)
    return done


async def _baseline_enqueue(bench: Bench, baseline: Baseline, jobs: int) -> int:
    payload = bench.payload

    async def produce(caller: int, share: int) -> None:
        for _ in range(share):
            await baseline.enqueue(payload, caller)

    await asyncio.gather(*[produce(caller, share) for caller, share in enumerate(_shares(bench, jobs))])
    return jobs


async def _baseline_drain(bench: Bench, baseline: Baseline) -> int:
    async def work() -> int:
        done = 0
        while (claim := await baseline.claim()) is not None:
            await baseline.ack(claim[0])
            done += 1
        return done

    return sum(await asyncio.gather(*[work() for _ in range(bench.sizes.callers)]))


# ---------------------------------------------------------------------- both


def _shares(bench: Bench, jobs: int) -> list[int]:
    callers = bench.sizes.callers
    return [(jobs + caller) // callers for caller in range(callers)]


async def _rate(jobs: int, work: Callable[[], Awaitable[int]]) -> float:
    """Jobs per second; garbage of the run before is collected first, so that it costs nothing here."""
    gc.collect()
    start_s = time.perf_counter()
    done = await work()
    seconds = time.perf_counter() - start_s
    if done != jobs:
        raise RuntimeError(f"{done} jobs were worked on instead of {jobs}: the benchmark itself is wrong")
    return jobs / seconds


@asynccontextmanager
async def _ours(bench: Bench, *, fsync: bool) -> AsyncIterator[Queue]:
    with bench.new_store("ledgerq") as url:
        async with bench.queue(url, fsync=fsync) as queue:
            yield queue


@asynccontextmanager
async def _theirs(bench: Bench) -> AsyncIterator[Baseline]:
    with bench.new_store("baseline") as url:
        async with open_baseline(url, flush_interval_ms=bench.flush_interval_ms) as baseline:
            yield baseline


def _tell(bench: Bench, found: Measurement) -> None:
    ours, theirs = found.runs[-1], found.baseline[-1]
    bench.say(f"{found.name}: {ours:,.0f} {found.unit}, baseline {theirs:,.0f}, {found.ratios[-1]:.1f}x")
