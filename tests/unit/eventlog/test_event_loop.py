"""Calls where no asyncio event loop runs, as under trio: refused with an error of ours that names a way out."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from ledgerq import MemoryDisk, MemoryStore, Metrics, Queue, Worker, WrongLoop
from ledgerq.eventlog.clock import SystemClock
from ledgerq.eventlog.stores import open_reader, open_store
from ledgerq.worker.claims import Claim
from tests.support.operators import WHO

WORDS = r"needs asyncio, and no asyncio event loop runs here: .*asyncio\.run\(\).* trio\.to_thread"
LIMIT_S = 60.0

Call = Callable[[Queue, Claim], Any]


def driven(call: Any) -> None:
    """Drive an awaitable as far as its first step, by hand and with no loop."""
    if isinstance(call, AsyncIterator):
        call = call.__anext__()
    with pytest.raises(WrongLoop, match=WORDS):
        call.__await__().send(None)


@pytest.mark.parametrize(
    "begin",
    [
        lambda place: Queue.open(place),
        lambda place: Queue.open("memory:///"),
        lambda place: Queue.open("s3://bucket/prefix"),
        lambda place: Queue.open(place).__aenter__(),
        lambda place: open_store(place, clock=SystemClock()),
        lambda place: open_reader(place),
    ],
    ids=["file", "memory", "s3", "async with", "open_store", "open_reader"],
)
def test_nothing_is_opened(begin: Callable[[str], Any], tmp_path: Path) -> None:
    driven(begin(str(tmp_path / "store")))
    assert list(tmp_path.iterdir()) == []


def test_a_store_that_is_at_hand_is_not_taken_over() -> None:
    disk = MemoryDisk()
    driven(Queue.open(store=MemoryStore(disk)))
    assert not disk.rows


@contextmanager
def a_queue_elsewhere() -> Iterator[tuple[Queue, Claim]]:
    """A queue that is open on the loop of another thread, and a claim of it."""
    made: list[tuple[Queue, Claim, asyncio.AbstractEventLoop, asyncio.Event]] = []
    ready = threading.Event()

    async def hold() -> None:
        async with Queue.open() as queue:
            await queue.enqueue("q", b"x")
            (claim,) = await queue.claim("q")
            end = asyncio.Event()
            made.append((queue, claim, asyncio.get_running_loop(), end))
            ready.set()
            await end.wait()
            assert (await queue.stats("q")).claimed == 1, "nothing was changed"

    thread = threading.Thread(target=lambda: asyncio.run(hold()))
    thread.start()
    try:
        assert ready.wait(LIMIT_S)
        yield made[0][:2]
    finally:
        for _, _, loop, end in made:
            loop.call_soon_threadsafe(end.set)
        thread.join(LIMIT_S)
        assert not thread.is_alive()


CALLS: dict[str, Call] = {
    "enqueue": lambda queue, claim: queue.enqueue("q", b""),
    "enqueue_many": lambda queue, claim: queue.enqueue_many("q", [b""]),
    "claim": lambda queue, claim: queue.claim("q"),
    "claim and wait": lambda queue, claim: queue.claim("q", wait=None),
    "ack": lambda queue, claim: queue.ack(claim),
    "ack_many": lambda queue, claim: queue.ack_many([claim]),
    "nack": lambda queue, claim: queue.nack(claim, "why"),
    "release": lambda queue, claim: queue.release(claim),
    "extend": lambda queue, claim: queue.extend(claim, 5),
    "cancel": lambda queue, claim: queue.cancel(claim.job_id, **WHO),
    "requeue": lambda queue, claim: queue.requeue(claim.job_id, **WHO),
    "pause": lambda queue, claim: queue.pause("q", **WHO),
    "resume": lambda queue, claim: queue.resume("q", **WHO),
    "get": lambda queue, claim: queue.get(claim.job_id),
    "payload": lambda queue, claim: queue.payload(claim.job_id),
    "history": lambda queue, claim: queue.history(claim.job_id),
    "jobs": lambda queue, claim: queue.jobs("q"),
    "stats": lambda queue, claim: queue.stats("q"),
    "queues": lambda queue, claim: queue.queues(),
    "drained": lambda queue, claim: queue.drained("q"),
    "close": lambda queue, claim: queue.close(),
}


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[tuple[Queue, Claim]]:
    with a_queue_elsewhere() as made:
        yield made


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_queue_that_is_open_elsewhere_takes_no_call(elsewhere: tuple[Queue, Claim], call: Call) -> None:
    driven(call(*elsewhere))


def test_a_worker_does_not_begin_and_metrics_are_not_made(elsewhere: tuple[Queue, Claim]) -> None:
    queue, _ = elsewhere
    worker = Worker(queue)
    worker.handler("q")(lambda job: None)
    driven(worker.run())
    with pytest.raises(WrongLoop, match=WORDS):
        Metrics(queue)


def test_under_trio(tmp_path: Path) -> None:
    trio = pytest.importorskip("trio")

    async def opens() -> None:
        async with Queue.open(str(tmp_path / "store")):
            raise AssertionError("trio is not asyncio")

    async def main() -> list[bytes]:
        async with Queue.open(str(tmp_path / "store")) as queue:
            await queue.enqueue("q", b"x")
            return [claim.payload for claim in await queue.claim("q")]

    async def as_the_error_says() -> list[bytes]:
        taken: list[bytes] = await trio.to_thread.run_sync(asyncio.run, main())
        return taken

    with pytest.raises(WrongLoop, match=WORDS):
        trio.run(opens)
    assert trio.run(as_the_error_says) == [b"x"]
