"""Prove from a program that log, indexes and counters agree; damage an index row; find it; rebuild."""

import asyncio

from ledgerq import MemoryDisk, MemoryStore, Queue, SystemClock
from ledgerq.eventlog.memory import MemoryReader
from ledgerq.projections.audit import audit
from ledgerq.projections.rebuild import rebuild


async def main() -> None:
    disk = MemoryDisk()
    async with Queue.open(store=MemoryStore(disk)) as queue:
        await queue.enqueue_many("mail", [b"one", b"two"])

    key = next(key for key in disk.rows if key.startswith(b"i/pending/"))
    del disk.rows[key]  # what a bug or a bad disk would do
    report = await audit(MemoryReader(disk), clock=SystemClock())
    for difference in report.differences:
        print(difference.range_name, difference.key, "expected", difference.expected, "found", difference.found)

    store = MemoryStore(disk)
    await rebuild(store, clock=SystemClock(), actor="ada", reason="a row was missing")
    await store.close()
    assert not (await audit(MemoryReader(disk), clock=SystemClock())).differences


asyncio.run(main())
