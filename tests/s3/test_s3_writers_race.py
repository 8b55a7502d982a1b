"""Two writers of one bucket, on a network that delays and loses answers: one remains, the other gets an error, in time.

Whatever either of them reported is in the log. More seeds, by hand:

    S3_RACE_SEEDS=100 pytest tests/s3/test_s3_writers_race.py
"""

import asyncio
import os
import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ledgerq.eventlog.errors import Fenced, StoreUnavailable
from ledgerq.worker.queue import Queue
from tests.process.kill_child import OPTIONS
from tests.process.kills import Facts
from tests.s3.bucket_ledgers import MixedLoad, check_everything
from tests.s3.proxy import Fault, FaultProxy, at_random, fault_proxy
from tests.s3.servers import S3Server, both_servers, bucket, s3_server

pytestmark = pytest.mark.proof

__all__ = ["bucket", "s3_server"]

SEEDS = range(int(os.environ.get("S3_RACE_SEEDS", "1")))
# An idle writer checks each second whether it is the writer still.
FENCED_LIMIT_S = 90.0
LIMIT_S = 60.0
FAULTS = (Fault.DELAY, Fault.LOSE_ANSWER, Fault.ERROR_500_AFTER, Fault.DROP_REQUEST)
SHARE = 0.1


class Writer:
    """A queue and its load; or none, when it was fenced while it opened."""

    def __init__(self, url: str, facts: Facts, folder: Path, seed: int) -> None:
        self._url = url
        self._facts = facts
        self._folder = folder
        self._seed = seed
        self.queue: Queue | None = None
        self._load: MixedLoad | None = None

    async def open(self) -> "Writer":
        """Open and begin to work, unless the other one was faster."""
        for _ in range(10):
            try:
                self.queue = await Queue.open(self._url, default=OPTIONS, ready_window=50, take_over=True)
            except StoreUnavailable:
                continue  # the preflight has few tries
            except Fenced:
                return self
            self._load = MixedLoad(self.queue, self._facts, self._folder, self._seed)
            return self
        raise AssertionError("it never opened")

    @property
    def is_fenced(self) -> bool:
        """Whether it knows that it is no longer the writer."""
        return self.queue is None or isinstance(self.queue.failure, Fenced)

    async def report(self, more_bytes: int) -> None:
        """Wait until so much more was reported."""
        assert self._load is not None
        await self._load.report(more_bytes, LIMIT_S)

    async def rest(self) -> None:
        """Let go of the work; the queue stays."""
        assert self._load is not None
        await self._load.stop()
        self._load = None

    async def lost(self) -> None:
        """Check that it ends by itself, and that each of its tasks gets the error."""
        if self.queue is None:
            return
        if self._load is not None:
            ends = await self._load.ends(FENCED_LIMIT_S)
            assert {type(end) for end in ends} == {Fenced}, ends
        for call in (self.queue.enqueue("q", b"too late"), self.queue.claim("q"), self.queue.stats("q")):
            with pytest.raises(Fenced):
                await call
        async with asyncio.timeout(LIMIT_S):
            await self.queue.close()

    async def close(self) -> None:
        """End as the one who remained."""
        assert self.queue is not None
        if self._load is not None:
            await self._load.stop()
        assert self.queue.failure is None
        await self.queue.close()


@pytest.fixture
async def proxied(s3_server: S3Server, bucket: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[FaultProxy]:
    """A proxy before the server; the environment leads through it."""
    async with fault_proxy(s3_server.port) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        yield proxy


@pytest.mark.parametrize("seed", SEEDS)
@both_servers
async def test_a_later_writer_takes_over(seed: int, bucket: str, proxied: FaultProxy, tmp_path: Path) -> None:
    url, facts, rng = f"s3://{bucket}/jobs", Facts(tmp_path), random.Random(seed)
    first = await Writer(url, facts, tmp_path, seed).open()
    proxied.plan = at_random(seed, FAULTS, share=SHARE)
    await first.report(rng.randrange(100, 2_000))
    idle = rng.random() < 0.3
    if idle:
        await first.rest()
    assert first.queue is not None
    waiting = asyncio.create_task(first.queue.claim("other", wait=None))
    second = await Writer(url, facts, tmp_path, seed + 1).open()
    async with asyncio.timeout(FENCED_LIMIT_S):
        with pytest.raises(Fenced, match="another process opened"):
            await waiting
    await first.lost()
    await second.report(1_000)
    proxied.plan = None
    await second.close()
    await check_everything(url, facts)


@pytest.mark.parametrize("seed", SEEDS)
@both_servers
async def test_two_that_open_at_the_same_moment(seed: int, bucket: str, proxied: FaultProxy, tmp_path: Path) -> None:
    url, facts = f"s3://{bucket}/jobs", Facts(tmp_path)
    proxied.plan = at_random(seed, FAULTS, share=SHARE)
    async with asyncio.timeout(LIMIT_S):
        writers = await asyncio.gather(*(Writer(url, facts, tmp_path, 2 * seed + i).open() for i in range(2)))
    async with asyncio.timeout(FENCED_LIMIT_S):
        while not any(writer.is_fenced for writer in writers):
            await asyncio.sleep(0.01)
    loser, winner = sorted(writers, key=lambda writer: not writer.is_fenced)
    assert not winner.is_fenced
    await loser.lost()
    await winner.report(1_000)
    proxied.plan = None
    await winner.close()
    await check_everything(url, facts)
