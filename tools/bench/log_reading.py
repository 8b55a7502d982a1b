"""Reading the log: replay, verify, audit and rebuild, in events per second, without a baseline.

A store without a log has none of them.
"""

import gc
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Final

from ledgerq.eventlog import keys
from ledgerq.eventlog.clock import SystemClock
from ledgerq.eventlog.log import LogReader
from ledgerq.eventlog.store import Store
from ledgerq.eventlog.stores import open_reader, open_store
from ledgerq.projections.audit import audit
from ledgerq.projections.indexes import INDEX_PREFIX
from ledgerq.projections.rebuild import rebuild
from ledgerq.projections.replay import fold_to
from ledgerq.tools.bench.measurement import Bench, Measurement, Target
from ledgerq.tools.bench.throughput import drain_in_bulk, fill

__all__ = ["measure_replay"]

_EVENTS_PER_JOB: Final = 3


async def measure_replay(bench: Bench) -> list[Measurement]:
    """Measure replay, verify, audit and rebuild on the log of jobs enqueued, claimed and acked in bulk."""
    decoded = Measurement("replay", "replay: read and decode", "events/s", target=Target("value", at_least=500_000))
    folded = Measurement("fold", "replay: decode and fold", "events/s", target=Target("value", at_least=200_000))
    verified = Measurement("verify", "verify the hash chain", "events/s")
    audited = Measurement("audit", "audit: verify, fold, compare every index row", "events/s")
    rebuilt = Measurement("rebuild", "rebuild after all indexes were removed", "events/s")
    found = [decoded, folded, verified, audited, rebuilt]
    with bench.new_store("replay") as url:
        bench.say(f"replay: writing a log of {_EVENTS_PER_JOB * bench.sizes.log_jobs:,} events")
        async with bench.queue(url) as queue:
            await fill(bench, queue, bench.sizes.log_jobs)
            await drain_in_bulk(bench, queue)
        for _ in range(bench.runs):
            await _read_only(url, decoded, _decode)
            await _read_only(url, folded, _fold)
            await _read_only(url, verified, _verify)
            await _read_only(url, audited, _audit)
            async with _opened(url, bench) as store:
                await _remove_indexes(store)
                await _time(rebuilt, partial(_rebuild, store))
            bench.say("replay: " + ", ".join(f"{one.name} {one.runs[-1]:,.0f}" for one in found) + " events/s")
    return found


async def _read_only(url: str, found: Measurement, work: Callable[[LogReader], Awaitable[int]]) -> None:
    """Time `work` on a reader that has read nothing yet, as every tool starts."""
    store = await open_reader(url, pinned=True)
    try:
        log = LogReader(store, clock=SystemClock())
        await _time(found, partial(work, log))
    finally:
        await store.close()


async def _time(found: Measurement, work: Callable[[], Awaitable[int]]) -> None:
    gc.collect()
    start_s = time.perf_counter()
    events = await work()
    found.runs.append(events / (time.perf_counter() - start_s))
    found.details["events"] = events


async def _decode(log: LogReader) -> int:
    events = 0
    async for batch in log.batches():
        events += len(batch.events)
    return events


async def _fold(log: LogReader) -> int:
    return (await fold_to(log)).next_offset


async def _verify(log: LogReader) -> int:
    return (await log.verify()).events


async def _audit(log: LogReader) -> int:
    report = await audit(log.store, clock=log.clock)
    if not report.clean:
        raise RuntimeError(f"the audit found {report.difference_count} differences in a store that was not changed")
    return report.verified.events


async def _rebuild(store: Store) -> int:
    report = await rebuild(store, clock=SystemClock(), actor="bench", reason="measured")
    if not report.changed:
        raise RuntimeError("the rebuild found nothing to do in a store without indexes")
    return report.verified.events


@asynccontextmanager
async def _opened(url: str, bench: Bench) -> AsyncIterator[Store]:
    store = await open_store(url, clock=SystemClock(), options=bench.store_options, create=False)
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
