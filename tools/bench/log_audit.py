"""Audit and rebuild with a large backlog: events per second and peak memory, each in a fresh process.

This module is also the program of those processes: `python -m ledgerq.tools.bench.log_audit MODE URL FSYNC JOBS`, JOBS
0 for as many as the commands take. Their memory is all that the process takes, interpreter and libraries included, with
the largest of those that it started.
"""

import asyncio
import gc
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Final

from ledgerq.eventlog import keys
from ledgerq.eventlog.clock import SystemClock
from ledgerq.eventlog.runtime.heap import give_back_large_blocks
from ledgerq.eventlog.slate.options import StoreOptions
from ledgerq.eventlog.store import Store
from ledgerq.eventlog.stores import open_reader, open_store
from ledgerq.projections.audit import audit
from ledgerq.projections.index_keys import INDEX_PREFIX
from ledgerq.projections.rebuild import rebuild
from ledgerq.tools.bench.children import answer, peak_mb, run_child
from ledgerq.tools.bench.loads import drain_in_bulk, fill
from ledgerq.tools.bench.measurement import Bench, Measurement, Target

__all__ = ["measure_audit"]

_PROGRAM: Final = "ledgerq.tools.bench.log_audit"
_TARGETS: Final = {"audit": 300_000, "rebuild": 200_000}


async def measure_audit(bench: Bench) -> list[Measurement]:
    """Measure an audit, and a rebuild after all indexes were removed, each by one process and by one for each core."""
    jobs, done = bench.sizes.open_jobs, bench.sizes.audit_done_jobs
    what = f"{jobs + 3 * done:,} events, {jobs:,} pending jobs"
    found = {name: _measurements(name, what) for name in ("audit-one", "audit", "rebuild-one", "rebuild")}
    with bench.new_store("audit") as url:
        bench.say(f"audit: writing {what}")
        async with bench.queue(url) as queue:
            await fill(bench, queue, done)
            await drain_in_bulk(bench, queue)
            await fill(bench, queue, jobs)
        for _ in bench.turns():
            for name, (speed, memory) in found.items():
                mode, _, one = name.partition("-")
                if mode == "rebuild":
                    async with _opened(url, StoreOptions(fsync=bench.fsync)) as store:
                        await _remove_indexes(store)
                child = await run_child(_PROGRAM, mode, url, str(int(bench.fsync)), "1" if one else "0")
                speed.runs.append(child["events_per_s"])
                memory.runs.append(child["peak_mb"])
                bench.say(f"{name}: {child['events_per_s']:,.0f} events/s, {child['peak_mb']:,.0f} MB")
    return [one for pair in found.values() for one in pair]


def _measurements(name: str, what: str) -> tuple[Measurement, Measurement]:
    mode, _, one = name.partition("-")
    title = f"{mode}{' without indexes' if mode == 'rebuild' else ''}, {'one process' if one else 'a process a core'}"
    target = None if one else Target("value", at_least=_TARGETS[mode])
    return (
        Measurement(name, f"{title}: {what}", "events/s", target=target),
        Measurement(f"{name}-memory", "the same, peak memory", "MB", "lower", Target("value", at_most=400)),
    )


async def _timed(work: Callable[[], Awaitable[int]]) -> dict[str, float]:
    gc.collect()
    start_s = time.perf_counter()
    events = await work()
    return {"events_per_s": events / (time.perf_counter() - start_s), "peak_mb": peak_mb()}


async def _audit(url: str, jobs: int | None) -> dict[str, float]:
    store = await open_reader(url, pinned=True)

    async def work() -> int:
        report = await audit(store, clock=SystemClock(), jobs=jobs)
        if not report.clean:
            raise RuntimeError(f"the audit found {report.difference_count} differences in a store that was not changed")
        return report.verified.events

    try:
        return await _timed(work)
    finally:
        await store.close()


async def _rebuild(url: str, options: StoreOptions, jobs: int | None) -> dict[str, float]:
    async with _opened(url, options) as store:

        async def work() -> int:
            report = await rebuild(store, clock=SystemClock(), actor="bench", reason="measured", jobs=jobs)
            if not report.changed:
                raise RuntimeError("the rebuild found nothing to do in a store without indexes")
            return report.verified.events

        return await _timed(work)


@asynccontextmanager
async def _opened(url: str, options: StoreOptions) -> AsyncIterator[Store]:
    store = await open_store(url, clock=SystemClock(), options=options, create=False)
    try:
        yield store
    finally:
        await store.close()


async def _remove_indexes(store: Store) -> None:
    anchor = await store.read_anchor()
    async for rows in store.scan(INDEX_PREFIX, keys.after_prefix(INDEX_PREFIX)):
        batch = store.batch()
        for key, _ in rows:
            batch.delete(key)
        await store.write(batch)
    if anchor is not None:
        await store.sync(anchor)


def _main(mode: str, url: str, fsync: str, jobs: str) -> None:
    give_back_large_blocks()  # as the commands do
    options, processes = StoreOptions(fsync=fsync == "1"), int(jobs) or None
    answer(asyncio.run(_audit(url, processes) if mode == "audit" else _rebuild(url, options, processes)))


if __name__ == "__main__":
    _main(*sys.argv[1:])
