"""The service killed again and again under producers and a worker, with a ledger of what they were told, outside it."""

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from ledgerq import JobContext, Queue, Worker
from ledgerq.eventlog.events import Acked, Enqueued
from ledgerq.worker.remote.remote_queue import RemoteQueue

ROOT = Path(__file__).parents[2]
LIMIT_S = 60.0
KILLS = 3
PRODUCERS = 10
STARTED: list[asyncio.subprocess.Process] = []


@pytest.fixture(autouse=True)
def _none_is_left() -> Iterator[None]:
    """End what a test that fails leaves behind."""
    yield
    for process in STARTED:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
    STARTED.clear()


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def start(folder: Path, port: int) -> asyncio.subprocess.Process:
    """The service as a program of its own, once it says that it serves."""
    program = [sys.executable, "-m", "ledgerq.tools.cli", "serve", str(folder), "--listen", f"127.0.0.1:{port}"]
    process = await asyncio.create_subprocess_exec(
        *program,
        *("--wait", "60"),
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stderr is not None
    STARTED.append(process)
    async with asyncio.timeout(LIMIT_S):
        assert b"serving" in await process.stderr.readline()
    return process


async def produce(queue: RemoteQueue, number: int, promised: dict[bytes, bytes], over: asyncio.Event) -> None:
    """Enqueue without end, and note each job that was promised."""
    at = 0
    while not over.is_set():
        payload = b"%d-%d" % (number, at)
        promised[payload] = (await queue.enqueue("q", payload)).id
        at += 1


async def kill_again_and_again(
    process: asyncio.subprocess.Process, folder: Path, port: int, promised: dict[bytes, bytes], handled: Counter[bytes]
) -> asyncio.subprocess.Process:
    """Kill and start the service, each time once more was promised and more was handled."""
    for _ in range(KILLS):
        jobs, done = len(promised), handled.total()
        while len(promised) < jobs + 100 or handled.total() < done + 50:
            await asyncio.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        await process.wait()
        process = await start(folder, port)
    return process


@pytest.mark.proof
async def test_what_was_promised_is_there_once_and_what_was_acked_is_done_however_often_it_is_killed(
    tmp_path: Path,
) -> None:
    folder, port = tmp_path / "store", free_port()
    process = await start(folder, port)
    promised: dict[bytes, bytes] = {}
    handled: Counter[bytes] = Counter()
    over = asyncio.Event()
    async with asyncio.timeout(LIMIT_S), Queue.connect(f"http://127.0.0.1:{port}", patience=LIMIT_S) as queue:
        worker = Worker(queue, concurrency=20)

        @worker.handler("q")
        async def handle(job: JobContext) -> None:
            handled[job.payload] += 1

        running = asyncio.create_task(worker.run(signals=False))
        producers = [asyncio.create_task(produce(queue, number, promised, over)) for number in range(PRODUCERS)]
        process = await kill_again_and_again(process, folder, port, promised, handled)
        over.set()
        await asyncio.gather(*producers)
        await queue.drained("q")
        worker.stop()
        await running
    process.send_signal(signal.SIGTERM)
    assert await process.wait() == 0
    async with Queue.open(str(folder)) as store:
        events = [record.event async for record in store.log.read()]
        enqueued = Counter(event.id for event in events if isinstance(event, Enqueued))
        acked = Counter(event.id for event in events if isinstance(event, Acked))
        assert set(promised.values()) <= enqueued.keys()
        assert set(enqueued.values()) == {1}
        assert set(acked.values()) == {1}
        assert enqueued.keys() == acked.keys()
        assert set(handled) >= promised.keys()
        # A kill ends no claim of a worker elsewhere, so nothing is handled twice but what a lost answer leaves open.
        assert handled.total() - len(handled) <= KILLS * 200
