"""A worker in a process of its own, to be sent signals.

    python tests/process/worker_child.py DIR HANDLER GRACE [WORKERS]

HANDLER: "cue" ends when DIR/cue is there; "thread" never ends, in a thread.
Writes "started PAYLOAD" and "ended PAYLOAD" lines to its output, and "over" when the workers have ended by themselves.
"""

import asyncio
import os
import sys
import threading
from pathlib import Path

from ledgerq import JobContext, Queue, QueueOptions, Worker

POLL_S = 0.005


def say(*words: str) -> None:
    """One line for the parent, in one piece whichever threads print."""
    os.write(1, (" ".join(words) + "\n").encode())


async def cue(job: JobContext, folder: Path) -> None:
    """Wait for the parent's order to end."""
    say("started", job.payload.decode())
    while not (folder / "cue").exists():
        await asyncio.sleep(POLL_S)
    say("ended", job.payload.decode())


def thread(job: JobContext) -> None:
    """Never end."""
    say("started", job.payload.decode())
    threading.Event().wait()


async def main(folder: Path, handler: str, grace: float, workers: int) -> None:
    """Run workers on one queue until they end."""
    async with Queue.open((folder / "store").as_uri(), default=QueueOptions(lease_s=600)) as queue:
        await queue.enqueue_many("q", [b"%d" % i for i in range(4)])
        made = [Worker(queue, concurrency=1, prefetch=0, grace=grace, name=f"worker-{i}") for i in range(workers)]
        for worker in made:

            async def by_cue(job: JobContext) -> None:
                await cue(job, folder)

            worker.handler("q")({"cue": by_cue, "thread": thread}[handler])
        await asyncio.gather(*(worker.run() for worker in made))
    say("over")


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2], float(sys.argv[3]), int(sys.argv[4])))
