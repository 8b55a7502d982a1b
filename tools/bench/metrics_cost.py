"""The cost of metrics: the same load with and without them, in turns, as CPU time of the process for each job.

    python -m ledgerq.tools.bench.metrics_cost --against OTHER_TREE

runs each load in two processes after each other: one with this package, whose collectors are scraped every second, and
one without. Without means the package in OTHER_TREE, a checkout of a version that measured nothing; if none is given,
this package when it is not scraped. CPU time is what counts: other work on the machine makes everything take longer,
but hardly cost more. The pair's ratio is taken each time, and the median of all ratios is the answer.
"""

import argparse
import asyncio
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

__all__ = ["main"]

# A child of another tree runs this very file, so nothing of ledgerq may be imported at its top.
_LOADS = ("enqueue", "claim", "worker")
_CALLERS = 100
_SCRAPE_EVERY_S = 1.0


def main() -> None:
    """Run with the command line's arguments and print the result as JSON."""
    parser = argparse.ArgumentParser(
        prog="python -m ledgerq.tools.bench.metrics_cost", description=(__doc__ or "").strip()
    )
    parser.add_argument("--against", type=Path, help="a checkout without metrics (default: this one, unscraped)")
    parser.add_argument("--pairs", type=int, default=15, help="how often each load is run in both ways (default 15)")
    parser.add_argument("--jobs", type=int, default=20_000, help="jobs for each load (default 20000)")
    parser.add_argument("--store", choices=("file", "memory"), default="file", help="where (default file, with fsync)")
    parser.add_argument("--child", choices=("on", "off"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child is not None:
        print(json.dumps(asyncio.run(_child(given.child == "on", given.jobs, given.store))))
        return
    print(json.dumps(_compare(given.against, given.pairs, given.jobs, given.store), indent=1))


def _compare(against: Path | None, pairs: int, jobs: int, store: str) -> dict[str, Any]:
    here = Path(__file__).resolve().parents[2]
    trees = {"on": here, "off": (against or here).resolve()}
    runs: list[dict[str, dict[str, dict[str, float]]]] = []
    for number in range(pairs):
        order = ("on", "off") if number % 2 else ("off", "on")
        runs.append({side: _run(side, trees[side], jobs, store) for side in order})
        print(f"pair {number + 1} of {pairs}", file=sys.stderr)
    found: dict[str, Any] = {"pairs": pairs, "jobs": jobs, "store": store, "against": str(against or "unscraped")}
    for load in _LOADS:
        for what in ("cpu_us_per_job", "wall_us_per_job"):
            ratios = sorted(run["on"][load][what] / run["off"][load][what] for run in runs)
            found[f"{load} {what}"] = {
                "off": round(statistics.median(run["off"][load][what] for run in runs), 2),
                "on": round(statistics.median(run["on"][load][what] for run in runs), 2),
                "cost_percent": round(100 * (statistics.median(ratios) - 1), 2),
                "quartiles_percent": [round(100 * (ratios[len(ratios) * q // 4] - 1), 2) for q in (1, 3)],
            }
    found["scrape_ms"] = round(statistics.median(run["on"]["scrape"]["ms"] for run in runs), 2)
    return found


def _run(side: str, tree: Path, jobs: int, store: str) -> dict[str, dict[str, float]]:
    command = [sys.executable, __file__, "--child", side, "--jobs", str(jobs), "--store", store]
    done = subprocess.run(  # noqa: S603 - this file, by this interpreter
        command, env=os.environ | {"PYTHONPATH": str(tree)}, cwd=tree, check=True, stdout=subprocess.PIPE
    )
    found: dict[str, dict[str, float]] = json.loads(done.stdout)
    return found


async def _child(is_on: bool, jobs: int, store: str) -> dict[str, dict[str, float]]:
    from ledgerq.worker.queue import Queue

    with tempfile.TemporaryDirectory(prefix="ledgerq-bench-") as folder:
        async with Queue.open("memory:///" if store == "memory" else folder) as queue:
            await _enqueue(queue, "warm", 500)
            await _claim(queue, "warm")
            found: dict[str, dict[str, float]] = {}
            loads: dict[str, Callable[[], Awaitable[Any]]] = {
                "enqueue": lambda: _enqueue(queue, "mail", jobs),
                "claim": lambda: _claim(queue, "mail"),
                "worker": lambda: _worker(queue),
            }
            for load, work in loads.items():
                if load == "worker":
                    await _enqueue(queue, "work", jobs)
                async with _scraped(queue, is_on):
                    wall_s, cpu_s = time.perf_counter(), time.process_time()
                    await work()
                    cpu_s, wall_s = time.process_time() - cpu_s, time.perf_counter() - wall_s
                found[load] = {"cpu_us_per_job": cpu_s / jobs * 1e6, "wall_us_per_job": wall_s / jobs * 1e6}
            if is_on:
                found["scrape"] = {"ms": await _scrape_ms(queue)}
            return found


@contextlib.asynccontextmanager
async def _scraped(queue: Any, is_on: bool) -> Any:
    """While the block runs its metrics are read every second: many times as often as a Prometheus would."""
    if not is_on:
        yield
        return

    async def scrape() -> None:
        while True:
            await asyncio.sleep(_SCRAPE_EVERY_S)
            await _scrape_ms(queue)

    task = asyncio.create_task(scrape())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _scrape_ms(queue: Any) -> float:
    """The time for which a rendered scrape keeps the event loop, without the inspection of the store before it."""
    from prometheus_client import CollectorRegistry, generate_latest

    if not hasattr(queue, "_bench_registry"):
        queue._bench_collector = queue.collector()
        queue._bench_registry = CollectorRegistry()
        queue._bench_registry.register(queue._bench_collector)
    await queue._bench_collector.refresh()
    begun_s = time.perf_counter()
    generate_latest(queue._bench_registry)
    return (time.perf_counter() - begun_s) * 1000


async def _enqueue(queue: Any, name: str, jobs: int) -> None:
    async def produce() -> None:
        for _ in range(jobs // _CALLERS):
            await queue.enqueue(name, b"x" * 100)

    await asyncio.gather(*(produce() for _ in range(_CALLERS)))


async def _claim(queue: Any, name: str) -> None:
    async def work() -> None:
        while claims := await queue.claim(name):
            await queue.ack(claims[0])

    await asyncio.gather(*(work() for _ in range(_CALLERS)))


async def _worker(queue: Any) -> None:
    from ledgerq.worker.worker import Worker

    worker = Worker(queue, concurrency=_CALLERS)

    @worker.handler("work")
    async def handle(job: Any) -> None: ...

    await worker.run(until_empty=True, signals=False)


if __name__ == "__main__":
    main()
