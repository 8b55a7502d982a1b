"""Typed tasks: enqueued with their arguments, run by a worker, and their results waited for."""

import asyncio

from ledgerq import JobFailed, Queue, Tasks, Worker, on

app = Tasks()


@app.task(queue="mail", retry=[on(ConnectionError, attempts=5, base=0.01), on(LookupError, dead=True)])
async def send(user_id: int, text: str = "hello") -> str:
    if user_id < 0:
        raise LookupError("no such user")
    return f"{text} to {user_id}"


@app.task(queue="images")
def resize(name: str, width: int) -> int:  # a plain function runs in a thread
    return len(name) * width


async def main() -> None:
    async with Queue.open("memory:///", tasks=app) as queue:
        mail = await send.enqueue(user_id=3)
        bad = await send.options(priority=1).enqueue(-1)
        images = await resize.enqueue_many([{"name": "a.png", "width": at} for at in (100, 200)])
        worker = Worker(queue, tasks=app)
        working = asyncio.create_task(worker.run())
        print(await mail.result(timeout=30), await asyncio.gather(*images))
        try:
            await bad
        except JobFailed as error:
            print(error.error_type, error)
        worker.stop()
        await working


asyncio.run(main())
