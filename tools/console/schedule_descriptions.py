"""Schedules and their events in words and as JSON."""

from datetime import timedelta
from typing import Any, Final, assert_never

from ledgerq.eventlog.entropy import job_id_text
from ledgerq.eventlog.events import (
    ScheduleEvent,
    SchedulePaused,
    ScheduleRemoved,
    ScheduleResumed,
    ScheduleSet,
    Ticked,
)
from ledgerq.projections.schedule import Schedule
from ledgerq.tools.console.output import local_time, utc_time

__all__ = ["SCHEDULE_COLUMNS", "schedule_json", "schedule_row", "schedule_text"]

SCHEDULE_COLUMNS: Final = ("schedule", "when", "zone", "task", "queue", "next", "last", "jobs", "from")


def schedule_row(schedule: Schedule) -> list[str]:
    """A row of a table of schedules, with `SCHEDULE_COLUMNS`."""
    setting = schedule.setting
    last = local_time(schedule.tick_ms, "seconds") if schedule.tick_ms else "-"
    following = "paused" if schedule.paused else _moment_text(schedule.next_ms)
    origin = f"tasks {setting.origin}" if setting.origin else "an operator"
    when = _when(setting.spec)
    return [schedule.name, when, setting.zone, setting.task, setting.queue, following, last, str(schedule.jobs), origin]


def _when(spec: str) -> str:
    every, _, number = spec.partition(" ")
    return f"every {timedelta(milliseconds=int(number))}" if every == "every" else spec


def schedule_json(schedule: Schedule) -> dict[str, Any]:
    """A schedule as JSON; its arguments are not shown."""
    setting = schedule.setting
    return {
        "schedule": schedule.name,
        "when": _when(setting.spec),
        "zone": setting.zone,
        "task": setting.task,
        "queue": setting.queue,
        "missed": setting.missed,
        "overlap": setting.overlap,
        "jitter_ms": setting.jitter_ms,
        "grace_ms": setting.grace_ms,
        "tasks": setting.origin or None,
        "paused": schedule.paused,
        "next": None if (next_at := schedule.next_at) is None else utc_time(round(next_at.timestamp() * 1000)),
        "last": utc_time(schedule.tick_ms) if schedule.tick_ms else None,
        "last_job_id": None if schedule.last_job is None else job_id_text(schedule.last_job),
        "jobs": schedule.jobs,
    }


def schedule_text(event: ScheduleEvent) -> str:
    """The text of the fields of a schedule's event."""
    by = f" by {event.actor}: {event.reason}" if event.actor else ""
    match event:
        case ScheduleSet():
            each = f"{event.spec!r} {event.zone}, task {event.task} in queue {event.queue}"
            return f"schedule {event.name}: {each}, next {_moment_text(event.next_ms)},{by}"
        case ScheduleRemoved() | SchedulePaused():
            return f"schedule {event.name}{by}"
        case ScheduleResumed():
            return f"schedule {event.name}, next {_moment_text(event.next_ms)},{by}"
        case Ticked():
            job = "no job" if event.job is None else f"job {job_id_text(event.job)}"
            missed = f", {event.missed} before it missed" if event.missed else ""
            what = f"{local_time(event.tick_ms)}, {event.why}: {job}{missed}"
            return f"schedule {event.name} at {what}, next {_moment_text(event.next_ms)}{by}"
        case _:
            assert_never(event)


def _moment_text(time_ms: int) -> str:
    return local_time(time_ms) if time_ms else "never"
