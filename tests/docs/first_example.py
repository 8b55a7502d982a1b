"""The first example of the README, as it stands there: so mypy --strict and ruff look at it."""

import asyncio

from ledgerq import Queue, Tasks, Worker, on

app = Tasks()


@app.task(queue="mail", timeout=60, retry=[on(ConnectionError, attempts=10)])
async def send(user_id: int, text: str = "hello") -> str:
    return f"{text} to {user_id}"


async def main() -> None:
    async with Queue.open("jobs", tasks=app) as queue:  # a folder here; "s3://bucket/prefix" and others work alike
        handle = await send.enqueue(user_id=3)  # checked by mypy, and durable when this returns
        await Worker(queue, tasks=app).run(until_empty=True)  # without it: until SIGTERM, SIGINT or worker.stop()
        print(await handle.result(timeout=30))


asyncio.run(main())
