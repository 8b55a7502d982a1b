"""A process that works on a store until another one takes it over, and reports how each of its tasks ended.

    python tests/s3/fence_child.py DIR SEED URL

Facts go to DIR/facts like those of process/kill_child.py. Each line on stdout is a task and the error that ended it;
then a call made after all of that, and "closed" once the queue is closed.
"""

import asyncio
import os
import sys
from pathlib import Path
from typing import Any

from ledgerq.worker.queue import Queue
from tests.process.kill_child import OPTIONS, PRODUCERS, WORKERS, Load


async def main(folder: Path, seed: int, url: str) -> None:
    """Run until fenced; any other end of a task is reported as well."""
    facts_fd = os.open(folder / "facts", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    async with Queue.open(url, default=OPTIONS, ready_window=50, take_over=True) as queue:
        load = Load(queue, facts_fd, seed)
        tasks: dict[str, asyncio.Task[Any]]
        tasks = {f"producer-{i}": asyncio.create_task(load.produce()) for i in range(PRODUCERS)}
        tasks |= {f"worker-{i}": asyncio.create_task(load.work(f"w{i}")) for i in range(WORKERS)}
        tasks["operator"] = asyncio.create_task(load.operate())
        tasks["waiting"] = asyncio.create_task(queue.claim("empty", wait=None))
        ends = dict(zip(tasks, await asyncio.gather(*tasks.values(), return_exceptions=True), strict=True))
        for name, end in ends.items():
            print(name, type(end).__name__, flush=True)
        try:
            await queue.enqueue("q", b"too late")
        except Exception as error:
            print("later", type(error).__name__, flush=True)
    print("closed", flush=True)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]))
