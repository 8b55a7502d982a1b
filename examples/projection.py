"""A projection of one's own: rows that are written in the same commit as the events they follow from."""

import asyncio
from collections import Counter
from collections.abc import Mapping

from ledgerq import MemoryDisk, MemoryStore, Queue
from ledgerq.events import Enqueued
from ledgerq.projections.fold import Transition


class ByCustomer:
    """How many jobs each customer (the first word of a queue's name) ever enqueued."""

    name = "by-customer"

    def restore(self, rows: Mapping[bytes, bytes]) -> None:
        self.counts = Counter({key.decode(): int(value) for key, value in rows.items()})

    def apply(self, transition: Transition) -> Mapping[bytes, bytes | None]:
        match transition.event:
            case Enqueued(queue=queue):
                customer = queue.split("/")[0]
                self.counts[customer] += 1
                return {customer.encode(): str(self.counts[customer]).encode()}
        return {}


async def main() -> None:
    disk = MemoryDisk()
    async with Queue.open(store=MemoryStore(disk)) as queue:  # before there was such a projection
        await queue.enqueue("acme/mail", b"hello")

    mine = ByCustomer()
    async with Queue.open(store=MemoryStore(disk), projections=[mine]) as queue:
        assert mine.counts == {"acme": 1}  # backfilled from the log
        await queue.enqueue("acme/export", b"all")
        await queue.enqueue("globex/mail", b"hello")
        print(mine.counts)


asyncio.run(main())
