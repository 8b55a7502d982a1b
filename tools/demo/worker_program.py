"""The demo's worker process: it opens the store, works until no job is left, and prints its progress on stdout.

    python -m ledgerq.tools.demo.worker_program URL RESULTS [HOLD_AFTER HOLD]

Each line is one JSON object, `{"done": 12, "dead": 1}`. With HOLD_AFTER, after so many successes, the following
handlers do their work and then hang, just before the job would be acked, the worst moment to die. Once HOLD of them
hang, and nothing else can happen any more, it prints `{"held": ...}` and waits to be killed.
"""

import asyncio
import json
import os
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from ledgerq.tools.demo.sample_files import Results, measure
from ledgerq.worker.execution import JobContext
from ledgerq.worker.options import QueueOptions
from ledgerq.worker.outcomes import Dead
from ledgerq.worker.queue import Queue
from ledgerq.worker.worker import Worker

__all__ = ["CONCURRENCY", "FATE", "OPTIONS", "QUEUE", "main"]

QUEUE: Final = "files"
FATE: Final = "demo-fate"
CONCURRENCY: Final = 16
OPTIONS: Final = QueueOptions(max_attempts=3, backoff_base_s=0.3)
_REPORT_EVERY_S: Final = 0.05


class FileWork:
    """The handler and its state."""

    def __init__(self, results: Results, hold_after: int | None, hold: int) -> None:
        self.all_held = asyncio.Event()
        self._results = results
        self._hold_after = hold_after
        self._hold = hold
        self._successes = 0

    async def handle(self, job: JobContext) -> None:
        """Measure the file whose path is the job's payload, and write the result down."""
        fate = job.headers.get(FATE)
        if fate == "dead":
            raise Dead("this one can never succeed (on purpose)")
        if fate == "fail once" and job.attempt == 1:
            raise RuntimeError("the first attempt fails (on purpose)")
        try:
            result = await asyncio.to_thread(measure, job.payload)
        except OSError as error:
            raise Dead(f"the file can't be read: {error.strerror or error}") from error
        self._results.add(job.job_id, {"path": os.fsdecode(job.payload), **result})
        self._successes += 1
        if self._hold_after is not None and self._successes > self._hold_after:
            if self._successes == self._hold_after + self._hold:
                self.all_held.set()
            await asyncio.Event().wait()


async def _work(url: str, results_file: Path, hold_after: int | None, hold: int) -> None:
    results = Results(results_file)
    async with Queue.open(url, default=OPTIONS) as queue:
        work = FileWork(results, hold_after, hold)
        # Without prefetching it holds a claim for each handler that runs, and no more.
        worker = Worker(queue, concurrency=CONCURRENCY, prefetch=0, name=f"process {os.getpid()}")
        worker.handler(QUEUE)(work.handle)
        helpers = [asyncio.create_task(_report(queue)), asyncio.create_task(_report_held(queue, work, hold))]
        await worker.run(until_empty=True)
        for helper in helpers:
            helper.cancel()
        await asyncio.gather(*helpers, return_exceptions=True)
        await _say(queue)
    results.close()


async def _report(queue: Queue) -> None:
    while True:
        await _say(queue)
        await asyncio.sleep(_REPORT_EVERY_S)


async def _report_held(queue: Queue, work: FileWork, hold: int) -> None:
    await work.all_held.wait()
    await _say(queue, held=hold)


async def _say(queue: Queue, **more: Any) -> None:
    stats = await queue.stats(QUEUE)
    sys.stdout.write(json.dumps({"done": stats.done, "dead": stats.dead, **more}) + "\n")
    sys.stdout.flush()


def _end_with_parent() -> None:
    """End with the parent, which holds the other end of stdin: when it is gone, so is the reason to go on."""
    # Unbuffered: a thread that waits in a buffered read holds its lock, and Python could not end in good order.
    while os.read(sys.stdin.fileno(), 1024):
        pass
    os._exit(1)


def main(arguments: Sequence[str]) -> None:
    """Run with these arguments."""
    url, results_file, *holding = arguments
    hold_after, hold = (int(holding[0]), int(holding[1])) if holding else (None, 0)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    asyncio.run(_work(url, Path(results_file), hold_after, hold))


if __name__ == "__main__":
    main(sys.argv[1:])
