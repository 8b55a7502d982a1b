"""The limits of queues, and how much of them is used: the fold of their events and of claims.

A rate is kept by the generic cell rate algorithm, which needs one number: the time at which all claims so far would
have come at an even pace. So any half-open window of `period_ms` sees at most count + burst - 1 claims, by the times of
commits. (Source: ITU-T I.371, annex A.) All is whole numbers: that time is kept as a multiple of 1/`unit` ms.

How many jobs are claimed is no part of it: the queue's counters have that. The rows are in indexes.py: `limit_rows`.
"""

from typing import Final, assert_never

from msgspec import Struct
from msgspec.structs import replace

from ledgerq.eventlog.errors import InvalidQueueName
from ledgerq.eventlog.events import Held, HoldReleased, LimitEvent, LimitsSet
from ledgerq.eventlog.keys import queue_name_bytes

__all__ = ["MAX_COUNT", "MAX_PERIOD_MS", "LimitTable", "Limits", "limits_fault"]

MAX_COUNT: Final = 100_000
MAX_PERIOD_MS: Final = 24 * 3600 * 1000


class Limits(Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
    """The limits of a queue, and what is used of them.

    `setting`: the event that set them, None without any. `used` / `unit`: when the rate is used no more, in ms since
    the Unix epoch. `held_until_ms`: 0 when it is not held.
    """

    queue: str
    setting: LimitsSet | None = None
    used: int = 0
    unit: int = 1
    held_until_ms: int = 0

    @property
    def used_until_ms(self) -> int:
        """When the rate is used no more; 0 when it never was."""
        return -(-self.used // self.unit)

    def _used_by(self, rate: LimitsSet) -> int:
        """What is used, as a multiple of 1/count ms of this rate, rounded up."""
        return self.used if self.unit == rate.count else -(-self.used * rate.count // self.unit)

    def tokens(self, rate: LimitsSet, time_ms: int) -> int:
        """How many claims this rate allows at that time."""
        now = time_ms * rate.count
        return max(0, rate.burst - -(-(max(self._used_by(rate), now) - now) // rate.period_ms))

    def opens_ms(self, rate: LimitsSet) -> int:
        """From when on this rate allows a claim."""
        return -(-(self._used_by(rate) - (rate.burst - 1) * rate.period_ms) // rate.count)

    def spent(self, rate: LimitsSet, time_ms: int) -> "Limits":
        """After one more claim at that time."""
        used = max(self._used_by(rate), time_ms * rate.count) + rate.period_ms
        return replace(self, used=used, unit=rate.count)


class LimitTable:
    """The limits of all queues that ever had any or were held, as the events so far leave them."""

    def __init__(self) -> None:
        self.by_queue: dict[str, Limits] = {}
        self.had_rates = False

    def put(self, limits: Limits) -> None:
        """Set the limits of a queue as they are now."""
        self.by_queue[limits.queue] = limits
        self.had_rates |= limits.used > 0 or (limits.setting is not None and limits.setting.count > 0)

    def of(self, queue: str) -> Limits:
        """The limits of a queue as they are now."""
        return self.by_queue.get(queue) or Limits(queue)

    def apply(self, event: LimitEvent) -> None:
        """Follow an event that makes sense."""
        before = self.of(event.queue)
        match event:
            case LimitsSet():
                self.put(replace(before, setting=event))
            case Held():
                self.put(replace(before, held_until_ms=event.until_ms))
            case HoldReleased():
                self.put(replace(before, held_until_ms=0))
            case _:
                assert_never(event)

    def claimed(self, queue: str, time_ms: int) -> None:
        """Follow a claim of a job of this queue, in a commit of that time."""
        limits = self.by_queue.get(queue)
        if limits is not None and limits.setting is not None and limits.setting.count:
            self.put(limits.spent(limits.setting, time_ms))


def limits_fault(event: LimitEvent) -> str:
    """Why no writer made this event; empty when one may have."""
    try:
        queue_name_bytes(event.queue)
    except InvalidQueueName:
        return f"{event.queue[:40]!r} is no queue's name"
    if not isinstance(event, LimitsSet):
        return ""
    rate = (event.count, event.period_ms, event.burst)
    is_small = event.count <= MAX_COUNT and event.period_ms <= MAX_PERIOD_MS and event.burst <= MAX_COUNT
    return "" if not any(rate) or (min(rate) > 0 and is_small) else f"{event} are no limits that can be set"
