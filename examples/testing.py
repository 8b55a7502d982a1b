"""Test code that uses a queue: in memory, with a clock that the test moves, and with a crash in between."""

import asyncio

from ledgerq import Fenced, ManualClock, MemoryDisk, MemoryStore, Queue


async def test_a_lease_ends() -> None:
    clock = ManualClock()
    async with Queue.open("memory:///", clock=clock) as queue:
        await queue.enqueue("mail", b"hello")
        await queue.claim("mail", lease=30)
        waiting = asyncio.create_task(queue.claim("mail", wait=60))
        await asyncio.sleep(0)
        clock.advance(seconds=30)
        (again,) = await waiting
        assert again.attempt == 2


async def test_what_was_reported_survives_a_crash() -> None:
    disk = MemoryDisk()
    first = await Queue.open(store=MemoryStore(disk))
    await first.enqueue("mail", b"hello")
    async with Queue.open(store=MemoryStore(disk)) as second:  # `first` was never closed
        assert len(await second.claim("mail")) == 1
        try:
            await first.enqueue("mail", b"too late")
        except Fenced:
            return
    raise AssertionError("two writers")


for test in (test_a_lease_ends, test_what_was_reported_survives_a_crash):
    asyncio.run(test())
    print("passed", test.__name__)
