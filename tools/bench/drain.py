"""Draining a large backlog: is the last tenth as fast as the first? What was claimed before must cost nothing later."""

import asyncio
import dataclasses
import gc
import time
from itertools import pairwise
from typing import Final

from ledgerq.tools.bench.loads import fill
from ledgerq.tools.bench.measurement import MEMORY, QUEUE, Bench, Measurement, Target
from ledgerq.worker.queue import Queue

__all__ = ["measure_drain"]

_PARTS: Final = 10
_FLAT: Final = Target("value", at_least=0.9)


async def measure_drain(bench: Bench) -> list[Measurement]:
    """Measure claiming and acking one by one, by tenths of the backlog, in memory and where the other stores are."""
    sizes = bench.sizes
    in_memory = dataclasses.replace(bench, root=MEMORY)
    found = await _measure(in_memory, "memory", "memory store", sizes.memory_jobs, Target("value", at_least=20_000))
    return found + await _measure(bench, "drain", "backlog", sizes.drain_jobs, None)


async def _measure(bench: Bench, name: str, what: str, jobs: int, target: Target | None) -> list[Measurement]:
    title = f"{what}, {jobs:,} jobs: claim and ack one by one, {bench.sizes.callers} workers"
    rate = Measurement(name, title, "jobs/s", target=target)
    flat = Measurement(f"{name}-flatness", "the same: rate of the last tenth / of the first", "times", target=_FLAT)
    flat.details["jobs_per_s_by_tenth"] = []
    for _ in bench.turns():
        with bench.new_store(name) as url:
            async with bench.queue(url) as queue:
                await fill(bench, queue, jobs)
                marks_s = await _marks(queue, bench.sizes.callers, jobs)
        rates = [jobs / _PARTS / (end_s - start_s) for start_s, end_s in pairwise(marks_s)]
        rate.runs.append(jobs / (marks_s[-1] - marks_s[0]))
        flat.runs.append(rates[-1] / rates[0])
        flat.details["jobs_per_s_by_tenth"].append(rates)
        shown = ", ".join(f"{one:,.0f}" for one in rates)
        bench.say(f"{name}: {rate.runs[-1]:,.0f} jobs/s; by tenths {shown}")
    return [rate, flat]


async def _marks(queue: Queue, workers: int, jobs: int) -> list[float]:
    """Drain it; returns when it began and when each tenth was acked."""
    gc.collect()
    done, step = 0, jobs // _PARTS
    marks_s = [time.perf_counter()]

    async def work() -> None:
        nonlocal done
        while claims := await queue.claim(QUEUE):
            await queue.ack(claims[0])
            done += 1
            if done % step == 0:
                marks_s.append(time.perf_counter())

    await asyncio.gather(*[work() for _ in range(workers)])
    return marks_s
