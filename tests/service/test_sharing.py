"""A store that several queue objects share: one writes it, the others call it, and one of them follows it."""

import asyncio
import os
import socket
import sys
import warnings
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from ledgerq import ClaimLost, InvalidArgument, JobContext, Queue, QueueClosed, StoreInUse, Tasks, Worker, WrongLoop
from ledgerq.eventlog.events import Acked, Enqueued, LeaseExpired
from ledgerq.worker.service import http_server
from ledgerq.worker.sharing.shared_queue import SharedQueue
from ledgerq.worker.sharing.socket_file import SOCKET_NAME, SocketFile
from tests.support.operators import WHO

LIMIT_S = 60.0


@pytest.fixture
def url(tmp_path: Path) -> str:
    """The path of a store that is not there yet."""
    return str(tmp_path / "store")


async def opened(ending: AsyncExitStack, url: str, count: int, **options: Any) -> list[SharedQueue]:
    """So many queue objects on one store."""
    return [await ending.enter_async_context(Queue.open(url, share=True, **options)) for _ in range(count)]


async def test_when_the_writer_closes_one_of_the_others_writes_and_calls_on_their_way_reach_it(url: str) -> None:
    async with asyncio.timeout(LIMIT_S), AsyncExitStack() as ending:
        first, *others = await opened(ending, url, 3)
        assert [queue.is_writer for queue in (first, *others)] == [True, False, False]
        assert (Path(url) / SOCKET_NAME).stat().st_mode & 0o777 == 0o600
        for number in range(4):
            await first.enqueue("work", b"%d" % number)
        (own,) = await first.claim("work")
        (kept,) = await others[0].claim("work")
        waiting = asyncio.create_task(others[0].claim("later", wait=LIMIT_S))
        ids: list[str] = []

        async def produce(queue: SharedQueue) -> None:
            while first.failure is None or queue.epoch == 1:
                ids.append((await queue.enqueue("mail", b"x")).job_id)

        producing = [asyncio.create_task(produce(queue)) for queue in others for _ in range(5)]
        while len(ids) < 20:
            await asyncio.sleep(0)
        await first.close()
        await others[1].enqueue("later", b"now")
        assert len(await waiting) == 1
        await asyncio.gather(*producing)
        assert [queue.is_writer for queue in others].count(True) == 1
        await others[0].ack(kept)
        with pytest.raises(ClaimLost):
            await others[0].ack(own)
        with pytest.raises(QueueClosed):
            await first.enqueue("mail", b"x")
        events = [record.event for record in await others[1].records(limit=1000)]
        added = [event for event in events if isinstance(event, Enqueued) and event.queue == "mail"]
        assert sorted(event.id for event in added) == sorted(job.id for job in (await others[0].jobs("mail")).jobs)
        assert len(ids) == len({*ids}) == len(added)
        assert [event.reason for event in events if isinstance(event, LeaseExpired)] == ["interrupted"]
        assert [event.id for event in events if isinstance(event, Acked)] == [kept.id]
    assert not (Path(url) / SOCKET_NAME).exists()


async def test_workers_tasks_and_operators_use_it_wherever_the_writer_is(url: str) -> None:
    app = Tasks("shop")

    @app.task(queue="mail")
    async def send(job: JobContext, user_id: int) -> int:
        return user_id + 1

    async with asyncio.timeout(LIMIT_S), AsyncExitStack() as ending:
        first, second = await opened(ending, url, 2, tasks=app)
        app.bind(second)
        handles = [await send.enqueue(user_id=number) for number in range(3)]
        await second.pause("mail", **WHO)
        assert await first.claim("mail") == []
        await second.resume("mail", **WHO)
        workers = [Worker(queue, tasks=app) for queue in (first, second)]
        await asyncio.gather(*(worker.run(until_empty=True, signals=False) for worker in workers))
        assert [await handle.result() for handle in handles] == [1, 2, 3]


async def test_what_can_not_be_shared_is_refused_by_name(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for location in ("memory:///", "s3://bucket/jobs"):
        with pytest.raises(InvalidArgument, match="only a store in a folder"):
            Queue.open(location, share=True)
    with pytest.raises(InvalidArgument, match="take_over"):
        Queue.open(url, share=True, take_over=True)  # type: ignore[call-overload]
    async with Queue.open(url):
        with pytest.raises(StoreInUse):
            await Queue.open(url, share=True)
    async with Queue.open(url, share=True) as queue:
        with pytest.raises(StoreInUse, match="share it") as caught:
            await Queue.open(url)
        assert caught.value.shares
        with pytest.raises(WrongLoop):
            await asyncio.to_thread(lambda: asyncio.run(_enqueue(queue)))
    monkeypatch.setitem(sys.modules, "ledgerq.worker.sharing.shared_queue", None)
    with pytest.raises(InvalidArgument, match=r"ledgerq\[serve,client\]"):
        Queue.open(url, share=True)


async def _enqueue(queue: SharedQueue) -> None:
    await queue.enqueue("q", b"x")


async def test_a_writer_that_does_not_share_is_waited_for(url: str) -> None:
    async with asyncio.timeout(LIMIT_S):
        alone = await Queue.open(url)
        waiting = asyncio.create_task(_opened_and_closed(url))
        await asyncio.sleep(0)
        await alone.close()
        assert await waiting


async def _opened_and_closed(url: str) -> bool:
    async with Queue.open(url, share=True, wait=None) as queue:
        return queue.is_writer


async def test_a_long_path_and_a_socket_that_was_left_there_are_no_hindrance(tmp_path: Path) -> None:
    folder = tmp_path / ("x" * 120) / "store"
    folder.mkdir(parents=True)
    left = SocketFile(folder)
    left.listening.close()
    async with asyncio.timeout(LIMIT_S), AsyncExitStack() as ending:
        _, second = await opened(ending, str(folder), 2)
        job = await second.enqueue("q", b"x")
        left.remove()  # the file is another writer's by now
        async with Queue.connect(f"unix:{folder}") as client:
            assert (await client.get(job.job_id)).state == "pending"
    assert not (folder / SOCKET_NAME).exists()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
async def test_a_forked_child_keeps_no_connection_alive(url: str) -> None:
    async with asyncio.timeout(LIMIT_S), AsyncExitStack() as ending:
        _, second = await opened(ending, url, 2)
        await second.enqueue("q", b"x")
        sockets = [one.fileno() for one in [*http_server._listening] if one.fileno() >= 0]
        sockets += [one.transport.get_extra_info("socket").fileno() for one in [*http_server._connections]]
        assert len(sockets) >= 2
        reading, writing = os.pipe()
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", DeprecationWarning
            )  # of a fork beside threads: the child does next to nothing
            child = os.fork()
        if child == 0:
            same = all(str(Path(f"/proc/self/fd/{number}").readlink()) == os.devnull for number in sockets)
            os.write(writing, b"let go" if same else b"kept")
            os._exit(0)
        os.waitpid(child, 0)
        os.close(writing)
        with os.fdopen(reading, "rb") as found:
            assert found.read() == b"let go"
        assert (await second.enqueue("q", b"x")).created


def test_a_socket_is_replaced_by_the_next_writer_and_removed_by_its_own(tmp_path: Path) -> None:
    first, second = SocketFile(tmp_path), SocketFile(tmp_path)
    first.remove()
    client = socket.socket(socket.AF_UNIX)
    client.connect(str(tmp_path / SOCKET_NAME))
    client.close()
    second.remove()
    second.remove()
    assert [*tmp_path.iterdir()] == []
