"""The quiesce phase of a simulated world: no more faults; everything left is worked off, swept and compared.

At last the log is tampered with, to see that it is noticed: a ledger that can't detect that proves nothing.
"""

import asyncio
import random
from typing import Any, Final

from ledgerq.eventlog import keys
from ledgerq.eventlog.codec import Head, decode_batch, encode_head
from ledgerq.eventlog.errors import LedgerError, LogCorrupt, LogRolledBack
from ledgerq.eventlog.log import LogReader
from ledgerq.eventlog.memory import MemoryReader
from ledgerq.worker.claims import Claim
from tests.model.job import UNFINISHED, Violation
from tests.simulation.machine import Machine
from tests.simulation.process import Process

__all__ = ["quiesce"]

_LIMIT_S: Final = 24 * 3600.0
_IDLE_S: Final = 5.0
_WAIT_S: Final = 60.0


async def quiesce(world: Machine, supervisor: "asyncio.Task[Any]") -> None:
    """Run the quiesce phase; raises `Violation`."""
    world.say("the end begins")
    world.calm()
    # A clock that was set back: SlateDB takes no writes until it has caught up, so it is set right.
    late_ms = world.disk.last_tick_ms - world.clock.now_ms()
    if late_ms > 0:
        world.loop.set_wall_clock(late_ms)
    try:
        async with asyncio.timeout(_LIMIT_S * 3):
            process = await world.process()
            # One whose store failed may not have noticed yet.
            while any(one.alive and not _is_sound(one) for one in world.processes) or not _is_sound(process):
                await asyncio.sleep(_IDLE_S)
                process = await world.process()
            supervisor.cancel()
            await _drain(world, process)
    except TimeoutError as error:
        raise Violation("hang", "the jobs that are left don't come to an end") from error
    world.ledger.check_everything()
    world.oracle.finished(swept=True)
    await world.close_process(process)
    world.ledger.check_everything()
    await tamper(world)


def _is_sound(process: Process) -> bool:
    return process.healthy and process.store is not None and process.store.failure() is None


async def _drain(world: Machine, process: Process) -> None:
    queue, model = process.queue, world.oracle.model
    assert queue is not None
    await queue.log.committed()  # the event of a call that was cancelled may be on its way
    names = [name for name, counts in model.queues.items() if counts.first_offset >= 0]
    for name in names:
        if model.queues[name].paused:
            world.ledger.side.given.add((name, "the end"))
            await queue.resume(name, actor="the end", reason="the end")
    await queue.bulk.resume()
    await _remove_schedules(world, process)
    if any(counts.bulk is not None for counts in model.queues.values()):
        raise Violation("bulk", "a bulk is open after all were finished")
    waiting: asyncio.Task[list[Claim]] | None = None
    while any(job.state in UNFINISHED for job in model.jobs.values()):
        names = [name for name, counts in model.queues.items() if counts.first_offset >= 0]  # one may be moved to
        claims = await (queue.claim(names, limit=5, wait=_WAIT_S) if waiting is None else waiting)
        if not claims and waiting is not None and not process.disturbances:
            _check_served(world, names)
        waiting = None
        if claims and world.plan.settings["limits"]:
            # One that waits for the end of these.
            waiting = asyncio.create_task(queue.claim(names, limit=5, wait=_WAIT_S))
            await asyncio.sleep(0)
        for claim in claims:
            lease_ms = round(queue.options(claim.queue).lease_s * 1000)
            world.oracle.receive(claim, lease_ms, world.clock.now_ms())
            world.oracle.hand(claim)
        if claims:
            await queue.ack_many(claims)
            for claim in claims:
                world.oracle.settled(claim, "acked")
    if waiting is not None:
        await waiting
    if names:
        await queue.drained(names)
    world.oracle.finished(swept=False)
    # A call that stalled before the end began may stall yet.
    while process.disturbances:
        await asyncio.sleep(_IDLE_S)
    keep_s = world.plan.settings["keep_ms"] / 1000
    await asyncio.sleep(keep_s + _IDLE_S)


def _check_served(world: Machine, names: list[str]) -> None:
    """Raise for a job that waited as long as a claim did, and both in vain: all leases, rates and holds were over."""
    model, since_ms = world.oracle.model, world.loop.now_ms() - round(_WAIT_S * 1000)
    for name in names:
        if left := [id for id in model.pending.get(name, {}) if model.pending_since_ms[id] <= since_ms]:
            raise Violation("hang", f"no claim of {name!r} came in {_WAIT_S:g} s, and {left[0].hex()} waits")


async def _remove_schedules(world: Machine, process: Process) -> None:
    """Check that no tick was lost on the way, and remove all schedules."""
    queue, schedules = process.queue, world.oracle.model.schedules
    assert queue is not None
    if not schedules.by_name:
        return
    while process.disturbances:
        await asyncio.sleep(_IDLE_S)
    await asyncio.sleep(world.patience_ms / 1000 + _IDLE_S)
    if late := schedules.late(world.clock.now_ms() - world.patience_ms, world.loop.now_ms() - world.patience_ms):
        raise Violation("lost", f"the schedules {late} did not tick: {schedules.by_name[late[0]]}")
    for name in [*schedules.by_name]:
        world.ledger.side.given.add((name, "the end"))
        await queue.schedules.remove(name, actor="the end", reason="the end")
    if schedules.by_name:
        raise Violation("too early", f"{[*schedules.by_name]} are said to be removed, and are there")


async def tamper(world: Machine) -> None:
    """Flip one bit of the log, then cut its end off: both must be noticed. The disk is put right again."""
    rows, rng = world.disk.rows, random.Random(world.plan.seed)
    batches = [key for key in rows if key.startswith(keys.LOG_PREFIX)]
    log = LogReader(MemoryReader(world.disk), clock=world.clock)
    await log.verify()
    key = rng.choice(batches)
    value = rows[key]
    at = rng.randrange(len(value))
    rows[key] = value[:at] + bytes([value[at] ^ 1 << rng.randrange(8)]) + value[at + 1 :]
    try:
        await log.verify()
    except LedgerError:
        pass
    else:
        raise Violation("tampered", f"a flipped bit in byte {at} of the batch {key.hex()} was not noticed")
    rows[key] = value
    if len(batches) < 2:
        return
    *_, before, last = batches
    kept, head = rows.pop(last), rows[keys.HEAD_KEY]
    batch = decode_batch(keys.offset_of(before), rows[before])
    shorter = Head(batch.next_offset, batch.digest, batch.epoch, batch.time_ms, batch.base_offset)
    rows[keys.HEAD_KEY] = encode_head(shorter)
    try:
        await log.check_anchor(world.disk.anchor)
    except (LogRolledBack, LogCorrupt):
        pass
    else:
        raise Violation("tampered", "the last commit was cut off, and the anchor did not tell")
    rows[last], rows[keys.HEAD_KEY] = kept, head
