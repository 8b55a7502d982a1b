"""Thousands of jobs in one commit, and the same with many callers at once, who share commits by themselves."""

import asyncio

from ledgerq import NewJob, Queue


async def main() -> None:
    async with Queue.open("memory:///") as queue:
        await queue.enqueue_many("import", [b"row %d" % number for number in range(1000)])  # all or none
        await queue.enqueue_many("import", [NewJob(b"header", priority=1, headers={"kind": "header"})])

        claims = await queue.claim("import", limit=500)
        assert claims[0].payload == b"header"
        await queue.ack_many(claims)

        await asyncio.gather(*(queue.enqueue("mail", b"%d" % number) for number in range(1000)))
        print(await queue.stats("import"))
        print("commits share callers: the log has", (await queue.log.verify()).batches, "commits")


asyncio.run(main())
