"""Enqueue a job, claim it, ack it, and look at its history."""

import asyncio

from ledgerq import Queue


async def main() -> None:
    async with Queue.open("memory:///") as queue:  # a folder or a bucket: "jobs", "s3://bucket/prefix"
        job = await queue.enqueue("mail", b"hello", headers={"to": "ada@example.org"})
        (claim,) = await queue.claim("mail", wait=10)
        print(claim.payload, claim.headers["to"], "try", claim.attempt)
        await queue.ack(claim)
        for record in await queue.history(job.job_id):
            print(record.offset, type(record.event).__name__)


asyncio.run(main())
