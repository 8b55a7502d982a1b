"""Metrics are the durable counters of the log: nothing that isn't committed shows, and a restart changes nothing."""

import asyncio

from prometheus_client import CollectorRegistry, generate_latest

from ledgerq import ManualClock, MemoryDisk, MemoryStore, Queue
from tests.loops import settle


def scrape(queue: Queue) -> dict[str, float]:
    registry = CollectorRegistry()
    registry.register(queue.collector())
    lines = generate_latest(registry).decode().splitlines()
    return {line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) for line in lines if not line.startswith("#")}


async def test_metrics_are_the_counters_of_the_log_and_survive_a_restart() -> None:
    disk, clock = MemoryDisk(), ManualClock()
    async with Queue.open(store=MemoryStore(disk), clock=clock, commit_interval_ms=0) as queue:
        await queue.enqueue_many("mail", [b"a", b"b", b"c"])
        (claim,) = await queue.claim("mail")
        await queue.ack(claim)
        await queue.pause("mail", actor="ada", reason="test")
        before = scrape(queue)
        head = await queue.log.head()
    assert before['ledgerq_jobs{queue="mail",state="pending"}'] == 2
    assert before['ledgerq_jobs{queue="mail",state="done"}'] == 1
    assert before['ledgerq_transitions_total{kind="enqueued",queue="mail"}'] == 3
    assert before['ledgerq_queue_paused{queue="mail"}'] == 1
    assert before["ledgerq_log_events_total"] == head.next_offset
    async with Queue.open(store=MemoryStore(disk), clock=clock, commit_interval_ms=0) as queue:
        after = scrape(queue)
    assert {name: value for name, value in after.items() if not name.startswith("ledgerq_log_")} == {
        name: value for name, value in before.items() if not name.startswith("ledgerq_log_")
    }
    assert after["ledgerq_log_epoch"] == before["ledgerq_log_epoch"] + 1


async def test_what_is_not_durable_is_not_counted() -> None:
    gate = asyncio.Event()
    gate.set()

    async def fault(call: str) -> None:
        if call == "sync:before":
            await gate.wait()

    queue = await Queue.open(store=MemoryStore(fault=fault), clock=ManualClock(), commit_interval_ms=0)
    await queue.enqueue("mail", b"a")
    gate.clear()
    task = asyncio.create_task(queue.enqueue("mail", b"b"))
    await settle()
    assert scrape(queue)['ledgerq_transitions_total{kind="enqueued",queue="mail"}'] == 1
    gate.set()
    await task
    assert scrape(queue)['ledgerq_transitions_total{kind="enqueued",queue="mail"}'] == 2
    await queue.close()
