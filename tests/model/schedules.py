"""The reference model of schedules: what a log may say of them and of their ticks, apart from the code.

It reads the durable events one by one, like the model of jobs (job.py), and knows how often a schedule ticks from the
two kinds of specs that tests use: a fixed interval, and a cron expression of each so many minutes.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from ledgerq.eventlog.events import (
    Cancelled,
    Enqueued,
    Event,
    ScheduleEvent,
    SchedulePaused,
    ScheduleRemoved,
    ScheduleResumed,
    ScheduleSet,
    Ticked,
)
from tests.model.records import UNFINISHED, ModelJob, Violation

__all__ = ["ModelSchedule", "ModelSchedules", "period_ms"]

_MINUTE_MS: Final = 60_000
_MOST_MISSED: Final = 1000
_REPLACED: Final = "replaced by job"


@dataclass
class ModelSchedule:
    """A schedule as its events make it; `changed_at_ms` by the clock of the simulation."""

    setting: ScheduleSet
    paused: bool = False
    next_ms: int = 0
    due_ms: int = 0
    last_job: bytes | None = None
    changed_at_ms: int = 0


def period_ms(spec: str) -> int:
    """How much time is between two ticks of a spec: "every" and ms, or a cron expression of each so many minutes."""
    if spec.startswith("every "):
        return int(spec.removeprefix("every "))
    return int(spec.split()[0].removeprefix("*").removeprefix("/") or "1") * _MINUTE_MS


class ModelSchedules:
    """All schedules, and what the next event has to be after a job that only a tick adds."""

    def __init__(self, jobs: Mapping[bytes, ModelJob], now_ms: Callable[[], int]) -> None:
        self.by_name: dict[str, ModelSchedule] = {}
        self.to_tick: bytes | None = None  # a job that a schedule added, whose tick must come next
        self._jobs = jobs
        self._now_ms = now_ms
        self._replaced: bytes | None = None

    def late(self, wall_ms: int, now_ms: int) -> list[str]:
        """The schedules that should have ticked by then, and did not change since `now_ms` of the simulation."""
        return [
            name
            for name, one in self.by_name.items()
            if not one.paused and 0 < one.due_ms < wall_ms and one.changed_at_ms < now_ms
        ]

    def apply(self, offset: int, time_ms: int, event: Event) -> None:
        """Apply one durable event, of whatever kind; raises `Violation`."""
        if self.to_tick is not None and not (isinstance(event, Ticked) and event.job == self.to_tick):
            raise Violation("tick", f"the job {self.to_tick.hex()} is of a schedule, and no tick follows at {offset}")
        if self._replaced is not None and not isinstance(event, Enqueued | Ticked):
            raise Violation("tick", f"{self._replaced.hex()} was replaced before {offset}, by no job")
        if isinstance(event, Cancelled) and str(event.reason).startswith(_REPLACED):
            self._replaced = event.id
        if isinstance(event, ScheduleEvent):
            self._apply(offset, time_ms, event)

    def _apply(self, offset: int, time_ms: int, event: ScheduleEvent) -> None:
        one = self.by_name.get(event.name)
        if one is None:
            if not isinstance(event, ScheduleSet):
                raise Violation("tick", f"{event} at {offset}, and there is no such schedule")
            one = self.by_name[event.name] = ModelSchedule(event)
        if isinstance(event, ScheduleRemoved):
            del self.by_name[event.name]
            return
        if isinstance(event, SchedulePaused | ScheduleResumed):
            if one.paused == isinstance(event, SchedulePaused):
                raise Violation("tick", f"{event} at {offset}, and it was so already")
            one.paused = not one.paused
        elif isinstance(event, ScheduleSet):
            one.setting = event
        elif isinstance(event, Ticked):
            self._ticked(one, offset, time_ms, event)
        if isinstance(event, ScheduleSet | ScheduleResumed | Ticked):
            self._check_next(one.setting, offset, event)
            one.next_ms, one.due_ms = event.next_ms, event.due_ms
        one.changed_at_ms = self._now_ms()

    def _check_next(self, setting: ScheduleSet, offset: int, event: Any) -> None:
        is_on_time = setting.spec.startswith("every ") or event.next_ms % period_ms(setting.spec) == 0
        if not is_on_time or not event.next_ms <= event.due_ms <= event.next_ms + setting.jitter_ms:
            raise Violation("tick", f"{event} at {offset} names a next tick that is none of {setting.spec!r}")

    def _ticked(self, one: ModelSchedule, offset: int, time_ms: int, event: Ticked) -> None:
        def wrong(what: str) -> Violation:
            return Violation("tick", f"{event} at {offset}, {time_ms}: {what}; next was {one.next_ms} of {one.setting}")

        self.to_tick = None
        replaced, self._replaced = self._replaced, None
        if (event.job is None) != (event.why in ("missed", "overlap")):
            raise wrong("no payload is lost here, so it has a job if it was not missed and nothing overlaps")
        if event.job is not None:
            job = self._jobs.get(event.job)
            if job is None or job.offset != offset - 1 or job.queue != one.setting.queue:
                raise wrong("its job is not enqueued right before it")
        last = None if one.last_job is None else self._jobs.get(one.last_job)
        if replaced is not None and (replaced != one.last_job or one.setting.overlap != "replace"):
            raise wrong("it replaced a job of something else")
        if event.why == "asked":
            if (event.next_ms, event.due_ms, event.missed) != (one.next_ms, one.due_ms, 0) or replaced is not None:
                raise wrong("one that was asked for changes nothing about the next one")
        else:
            self._in_order(one, time_ms, event, wrong)
            is_open = last is not None and last.state in UNFINISHED
            if event.why == "overlap" and not (one.setting.overlap == "skip" and is_open):
                raise wrong("nothing overlaps")
            if event.why == "due" and one.setting.overlap == "skip" and is_open:
                raise wrong("the last job is not finished")
            if event.why == "due" and one.setting.overlap == "replace" and last and last.state in UNFINISHED[:2]:
                raise wrong("the last job is not replaced")
        one.last_job = event.job or one.last_job

    @staticmethod
    def _in_order(one: ModelSchedule, time_ms: int, event: Ticked, wrong: Callable[[str], Violation]) -> None:
        """Check that a tick is the next one, or the last of those that were missed, and that it was due."""
        setting, every_ms = one.setting, period_ms(one.setting.spec)
        over, rest = divmod(event.tick_ms - one.next_ms, every_ms)
        if one.paused or over < 0 or rest:
            raise wrong("it is paused, or that is no tick of it, or one that was before")
        if time_ms < max(one.due_ms, event.tick_ms):
            raise wrong("it came early")
        if event.missed != min(over, _MOST_MISSED) or (setting.missed == "all" and 0 < over < _MOST_MISSED):
            raise wrong(f"{over} were left out")
        if event.next_ms != event.tick_ms + every_ms:
            raise wrong("the next one is not the one after it")
        is_late = event.tick_ms + setting.jitter_ms + setting.grace_ms < time_ms
        if event.why == "missed" and not (setting.missed == "skip" and is_late):
            raise wrong("it is not late enough to be left out")
