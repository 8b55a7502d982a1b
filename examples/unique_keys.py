"""At most one unfinished job for a key, however many ask for it at once."""

import asyncio

from ledgerq import Queue


async def main() -> None:
    async with Queue.open("memory:///") as queue:
        answers = await asyncio.gather(*(queue.enqueue("reports", b"", unique_key="2026-11") for _ in range(100)))
        assert sum(answer.created for answer in answers) == 1
        assert len({answer.job_id for answer in answers}) == 1

        # Free again at the first claim: a change that comes while the job runs is not swallowed.
        first = await queue.enqueue("sync", b"", unique_key="customer-7", unique_until="claimed")
        (claim,) = await queue.claim("sync")
        second = await queue.enqueue("sync", b"", unique_key="customer-7", unique_until="claimed")
        print(first.job_id, "runs,", second.job_id, "waits:", second.created)
        await queue.ack(claim)


asyncio.run(main())
