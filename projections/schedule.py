"""The state of a schedule, what each event makes of it, and which events make sense: the fold of schedules.

Its rows are in indexes.py: `schedule_rows`. worker/engine/timetable.py has what a cron expression means.
"""

from datetime import UTC, datetime
from typing import assert_never

from msgspec import Struct
from msgspec.structs import replace

from ledgerq.eventlog.errors import InvalidQueueName
from ledgerq.eventlog.events import (
    ScheduleEvent,
    SchedulePaused,
    ScheduleRemoved,
    ScheduleResumed,
    ScheduleSet,
    Sealed,
    Ticked,
)
from ledgerq.eventlog.keys import queue_name_bytes

__all__ = ["Schedule", "evolve_schedule", "schedule_fault"]


class Schedule(Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
    """A schedule as it is now.

    `setting`: the event that set it, at `offset` and `set_ms`. `next_ms`: its next tick, 0 for none, and `due_ms` when
    that comes. `tick_ms`: the last tick, 0 for none. `last_job`: the job that it added last. `jobs`: how many it added.
    """

    setting: ScheduleSet
    offset: int
    set_ms: int
    paused: bool
    next_ms: int
    due_ms: int
    tick_ms: int = 0
    last_job: bytes | None = None
    jobs: int = 0

    @property
    def name(self) -> str:
        """Its name."""
        return self.setting.name

    @property
    def next_at(self) -> datetime | None:
        """The time of its next tick, in UTC; None while it is paused, and when there is none any more."""
        return None if self.paused or not self.next_ms else datetime.fromtimestamp(self.next_ms / 1000, UTC)

    @property
    def text_at(self) -> int | None:
        """The offset of the text that has its arguments, None where none stands beside the log."""
        reason = self.setting.reason
        return reason.at if isinstance(reason, Sealed) else None

    @property
    def waits_until_ms(self) -> int:
        """When it is to tick next; 0 for never, as it is now."""
        return 0 if self.paused or not self.next_ms else self.due_ms


def evolve_schedule(before: Schedule | None, event: ScheduleEvent, offset: int, time_ms: int) -> Schedule | None:
    """The schedule after an event that makes sense, None for none. One that is set anew stays paused if it was."""
    if isinstance(event, ScheduleSet):
        if before is None:
            return Schedule(event, offset, time_ms, False, event.next_ms, event.due_ms)
        return replace(before, setting=event, offset=offset, set_ms=time_ms, next_ms=event.next_ms, due_ms=event.due_ms)
    assert before is not None
    match event:
        case ScheduleRemoved():
            return None
        case SchedulePaused():
            return replace(before, paused=True)
        case ScheduleResumed():
            return replace(before, paused=False, next_ms=event.next_ms, due_ms=event.due_ms)
        case Ticked():
            added = event.job is not None
            return replace(
                before,
                next_ms=event.next_ms,
                due_ms=event.due_ms,
                tick_ms=event.tick_ms,
                last_job=event.job if added else before.last_job,
                jobs=before.jobs + added,
            )
        case _:
            assert_never(event)


def schedule_fault(before: Schedule | None, event: ScheduleEvent) -> str:
    """Why no writer made this event; empty when one may have."""
    if not _is_name(event.name):
        return f"{event.name[:40]!r} is no schedule's name"
    if isinstance(event, ScheduleSet):
        return "" if _is_name(event.queue) else f"{event.queue[:40]!r} is no queue's name"
    if before is None:
        return f"the event {type(event).__name__} makes no sense where there is no schedule {event.name!r}"
    match event:
        case SchedulePaused():
            wrong = before.paused
        case ScheduleResumed():
            wrong = not before.paused
        case Ticked():
            wrong = _is_wrong_tick(before, event)
        case ScheduleRemoved():
            wrong = False
        case _:
            assert_never(event)
    if not wrong:
        return ""
    is_now = "paused" if before.paused else f"to tick at {before.next_ms}"
    return f"the event {type(event).__name__} makes no sense where schedule {event.name!r} is {is_now}"


def _is_wrong_tick(before: Schedule, event: Ticked) -> bool:
    if (event.job is None) != (event.why in ("missed", "overlap", "lost")):
        return True
    if event.why == "asked":
        return (event.next_ms, event.due_ms) != (before.next_ms, before.due_ms)
    # Of one tick there is one event: the one after it has a later time.
    is_early = not before.next_ms or event.tick_ms < before.next_ms
    return before.paused or is_early or 0 < event.next_ms <= event.tick_ms


def _is_name(name: str) -> bool:
    try:
        queue_name_bytes(name)
    except InvalidQueueName:
        return False
    return True
