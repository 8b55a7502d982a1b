"""The events of schedules: what is to be enqueued again and again, and each tick at which it was.

The time of the next tick is a fact of each event, so a fold never reads a cron expression, and a change of a time
zone's rules never changes the past. events.py has all others.
"""

from typing import Literal

from ledgerq.eventlog.facts import Count, Digest, Fact, Id, Text

__all__ = [
    "MissedPolicy",
    "OverlapPolicy",
    "ScheduleEvent",
    "SchedulePaused",
    "ScheduleRemoved",
    "ScheduleResumed",
    "ScheduleSet",
    "TickReason",
    "Ticked",
]

MissedPolicy = Literal["last", "all", "skip"]
"""The jobs for ticks at which no process was there: one for the last of them, one for each, or none for late ones."""

OverlapPolicy = Literal["skip", "queue", "replace"]
"""What a tick does while the schedule's last job is not finished: add none, add one, cancel one that still waits."""

TickReason = Literal["due", "missed", "overlap", "asked", "lost"]
"""Why a tick added a job, or none: it was due; it was missed; the last job is not finished; an operator asked for it;
the arguments are lost."""


class ScheduleSet(Fact, frozen=True):
    """A schedule is there, or is another one from here on: at each tick a job of `task` is added to `queue`.

    `spec`: a cron expression, whose times are those of `zone`; or "every" and a number of ms. `grace_ms`: how late a
    tick may be that counts as missed. `jitter_ms`: up to so much later a tick comes, by chance. `priority` and
    `max_attempts` None: the options of the queue at the tick. `with_tick`: the task takes the time of the tick.
    `origin`: the name of the `Tasks` in whose code it is, empty for one that an operator set; `digest`: of all of
    this, keyed with the store's secret. `next_ms`: the next tick, 0 for none; `due_ms`: when it comes, with its jitter.
    `args_chars`: of so many characters at the end of `reason`, before its last one, are the arguments, a JSON object.
    """

    name: str
    spec: str
    zone: str
    queue: str
    task: str
    priority: Count | None
    max_attempts: Count | None
    with_tick: bool
    missed: MissedPolicy
    overlap: OverlapPolicy
    grace_ms: Count
    jitter_ms: Count
    origin: str
    digest: Digest
    next_ms: Count
    due_ms: Count
    args_chars: Count
    actor: str
    reason: Text


class ScheduleRemoved(Fact, frozen=True):
    """The schedule has no tick any more, and its arguments are deleted."""

    name: str
    actor: str
    reason: Text


class SchedulePaused(Fact, frozen=True):
    """The schedule has no ticks until it is resumed."""

    name: str
    actor: str
    reason: Text


class ScheduleResumed(Fact, frozen=True):
    """The schedule has ticks again; those of its pause are none. `next_ms` and `due_ms` as in `ScheduleSet`."""

    name: str
    next_ms: Count
    due_ms: Count
    actor: str
    reason: Text


class Ticked(Fact, frozen=True):
    """The schedule's tick of `tick_ms`: `job` is the id of the job that it added, in the same commit, None for none.

    `missed`: how many ticks before it have no job, for this is the last of several; a thousand stand for more, too.
    `next_ms` and `due_ms` as in `ScheduleSet`. Of one that an operator asked for, `actor` and `reason` are theirs.
    """

    name: str
    tick_ms: Count
    job: Id | None
    why: TickReason
    missed: Count
    next_ms: Count
    due_ms: Count
    actor: str = ""
    reason: Text = ""


ScheduleEvent = ScheduleSet | ScheduleRemoved | SchedulePaused | ScheduleResumed | Ticked
