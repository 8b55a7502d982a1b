"""Queues used from a forked child, another loop, or after their loop has ended: each use is refused at once."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from ledgerq import Queue, Worker
from ledgerq.eventlog.errors import QueueClosed, WrongLoop
from ledgerq.eventlog.events import WriterClosed
from ledgerq.worker.claims import Claim
from tests.support.ledger_checks import check_ledger
from tests.support.loops import settle
from tests.support.queue_calls import CALLS, Call, every_call
from tests.support.rig import Rig
from tests.tiers import sampled

ROOT = Path(__file__).resolve().parents[2]
LIMIT_S = 60


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.parametrize("where", sampled(["file", "memory"]))
@pytest.mark.parametrize("way", sampled(["fork", "multiprocessing"]))
async def test_a_forked_child_is_told_so_and_its_parent_goes_on(tmp_path: Path, way: str, where: str) -> None:
    url = str(tmp_path / "store") if where == "file" else "memory:///"
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, str(ROOT / "tests/process/forking_child.py"), way, url],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    lines = done.stdout.splitlines()
    expected = [f"{name}: WrongProcess" for name in (*CALLS, "close", "worker", "tail")]
    assert lines[: len(expected)] == expected, done.stderr
    assert lines[len(expected) :] == [*(["exit code 0"] if way == "multiprocessing" else []), "parent 2 1"]
    assert done.returncode == 0
    assert "Traceback" not in done.stderr
    if where == "file":
        async with Queue.open(url) as queue:
            fold = await check_ledger(queue.log.store)
        assert sorted(job.state for job in fold.jobs.values()) == ["done", "done", "pending"]


async def opened(url: str) -> tuple[Queue, Claim]:
    """A queue with two jobs, one of them claimed."""
    queue = await Queue.open(url)
    await queue.enqueue_many("q", [b"1", b"2"])
    (claim,) = await queue.claim("q")
    return queue, claim


@every_call
async def test_a_call_on_another_loop_is_refused_and_changes_nothing(call: Call) -> None:
    queue, claim = await opened("memory:///")
    head = await queue.log.head()

    async def elsewhere() -> None:
        with pytest.raises(WrongLoop):
            await asyncio.wait_for(call(queue, claim), LIMIT_S)

    await asyncio.to_thread(asyncio.run, elsewhere())
    assert await queue.log.head() == head
    await queue.ack(claim)
    await asyncio.wait_for(queue.close(), LIMIT_S)


async def test_a_queue_that_another_loop_tries_to_close_goes_on_and_can_be_closed() -> None:
    async with Rig() as rig:
        await rig.queue.enqueue("q", b"")
        (claim,) = await rig.queue.claim("q")
        waiting = asyncio.create_task(rig.queue.claim("empty", wait=None))
        await settle()

        async def elsewhere(call: Callable[[], Awaitable[None]]) -> None:
            with pytest.raises(WrongLoop):
                await asyncio.wait_for(call(), LIMIT_S)

        async def read_on() -> None:
            async for _ in rig.queue.log.tail(10**6):
                raise AssertionError("there is no such event")

        for call in (rig.queue.close, read_on):
            await asyncio.to_thread(asyncio.run, elsewhere(call))
        assert not waiting.done()
        await rig.queue.ack(claim)
        await rig.queue.close()
        with pytest.raises(QueueClosed):
            await waiting
        assert isinstance((await rig.events())[-1], WriterClosed)
        await asyncio.to_thread(asyncio.run, rig.queue.close())  # closed is closed, wherever one asks


def test_a_queue_whose_loop_has_ended_says_so_and_its_store_can_be_opened_again(tmp_path: Path) -> None:
    url = str(tmp_path / "store")
    queue, claim = asyncio.run(opened(url))

    async def later() -> None:
        calls: list[Call] = [*CALLS.values(), lambda queue, claim: queue.close()]
        for call in calls:
            with pytest.raises(WrongLoop, match="open it anew if that has ended"):
                await asyncio.wait_for(call(queue, claim), LIMIT_S)
        worker = Worker(queue)
        worker.handler("q")(lambda job: None)
        with pytest.raises(WrongLoop):
            await asyncio.wait_for(worker.run(until_empty=True), LIMIT_S)
        async with Queue.open(url) as again:
            stats = await again.stats("q")
            assert (stats.pending, stats.claimed) == (2, 0)
            await check_ledger(again.log.store)

    asyncio.run(later())


async def test_who_reads_the_log_while_the_queue_closes_is_told_or_comes_to_the_end() -> None:
    async with Rig() as rig:
        await rig.queue.enqueue("q", b"")
        reading = rig.queue.log.read()
        await anext(reading)
        following = rig.queue.log.tail(10**6)
        waiting = asyncio.ensure_future(anext(following))
        await settle()
        await rig.queue.close()
        with pytest.raises(QueueClosed):
            await waiting
        with pytest.raises((QueueClosed, StopAsyncIteration)):
            while True:
                await anext(reading)


async def test_a_worker_of_a_closed_queue_ends_with_its_error() -> None:
    async with Rig() as rig:
        await rig.queue.enqueue("q", b"")
        running = Worker(rig.queue, concurrency=1)
        begun, never = asyncio.Event(), asyncio.Event()

        @running.handler("q")
        async def hold(job: object) -> None:
            begun.set()
            await never.wait()

        task = asyncio.create_task(running.run(signals=False))
        await asyncio.wait_for(begun.wait(), LIMIT_S)
        await rig.queue.close()
        with pytest.raises(QueueClosed):
            await asyncio.wait_for(task, LIMIT_S)
        late = Worker(rig.queue)
        late.handler("q")(lambda job: None)
        with pytest.raises(QueueClosed):
            await asyncio.wait_for(late.run(signals=False), LIMIT_S)
        await rig.open()
        assert (await rig.queue.stats("q")).pending == 1
