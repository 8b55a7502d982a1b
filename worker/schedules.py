"""Schedules of one queue object, `queue.schedules`: set, paused, removed and looked at while it is open.

Those in code are made by `Tasks.cron`, and are set when a queue opens with the tasks.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from ledgerq.eventlog.entropy import job_id_text
from ledgerq.eventlog.errors import InvalidArgument, InvalidState, ScheduleNotFound
from ledgerq.eventlog.events import (
    MissedPolicy,
    OverlapPolicy,
    ScheduleEvent,
    SchedulePaused,
    ScheduleRemoved,
    ScheduleResumed,
)
from ledgerq.projections.schedule import Schedule
from ledgerq.projections.texts import text_of
from ledgerq.worker.engine import decisions
from ledgerq.worker.engine.core import Core
from ledgerq.worker.engine.scheduling import schedule_name, stage_setting, wanted
from ledgerq.worker.engine.timetable import moment, next_tick

if TYPE_CHECKING:
    from ledgerq.worker.tasks.task import Task

__all__ = ["Schedules"]

_MAX_TICKS: Final = 100


class Schedules:
    """The schedules of a store. Each change stands in the log with who and why, and is durable when its call returns.

    Raises `ScheduleNotFound` for a name that there is none of.
    """

    def __init__(self, core: Core) -> None:
        """Not called by users: see `Queue.schedules`."""
        self._core = core

    async def set(
        self,
        name: str,
        when: str | timedelta,
        task: "Task[..., Any]",
        *,
        args: Mapping[str, Any] | None = None,
        zone: str = "UTC",
        missed: MissedPolicy = "last",
        overlap: OverlapPolicy = "skip",
        jitter: float = 0.0,
        grace: float = 60.0,
        actor: str,
        reason: str,
    ) -> Schedule:
        """Add a job of `task` with these arguments at each tick from now on, in the place of a schedule of this name.

        `when`: a cron expression of five fields, in the time of `zone`, or how much time is between two ticks. A
        parameter `tick` of the task that is not among `args` is the time of the tick. `missed`, `overlap`, `jitter` and
        `grace` (seconds): see docs/guides/scheduling.md. A schedule that is paused stays so.

        Raises `InvalidArgument`; `InvalidState` for one that is in code, and for more than 10,000 schedules.
        """
        actor, reason = decisions.operator(actor, reason)
        one = wanted(name, when, task, args, zone=zone, missed=missed, overlap=overlap, jitter=jitter, grace=grace)
        core = await self._ready()
        if (before := core.writer_state.schedules.by_name.get(name)) is not None:
            _refuse_code(before, "set", "change it there")
        stage_setting(core, one, "", actor, reason)
        return await self._durable(name)

    async def pause(self, name: str, *, actor: str, reason: str) -> Schedule:
        """Let it not tick until `resume`; pausing twice changes nothing. One that is set anew stays paused."""
        actor, reason = decisions.operator(actor, reason)
        await self._ready()
        if not self._find(name).paused:
            self._stage(SchedulePaused(name, actor, reason))
        return await self._durable(name)

    async def resume(self, name: str, *, actor: str, reason: str) -> Schedule:
        """Let it tick again, from now on: for ticks of the pause there are no jobs."""
        actor, reason = decisions.operator(actor, reason)
        core = await self._ready()
        if (schedule := self._find(name)).paused:
            setting = schedule.setting
            times = core.ticking.next_of(setting.spec, setting.zone, setting.jitter_ms, core.clock.now_ms())
            self._stage(ScheduleResumed(name, *times, actor, reason))
        return await self._durable(name)

    async def remove(self, name: str, *, actor: str, reason: str) -> None:
        """Remove it and its arguments; jobs that it added are left. Raises `InvalidState` for one that is in code."""
        actor, reason = decisions.operator(actor, reason)
        core = await self._ready()
        _refuse_code(self._find(name), "removed", "take it out of there, or pause it")
        self._stage(ScheduleRemoved(name, actor, reason))
        await core.log.committed()

    async def run_now(self, name: str, *, actor: str, reason: str) -> str:
        """Add a job of it at once, also while it is paused; returns the job's id. The next tick stays as it is."""
        actor, reason = decisions.operator(actor, reason)
        core = await self._ready()
        schedule = self._find(name)
        await core.log.committed()  # its arguments are read from the store
        text = await text_of(core.log.store, schedule.setting.reason)
        await core.log.until_not_full()
        core.log.check()
        if (now := self._find(name)).setting is not schedule.setting:
            raise InvalidState(f"schedule {name!r} was set anew meanwhile: call again")
        prepared = core.ticking.prepared(now, core.clock.now_ms(), text)
        if prepared is None:
            raise InvalidState(f"schedule {name!r} can add no job: its arguments are lost or too large; set it anew")
        core.ticking.run_now(now, prepared, actor, reason)
        core.dispatcher.serve()
        await core.log.committed()
        return job_id_text(prepared.event.id)

    async def list(self) -> Sequence[Schedule]:
        """All schedules, in order of their names."""
        self._core.log.check()
        found = self._core.writer_state.schedules.by_name
        in_order = [found[name] for name in sorted(found, key=str.encode)]
        await self._core.log.committed()
        return in_order

    async def get(self, name: str) -> Schedule:
        """A schedule as it is now."""
        self._core.log.check()
        return await self._durable(schedule_name(name))

    async def next(self, name: str, n: int = 5) -> Sequence[datetime]:
        """The next `n` ticks (1 to 100) in the schedule's zone, jitter left out; none while it is paused."""
        if type(n) is not int or not 1 <= n <= _MAX_TICKS:
            raise InvalidArgument(f"n is a whole number from 1 to {_MAX_TICKS}, not {n!r}")
        schedule = await self.get(name)
        setting, tick_ms = schedule.setting, 0 if schedule.paused else schedule.next_ms
        ticks = [tick_ms] if tick_ms else []
        while ticks and len(ticks) < n and (tick_ms := next_tick(setting.spec, setting.zone, ticks[-1])):
            ticks.append(tick_ms)
        return [moment(tick_ms, setting.zone) for tick_ms in ticks]

    async def _ready(self) -> Core:
        core = self._core
        core.log.check()
        await core.log.until_not_full()
        core.log.check()
        return core

    def _find(self, name: str) -> Schedule:
        schedule = self._core.writer_state.schedules.by_name.get(schedule_name(name))
        if schedule is None:
            raise ScheduleNotFound(f"there is no schedule {name!r}: see queue.schedules.list()")
        return schedule

    def _stage(self, event: ScheduleEvent) -> None:
        self._core.writer_state.apply_schedule(event)

    async def _durable(self, name: str) -> Schedule:
        schedule = self._core.writer_state.schedules.by_name.get(name)
        await self._core.log.committed()
        if schedule is None:
            raise ScheduleNotFound(f"there is no schedule {name!r}: see queue.schedules.list()")
        return schedule


def _refuse_code(schedule: Schedule, what: str, instead: str) -> None:
    if origin := schedule.setting.origin:
        name = schedule.name
        raise InvalidState(f"schedule {name!r} is in the code of the tasks {origin!r}, can't be {what} here: {instead}")
