"""Serve metrics, health and readiness from the process that works."""

import asyncio
import urllib.request

from ledgerq import JobContext, Metrics, Queue, Worker


async def main() -> None:
    async with Queue.open("memory:///") as queue:
        worker = Worker(queue)

        @worker.handler("mail")
        async def send(job: JobContext) -> None: ...

        await queue.enqueue("mail", b"hello")
        async with Metrics(queue, worker=worker).serve(port=0) as server:  # port=9464 for Prometheus
            await worker.run(until_empty=True)
            for page in ("/metrics", "/healthz", "/readyz"):
                answer = await asyncio.to_thread(urllib.request.urlopen, server.url + page)
                print(page, answer.status, len(answer.read()), "bytes")


asyncio.run(main())
