"""Schedules in code and of operators, in a queue for tests, whose clock stands still until it is moved."""

import asyncio
from datetime import UTC, datetime, timedelta

from ledgerq import Tasks
from ledgerq.testing import memory_queue

app = Tasks("shop")


@app.cron(every=timedelta(hours=1))
@app.task(queue="reports")
def hourly(tick: datetime) -> None:
    print("report for the hour to", tick)


@app.task(queue="reports")
def export(tenant: str) -> None:
    print("export for", tenant)


async def main() -> None:
    async with memory_queue(app) as queue:
        await queue.schedules.set(
            "acme",
            "0 9 * * *",
            export,
            args={"tenant": "acme"},
            zone="Europe/Berlin",
            actor="ada",
            reason="acme asked for it",
        )
        print("exports at", await queue.schedules.next("acme", n=2))
        now = datetime.fromtimestamp(queue.clock.now_ms() / 1000, UTC)
        await queue.drain(now=now + timedelta(days=1))
        jobs = {schedule.name: schedule.jobs for schedule in await queue.schedules.list()}
        assert jobs == {"acme": 1, "hourly": 24}, jobs


asyncio.run(main())
