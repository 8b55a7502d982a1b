"""What an operator does: cancel a job that waits, stop one that runs, pause a queue. Who and why is in the log."""

import asyncio

from ledgerq import JobContext, Queue, Worker
from ledgerq.events import Cancelled, CancelRequested, QueuePaused, QueueResumed


async def main() -> None:
    async with Queue.open("memory:///") as queue:
        waiting = await queue.enqueue("mail", b"a mistake", delay=3600)
        await queue.cancel(waiting.job_id, actor="ada", reason="sent by hand")

        worker = Worker(queue)
        began = asyncio.Event()

        @worker.handler("export")
        async def export(job: JobContext) -> None:
            began.set()
            await asyncio.sleep(3600)  # cancelled from outside

        running = await queue.enqueue("export", b"everything")
        task = asyncio.create_task(worker.run(until_empty=True))
        await began.wait()
        await queue.cancel(running.job_id, actor="ada", reason="too expensive")
        await task
        print("now", (await queue.get(running.job_id)).state)

        await queue.pause("mail", actor="ada", reason="the relay is down")
        await queue.enqueue("mail", b"hello")
        assert await queue.claim("mail") == []
        await queue.resume("mail", actor="ada", reason="it is back")
        assert len(await queue.claim("mail")) == 1
        async for record in queue.log.read():
            event = record.event
            if isinstance(event, Cancelled | CancelRequested | QueuePaused | QueueResumed):
                print(type(event).__name__, event.actor, event.reason)


asyncio.run(main())
