"""What the library logs, with the attributes that name event and job: here as JSON, by the standard library alone."""

import asyncio
import json
import logging
import sys

from ledgerq import Dead, JobContext, Queue, Worker


class AsJson(logging.Formatter):
    """A record's message with all attributes of ledgerq's."""

    def format(self, record: logging.LogRecord) -> str:
        ours = {name: value for name, value in vars(record).items() if name.startswith("ledgerq_")}
        return json.dumps({"level": record.levelname, "message": record.getMessage(), **ours})


handler = logging.StreamHandler(sys.stdout)
handler.setFormatter(AsJson())
logging.getLogger("ledgerq").addHandler(handler)
logging.getLogger("ledgerq").setLevel(logging.DEBUG)


async def main() -> None:
    async with Queue.open("memory:///") as queue:
        worker = Worker(queue)

        @worker.handler("mail")
        async def send(job: JobContext) -> None:
            if job.payload == b"nonsense":
                raise Dead("no such address")

        await queue.enqueue_many("mail", [b"hello", b"nonsense"])
        await worker.run(until_empty=True)


asyncio.run(main())
