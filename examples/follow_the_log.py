"""Follow the log of a queue: every event once it is durable, from any offset on."""

import asyncio

from ledgerq import Queue
from ledgerq.events import Acked


async def main() -> None:
    async with Queue.open("memory:///") as queue:

        async def follow() -> None:
            async for record in queue.log.tail(0):
                print(record.offset, record.event)
                if isinstance(record.event, Acked):
                    return

        following = asyncio.create_task(follow())
        await queue.enqueue("mail", b"hello")
        (claim,) = await queue.claim("mail")
        await queue.ack(claim)
        await following


asyncio.run(main())
