"""The reference model of limits: what a log may claim of a queue that has some, apart from the code.

It reads the durable events one by one, like the model of jobs (job.py), and counts in the plainest way: the jobs that
are claimed, and the times of all claims since the limits were set.
"""

from collections.abc import Callable

from ledgerq.eventlog.events import (
    Acked,
    Claimed,
    DeadLettered,
    Event,
    Held,
    HoldReleased,
    LeaseExpired,
    LimitsSet,
    Nacked,
)
from tests.model.records import Violation

__all__ = ["ModelLimits"]


class ModelLimits:
    """The limits of all queues, their holds, and the claims that count. `queue_of` is the queue of a job."""

    def __init__(self, queue_of: Callable[[bytes], str]) -> None:
        self.by_queue: dict[str, LimitsSet] = {}
        self.held_until_ms: dict[str, int] = {}
        self.running: dict[bytes, str] = {}
        self.expected: set[str] = set()  # of queues that have limits in their program's options
        self._times: dict[str, list[int]] = {}
        self._queue_of = queue_of

    def concern(self, queue: str) -> bool:
        """Whether anything but its jobs decides whether a job of this queue is claimed."""
        return queue in self.by_queue or queue in self.held_until_ms

    def apply(self, offset: int, time_ms: int, event: Event) -> None:
        """Apply one durable event; raises `Violation`."""
        if isinstance(event, LimitsSet):
            self.by_queue[event.queue] = event
            self._times[event.queue] = []
        elif isinstance(event, Held):
            before = self.held_until_ms.get(event.queue, 0)
            if event.job is not None and event.until_ms < before:
                raise Violation("limit", f"{event} at {offset} is shorter than the hold until {before}")
            self.held_until_ms[event.queue] = event.until_ms
        elif isinstance(event, HoldReleased):
            self.held_until_ms[event.queue] = 0
        elif isinstance(event, Acked | Nacked | LeaseExpired | DeadLettered):
            self.running.pop(event.id, None)
        elif isinstance(event, Claimed):
            self._claimed(offset, time_ms, event)

    def _claimed(self, offset: int, time_ms: int, event: Claimed) -> None:
        queue = self.running[event.id] = self._queue_of(event.id)
        if time_ms < self.held_until_ms.get(queue, 0):
            raise Violation("limit", f"{event} at {offset} of {queue!r}, which is held")
        limits = self.by_queue.get(queue)
        if limits is None:
            if queue in self.expected:
                raise Violation("limit", f"{event} at {offset}, before the limits of {queue!r} were recorded")
            return
        running = sum(one == queue for one in self.running.values())
        if 0 < limits.max_running < running:
            raise Violation("limit", f"{event} at {offset}: {running} of {queue!r} run under {limits}")
        times = self._times[queue]
        times.append(time_ms)
        if limits.count:
            within = sum(time_ms - limits.period_ms < one for one in times)
            if within > limits.count + limits.burst - 1:
                raise Violation("limit", f"{event} at {offset} is number {within} of {queue!r} under {limits}")
