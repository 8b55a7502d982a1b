"""The bucket is away for half a minute, in several ways, and comes back: which calls wait, which fail, which go on.

And its server itself is killed under load and started again.

S3_OUTAGE_S in the environment makes it another time. An outage above `commit_timeout_s` is in test_s3_network.py.
"""

import asyncio
import os
import time
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from ledgerq.eventlog.errors import ClaimLost, StoreUnavailable
from ledgerq.tools.bench.seaweed import running_weed
from ledgerq.worker.execution import JobContext
from ledgerq.worker.options import QueueOptions
from ledgerq.worker.queue import Queue
from ledgerq.worker.worker import Worker
from tests.process.kill_child import OPTIONS
from tests.process.kills import Facts
from tests.s3.bucket_ledgers import MixedLoad, audit_deeply, check_everything
from tests.s3.proxy import Fault, FaultProxy, fault_proxy
from tests.s3.servers import S3Server, bucket, on_seaweed, s3_server, weed_or_skip

pytestmark = pytest.mark.proof

__all__ = ["bucket", "s3_server"]

OUTAGE_S = float(os.environ.get("S3_OUTAGE_S", "30"))
WAYS = (Fault.DROP_REQUEST, Fault.HOLD, Fault.ERROR_503)
LIMIT_S = 60.0
LEASE_S = 3.0
# SlateDB's client waits up to a second between its tries; a busy machine needs more.
BACK_S = 20.0
OPENING_LIMIT_S = 90.0
STEP_JOBS = 10
RESTARTS = 2


class Site:
    """A store behind a proxy of its own, with a producer and a worker that never rest."""

    def __init__(self, url: str, proxy: FaultProxy, queue: Queue) -> None:
        self.url = url
        self.proxy = proxy
        self.queue = queue
        self.enqueued: list[str] = []
        self.handled: list[str] = []
        self._worker = Worker(queue, concurrency=4)
        self._worker.handler("work")(self._handle)
        self._tasks: list[asyncio.Task[None]] = []

    async def _handle(self, job: JobContext) -> None:
        self.handled.append(job.job_id)

    async def _produce(self) -> None:
        while True:
            self.enqueued.append((await self.queue.enqueue("work", b"x" * 100)).job_id)
            await asyncio.sleep(0.01)

    def start(self) -> None:
        """Begin to work."""
        self._tasks = [asyncio.create_task(self._produce()), asyncio.create_task(self._worker.run())]

    async def moves(self, limit_s: float) -> None:
        """Wait until some more jobs were enqueued and handled."""
        enough = len(self.enqueued) + STEP_JOBS, len(self.handled) + STEP_JOBS
        async with asyncio.timeout(limit_s):
            while len(self.enqueued) < enough[0] or len(self.handled) < enough[1]:
                for task in self._tasks:
                    assert not task.done(), task
                await asyncio.sleep(0.01)

    async def stop(self) -> None:
        """End the work, and close the queue."""
        producing, working = self._tasks
        producing.cancel()
        await asyncio.gather(producing, return_exceptions=True)
        self._worker.stop()
        await working
        await self.queue.close()

    async def check(self) -> None:
        """What was reported is there, and nothing was handled twice."""
        await audit_deeply(self.url)
        assert len(set(self.handled)) == len(self.handled)
        async with Queue.open(self.url) as queue:
            for job_id in self.enqueued:
                assert (await queue.get(job_id)).state == ("done" if job_id in self.handled else "pending")


async def opened(proxy: FaultProxy, url: str, monkeypatch: pytest.MonkeyPatch, lock: asyncio.Lock) -> Queue:
    """A queue that goes through the proxy; one is opened at a time, since the environment leads the way."""
    async with lock:
        with monkeypatch.context() as changed:
            changed.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
            began_s = time.monotonic()
            try:
                return await Queue.open(url, queues={"held": QueueOptions(lease_s=LEASE_S)})
            finally:
                assert time.monotonic() - began_s < OPENING_LIMIT_S


async def live_through(site: Site, way: Fault, monkeypatch: pytest.MonkeyPatch, lock: asyncio.Lock) -> None:
    queue = site.queue
    await queue.enqueue("held", b"whose lease ends while nothing can be stored")
    await queue.enqueue("held", b"acked while nothing can be stored")
    expiring, settled = await queue.claim("held", limit=2)
    site.start()
    await site.moves(LIMIT_S)
    site.proxy.plan = lambda request: way
    back = asyncio.create_task(asyncio.sleep(OUTAGE_S))
    settling = asyncio.create_task(queue.ack(settled))
    adding = asyncio.create_task(queue.enqueue("other", b"added while nothing can be stored"))
    waiting = asyncio.create_task(queue.claim("other", wait=None))
    with pytest.raises(StoreUnavailable, match=r"can't be reached|did not answer"):
        await opened(site.proxy, site.url, monkeypatch, lock)
    await back
    # A minute is the limit for a commit: until then everyone waits, and nobody is told anything.
    assert queue.failure is None
    assert not any(task.done() for task in (settling, adding, waiting))
    site.proxy.plan = None
    await site.moves(BACK_S)
    async with asyncio.timeout(LIMIT_S):
        await settling
        # Handed over only now, so its lease begins now: nothing of it was spent in the outage.
        (claim,) = await waiting
        assert (claim.job_id, claim.attempt) == ((await adding).job_id, 1)
        await queue.ack(claim)
        with pytest.raises(ClaimLost):
            await queue.ack(expiring)
        (again,) = await queue.claim("held", wait=None)
        assert (again.job_id, again.attempt) == (expiring.job_id, 2)
        await queue.ack(again)
    await site.stop()


@on_seaweed
async def test_the_bucket_is_away_for_half_a_minute(
    s3_server: S3Server, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = asyncio.Lock()
    sites: list[Site] = []
    async with AsyncExitStack() as stack:
        for way in WAYS:
            proxy = await stack.enter_async_context(fault_proxy(s3_server.port))
            url = f"s3://{bucket}/{way.name.lower()}"
            sites.append(Site(url, proxy, await opened(proxy, url, monkeypatch, lock)))
        async with asyncio.TaskGroup() as group:
            for site, way in zip(sites, WAYS, strict=True):
                group.create_task(live_through(site, way, monkeypatch, lock))
    for site in sites:
        await site.check()


async def test_the_server_is_killed_and_started_again(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = Facts(tmp_path)
    with running_weed(weed_or_skip()) as weed:
        server = S3Server(weed.port)
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.endpoint)
        url = f"s3://{server.new_bucket()}/jobs"
        queue = await Queue.open(url, default=OPTIONS, ready_window=50)
        load = MixedLoad(queue, facts, tmp_path, 1)
        for _ in range(RESTARTS):
            await load.report(1_000, LIMIT_S)
            weed.kill()
            await asyncio.to_thread(weed.start)
            await load.report(500, LIMIT_S)
        await load.stop()
        assert queue.failure is None
        assert queue.log.epoch == 1
        await queue.close()
        await check_everything(url, facts)
