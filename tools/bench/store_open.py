"""Opening a store with a large backlog: time and memory, each in a fresh process, beside SlateDB's own open.

This module is also the program of those processes: `python -m ledgerq.tools.bench.store_open MODE URL FSYNC`.
"""

import asyncio
import sys
import time
from typing import Any, Final

from slatedb.uniffi import DbBuilder, ObjectStore

from ledgerq.eventlog.locations import parse_location
from ledgerq.eventlog.slate.options import StoreOptions
from ledgerq.tools.bench.children import answer, peak_mb, run_child
from ledgerq.tools.bench.loads import fill
from ledgerq.tools.bench.measurement import QUEUE, Bench, Measurement, Target
from ledgerq.worker.queue import Queue

__all__ = ["measure_open"]

_PROGRAM: Final = "ledgerq.tools.bench.store_open"
_OWN_OPEN: Final = "SlateDB's own open of the same store with the same settings"


async def measure_open(bench: Bench) -> list[Measurement]:
    """Measure Queue.open and a first claim, with all jobs pending."""
    jobs = f"{bench.sizes.open_jobs:,} pending jobs"
    whole = Measurement("open", f"open with {jobs}, first claim", "s", better="lower", baseline_is=_OWN_OPEN)
    beyond = Measurement("open-beyond", "the same, beyond SlateDB's own open", "s", "lower", Target("value", at_most=2))
    memory = Measurement(
        "open-memory",
        "the same, peak memory above a process that did nothing",
        "MB",
        "lower",
        Target("value", at_most=150),
        baseline_is=_OWN_OPEN,
    )
    whole.details["parts"] = []
    with bench.new_store("open") as url:
        bench.say(f"open: enqueueing {jobs}")
        async with bench.queue(url) as queue:
            await fill(bench, queue, bench.sizes.open_jobs)
        for _ in bench.turns():
            empty, bare, full = [
                await run_child(_PROGRAM, mode, url, str(int(bench.fsync))) for mode in ("empty", "bare", "queue")
            ]
            whole.runs.append(full["open_s"] + full["claim_s"])
            whole.baseline.append(bare["open_s"])
            beyond.runs.append(whole.runs[-1] - whole.baseline[-1])
            memory.runs.append(full["peak_mb"] - empty["peak_mb"])
            memory.baseline.append(bare["peak_mb"] - empty["peak_mb"])
            whole.details["parts"].append({"empty": empty, "bare": bare, "queue": full})
            bench.say(
                f"open: {full['open_s']:.2f} s and {full['claim_s']:.3f} s for the first claim, SlateDB alone "
                f"{bare['open_s']:.2f} s; {memory.runs[-1]:.0f} MB, SlateDB alone {memory.baseline[-1]:.0f} MB"
            )
    return [whole, beyond, memory]


async def _open_bare(url: str, options: StoreOptions) -> dict[str, float]:
    location = parse_location(url)
    start_s = time.perf_counter()
    builder = DbBuilder(location.database, ObjectStore.resolve(location.root))
    builder.with_settings(options.slate_settings(embedded_gc=not (location.is_file and options.fsync)))
    builder.with_db_cache(options.new_cache(), 0)
    db = await builder.build()
    found = {"open_s": time.perf_counter() - start_s, "peak_mb": peak_mb()}
    await db.shutdown()
    return found


async def _open_queue(url: str, options: StoreOptions) -> dict[str, float]:
    start_s = time.perf_counter()
    async with Queue.open(url, store_options=options) as queue:
        opened_s = time.perf_counter()
        claims = await queue.claim(QUEUE)
        claimed_s = time.perf_counter()
        found = {"open_s": opened_s - start_s, "claim_s": claimed_s - opened_s, "peak_mb": peak_mb()}
        # So that the next process doesn't find a claim that was cut short.
        await queue.ack(claims[0])
    return found


def _main(mode: str, url: str, fsync: str) -> None:
    options = StoreOptions(fsync=fsync == "1")
    found: dict[str, Any]
    if mode == "empty":
        found = {"peak_mb": peak_mb()}
    elif mode == "bare":
        found = asyncio.run(_open_bare(url, options))
    else:
        found = asyncio.run(_open_queue(url, options))
    answer(found)


if __name__ == "__main__":
    _main(*sys.argv[1:])
