"""A store in a bucket whose service answers late: throughput, latency, and how many requests that takes.

The service is SeaweedFS on this machine behind a proxy that adds the delay of a network (delay_proxy.py).
"""

import asyncio
import contextlib
import dataclasses
import json
import os
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from typing import Any, Final

from ledgerq.eventlog.locations import parse_location
from ledgerq.eventlog.slate.objects import Objects
from ledgerq.tools.bench.latency import worker_ways
from ledgerq.tools.bench.measurement import Bench, Measurement, Target, percentile
from ledgerq.tools.bench.seaweed import KEY, MISSING, SECRET, find_weed, running_weed
from ledgerq.tools.bench.throughput import (
    choose_flush_interval,
    claim_load,
    enqueue_load,
    measure_load,
    worker_load,
)

__all__ = ["can_measure_s3", "measure_s3", "measure_s3_requests"]

_PROXY: Final = "ledgerq.tools.bench.delay_proxy"
_BUCKET: Final = "s3://bench"
_JOBS_PER_S: Final = (1, 100, 1000)
_HOUR_S: Final = 3600
_LIMIT_S: Final = 10.0


def can_measure_s3() -> str | None:
    """None, or why there can't be a measurement here."""
    return MISSING if find_weed() is None else None


class _Proxy:
    """The running proxy: its URL, and its count of requests."""

    def __init__(self, process: asyncio.subprocess.Process, port: int) -> None:
        self._process = process
        self.endpoint = f"http://127.0.0.1:{port}"

    async def counts(self) -> "Counter[str]":
        """The requests so far, by method and kind."""
        assert self._process.stdin is not None
        self._process.stdin.write(b"\n")
        return Counter(await _line(self._process))

    async def puts(self) -> int:
        """The PUT requests so far."""
        return _puts(await self.counts())


def _puts(counts: "Counter[str]") -> int:
    return sum(count for kind, count in counts.items() if kind.startswith("PUT "))


async def _line(process: asyncio.subprocess.Process) -> Any:
    assert process.stdout is not None
    return json.loads(await process.stdout.readline())


@contextlib.asynccontextmanager
async def _far_bucket(bench: Bench) -> AsyncIterator[tuple[Bench, _Proxy]]:
    """A bucket far away, and the benchmark with its stores there."""
    weed = find_weed()
    if weed is None:
        raise RuntimeError(MISSING)
    with running_weed(weed, makes_buckets=True) as server:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", _PROXY, str(server.port), str(bench.sizes.s3_delay_ms)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        try:
            proxy = _Proxy(process, await _line(process))
            with _environment(proxy.endpoint):
                # The service makes a bucket when something is put into it, and else knows none.
                await Objects(parse_location(f"{_BUCKET}/made"), limit_s=_LIMIT_S).put("made", b"")
                far = dataclasses.replace(bench, root=_BUCKET, count_puts=proxy.puts)
                far.say = lambda text: bench.say(f"s3: {text}")
                yield far, proxy
        finally:
            with contextlib.suppress(ProcessLookupError):  # a signal to all of them has ended it already
                process.kill()
            await process.wait()


@contextlib.contextmanager
def _environment(endpoint: str) -> Iterator[None]:
    """The environment leads to this service, with its own keys, never the user's."""
    before = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    for name in before:
        del os.environ[name]
    ours = {
        "AWS_ACCESS_KEY_ID": KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ALLOW_HTTP": "true",
    }
    os.environ.update(ours)
    try:
        yield
    finally:
        for name in ours:
            del os.environ[name]
        os.environ.update(before)


async def measure_s3(bench: Bench) -> list[Measurement]:
    """Measure enqueues, claims with acks, and a worker; details say how many PUT requests a job took."""
    sizes = bench.sizes
    async with _far_bucket(bench) as (far, _):
        far.sizes = dataclasses.replace(
            sizes, jobs=sizes.s3_jobs, baseline_jobs=sizes.s3_baseline_jobs, probe_jobs=sizes.s3_baseline_jobs // 4
        )
        await choose_flush_interval(far)
        found = await measure_load(far, enqueue_load(far, sizes.callers, Target("value", at_least=4_000)))
        found += await measure_load(far, claim_load(far, sizes.callers, Target("value", at_least=2_000)))
        far.sizes = dataclasses.replace(far.sizes, jobs=sizes.s3_worker_jobs)
        found += await measure_load(far, worker_load(far, Target("value", at_least=10_000)))
    for one in found:
        one.name, one.title = f"s3-{one.name}", f"S3 with {sizes.s3_delay_ms} ms: {one.title}"
        one.details["baseline_flush_interval_ms"] = far.flush_interval_ms
        puts = one.details["puts_per_job"][-1]
        bench.say(f"{one.name}: {puts:.4f} PUT a job")
    return found


async def measure_s3_requests(bench: Bench) -> list[Measurement]:
    """Measure the PUT requests of an hour, from some seconds at a steady rate, and what latency they buy.

    Jobs are enqueued one by one, handled by a `Worker` whose handler does nothing, and acked.
    """
    found: list[Measurement] = []
    async with _far_bucket(bench) as (far, proxy):
        for rate in _JOBS_PER_S:
            what = f"S3 with {bench.sizes.s3_delay_ms} ms, {rate:,} jobs/s"
            puts = Measurement(f"s3-puts-{rate}", f"{what}: PUT requests", "an hour", "lower")
            p50, p99 = (
                Measurement(f"s3-latency-{rate}-p{percent}", f"{what}: enqueue to handler, p{percent}", "ms", "lower")
                for percent in (50, 99)
            )
            with far.new_store("paced") as url:
                async with far.queue(url) as queue:
                    await _paced(far, proxy, queue, rate, (puts, p50, p99))
            found += [puts, p50, p99]
    return found


async def _paced(
    bench: Bench, proxy: _Proxy, queue: Any, rate: int, found: tuple[Measurement, Measurement, Measurement]
) -> None:
    puts, p50, p99 = found
    jobs = max(1, round(bench.sizes.paced_s * rate))
    before, start_s = await proxy.counts(), time.perf_counter()
    ways = await worker_ways(bench, queue, jobs, rate, concurrency=bench.sizes.callers)
    # The time until the last one was done is a part of it, and so is what the rest of its period would have been.
    seconds = max(time.perf_counter() - start_s, jobs / rate)
    counts = await proxy.counts() - before
    puts.runs.append(_puts(counts) / seconds * _HOUR_S)
    puts.details.update(jobs=jobs, seconds=seconds, requests=dict(counts))
    latencies_ms = ways.ms(ways.claimed_s)
    p50.runs.append(percentile(latencies_ms, 50))
    p99.runs.append(percentile(latencies_ms, 99))
    shown = ", ".join(f"{count} {kind}" for kind, count in counts.most_common())
    bench.say(
        f"{puts.name}: {puts.runs[-1]:,.0f} PUT an hour ({_puts(counts) / jobs:.3f} a job), handler after p50 "
        f"{p50.runs[-1]:.1f} ms, p99 {p99.runs[-1]:.1f}; requests in {seconds:.1f} s: {shown}"
    )
