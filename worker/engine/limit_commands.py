"""The commands of operators to limits and holds. Each stages an event with actor and reason."""

from ledgerq.eventlog.events import Held, HoldReleased
from ledgerq.eventlog.keys import queue_name_bytes
from ledgerq.worker.engine import decisions
from ledgerq.worker.engine.core import Core
from ledgerq.worker.limits import new_limits, queue_limits
from ledgerq.worker.options import seconds_ms

__all__ = ["hold", "release_hold", "set_limits"]


async def set_limits(
    core: Core,
    queue: str,
    *,
    max_running: int | None,
    rate: str | None,
    burst: int | None,
    actor: str,
    reason: str,
) -> None:
    """Set the limits of a queue, as `Queue.limit` does."""
    core.log.check()
    queue_name_bytes(queue)
    actor, reason = decisions.operator(actor, reason)
    event = new_limits(queue, max_running=max_running, rate=rate, burst=burst, actor=actor, reason=reason)
    if not (event.max_running or event.count):
        own = queue_limits(queue, core.options(queue))
        event = type(own)(queue, own.max_running, own.count, own.period_ms, own.burst, "code", actor, reason)
    core.dispatcher.limiting.set(event)
    await core.log.committed()


async def hold(core: Core, queue: str, *, seconds: float, actor: str, reason: str) -> None:
    """Hold a queue back for a time, as `Queue.hold` does."""
    core.log.check()
    queue_name_bytes(queue)
    actor, reason = decisions.operator(actor, reason)
    until_ms = core.log.upcoming_ms() + seconds_ms("seconds", seconds, least_ms=1)
    core.writer_state.apply_limits(Held(queue, until_ms, None, actor, reason))
    core.dispatcher.limiting.changed(queue)
    await core.log.committed()


async def release_hold(core: Core, queue: str, *, actor: str, reason: str) -> None:
    """Let a queue that is held go on, as `Queue.release_hold` does."""
    core.log.check()
    queue_name_bytes(queue)
    actor, reason = decisions.operator(actor, reason)
    if core.writer_state.limits.of(queue).held_until_ms > core.log.upcoming_ms():
        core.writer_state.apply_limits(HoldReleased(queue, actor, reason))
        core.dispatcher.limiting.changed(queue)
    await core.log.committed()
