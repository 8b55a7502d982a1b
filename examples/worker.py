"""A worker with handlers for two queues: one asynchronous, one in a thread."""

import asyncio

from ledgerq import JobContext, Queue, Worker


async def main() -> None:
    async with Queue.open("memory:///") as queue:
        worker = Worker(queue, concurrency=10)

        @worker.handler("mail", timeout=30)
        async def send(job: JobContext) -> None:
            await asyncio.sleep(0.01)  # a call to a mail server
            print("sent", job.payload)

        @worker.handler("checksum")
        def checksum(job: JobContext) -> None:  # a plain function runs in a thread
            print("sum", sum(job.payload))

        await queue.enqueue_many("mail", [b"one", b"two"])
        await queue.enqueue("checksum", bytes(range(200)))
        await worker.run(until_empty=True)  # without until_empty: until SIGTERM, SIGINT or worker.stop()


asyncio.run(main())
