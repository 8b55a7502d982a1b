"""Limits, ended at every call of the store in every way that a process can end: none is exceeded, and all jobs end."""

from typing import Any

from ledgerq.eventlog.events import Held, Nacked
from ledgerq.eventlog.memory import MemoryStore
from ledgerq.worker.engine.core import UNFINISHED
from ledgerq.worker.options import QueueOptions
from ledgerq.worker.queue import Queue
from tests.model.crash_points import CrashPoint, End, at_each_call, each_end, until_crash
from tests.model.job import Model
from tests.support.loops import settle
from tests.support.operators import WHO
from tests.support.rig import Rig

QUEUES = {
    "fast": QueueOptions(max_running=2, rate="4/min", burst=2, max_attempts=9, lease_s=60),
    "held": QueueOptions(max_attempts=9, lease_s=60),
}


async def opened(rig: Rig, store: MemoryStore) -> Queue:
    given: dict[str, Any] = {"clock": rig.clock, "entropy": rig.entropy, "commit_interval_ms": 0.0, "queues": QUEUES}
    rig.queue = await Queue.open(store=store, **given)
    return rig.queue


async def operate(rig: Rig, point: CrashPoint) -> None:
    """Jobs of a queue with limits are claimed and settled; another one is held by a handler, and by an operator."""
    point.store = store = MemoryStore(rig.disk, fault=point)
    queue = await opened(rig, store)
    await queue.enqueue_many("fast", [b""] * 6)
    await queue.enqueue_many("held", [b""] * 2)
    claims = await queue.claim("fast", limit=6)
    (claim,) = await queue.claim("held")
    await queue.release(claim, "429", hold=20)
    await queue.ack(claims[0])
    rig.clock.advance(seconds=15)
    await queue.claim("fast", limit=6, kept=True)
    await queue.hold("held", seconds=30, **WHO)
    await queue.limit("fast", rate="6/min", burst=1, **WHO)
    rig.clock.advance(seconds=10)
    await queue.claim("fast", limit=6)
    await queue.release_hold("held", **WHO)
    await queue.ack_many(await queue.claim("held", limit=2))
    await queue.limit("fast", **WHO)
    await queue.close()


async def run_until_it_ends(rig: Rig, at: int | None, end: End) -> tuple[CrashPoint, None]:
    """Run the scenario up to its end or the crash."""
    point = CrashPoint(at, end)
    await until_crash(rig, point, end, operate(rig, point))
    return point, None


async def check_promises(rig: Rig, nothing: None = None) -> int:
    """Open again: the jobs that are left come to their end, in time, and no limit was or is exceeded.

    Returns how many claims there were.
    """
    await rig.check()
    queue = await opened(rig, MemoryStore(rig.disk))
    names = ["fast", "held"]
    for _ in range(20):
        if not queue._core.jobs_in(names, UNFINISHED):
            break
        await queue.ack_many(await queue.claim(names, limit=9))
        rig.clock.advance(seconds=20)
        await settle()
    assert not queue._core.jobs_in(names, UNFINISHED)
    await queue.close()
    await rig.check()
    model = Model()
    for batch in await rig.batches():
        for number, event in enumerate(batch.events):
            model.apply(batch.base_offset + number, batch.time_ms, event)
        of_jobs = [event.job for event in batch.events if isinstance(event, Held) and event.job is not None]
        assert of_jobs == [event.id for event in batch.events if isinstance(event, Nacked)]
    return len(model.claims)


async def test_the_scenario_itself_goes_well() -> None:
    rig = Rig()
    point, _ = await run_until_it_ends(rig, None, "error")
    assert len(point.calls) > 20
    assert await check_promises(rig) > 8


@each_end("vanish", 4)
async def test_limits_hold_in_whatever_way_a_process_ends_at_a_call_of_its_store(end: End, step: int) -> None:
    await at_each_call(run_until_it_ends, check_promises, end, step)
