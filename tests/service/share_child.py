"""A process that has a shared store open: it enqueues, or works, and reports each promise and each try on a line.

It ends when its standard input does: a producer at once, a worker after the jobs in its hands.
"""

import asyncio
import os
import sys

from ledgerq import JobContext, Queue, QueueOptions, Worker

# Short, so that the jobs of a killed worker are tried again soon.
OPTIONS = QueueOptions(lease_s=3.0, max_attempts=20, max_crashes=None)


def report(*words: str) -> None:
    """One line, in one write: what comes after it may be a kill."""
    os.write(1, (" ".join(words) + "\n").encode())


async def stdin_ended() -> None:
    """Wait for the end of the standard input."""
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    await reader.read()


async def produce(queue: Queue, name: str, over: "asyncio.Task[None]") -> None:
    """Enqueue without end."""
    at = 0
    while not over.done():
        payload = f"{name}-{at}"
        report("promised", payload, (await queue.enqueue("q", payload.encode())).job_id)
        at += 1


async def work(queue: Queue, over: "asyncio.Task[None]") -> None:
    """Handle jobs until the end."""
    worker = Worker(queue, concurrency=10)

    @worker.handler("q")
    async def handle(job: JobContext) -> None:
        report("tried", job.payload.decode(), job.job_id)

    over.add_done_callback(lambda _: worker.stop())
    await worker.run(signals=False)


async def main() -> None:
    """Do what the arguments ask for: store, what, name."""
    url, what, name = sys.argv[1:]
    async with Queue.open(url, share=True, default=OPTIONS) as queue:
        report("open")
        over = asyncio.create_task(stdin_ended())
        await (produce(queue, name, over) if what == "produce" else work(queue, over))  # type: ignore[arg-type]


asyncio.run(main())
