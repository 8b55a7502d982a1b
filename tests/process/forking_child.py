"""A process that forks while it has a queue open, by `os.fork` or with multiprocessing.

    python tests/process/forking_child.py fork|multiprocessing URL

Prints a line for each call that the child made, with the name of the error, and then what the parent did.
"""

import asyncio
import multiprocessing
import os
import sys
import time
from collections.abc import Awaitable, Callable
from functools import partial

from ledgerq import Queue, Worker
from ledgerq.worker.claims import Claim
from tests.support.queue_calls import CALLS

POLL_S = 0.01


async def work(queue: Queue) -> None:
    """A worker in the child."""
    worker = Worker(queue)
    worker.handler("q")(lambda job: None)
    await worker.run(until_empty=True)


async def tail(queue: Queue) -> None:
    """A reader in the child that waits for new events."""
    async for _ in queue.log.tail(10**6):
        return


def child(queue: Queue, claim: Claim) -> None:
    """Make each call on a loop of the child's own."""
    calls: dict[str, Callable[[], Awaitable[object]]] = {}
    calls |= {name: partial(call, queue, claim) for name, call in CALLS.items()}
    calls |= {"close": queue.close, "worker": lambda: work(queue), "tail": lambda: tail(queue)}
    for name, call in calls.items():

        async def make(call: Callable[[], Awaitable[object]] = call) -> None:
            async with asyncio.timeout(50):
                await call()

        began_s = time.monotonic()
        try:
            asyncio.run(make())
            said = "nothing"
        except Exception as error:
            said = type(error).__name__
        print(f"{name}: {said}{' late' if time.monotonic() - began_s > 30 else ''}", flush=True)


async def main(way: str, url: str) -> None:
    """Open, fork, wait for the child, and go on."""
    queue = await Queue.open(url)
    await queue.enqueue_many("q", [b"1", b"2"])
    (claim,) = await queue.claim("q")
    if way == "fork":
        forked = os.fork()
        if forked == 0:
            asyncio.events._set_running_loop(None)
            child(queue, claim)
            os._exit(0)
        while os.waitpid(forked, os.WNOHANG) == (0, 0):
            await asyncio.sleep(POLL_S)
    else:
        process = multiprocessing.get_context("fork").Process(target=child, args=(queue, claim))
        process.start()
        while process.is_alive():
            await asyncio.sleep(POLL_S)
        print("exit code", process.exitcode)
    await queue.ack(claim)
    await queue.enqueue("q", b"3")
    (second,) = await queue.claim("q")
    await queue.ack(second)
    stats = await queue.stats("q")
    await queue.close()
    print("parent", stats.done, stats.pending, flush=True)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
