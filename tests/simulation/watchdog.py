"""The watchdog of a simulated world: now and then it checks that what is due happens in time, without faults.

A job that is due must be pending soon after, a lease that is over must end, what was kept long enough must go, and a
claim that was not received must be given back. "Soon" is `Machine.patience_ms`, and counts from the end of all faults.
"""

import asyncio
from typing import Final

from tests.model.job import ModelJob, Violation
from tests.simulation.machine import Machine

__all__ = ["watch"]

_LOOK_AT_LEAST_MS: Final = 20_000
_LOOK_AT_MOST_MS: Final = 500


async def watch(world: Machine) -> None:
    """Check until the end; raises `Violation`."""
    while True:
        next_ms = _look(world)
        wait_ms = _LOOK_AT_LEAST_MS if next_ms is None else next_ms - world.clock.now_ms() + world.patience_ms + 1
        await asyncio.sleep(min(max(wait_ms, _LOOK_AT_MOST_MS), _LOOK_AT_LEAST_MS) / 1000)


def _look(world: Machine) -> int | None:
    """Raise for what is late; returns when the next thing is due, by the wall clock."""
    now_ms, wall_ms, patience_ms = world.loop.now_ms(), world.clock.now_ms(), world.patience_ms
    process = next((one for one in reversed(world.processes) if one.healthy), None)
    calm_ms = None if process is None else world.calm_since_ms(process)
    is_calm = calm_ms is not None and calm_ms < now_ms - patience_ms
    next_ms: int | None = None
    schedules = world.oracle.model.schedules
    if is_calm and (late := schedules.late(wall_ms - patience_ms, now_ms - patience_ms)):
        raise Violation("late", f"the schedules {late} should have ticked: {schedules.by_name[late[0]]}")
    for job in world.oracle.model.jobs.values():
        due_ms = _due_ms(world, job)
        if due_ms is None:
            continue
        if is_calm and due_ms < wall_ms - patience_ms and job.changed_at_ms < now_ms - patience_ms:
            raise Violation("late", f"{job.id.hex()} is {job.state}, and what was due is {wall_ms - due_ms} ms late")
        if due_ms > wall_ms:
            next_ms = due_ms if next_ms is None else min(next_ms, due_ms)
    ticks_ms = [one.due_ms for one in schedules.by_name.values() if not one.paused and one.due_ms > wall_ms]
    return min([*ticks_ms, *([] if next_ms is None else [next_ms])], default=None)


def _due_ms(world: Machine, job: ModelJob) -> int | None:
    """When something must happen to a job by itself, by the wall clock."""
    if job.state == "scheduled":
        return min(job.due_ms, job.starts_before_ms or job.due_ms)
    if job.state == "pending" and job.starts_before_ms:
        return job.starts_before_ms
    if job.state in ("done", "dead", "cancelled"):
        return job.sweep_at_ms
    if job.state == "claimed":
        claim = (job.id, job.claim_offset)
        # One that was not received by now is of a cancelled call, and must be given back; unless its writer ended, and
        # the next one has kept it.
        return world.oracle.model.leases.get(claim, job.claim_ms)
    return None
