"""What measuring costs: CPU time of the main thread for each job, with all that monitors read and with it left out.

    python -m ledgerq.tools.bench.metrics_cost JOBS PAIRS

is one of the processes of this measurement. On a store in memory nothing but the event loop's thread works on a job,
and its CPU time is counted, so neither a disk nor another thread adds to the spread. The same number of jobs is
enqueued, claimed and acked, or handled by a worker, again and again on one queue, in pairs: once as it is, once with
the histograms and meters taken out of the code. Which comes first changes from pair to pair. Where a store works too,
a job costs more and measuring the same, so its share is smaller than here.

A scrape's CPU time is measured by itself and added as if one came each second, fifteen times as often as is usual.
"""

import asyncio
import gc
import math
import statistics
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Final

from prometheus_client import CollectorRegistry, generate_latest

from ledgerq.eventlog.events import Acked, Claimed, Enqueued, JobEvent
from ledgerq.eventlog.runtime.meters import CommitMeters
from ledgerq.projections.job import Job
from ledgerq.projections.stats import QueueCounters, stats_delta
from ledgerq.tools.bench import loads
from ledgerq.tools.bench.children import answer, run_child
from ledgerq.tools.bench.measurement import FULL, MEMORY, QUEUE, Bench, Measurement, Target
from ledgerq.worker import running
from ledgerq.worker.metrics.worker_metrics import WorkerMeters
from ledgerq.worker.queue import Queue

__all__ = ["measure_metrics_cost", "without_measures"]

_PROGRAM: Final = "ledgerq.tools.bench.metrics_cost"
_LOADS: Final = {
    "enqueue": "an enqueue",
    "claim": "a claim and its ack",
    "worker": "a job of a worker",
}
_SCRAPES: Final = 20
_encode_whole: Final = QueueCounters.encode


async def measure_metrics_cost(bench: Bench) -> list[Measurement]:
    """Measure the share of measuring, in per cent; `details` has how far its pairs lie apart."""
    sizes = bench.sizes
    found = {
        load: Measurement(
            f"metrics-{load}",
            f"CPU time of measuring and a scrape each second, of {what}",
            "%",
            better="lower",
            target=Target("value", at_most=3),
        )
        for load, what in _LOADS.items()
    }
    costs: dict[str, list[float]] = {load: [] for load in found}
    for number in range(sizes.cost_processes):
        # The order of sets and dicts of text would else differ, and with it what the same work costs.
        seed = {"PYTHONHASHSEED": str(number)}
        child = await run_child(_PROGRAM, str(sizes.cost_jobs), str(sizes.cost_pairs), environment=seed)
        for load, one in found.items():
            pairs = [100 * (on / off - 1) + 100 * child["scrape_s"] for on, off in child[load]]
            costs[load] += pairs
            one.runs.append(statistics.median(pairs))
            one.details.setdefault("cpu_us_per_job", []).append(
                [statistics.median(side) / sizes.cost_jobs * 1e6 for side in zip(*child[load], strict=True)]
            )
            one.details["scrape_ms"] = child["scrape_s"] * 1000
    for load, one in found.items():
        one.details["quartiles_percent"] = low, middle, high = statistics.quantiles(costs[load], n=4)
        one.details["median_95_percent"] = least, most = _median_interval(costs[load])
        us = statistics.median(on for on, _ in one.details["cpu_us_per_job"])
        bench.say(
            f"{one.name}: {middle:.2f} % of {us:.1f} us (95 % sure between {least:.2f} and {most:.2f}), "
            f"quartiles {low:.2f} and {high:.2f} of {len(costs[load])} pairs; a scrape takes "
            f"{one.details['scrape_ms']:.1f} ms"
        )
    return [*found.values()]


def _median_interval(values: list[float]) -> tuple[float, float]:
    """The interval that holds the true median with 95 % confidence: two values so many ranks off the middle."""
    ordered, off = sorted(values), math.ceil(0.98 * math.sqrt(len(values)))
    middle = len(values) // 2
    return ordered[max(0, middle - off)], ordered[min(len(values) - 1, middle + off)]


# ---------------------------------------------------------------------- what is left out


@contextmanager
def without_measures() -> Iterator[None]:
    """Take out of the code, for the block, what is there only for monitors; the counters stay."""
    with (
        _replaced(QueueCounters, "apply", _count_only),
        _replaced(QueueCounters, "encode", _encode_counts_only),
        _replaced(CommitMeters, "add", _nothing),
        _replaced(WorkerMeters, "ended", _nothing),
        _replaced(running, "stopwatch_s", float),
    ):
        yield


@contextmanager
def _replaced(owner: Any, name: str, value: object) -> Iterator[None]:
    whole = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, whole)


def _nothing(*_: object, **__: object) -> None: ...


def _count_only(self: QueueCounters, before: Job | None, event: JobEvent, after: Job | None) -> None:
    """`QueueCounters.apply` without the histograms, and as fast."""
    kind, now, totals = type(event), self.now, self.totals
    if kind is Enqueued and before is None and after is not None and after.state == "pending":
        now[1] += 1
        totals[0] += 1
    elif kind is Claimed and after is not None:
        now[1] -= 1
        now[2] += 1
        totals[2] += 1
    elif kind is Acked and after is not None:
        now[2] -= 1
        now[3] += 1
        totals[3] += 1
    else:
        self.add(stats_delta(before, event, after))


def _encode_counts_only(self: QueueCounters) -> bytes:
    """The row without the histograms, as the first format had it."""
    return _encode_whole(self, 1)


# ---------------------------------------------------------------------- one process


async def _pairs(jobs: int, pairs: int) -> dict[str, Any]:
    """The CPU seconds of each load, (as it is, without measures), for each pair; and those of a scrape."""
    bench = Bench(MEMORY, FULL, runs=1, fsync=False, commit_interval_ms=None, say=lambda text: None)
    found: dict[str, Any] = {load: [] for load in _LOADS}
    async with bench.queue(MEMORY) as queue:
        await _cpu_s(bench, queue, jobs)  # what is done for the first time costs more
        with without_measures():
            await _cpu_s(bench, queue, jobs)
        for number in range(pairs):
            sides: dict[bool, dict[str, float]] = {}
            for is_whole in (True, False) if number % 2 else (False, True):
                if is_whole:
                    sides[is_whole] = await _cpu_s(bench, queue, jobs)
                else:
                    with without_measures():
                        sides[is_whole] = await _cpu_s(bench, queue, jobs)
            for load in _LOADS:
                found[load].append((sides[True][load], sides[False][load]))
        stats = await queue.stats(QUEUE)
        done = 4 * jobs * (pairs + 1)
        if (stats.totals["acked"], stats.done, stats.pending, stats.claimed) != (done, done, 0, 0):
            raise RuntimeError(f"the counters are wrong ({stats}): what is left out here was more than measures")
        found["scrape_s"] = await _scrape_s(queue)
    return found


async def _cpu_s(bench: Bench, queue: Queue, jobs: int) -> dict[str, float]:
    callers = bench.sizes.callers
    enqueue = partial(loads.enqueue, bench, queue, callers, jobs)
    found = {
        "enqueue": await _timed(enqueue),
        "claim": await _timed(partial(loads.drain, bench, queue, callers, jobs)),
    }
    await enqueue()
    found["worker"] = await _timed(partial(loads.drain_by_worker, bench, queue, callers, jobs))
    return found


async def _timed(work: Callable[[], Awaitable[int]]) -> float:
    """The CPU seconds of this thread. What was made before is left out of garbage collection, which would else grow."""
    gc.collect()
    gc.freeze()
    begun_s = time.thread_time()
    await work()
    return time.thread_time() - begun_s


async def _scrape_s(queue: Queue) -> float:
    """The CPU seconds of an inspection of the store and of a rendered scrape."""
    registry, collector = CollectorRegistry(), queue.collector()
    registry.register(collector)
    taken_s = []
    for _ in range(_SCRAPES):
        begun_s = time.thread_time()
        await collector.refresh()
        generate_latest(registry)
        taken_s.append(time.thread_time() - begun_s)
    return statistics.median(taken_s)


if __name__ == "__main__":
    answer(asyncio.run(_pairs(*map(int, sys.argv[1:]))))
