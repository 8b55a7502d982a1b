"""The state as it was: fold the log up to an offset or a time, or go through it transition by transition."""

import asyncio

from ledgerq import Queue
from ledgerq.projections.replay import fold_to, replay


async def main() -> None:
    async with Queue.open("memory:///") as queue:
        job = await queue.enqueue("mail", b"hello")
        (claim,) = await queue.claim("mail")
        await queue.ack(claim)

        async for transition in replay(queue.log):
            after = transition.after.state if transition.after else "-"
            print(transition.offset, type(transition.event).__name__, "->", after)
        for record in await queue.history(job.job_id):
            then = await fold_to(queue.log, offset=record.offset + 1)
            print("after offset", record.offset, [found.state for found in then.jobs.values()])


asyncio.run(main())
