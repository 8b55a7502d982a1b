"""A queue in a process of its own, whose clock the parent sets, and which follows the parent's orders.

    python tests/process/clock_child.py URL LEASE_S

Reads lines of JSON, [what, argument...], and answers each with one:
{"answer": ...} or {"error": name, "says": message}.
"""

import asyncio
import json
import sys
import threading
from collections.abc import Callable
from typing import Any

from ledgerq import Claim, JobContext, LedgerError, Queue, QueueOptions, Worker
from ledgerq.eventlog.clock import SystemClock


class Child:
    """One queue, and the claims that are held."""

    def __init__(self, url: str, lease_s: float) -> None:
        self._url = url
        self._options = QueueOptions(lease_s=lease_s, backoff_base_s=0.0)
        self._held: dict[str, Claim] = {}
        self._queue: Queue
        self._worker: Worker
        self._working: asyncio.Task[None]
        self._started: list[str] = []
        self._cue = asyncio.Event()

    async def now(self) -> int:
        """The time of the queue's clock."""
        return SystemClock().now_ms()

    async def open(self) -> int:
        """Open the queue; its epoch."""
        self._queue = await Queue.open(self._url, default=self._options)
        return self._queue.log.epoch

    async def close(self) -> None:
        """Close it."""
        await self._queue.close()

    async def enqueue(self, payload: str, delay: float | None = None) -> str:
        """A new job's id."""
        return (await self._queue.enqueue("q", payload.encode(), delay=delay)).job_id

    async def claim(self, wait: float, lease: float | None = None) -> list[str]:
        """Claim what is there, or comes in time; the payloads."""
        claims = await self._queue.claim("q", limit=100, wait=wait, lease=lease)
        self._held |= {claim.payload.decode(): claim for claim in claims}
        return [claim.payload.decode() for claim in claims]

    async def ack(self, payload: str) -> None:
        """Ack the newest claim of this job."""
        await self._queue.ack(self._held.pop(payload))

    async def state(self, job_id: str) -> str:
        """The state of a job."""
        return (await self._queue.get(job_id)).state

    async def totals(self) -> dict[str, int]:
        """The queue's counters."""
        return (await self._queue.stats("q")).totals

    async def work(self) -> None:
        """Begin to work off the queue; handlers go on until `finish`."""
        self._worker = Worker(self._queue, concurrency=10)

        @self._worker.handler("q")
        async def handle(job: JobContext) -> None:
            self._started.append(job.payload.decode())
            await self._cue.wait()

        self._working = asyncio.create_task(self._worker.run(until_empty=True, signals=False))

    async def started(self) -> list[str]:
        """The jobs whose handlers were started, each time."""
        return self._started

    async def finish(self) -> None:
        """Let the handlers end, and the worker, too."""
        self._cue.set()
        await self._working


async def main(url: str, lease_s: float) -> None:
    """Answer until there are no more questions."""
    child, loop = Child(url, lease_s), asyncio.get_running_loop()
    questions: asyncio.Queue[str] = asyncio.Queue()

    def listen(tell: Callable[[str], None]) -> None:
        for line in sys.stdin:
            loop.call_soon_threadsafe(tell, line)
        loop.call_soon_threadsafe(tell, "")

    threading.Thread(target=listen, args=(questions.put_nowait,), daemon=True).start()
    while line := await questions.get():
        what, *arguments = json.loads(line)
        answer: dict[str, Any]
        try:
            answer = {"answer": await getattr(child, what)(*arguments)}
        except LedgerError as error:
            answer = {"error": type(error).__name__, "says": str(error)}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], float(sys.argv[2])))
