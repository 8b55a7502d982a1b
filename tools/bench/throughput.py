"""Throughput: enqueueing, claiming with acking, and a worker, by many callers and in bulk, beside the baseline.

Ours and the baseline take turns within each run, so that other load on the machine affects both.
"""

import gc
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial

from ledgerq.eventlog.locations import parse_location
from ledgerq.tools.bench import loads
from ledgerq.tools.bench.baseline import Baseline, open_baseline
from ledgerq.tools.bench.measurement import Bench, Measurement, Target
from ledgerq.worker.queue import Queue

__all__ = [
    "Load",
    "choose_flush_interval",
    "claim_load",
    "enqueue_load",
    "measure_bulk",
    "measure_claim",
    "measure_enqueue",
    "measure_load",
    "measure_worker",
    "worker_load",
]

FLUSH_INTERVALS_MS = (1, 2, 5, 10, 20, 50)
_ONE_BY_ONE = "one SlateDB transaction per transition, by as many callers"
_IN_BULK = "one SlateDB write batch per call"


@dataclass(frozen=True, slots=True)
class Load:
    """A load that is measured by itself: `work` on a queue that holds `jobs` jobs if it is `filled`, else none."""

    name: str
    title: str
    callers: int
    jobs: int
    baseline_jobs: int
    filled: bool
    work: Callable[[Bench, Queue, int, int], Awaitable[int]]
    baseline_work: Callable[[Bench, Baseline, int, int], Awaitable[int]]
    target: Target | None = None


async def choose_flush_interval(bench: Bench) -> dict[str, float]:
    """Find the flush interval with which the baseline gets most done, and keep it in `bench`; returns what was tried.

    Each try counts jobs enqueued, claimed and acked, per second.
    """
    jobs, callers, tried = bench.sizes.probe_jobs, bench.sizes.callers, dict[str, float]()
    for interval_ms in FLUSH_INTERVALS_MS:
        with bench.new_store("probe") as url:
            async with open_baseline(url, flush_interval_ms=interval_ms) as baseline:
                start_s = time.perf_counter()
                await loads.baseline_enqueue(bench, baseline, callers, jobs)
                await loads.baseline_drain(bench, baseline, callers, jobs)
                tried[str(interval_ms)] = jobs / (time.perf_counter() - start_s)
    bench.flush_interval_ms = int(max(tried, key=tried.__getitem__))
    bench.say(f"baseline: best with a flush interval of {bench.flush_interval_ms} ms")
    return tried


def enqueue_load(bench: Bench, callers: int, target: Target | None = None) -> Load:
    """Enqueues, each awaited."""
    return Load(
        name="enqueue",
        title=f"enqueue, one by one, {callers} producers",
        callers=callers,
        jobs=bench.sizes.jobs,
        baseline_jobs=bench.sizes.baseline_jobs,
        filled=False,
        work=loads.enqueue,
        baseline_work=loads.baseline_enqueue,
        target=target,
    )


def claim_load(bench: Bench, callers: int, target: Target | None = None) -> Load:
    """Jobs claimed and acked one by one, from a backlog."""
    return Load(
        name="claim",
        title=f"claim and ack, one by one, {callers} workers",
        callers=callers,
        jobs=bench.sizes.jobs,
        baseline_jobs=bench.sizes.baseline_jobs,
        filled=True,
        work=loads.drain,
        baseline_work=loads.baseline_drain,
        target=target,
    )


def worker_load(bench: Bench, target: Target | None = None) -> Load:
    """Jobs handled by a `Worker`; the baseline claims and acks, with as many callers."""
    callers = bench.sizes.callers
    return Load(
        name="worker",
        title=f"Worker(concurrency={callers}), a handler that does nothing",
        callers=callers,
        jobs=bench.sizes.jobs,
        baseline_jobs=bench.sizes.baseline_jobs,
        filled=True,
        work=loads.drain_by_worker,
        baseline_work=loads.baseline_drain,
        target=target,
    )


async def measure_enqueue(bench: Bench) -> list[Measurement]:
    """Measure enqueues per second."""
    few, many = bench.sizes.callers, bench.sizes.many_callers
    target = Target("ratio", at_least=10)
    found = await measure_load(bench, enqueue_load(bench, few, target), also_without_fsync=True)
    return found + await measure_load(bench, enqueue_load(bench, many), suffix=f"-{many}")


async def measure_claim(bench: Bench) -> list[Measurement]:
    """Measure jobs claimed and acked per second."""
    few, many = bench.sizes.callers, bench.sizes.many_callers
    target = Target("ratio", at_least=8)
    found = await measure_load(bench, claim_load(bench, few, target), also_without_fsync=True)
    return found + await measure_load(bench, claim_load(bench, many), suffix=f"-{many}")


async def measure_worker(bench: Bench) -> list[Measurement]:
    """Measure jobs handled per second."""
    return await measure_load(bench, worker_load(bench, Target("ratio", at_least=8)), also_without_fsync=True)


async def measure_load(
    bench: Bench, load: Load, *, suffix: str = "", also_without_fsync: bool = False
) -> list[Measurement]:
    """Measure a load; on a file store also without fsync, as the baseline is: only that compares the same promise."""
    name = load.name + suffix
    found = [Measurement(name, load.title, "jobs/s", target=load.target, baseline_is=_ONE_BY_ONE)]
    if also_without_fsync and bench.fsync and parse_location(bench.root).is_file:
        title = f"{load.title}, without fsync"
        found.append(Measurement(f"{name}-no-fsync", title, "jobs/s", target=load.target, baseline_is=_ONE_BY_ONE))
    for _ in bench.turns():
        for one in found:
            async with _ours(bench, fsync=bench.fsync and one is found[0]) as queue:
                if load.filled:
                    await loads.fill(bench, queue, load.jobs)
                one.runs.append(await _rate(load.jobs, partial(_counted, bench, one, load, queue)))
        async with _theirs(bench) as baseline:
            if load.filled:
                await loads.baseline_fill(bench, baseline, load.baseline_jobs)
            work = partial(load.baseline_work, bench, baseline, load.callers, load.baseline_jobs)
            rate = await _rate(load.baseline_jobs, work)
        for one in found:
            one.baseline.append(rate)
            _tell(bench, one)
    return found


async def _counted(bench: Bench, found: Measurement, load: Load, queue: Queue) -> int:
    """Do the work; on an object store the requests are counted that it took."""
    puts = await bench.count_puts() if bench.count_puts is not None else 0
    done = await load.work(bench, queue, load.callers, load.jobs)
    if bench.count_puts is not None:
        found.details.setdefault("puts_per_job", []).append((await bench.count_puts() - puts) / load.jobs)
    return done


async def measure_bulk(bench: Bench) -> list[Measurement]:
    """Measure both in bulk: `enqueue_many`, then `claim(limit=...)` with `ack_many`."""
    sizes = bench.sizes
    each = f"{sizes.jobs_per_call:,} a call"
    enqueued = Measurement("bulk-enqueue", f"enqueue in bulk, {each}", "jobs/s", baseline_is=_IN_BULK)
    claimed = Measurement("bulk-claim", f"claim and ack in bulk, {each}", "jobs/s", baseline_is=_IN_BULK)
    jobs, baseline_jobs = (calls * sizes.jobs_per_call for calls in (sizes.bulk_calls, sizes.baseline_bulk_calls))
    for _ in bench.turns():
        async with _ours(bench, fsync=bench.fsync) as queue:
            enqueued.runs.append(await _rate(jobs, partial(loads.fill, bench, queue, jobs)))
            claimed.runs.append(await _rate(jobs, partial(loads.drain_in_bulk, bench, queue)))
        async with _theirs(bench) as baseline:
            work = partial(loads.baseline_fill, bench, baseline, baseline_jobs)
            enqueued.baseline.append(await _rate(baseline_jobs, work))
            work = partial(loads.baseline_drain_in_bulk, bench, baseline)
            claimed.baseline.append(await _rate(baseline_jobs, work))
        _tell(bench, enqueued)
        _tell(bench, claimed)
    return [enqueued, claimed]


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
