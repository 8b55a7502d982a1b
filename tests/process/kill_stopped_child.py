"""A process that is stopped and continued while it holds a job.

    python tests/process/kill_stopped_child.py DIR WHAT LEASE_S

WHAT: "async" or "thread", a worker with such a handler; or "claims", which holds a claim by itself and waits for
another one beside it. Each ends its first try when DIR/cue is there. What happens is said on standard output,
a line each.
"""

import asyncio
import os
import sys
import time
from collections.abc import Awaitable
from pathlib import Path

from ledgerq import ClaimLost, JobContext, LedgerError, Queue, QueueOptions, Worker

POLL_S = 0.005


def say(*words: object) -> None:
    """One line for the parent, in one piece whichever threads print."""
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


async def work(queue: Queue, what: str, cue: Path) -> None:
    """A worker, until its queue is empty or was taken over."""
    worker = Worker(queue, concurrency=2, prefetch=0)

    async def handle(job: JobContext) -> None:
        say("started", job.attempt)
        try:
            while not cue.exists():
                await asyncio.sleep(POLL_S)
        except asyncio.CancelledError:
            say("cancelled", job.attempt)
            raise
        say("ended", job.attempt)

    def handle_in_thread(job: JobContext) -> None:
        say("started", job.attempt)
        while not cue.exists() and not job.stop_requested:
            time.sleep(POLL_S)
        say("cancelled" if job.stop_requested else "ended", job.attempt)

    worker.handler("q")(handle if what == "async" else handle_in_thread)
    await worker.run(until_empty=True, signals=False)


async def hold(queue: Queue, cue: Path) -> None:
    """Hold a claim, while another call waits for one, and hold that until the first was tried."""
    tried = asyncio.Event()

    async def wait() -> None:
        (second,) = await queue.claim("q", wait=None)
        say("claimed", second.attempt)
        await tried.wait()
        await settle(second.attempt, queue.ack(second))

    async def settle(attempt: int, ack: Awaitable[None]) -> None:
        try:
            await ack
            say("acked", attempt)
        except ClaimLost:
            say("lost", attempt)

    (first,) = await queue.claim("q")
    waiting = asyncio.create_task(wait())
    say("started", first.attempt)
    while not cue.exists():
        await asyncio.sleep(POLL_S)
    await settle(first.attempt, queue.ack(first))
    tried.set()
    if not (await queue.stats("q")).totals["lease_expired"]:
        waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)


async def main(folder: Path, what: str, lease_s: float) -> None:
    """Run until the job is done, or this process was fenced."""
    options = QueueOptions(lease_s=lease_s, backoff_base_s=0.0)
    queue = await Queue.open((folder / "store").as_uri(), default=options)
    try:
        await queue.enqueue("q", b"job")
        await (hold(queue, folder / "cue") if what == "claims" else work(queue, what, folder / "cue"))
        say("over")
    except LedgerError as error:
        say("failed", type(error).__name__)
    finally:
        await queue.close()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2], float(sys.argv[3])))
