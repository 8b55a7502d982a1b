"""Operators of limits in a simulated world: they set limits of queues, take them back, and hold queues back.

What the ledger then holds of them, and which jobs are claimed, is judged by the model (tests/model/limits.py).
"""

from typing import Any

from ledgerq.eventlog.events import Held, HoldReleased, LimitsSet
from tests.model.job import Violation
from tests.simulation.claimers import Calls
from tests.simulation.process import Process

__all__ = ["Limiters"]


class Limiters(Calls):
    """The operators of limits in a simulated world."""

    async def _limit(self, process: Process, action: str, queue: str, **given: Any) -> None:
        asked = len(self._world.ledger.records)
        known: dict[str, Any] = {"actor": "someone", "reason": self.give(queue, f"a whim at {asked}")}
        act = getattr(self._queue(process), action)
        await self.call(process, f"{action} {queue}", act(queue, **given, **known))
        self._world.say(f"p{process.number} {action} {queue} {given}")
        since = [one.event for one in self._world.ledger.records[asked:]]
        mine = [one for one in since if isinstance(one, LimitsSet | Held | HoldReleased) and one.queue == queue]
        if not mine and action != "release_hold":  # there may be no hold
            raise Violation("too early", f"{action} of {queue} returned before its event was durable")
