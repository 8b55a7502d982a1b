"""Kill a process that holds a claim: the job is claimed again, and nothing that was reported is lost."""

import asyncio
import subprocess
import sys
import tempfile

from ledgerq import Queue

CHILD = """
import asyncio, os, signal, sys
from ledgerq import Queue

async def main():
    queue = await Queue.open(sys.argv[1])
    for number in range(10):
        job = await queue.enqueue("mail", b"%d" % number)
        print(job.job_id, flush=True)  # reported: durable
    await queue.claim("mail", worker="the one that dies")
    os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main())
"""


async def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        child = subprocess.run([sys.executable, "-c", CHILD, folder], capture_output=True, text=True, check=False)
        reported = child.stdout.split()
        async with Queue.open(folder) as queue:
            claims = await queue.claim("mail", limit=100)
            assert [claim.job_id for claim in claims] == reported
            print([claim.attempt for claim in claims])  # the first one for the second time
            for record in await queue.history(reported[0]):
                print(record.offset, record.event)


asyncio.run(main())
