"""Jobs for later, by a delay or at a time. The clock is a manual one here, so that there is no wait."""

import asyncio
from datetime import UTC, datetime, timedelta

from ledgerq import ManualClock, Queue


async def main() -> None:
    clock = ManualClock(int(datetime(2026, 11, 24, 9, tzinfo=UTC).timestamp() * 1000))
    async with Queue.open("memory:///", clock=clock) as queue:
        await queue.enqueue("reminders", b"in an hour", delay=3600)
        await queue.enqueue("reminders", b"at noon", run_at=datetime(2026, 11, 24, 12, tzinfo=UTC))
        for job in (await queue.jobs("reminders", state="scheduled")).jobs:
            print("due", datetime.fromtimestamp(job.due_ms / 1000, UTC))

        for expected in (b"in an hour", b"at noon"):
            waiting = asyncio.create_task(queue.claim("reminders", wait=86_400))
            await asyncio.sleep(0)
            clock.advance(seconds=timedelta(hours=2).total_seconds())
            (claim,) = await waiting
            assert claim.payload == expected
            await queue.ack(claim)


asyncio.run(main())
