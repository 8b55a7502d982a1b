"""A process that has a shared store open: it enqueues, or works, and reports each promise and each try.

It ends when its connection says so: a producer at once, a worker after the jobs in its hands. It is forked off a server
that has imported this module, since imports cost two seconds of a core.
"""

import asyncio
from multiprocessing.connection import Connection

from ledgerq import JobContext, Queue, QueueOptions, Worker
from ledgerq.worker.sharing import shared_queue

__all__ = ["run"]

PRELOADED = shared_queue
# Short, so that the jobs of a killed worker are tried again soon.
OPTIONS = QueueOptions(lease_s=3.0, max_attempts=20, max_crashes=None)


def run(url: str, role: str, name: str, connection: Connection) -> None:
    """Do what the role is."""
    asyncio.run(_run(url, role, name, connection))


async def _run(url: str, role: str, name: str, connection: Connection) -> None:
    over = asyncio.Event()
    asyncio.get_running_loop().add_reader(connection.fileno(), over.set)
    async with Queue.open(url, share=True, default=OPTIONS) as queue:
        connection.send(("open", "", ""))
        await (_produce(queue, name, connection, over) if role == "produce" else _work(queue, connection, over))


async def _produce(queue: shared_queue.SharedQueue, name: str, connection: Connection, over: asyncio.Event) -> None:
    at = 0
    while not over.is_set():
        payload = f"{name}-{at}"
        connection.send(("promised", payload, (await queue.enqueue("q", payload.encode())).job_id))
        at += 1


async def _work(queue: shared_queue.SharedQueue, connection: Connection, over: asyncio.Event) -> None:
    worker = Worker(queue, concurrency=10)

    @worker.handler("q")
    async def handle(job: JobContext) -> None:
        connection.send(("tried", job.payload.decode(), job.job_id))

    running = asyncio.create_task(worker.run(signals=False))
    await over.wait()
    worker.stop()
    await running
