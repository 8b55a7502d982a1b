"""Workers under test: handlers that wait for their cue, and a worker that runs beside the test."""

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from ledgerq.projections.job import Job
from ledgerq.worker.execution import JobContext
from ledgerq.worker.prefetch import Prefetch
from ledgerq.worker.worker import Worker
from tests.support.loops import settle

__all__ = ["LIMIT_S", "Stage", "ThreadStage", "fetching_ahead", "finish", "handler_threads", "state_of", "working"]

LIMIT_S = 60.0


class Stage:
    """An async handler that notes who comes and waits for its cue; by default the cue is never given."""

    def __init__(self) -> None:
        self.started: list[bytes] = []
        self.ended: list[bytes] = []
        self.cancelled: list[bytes] = []
        self.running = 0
        self.peak = 0
        self.cue = asyncio.Event()

    async def __call__(self, job: JobContext) -> None:
        """Handle one job."""
        self.started.append(job.payload)
        self.running += 1
        self.peak = max(self.peak, self.running)
        try:
            await self.cue.wait()
            self.ended.append(job.payload)
        except asyncio.CancelledError:
            self.cancelled.append(job.payload)
            raise
        finally:
            self.running -= 1


class ThreadStage:
    """A plain handler, for a thread: it wakes the loop when it has begun, and waits for its cue."""

    def __init__(self) -> None:
        self.started: list[bytes] = []
        self.ended: list[bytes] = []
        self.jobs: list[JobContext] = []
        self.begun = asyncio.Event()
        self.cue = threading.Event()
        self._loop = asyncio.get_running_loop()

    def __call__(self, job: JobContext) -> None:
        """Handle one job."""
        assert threading.current_thread() is not threading.main_thread()
        self.started.append(job.payload)
        self.jobs.append(job)
        self._loop.call_soon_threadsafe(self.begun.set)
        if not self.cue.wait(LIMIT_S):
            raise TimeoutError("the cue was never given")
        self.ended.append(job.payload)

    async def has_begun(self) -> None:
        """Wait until a thread is in the handler."""
        async with asyncio.timeout(LIMIT_S):
            await self.begun.wait()
        self.begun.clear()


class _Steady(Prefetch):
    """An estimate that is always the same."""

    def __init__(self, claims: int, patience_ms: int) -> None:
        super().__init__(concurrency=1, limit=None)
        self._claims = claims
        self._patience_ms = patience_ms

    def claims(self, now_ms: int, waiting_bytes: float = 0.0) -> int:
        """So many."""
        return self._claims

    @property
    def patience_ms(self) -> int:
        """So long."""
        return self._patience_ms


def fetching_ahead(worker: Worker, claims: int, *, patience_s: float = 1_000_000) -> Worker:
    """The worker, which will always hold so many claims for slots that aren't free yet, and for so long."""
    worker._slots.prefetch = _Steady(claims, round(patience_s * 1000))
    return worker


@asynccontextmanager
async def working(worker: Worker, *, until_empty: bool = False) -> AsyncIterator[asyncio.Task[None]]:
    """The worker runs during the block and is stopped after it, or ends by itself with `until_empty`."""
    task = asyncio.create_task(worker.run(until_empty=until_empty, signals=False), name="run")
    await settle()
    try:
        yield task
    except BaseException:
        task.cancel()
        await asyncio.wait({task}, timeout=1)
        raise
    if not until_empty:
        worker.stop()
    await finish(task)


async def finish(task: "asyncio.Task[None]") -> None:
    """The worker's end, which must come by itself."""
    async with asyncio.timeout(LIMIT_S):
        await task


def handler_threads() -> list[threading.Thread]:
    """The workers' threads that are there, after those that can end had the time to."""
    mine = [thread for thread in threading.enumerate() if thread.name.startswith("ledgerq-handler")]
    for thread in mine:
        thread.join(LIMIT_S)
    return [thread for thread in mine if thread.is_alive()]


def state_of(job: Job) -> tuple[str, int, str]:
    """What a test wants to know of a job."""
    return job.state, job.attempt, job.error
