"""Readiness: an idle queue is ready; one that failed, whose commit hangs or whose store is out of reach is not."""

import asyncio
from pathlib import Path

import pytest

from ledgerq.eventlog.errors import StoreUnavailable
from ledgerq.eventlog.memory import MemoryStore
from ledgerq.worker.metrics.endpoint import Metrics
from ledgerq.worker.metrics.readiness import QueueReadiness, StoreProbe
from ledgerq.worker.queue import Queue
from tests.s3.servers import Proxy, bucket, proxy, s3_server
from tests.support.loops import settle, until
from tests.support.rig import Rig
from tests.support.web import ask_app

__all__ = ["bucket", "proxy", "s3_server"]


class Checks:
    """A probe of the store with set results, which counts its calls."""

    def __init__(self) -> None:
        self.count = 0
        self.at_once = 0
        self.most_at_once = 0
        self.error: Exception | None = None
        self.answers = asyncio.Event()
        self.answers.set()

    async def __call__(self) -> None:
        self.count += 1
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            await self.answers.wait()
        finally:
            self.at_once -= 1
        if self.error is not None:
            raise self.error


async def test_an_idle_queue_is_ready_however_long_it_idles() -> None:
    async with Rig() as rig:
        metrics = Metrics(rig.queue)
        await rig.queue.enqueue("mail", b"a")
        await rig.advance(86_400)
        assert await metrics.reasons() == []
        metrics.close()


async def test_a_commit_that_hangs_makes_it_unready_until_it_is_durable() -> None:
    async with Rig() as rig:
        metrics = Metrics(rig.queue)
        rig.faults.hold("sync:before")
        adding = asyncio.create_task(rig.queue.enqueue("mail", b"a"))
        await settle()
        await rig.advance(9)
        assert await metrics.reasons() == []
        await rig.advance(9)
        assert await metrics.reasons() == ["memory:///: a commit has not become durable for 18 s"]
        assert (await ask_app(metrics.asgi, "/readyz")).status == 503
        rig.faults.let_go("sync:before")
        await adding
        assert await metrics.reasons() == []
        metrics.close()


async def test_a_fenced_and_a_closed_queue_are_not_ready_though_their_store_is_there() -> None:
    async with Rig() as rig:
        old = rig.queue
        readiness = QueueReadiness(old, StoreProbe(rig.store, read=Checks()))
        assert await readiness.reasons() == []
        await rig.open()
        await rig.advance(2)
        (reason,) = await readiness.reasons()
        assert "another writer opened the store" in reason
        await old.close()
        readiness = QueueReadiness(rig.queue, StoreProbe(rig.store, read=Checks()))
        await rig.queue.close()
        (reason,) = await readiness.reasons()
        assert "closed" in reason


async def test_the_store_is_looked_at_once_for_many_and_again_when_the_answer_is_old() -> None:
    looks = Checks()
    looks.error = StoreUnavailable("the disk\nis gone")
    probe = StoreProbe(MemoryStore(), read=looks, valid_s=60)
    assert await asyncio.gather(*(probe.reason() for _ in range(20))) == ["the disk is gone"] * 20
    assert await probe.reason() == "the disk is gone"
    assert (looks.count, looks.most_at_once) == (1, 1)
    hasty = StoreProbe(MemoryStore(), read=looks, valid_s=0)
    assert await hasty.reason() == "the disk is gone"
    looks.error = None
    assert await hasty.reason() is None
    assert (looks.count, looks.most_at_once) == (3, 1)


async def test_a_store_that_hangs_is_waited_for_by_one_look_alone() -> None:
    looks = Checks()
    looks.answers.clear()
    probe = StoreProbe(MemoryStore(), read=looks, limit_s=0.02, valid_s=0)
    late = "memory:/// did not answer within 0.02 s"
    assert await asyncio.gather(*(probe.reason() for _ in range(5))) == [late] * 5
    assert await probe.reason() == late
    assert looks.count == 1
    # One that answers is given time, also on a busy machine.
    vars(probe)["_limit_s"] = 60.0
    looks.answers.set()
    await until(lambda: looks.at_once == 0)
    await settle()
    assert await probe.reason() is None
    assert (looks.count, looks.most_at_once) == (2, 1)
    looks.answers.clear()
    vars(probe)["_limit_s"] = 0.02
    assert await probe.reason() == late
    probe.close()
    await settle()
    assert looks.at_once == 0


async def test_files_that_are_gone_are_noticed_and_that_they_are_back(tmp_path: Path) -> None:
    folder = tmp_path / "store"
    async with Queue.open(str(folder)) as queue:
        probe = StoreProbe(queue.log.store, valid_s=0)
        assert await probe.reason() is None
        (folder / "manifest").rename(folder / "away")
        assert await probe.reason() == f"the files of {folder} are gone"
        (folder / "away").rename(folder / "manifest")
        assert await probe.reason() is None
        probe.close()


@pytest.mark.proof
async def test_a_bucket_that_can_not_be_reached_is_noticed(bucket: str, proxy: Proxy) -> None:
    async with Queue.open(f"s3://{bucket}/store") as queue:
        probe = StoreProbe(queue.log.store, valid_s=0)
        assert await probe.reason() is None
        proxy.hold()
        reason = await probe.reason()
        assert reason is not None
        assert reason.startswith(f"s3://{bucket}/store")
        proxy.resume()
        async with asyncio.timeout(60):
            while await probe.reason() is not None:
                await asyncio.sleep(0.05)
        probe.close()
