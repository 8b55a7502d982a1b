"""What becomes of a job whose handler fails: retries, a dead letter with its error, a new start."""

import asyncio

from ledgerq import Dead, JobContext, Queue, QueueOptions, Retry, Worker


async def work(queue: Queue) -> None:
    worker = Worker(queue)

    @worker.handler("mail")
    async def send(job: JobContext) -> None:
        if job.payload == b"no address":
            raise Dead("the address is not valid")  # can never succeed
        if job.payload == b"busy" and job.attempt == 1:
            raise Retry(0.01, "the server is busy")  # again after 10 ms
        if job.payload == b"broken":
            raise ConnectionError("no route")  # again after backoff, dead after the last try

    await worker.run(until_empty=True)


async def main() -> None:
    options = QueueOptions(max_attempts=2, backoff_base_s=0.01)
    async with Queue.open("memory:///", default=options) as queue:
        await queue.enqueue_many("mail", [b"fine", b"busy", b"no address", b"broken"])
        await work(queue)
        dead = (await queue.jobs("mail", state="dead")).jobs
        for job in dead:
            print(job.attempt, "tries:", job.error.splitlines()[-1])
        await queue.requeue(dead[0].job_id, actor="ada", reason="the address was corrected")
        print(await queue.stats("mail"))


asyncio.run(main())
