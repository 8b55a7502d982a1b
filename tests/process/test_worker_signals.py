"""Real signals to a worker in a process of its own, and the handlers of signals before, during and after a run."""

import asyncio
import os
import signal
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from ledgerq.eventlog.clock import ManualClock
from ledgerq.eventlog.events import WriterClosed
from ledgerq.eventlog.log import LogReader
from ledgerq.eventlog.stores import open_reader
from ledgerq.projections.job import Job
from ledgerq.projections.texts import jobs_with_texts
from ledgerq.worker.worker import Worker
from tests.support.ledger_checks import check_ledger
from tests.support.loops import settle, until
from tests.support.rig import Rig
from tests.support.workers import LIMIT_S, Stage, finish
from tests.tiers import sampled

ROOT = Path(__file__).resolve().parents[2]
SIGNALS = (signal.SIGTERM, signal.SIGINT)
each_signal = pytest.mark.parametrize("number", sampled(SIGNALS), ids=lambda number: number.name)


class Child:
    """The process of tests/process/worker_child.py."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    async def says(self, *lines: str) -> None:
        """Read on until it has printed all of this."""
        assert self.process.stdout is not None
        missing = set(lines)
        async with asyncio.timeout(LIMIT_S):
            while missing:
                said = (await self.process.stdout.readline()).decode()
                assert said, f"it ended without saying {missing}: {await self.rest()}"
                missing.discard(said.strip())

    async def rest(self) -> tuple[str, str]:
        """The rest of its output, and its stderr."""
        async with asyncio.timeout(LIMIT_S):
            out, err = await self.process.communicate()
        return out.decode(), err.decode()


@asynccontextmanager
async def child(folder: Path, handler: str, *, grace: float = 600, workers: int = 1) -> AsyncIterator[Child]:
    """A worker on a new store in `folder` with four jobs."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(ROOT / "tests/process/worker_child.py"), str(folder), handler, str(grace), str(workers)),
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        yield Child(process)
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()


async def jobs_left(folder: Path) -> list[Job]:
    """The jobs in the order in which they were enqueued; the ledger is clean, and its writer ended in good order."""
    reader = await open_reader((folder / "store").as_uri(), pinned=True)
    try:
        fold = await check_ledger(reader)
        jobs = await jobs_with_texts(reader, [*fold.jobs.values()])
        records = [record async for record in LogReader(reader, clock=ManualClock()).read(fold.next_offset - 1)]
        assert [type(record.event) for record in records] == [WriterClosed]
    finally:
        await reader.close()
    return sorted(jobs, key=lambda job: job.offset)


@each_signal
async def test_the_first_signal_lets_the_running_job_end_and_starts_no_other(tmp_path: Path, number: int) -> None:
    async with child(tmp_path, "cue") as worker:
        await worker.says("started 0")
        worker.process.send_signal(number)
        (tmp_path / "cue").touch()
        assert await worker.rest() == ("ended 0\nover\n", "")
        assert worker.process.returncode == 0
    assert [(job.state, job.attempt) for job in await jobs_left(tmp_path)] == [("done", 1)] + [("pending", 0)] * 3


@pytest.mark.parametrize(("handler", "first"), [("cue", 0), pytest.param("thread", 1, marks=pytest.mark.proof)])
async def test_a_second_signal_ends_at_once_and_gives_the_jobs_back(tmp_path: Path, handler: str, first: int) -> None:
    async with child(tmp_path, handler, workers=2) as worker:
        await worker.says("started 0", "started 1")
        worker.process.send_signal(SIGNALS[first])
        worker.process.send_signal(SIGNALS[1 - first])
        assert await worker.rest() == ("over\n", "")
        assert worker.process.returncode == 0
    jobs = await jobs_left(tmp_path)
    assert [(job.state, job.attempt) for job in jobs] == [("pending", 0)] * 4
    assert [job.error for job in jobs[:2]] == ["released: the worker ended"] * 2


# ---------------------------------------------------------------------- in this process


@contextmanager
def handlers_kept() -> Iterator[list[Any]]:
    """The signal handlers are the same ones after the block."""
    before = [signal.getsignal(number) for number in SIGNALS]
    try:
        yield before
        assert [signal.getsignal(number) for number in SIGNALS] == before
    finally:
        for number, handler in zip(SIGNALS, before, strict=True):
            signal.signal(number, handler)


@each_signal
async def test_a_signal_stops_every_worker_of_the_process(number: int) -> None:
    with handlers_kept():
        stage = Stage()
        async with Rig() as rig:
            await rig.queue.enqueue_many("q", [b"1", b"2", b"3"])
            workers = [Worker(rig.queue, concurrency=1, grace=1000) for _ in range(2)]
            for worker in workers:
                worker.handler("q")(stage)
            tasks = [asyncio.create_task(worker.run()) for worker in workers]
            await settle()
            os.kill(os.getpid(), number)
            await settle()
            stage.cue.set()
            for task in tasks:
                await finish(task)
            assert (await rig.queue.stats("q")).done == 2


@pytest.mark.parametrize("first", [0, 1])
async def test_a_worker_that_ends_leaves_the_others_their_signals(first: int) -> None:
    with handlers_kept():
        async with Rig() as rig:
            workers = [Worker(rig.queue) for _ in range(2)]
            for worker in workers:
                worker.handler("q")(Stage())
            tasks = [asyncio.create_task(worker.run()) for worker in workers]
            await settle()
            workers[first].stop()
            await finish(tasks[first])
            assert not tasks[1 - first].done()
            os.kill(os.getpid(), signal.SIGTERM)
            await until(tasks[1 - first].done)
            await tasks[1 - first]


async def test_a_worker_that_leaves_signals_alone_takes_none() -> None:
    with handlers_kept() as before:
        async with Rig() as rig:
            worker = Worker(rig.queue)
            worker.handler("q")(Stage())
            task = asyncio.create_task(worker.run(signals=False))
            await settle()
            assert [signal.getsignal(number) for number in SIGNALS] == before
            worker.stop()
            await finish(task)


@pytest.mark.parametrize("handler", [signal.SIG_IGN, signal.SIG_DFL, lambda number, frame: None])
async def test_a_run_puts_back_the_handler_that_was_there(handler: Any) -> None:
    with handlers_kept():
        signal.signal(signal.SIGTERM, handler)
        async with Rig() as rig:
            worker = Worker(rig.queue)
            worker.handler("q")(Stage())
            await worker.run(until_empty=True)
            assert signal.getsignal(signal.SIGTERM) is handler
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


async def test_a_handler_that_somebody_sets_meanwhile_is_not_overwritten() -> None:
    def mine(number: int, frame: Any) -> None: ...

    before = [signal.getsignal(number) for number in SIGNALS]
    try:
        async with Rig() as rig:
            worker = Worker(rig.queue)
            worker.handler("q")(Stage())
            task = asyncio.create_task(worker.run())
            await settle()
            signal.signal(signal.SIGTERM, mine)
            worker.stop()
            await finish(task)
            assert signal.getsignal(signal.SIGTERM) is mine
            assert signal.getsignal(signal.SIGINT) == before[1]
    finally:
        for number, handler in zip(SIGNALS, before, strict=True):
            signal.signal(number, handler)


def test_a_worker_in_another_thread_leaves_signals_alone() -> None:
    failures: list[BaseException] = []

    async def run() -> None:
        async with Rig() as rig:
            await rig.queue.enqueue("q", b"")
            stage = Stage()
            stage.cue.set()
            worker = Worker(rig.queue)
            worker.handler("q")(stage)
            await worker.run(until_empty=True)

    def work() -> None:
        try:
            asyncio.run(run())
        except BaseException as error:
            failures.append(error)

    with handlers_kept():
        thread = threading.Thread(target=work)
        thread.start()
        thread.join(LIMIT_S)
    assert not thread.is_alive()
    assert not failures
