"""The queue in a bucket behind a network that fails: connections cut, answers lost, silence, late requests."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from ledgerq.eventlog.errors import Fenced, LogPoisoned, OutcomeUnknown, StoreUnavailable
from ledgerq.eventlog.slate.options import StoreOptions
from ledgerq.worker.queue import Queue
from tests.s3.bucket_ledgers import audit_deeply
from tests.s3.servers import Proxy, S3Server, bucket, proxy, s3_server

pytestmark = pytest.mark.proof

__all__ = ["bucket", "proxy", "s3_server"]

LIMIT_S = 60.0
OUTAGE_S = 0.5
# Much longer than a request takes on a busy machine, and still short.
SHORT_S = 2.0
LOST_ANSWERS = 8


class Work:
    """Producers and workers on one queue: what was reported to them, and the errors that ended them."""

    def __init__(self, queue: Queue) -> None:
        self.queue = queue
        self.enqueued: set[str] = set()
        self.acked: set[str] = set()
        self._stopping = False
        self._tasks = [asyncio.create_task(run()) for run in (self._produce, self._produce, self._work, self._work)]

    async def _produce(self) -> None:
        while not self._stopping:
            self.enqueued |= {job.job_id for job in await self.queue.enqueue_many("q", [b"x", b"y" * 2000])}

    async def _work(self) -> None:
        while not self._stopping:
            for claim in await self.queue.claim("q", limit=2, wait=0.2):
                await self.queue.ack(claim)
                self.acked.add(claim.job_id)

    async def reached(self, jobs: int) -> None:
        """Wait until so many jobs were added and acked."""
        async with asyncio.timeout(LIMIT_S):
            while min(len(self.enqueued), len(self.acked)) < jobs:
                assert not self._stopping
                for task in self._tasks:
                    assert not task.done(), task
                await asyncio.sleep(0.002)

    async def stop(self) -> None:
        """Let each come to its end, without an error."""
        self._stopping = True
        assert await self.ends() == [None] * len(self._tasks)

    async def ends(self) -> list[BaseException | None]:
        """How each ended, once all have."""
        async with asyncio.timeout(LIMIT_S):
            return await asyncio.gather(*self._tasks, return_exceptions=True)

    async def check(self, queue: Queue) -> None:
        """What was reported is in this queue."""
        for job_id in self.enqueued:
            assert (await queue.get(job_id)).state in (("done",) if job_id in self.acked else ("pending", "done"))


@contextlib.asynccontextmanager
async def direct(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[None]:
    """What is opened within goes to the server past the proxy."""
    with monkeypatch.context() as changed:
        changed.setenv("AWS_ENDPOINT_URL", s3_server.endpoint)
        yield


async def test_an_outage_is_waited_for_and_work_goes_on_by_itself(bucket: str, proxy: Proxy) -> None:
    url = f"s3://{bucket}/jobs"
    async with Queue.open(url) as queue:
        work = Work(queue)
        waiting = asyncio.create_task(queue.claim("other", wait=None))
        await work.reached(20)
        proxy.drop()
        async with asyncio.timeout(LIMIT_S):
            await proxy.dropped.wait()
        late = asyncio.create_task(queue.enqueue("q", b"while nothing can be stored"))
        await asyncio.sleep(OUTAGE_S)
        assert not late.done()
        assert queue.failure is None
        proxy.resume()
        async with asyncio.timeout(LIMIT_S):
            work.enqueued.add((await late).job_id)
        await work.reached(min(len(work.enqueued), len(work.acked)) + 10)
        assert not waiting.done()
        await queue.enqueue("other", b"for the one who waits")
        async with asyncio.timeout(LIMIT_S):
            (claim,) = await waiting
        await queue.ack(claim)
        await work.stop()
        assert queue.log.epoch == 1
    async with Queue.open(url) as queue:
        await work.check(queue)
    await audit_deeply(url)


async def test_writes_whose_answers_are_lost_are_not_taken_for_another_writers(bucket: str, proxy: Proxy) -> None:
    url = f"s3://{bucket}/jobs"
    async with Queue.open(url) as queue:
        work = Work(queue)
        await work.reached(10)
        proxy.lose_answers(every=3)
        async with asyncio.timeout(LIMIT_S):
            while proxy.lost_answers < LOST_ANSWERS:
                assert queue.failure is None
                await asyncio.sleep(0.002)
        proxy.resume()
        await work.reached(len(work.enqueued) + 10)
        await work.stop()
    async with Queue.open(url) as queue:
        assert queue.log.epoch == 2
        await work.check(queue)
    await audit_deeply(url)


@pytest.mark.parametrize("kind", ["drop", "hold"])
async def test_an_outage_longer_than_the_limit_makes_outcomes_unknown(
    bucket: str, proxy: Proxy, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    url = f"s3://{bucket}/jobs"
    queue = await Queue.open(url, store_options=StoreOptions(commit_timeout_s=SHORT_S))
    work = Work(queue)
    waiting = asyncio.create_task(queue.claim("other", wait=None))
    await work.reached(20)
    {"drop": proxy.drop, "hold": proxy.hold}[kind]()
    ends = await work.ends()
    assert {type(end) for end in ends} == {OutcomeUnknown}, ends
    with pytest.raises(OutcomeUnknown, match="may or may not be in the log"):
        await waiting
    with pytest.raises((OutcomeUnknown, LogPoisoned)):
        await queue.enqueue("q", b"too late")
    async with asyncio.timeout(LIMIT_S):
        await queue.close()
    async with direct(s3_server, monkeypatch):
        async with Queue.open(url) as queue:
            await work.check(queue)
            late = await queue.enqueue("q", b"of the next writer")
            # What the first writer had sent, and its server never got, comes now.
            proxy.resume()
            await asyncio.sleep(OUTAGE_S)
            await queue.enqueue_many("q", [b"more"] * 3)
            await work.check(queue)
            assert queue.failure is None
        async with Queue.open(url) as queue:
            assert (await queue.get(late.job_id)).state == "pending"
            await work.check(queue)
        await audit_deeply(url)


async def test_reads_end_when_the_store_is_away_and_work_again_when_it_is_back(bucket: str, proxy: Proxy) -> None:
    url = f"s3://{bucket}/jobs"
    async with Queue.open(url) as queue:
        jobs = await queue.enqueue_many("q", [b"x" * 1000] * 500)
    last = jobs[-1].job_id
    options = StoreOptions(read_timeout_s=SHORT_S)
    async with Queue.open(url, store_options=options, ready_window=1) as queue:
        proxy.drop()
        reads: list[Callable[[], Awaitable[object]]] = [
            lambda: queue.history(last),
            lambda: queue.get(last),
            lambda: queue.payload(last),
            lambda: queue.jobs("q"),
            lambda: queue.claim("q"),
            lambda: queue.claim("q", wait=LIMIT_S),
        ]
        async with asyncio.timeout(LIMIT_S):
            errors = await asyncio.gather(*(read() for read in reads), return_exceptions=True)
        assert {type(error) for error in errors} == {StoreUnavailable}, errors
        assert {f"did not answer a read within {SHORT_S:g} s" in str(error) for error in errors} == {True}
        assert queue.failure is None
        proxy.resume()
        for read in reads:
            async with asyncio.timeout(LIMIT_S):
                assert await answered(read)
        assert queue.failure is None
    await audit_deeply(url)


async def answered(read: Callable[[], Awaitable[object]]) -> object:
    """What it answers, once it does; SlateDB waits some seconds between its tries."""
    while True:
        with contextlib.suppress(StoreUnavailable):
            return await read()


async def test_an_outage_during_opening_ends_in_time(bucket: str, proxy: Proxy) -> None:
    url = f"s3://{bucket}/jobs"
    async with Queue.open(url) as queue:
        job = await queue.enqueue("q", b"kept")
    proxy.lose_answers()
    options = StoreOptions(open_timeout_s=SHORT_S, read_timeout_s=SHORT_S, commit_timeout_s=SHORT_S)
    async with asyncio.timeout(LIMIT_S):
        with pytest.raises(StoreUnavailable):
            await Queue.open(url, store_options=options)
    proxy.resume()
    async with Queue.open(url) as queue:
        assert (await queue.get(job.job_id)).state == "pending"
    await audit_deeply(url)


async def test_a_second_writer_during_an_outage_of_the_first_fences_it(
    bucket: str, proxy: Proxy, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"s3://{bucket}/jobs"
    first = await Queue.open(url)
    kept = await first.enqueue("q", b"kept")
    proxy.hold()
    sent = asyncio.create_task(first.enqueue("q", b"sent, and on its way"))
    async with asyncio.timeout(LIMIT_S):
        await proxy.held.wait()
    async with direct(s3_server, monkeypatch):
        async with Queue.open(url, take_over=True) as second:
            await second.enqueue("q", b"another")
            proxy.resume()
            async with asyncio.timeout(LIMIT_S):
                with pytest.raises(Fenced):
                    await sent
            await first.close()
            assert (await second.get(kept.job_id)).state == "pending"
            assert (await second.stats("q")).pending == 2
        assert (await audit_deeply(url)).jobs == 2
