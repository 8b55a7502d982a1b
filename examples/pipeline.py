"""Claims as an aiostream, for a pipeline of one's own instead of a worker."""

import asyncio

from aiostream import pipe

from ledgerq import Claim, Queue, claims


async def main() -> None:
    async with Queue.open("memory:///") as queue:
        await queue.enqueue_many("resize", [b"a", b"bb", b"ccc"])

        async def resize(claim: Claim, *_: Claim) -> int:
            await queue.ack(claim)
            return len(claim.payload)

        stream = claims(queue, "resize", limit=10, wait=0.05) | pipe.amap(resize, task_limit=4)
        async with stream.stream() as sizes:
            print(sorted([size async for size in sizes]))


asyncio.run(main())
