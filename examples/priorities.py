"""Lower numbers first, and within one priority the order of enqueueing, also for a job that is tried again."""

import asyncio

from ledgerq import Queue


async def main() -> None:
    async with Queue.open("memory:///") as queue:
        await queue.enqueue("mail", b"newsletter", priority=2000)
        await queue.enqueue("mail", b"first")
        await queue.enqueue("mail", b"second")
        await queue.enqueue("mail", b"password", priority=1)

        order = []
        while claims := await queue.claim("mail"):
            (claim,) = claims
            if claim.payload == b"first" and claim.attempt == 1:
                await queue.nack(claim, "try again", delay=0)  # keeps its place before "second"
                continue
            order.append(claim.payload)
            await queue.ack(claim)
        print(order)
        assert order == [b"password", b"first", b"second", b"newsletter"]


asyncio.run(main())
