"""A queue on damaged indexes: its error names the fault and the remedy, or it goes on; it fails in no other way."""

import asyncio
import logging

import pytest

from ledgerq.eventlog import keys
from ledgerq.eventlog.clock import ManualClock
from ledgerq.eventlog.errors import ProjectionDrift
from ledgerq.eventlog.memory import MemoryStore
from ledgerq.projections.index_keys import FINISHED_PREFIX, SCHEDULED, STATS
from ledgerq.worker.queue import Queue
from tests.support.damaged_rows import DAMAGES, Damage, Ledger, copy_of, make_ledger
from tests.support.loops import settle

MORE = [
    Damage("a hint of an unreadable name", lambda ledger: ledger.disk.rows.update({keys.HINT_PREFIX + b"\xff": b"x"})),
    Damage("a hint that leads", lambda ledger: ledger.disk.rows.update({keys.hint_key("mail"): b"\xff" * 12})),
]


@pytest.fixture(scope="module")
def pristine() -> Ledger:
    return asyncio.run(make_ledger())


@pytest.fixture
def ledger(pristine: Ledger) -> Ledger:
    return pristine._replace(disk=copy_of(pristine.disk))


async def use(queue: Queue, clock: ManualClock) -> None:
    """A little of everything."""
    for name in ("mail", "other", "quick", "bulk"):
        async with asyncio.timeout(60):
            while claims := await queue.claim(name, limit=9):
                await queue.ack_many(claims)
        await queue.jobs(name)
        await queue.stats(name)
    await queue.queues()
    clock.advance(seconds=10**7)
    await settle()


@pytest.mark.parametrize("damage", [*DAMAGES, *MORE], ids=lambda damage: damage.name)
async def test_a_queue_on_damaged_indexes_says_so_or_goes_on(ledger: Ledger, damage: Damage) -> None:
    damage.do(ledger)
    clock = ManualClock(ledger.clock_ms)
    others = asyncio.all_tasks()
    said: list[str] = []
    try:
        async with Queue.open(store=MemoryStore(ledger.disk), clock=clock, commit_interval_ms=0) as queue:
            await use(queue, clock)
    except ProjectionDrift as error:
        said.append(str(error))
    assert all("rebuild-projections" in text for text in said)
    assert asyncio.all_tasks() == others


@pytest.mark.parametrize("prefix", [SCHEDULED, FINISHED_PREFIX])
async def test_a_time_that_cant_be_read_is_told_in_the_log(
    ledger: Ledger, prefix: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    ledger.disk.rows[prefix + b"\xff"] = b"?"
    clock = ManualClock(ledger.clock_ms)
    with caplog.at_level(logging.WARNING, "ledgerq"):
        async with Queue.open(store=MemoryStore(ledger.disk), clock=clock):
            clock.advance(seconds=0.001)
            await settle()
    assert "run rebuild-projections" in caplog.text


async def test_counters_of_an_unreadable_name_are_refused_by_name(ledger: Ledger) -> None:
    ledger.disk.rows[STATS + b"\xff"] = b"?"
    with pytest.raises(ProjectionDrift, match="rebuild-projections"):
        await Queue.open(store=MemoryStore(ledger.disk), clock=ManualClock(ledger.clock_ms))
