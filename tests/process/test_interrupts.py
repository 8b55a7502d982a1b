"""SIGINT and SIGTERM at each moment of a worker's life, in a process of its own, run by `ledgerq worker`.

Wherever it comes: the process ends soon, with an exit code that says how and without a traceback; the log is whole;
what was acked stays acked, and nothing else is lost or counted as a try that was not one.
"""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from ledgerq import Queue
from ledgerq.eventlog.clock import ManualClock, SystemClock
from ledgerq.projections.job import Job
from ledgerq.projections.texts import jobs_with_texts
from tests.support.ledger_checks import check_ledger
from tests.tiers import sampled

ROOT = Path(__file__).resolve().parents[2]
LIMIT_S = 60
SIGNALS = [signal.SIGINT, signal.SIGTERM]
KILLED = -signal.SIGTERM
INTERRUPTED = 130
each_signal = pytest.mark.parametrize("number", sampled(SIGNALS), ids=lambda number: number.name)


class Child:
    """A worker's process and its output."""

    def __init__(self, process: asyncio.subprocess.Process, folder: Path) -> None:
        self.process = process
        self.said: list[str] = []
        self._folder = folder

    async def until(self, line: str) -> None:
        """Read until it prints that."""
        assert self.process.stdout is not None
        async with asyncio.timeout(LIMIT_S):
            while line not in self.said:
                said = (await self.process.stdout.readline()).decode()
                assert said, f"it ended without saying {line!r}: {await self.end()}"
                self.said.append(said.rstrip())

    def go_on(self) -> None:
        """Let it leave the moment."""
        (self._folder / "cue").touch()

    async def end(self) -> tuple[int | None, str]:
        """Its exit code and its complaints, once it has ended."""
        async with asyncio.timeout(LIMIT_S):
            out, err = await self.process.communicate()
        self.said += out.decode().splitlines()
        return self.process.returncode, err.decode()


@asynccontextmanager
async def worker(folder: Path, moment: str) -> AsyncIterator[Child]:
    """A worker that stands still at this moment."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "ledgerq.tools.cli", "worker", "tests.process.standing_worker:make"),
        env=os.environ | {"PYTHONPATH": str(ROOT), "ODD_FOLDER": str(folder), "ODD_MOMENT": moment},
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    child = Child(process, folder)
    try:
        await child.until(f"at {moment}")
        yield child
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()


async def jobs_after(folder: Path, said: list[str]) -> list[Job]:
    """The jobs once the queue is open again, in order; the ledger is clean and agrees with what the handlers did."""
    async with Queue.open(str(folder / "store"), clock=ManualClock(SystemClock().now_ms())) as queue:
        fold = await check_ledger(queue.log.store)
        jobs = await jobs_with_texts(queue.log.store, sorted(fold.jobs.values(), key=lambda job: job.offset))
    ended = {line.split()[1] for line in said if line.startswith("ended")}
    for number, job in enumerate(jobs):
        assert job.state in ("done", "pending")
        assert job.state == "pending" or str(number) in ended, f"job {number} is done without having been worked on"
        assert job.attempt <= 1
    return jobs


def states(jobs: list[Job]) -> list[tuple[str, int]]:
    """State and tries of each."""
    return [(job.state, job.attempt) for job in jobs]


@pytest.mark.proof
@each_signal
async def test_before_it_opens(tmp_path: Path, number: signal.Signals) -> None:
    async with worker(tmp_path, "import") as child:
        child.process.send_signal(number)
        if number == signal.SIGINT:
            child.go_on()  # asyncio keeps Ctrl-C until the loop has its turn
        assert await child.end() == (INTERRUPTED if number == signal.SIGINT else KILLED, "")
    assert await jobs_after(tmp_path, child.said) == []


@pytest.mark.proof
@each_signal
async def test_while_it_opens(tmp_path: Path, number: signal.Signals) -> None:
    async with worker(tmp_path, "open") as child:
        child.process.send_signal(number)
        if number == signal.SIGINT:
            child.go_on()
        code, complaints = await child.end()
        assert (code, complaints) == (INTERRUPTED if number == signal.SIGINT else KILLED, "")
    assert await jobs_after(tmp_path, child.said) == []


@pytest.mark.proof
@each_signal
async def test_while_it_waits_for_jobs(tmp_path: Path, number: signal.Signals) -> None:
    async with worker(tmp_path, "idle") as child:
        child.process.send_signal(number)
        assert await child.end() == (0, "")
    assert await jobs_after(tmp_path, child.said) == []


@pytest.mark.proof
@each_signal
async def test_while_its_claim_is_being_made_durable(tmp_path: Path, number: signal.Signals) -> None:
    async with worker(tmp_path, "claim") as child:
        child.process.send_signal(number)
        child.go_on()
        assert await child.end() == (0, "")
    jobs = await jobs_after(tmp_path, child.said)
    # The claim of a call that was cancelled is given back, and no handler began.
    assert states(jobs) == [("pending", 0)] * 3
    assert "started 0" not in child.said


@each_signal
@pytest.mark.parametrize("moment", sampled(["async", "thread", "settle"]))
async def test_while_a_job_is_worked_on_or_settled(tmp_path: Path, moment: str, number: signal.Signals) -> None:
    async with worker(tmp_path, moment) as child:
        child.process.send_signal(number)
        child.go_on()
        assert await child.end() == (0, "")
    jobs = await jobs_after(tmp_path, child.said)
    assert states(jobs) == [("done", 1), ("pending", 0), ("pending", 0)]
    assert [line for line in child.said if line.startswith("started")] == ["started 0"]


@pytest.mark.proof
@pytest.mark.parametrize("moment", ["async", "thread"])
async def test_twice_in_a_row_while_a_job_is_worked_on(tmp_path: Path, moment: str) -> None:
    async with worker(tmp_path, moment) as child:
        child.process.send_signal(signal.SIGINT)
        child.process.send_signal(signal.SIGTERM)
        assert await child.end() == (0, "")
    jobs = await jobs_after(tmp_path, child.said)
    assert states(jobs) == [("pending", 0)] * 3
    assert jobs[0].error == "released: the worker ended"


@pytest.mark.proof
@each_signal
async def test_a_handler_that_ignores_its_cancellation_for_a_while(tmp_path: Path, number: signal.Signals) -> None:
    async with worker(tmp_path, "stubborn") as child:
        child.process.send_signal(number)
        code, complaints = await child.end()
        assert code == 0
        assert "Traceback" not in complaints
    assert "cancelled" in child.said
    # It came to its end after all, within the time that is given to one that was cancelled: then it counts.
    assert states(await jobs_after(tmp_path, child.said)) == [("done", 1), ("pending", 0), ("pending", 0)]


@pytest.mark.proof
@each_signal
async def test_while_the_queue_closes(tmp_path: Path, number: signal.Signals) -> None:
    async with worker(tmp_path, "close") as child:
        child.process.send_signal(number)
        child.go_on()
        code, complaints = await child.end()
        assert (code, complaints) == (INTERRUPTED if number == signal.SIGINT else KILLED, "")
