"""Read a store while another one writes it: a reader disturbs no writer, and sees one commit."""

import asyncio
import tempfile

from ledgerq import Queue, SystemClock
from ledgerq.eventlog.log import LogReader
from ledgerq.eventlog.stores import open_reader
from ledgerq.projections.view import LedgerView


async def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        async with Queue.open(folder) as queue:
            await queue.enqueue("mail", b"hello")
            store = await open_reader(folder, pinned=True)
            try:
                log = LogReader(store, clock=SystemClock())
                print(await log.verify())
                print(await LedgerView(log).stats("mail"))
            finally:
                await store.close()
            await queue.enqueue("mail", b"the writer goes on")


asyncio.run(main())
