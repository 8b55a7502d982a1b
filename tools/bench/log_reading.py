"""Reading the log: replay and verify, in events per second. A store without a log has neither, so there's no baseline.

Audit and rebuild are in log_audit.py.
"""

import gc
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final

from ledgerq.eventlog.clock import SystemClock
from ledgerq.eventlog.log import LogReader
from ledgerq.eventlog.stores import open_reader
from ledgerq.projections.replay import fold_to
from ledgerq.tools.bench.loads import drain_in_bulk, fill
from ledgerq.tools.bench.measurement import Bench, Measurement, Target

__all__ = ["measure_replay"]

_EVENTS_PER_JOB: Final = 3


async def measure_replay(bench: Bench) -> list[Measurement]:
    """Measure replay and verify on the log of jobs enqueued, claimed and acked in bulk."""
    decoded = Measurement("replay", "replay: read and decode", "events/s", target=Target("value", at_least=500_000))
    folded = Measurement("fold", "replay: decode and fold", "events/s", target=Target("value", at_least=200_000))
    verified = Measurement("verify", "verify the hash chain", "events/s")
    found = [decoded, folded, verified]
    with bench.new_store("replay") as url:
        bench.say(f"replay: writing a log of {_EVENTS_PER_JOB * bench.sizes.log_jobs:,} events")
        async with bench.queue(url) as queue:
            await fill(bench, queue, bench.sizes.log_jobs)
            await drain_in_bulk(bench, queue)
        for _ in bench.turns():
            await _read_only(url, decoded, _decode)
            await _read_only(url, folded, _fold)
            await _read_only(url, verified, _verify)
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
