"""Many dead jobs are looked at, requeued as they were seen, and what is left is deleted. Who and why is in the log."""

import asyncio

from ledgerq import Filter, Queue
from ledgerq.events import BulkBegan, BulkEnded


async def main() -> None:
    async with Queue.open("memory:///") as queue:
        await queue.enqueue_many("mail", [b"hello"] * 500)
        for number, claim in enumerate(await queue.claim("mail", limit=500)):
            await queue.nack(claim, "no route to host" if number % 5 else "no such address", dead=True)

        down = Filter(queue="mail", error="no route")
        found = await queue.bulk.requeue(down, actor="ada", reason="the relay is back")
        print("a dry run finds", found.count, "jobs, for instance", found.examples[0].job_id)
        done = await queue.bulk.requeue(
            down, actor="ada", reason="the relay is back", dry_run=False, expect=found.count, token=found.token
        )
        print("requeued", done.count)

        rest = Filter(queue="mail", state="dead")
        gone = await queue.bulk.delete(rest, actor="ada", reason="addresses that are wrong", dry_run=False)
        print("deleted", gone.count)
        async for record in queue.log.read():
            event = record.event
            if isinstance(event, BulkBegan):
                print("bulk", event.what, "by", event.actor)
            elif isinstance(event, BulkEnded):
                print("ended,", event.changed, "changed,", event.skipped, "skipped")


asyncio.run(main())
