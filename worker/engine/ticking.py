"""Ticks: what is due adds its job, in one commit with the event of the tick.

The maintenance task finds the schedules that are due (`i/tick/`) and calls `load`, which reads what it needs, then what
that returns, which stages. Nothing is awaited in between, so each decision is made from the newest state.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Final, NamedTuple

from ledgerq.eventlog.clock import Clock
from ledgerq.eventlog.entropy import Entropy, job_id_text
from ledgerq.eventlog.errors import InvalidArgument, PayloadTooLarge
from ledgerq.eventlog.events import Cancelled, Ticked, TickReason
from ledgerq.eventlog.runtime.log_records import about, logger
from ledgerq.eventlog.store import Row
from ledgerq.projections.index_keys import TICK
from ledgerq.projections.job import FINISHED, Job, may
from ledgerq.projections.schedule import Schedule
from ledgerq.projections.texts import text_of
from ledgerq.worker.engine.admission import Admission
from ledgerq.worker.engine.new_job import Prepared, prepare
from ledgerq.worker.engine.timetable import MAX_MISSED, due_ticks, moment, next_tick
from ledgerq.worker.engine.writer_state import WriterState
from ledgerq.worker.options import QueueOptions, to_ms

__all__ = ["Planned", "Ticking", "arguments", "plan"]

_log = logger("queue")
_DUE_BYTES: Final = 8
# So many ticks of one schedule are staged in one turn of the event loop.
_AT_ONCE: Final = 20
_OWN_ACTOR: Final = "ledgerq"


class Planned(NamedTuple):
    """A tick that is due: whether it is to have a job, and how many before it have none."""

    tick_ms: int
    is_missed: bool
    missed: int


def plan(schedule: Schedule, ticks: Sequence[int], are_more: bool, now_ms: int) -> list[Planned]:
    """What becomes of ticks that are due, oldest first; `are_more`: there were more than 1,000 of them."""
    setting, before = schedule.setting, MAX_MISSED if are_more else len(ticks) - 1
    match setting.missed:
        case "all":
            first = Planned(ticks[0], False, MAX_MISSED if are_more else 0)
            return [first, *(Planned(tick_ms, False, 0) for tick_ms in ticks[1:])]
        case "skip":
            is_late = ticks[-1] + setting.jitter_ms + setting.grace_ms < now_ms
            return [Planned(ticks[-1], is_late, before)]
        case "last":
            return [Planned(ticks[-1], False, before)]


def arguments(schedule: Schedule, text: str) -> str:
    """The arguments at the end of the text of a schedule."""
    return text[-1 - schedule.setting.args_chars : -1]


class Ticking:
    """The ticks of one queue object."""

    def __init__(
        self,
        writer_state: WriterState,
        admission: Admission,
        *,
        clock: Clock,
        entropy: Entropy,
        options_of: Callable[[str], QueueOptions],
    ) -> None:
        self._writer_state = writer_state
        self._admission = admission
        self._clock = clock
        self._entropy = entropy
        self._options_of = options_of

    async def load(self, rows: Sequence[Row], now_ms: int) -> list[Callable[[], object]]:
        """What is to be called for each of these rows of the tick range, to stage its ticks."""
        kept, found = self._writer_state.schedules.by_name, list[tuple[Schedule | None, list[Planned], str | None]]()
        for key, _ in rows:
            schedule = kept.get(key[len(TICK) + _DUE_BYTES :].decode(errors="replace"))
            if schedule is None or not 0 < schedule.waits_until_ms <= now_ms:
                found.append((None, [], None))  # it was changed, and that is not durable yet
            elif (planned := await self._planned(schedule, now_ms)) is None:
                found.append((None, [], None))
            else:
                text = await text_of(self._writer_state.log.store, schedule.setting.reason)
                found.append((schedule, planned, text))
        last_jobs = [id for schedule, _, _ in found if schedule and (id := schedule.last_job) is not None]
        jobs = dict(zip(last_jobs, await self._writer_state.jobs(last_jobs), strict=True)) if last_jobs else {}
        return [
            partial(self._stage, schedule, planned, text, jobs.get((schedule and schedule.last_job) or b""))
            for schedule, planned, text in found
        ]

    async def _planned(self, schedule: Schedule, now_ms: int) -> list[Planned] | None:
        """What becomes of its ticks; None, and a log record, for one that does not tick in this process."""
        setting = schedule.setting
        try:
            ticks, are_more = await due_ticks(setting.spec, setting.zone, schedule.next_ms, now_ms)
        except InvalidArgument as error:  # a zone that is known elsewhere: others must not wait for it
            extra = about("schedule_unknown", schedule=schedule.name)
            _log.error("schedule %r does not tick here: %s", schedule.name, error, extra=extra)
            return None
        return plan(schedule, ticks, are_more, now_ms)

    def _stage(self, schedule: Schedule | None, planned: list[Planned], text: str | None, last: Job | None) -> None:
        if schedule is None or self._writer_state.schedules.by_name.get(schedule.name) is not schedule:
            return  # it was changed meanwhile
        name, setting = schedule.name, schedule.setting
        for tick, following in zip(planned[:_AT_ONCE], [*planned[1:], None], strict=False):
            if following is not None:
                next_ms = due_ms = following.tick_ms  # of several that were missed, and that comes at once
            else:
                next_ms, due_ms = self.next_of(setting.spec, setting.zone, setting.jitter_ms, tick.tick_ms)
            prepared, why = self._job_of(schedule, tick, text, last)
            id = None if prepared is None else prepared.event.id
            if prepared is not None:
                self._enqueue(prepared, last if setting.overlap == "replace" else None)
            self._writer_state.apply_schedule(Ticked(name, tick.tick_ms, id, why, tick.missed, next_ms, due_ms))

    def next_of(self, spec: str, zone: str, jitter_ms: int, after_ms: int) -> tuple[int, int]:
        """The tick after this time and when it comes, drawn evenly from its jitter; zeros for none."""
        next_ms = next_tick(spec, zone, after_ms)
        return next_ms, next_ms and next_ms + int(self._entropy.fraction() * jitter_ms)

    def _job_of(
        self, schedule: Schedule, tick: Planned, text: str | None, last: Job | None
    ) -> tuple[Prepared | None, TickReason]:
        if tick.is_missed:
            return None, "missed"
        if schedule.setting.overlap == "skip" and last is not None and last.state not in FINISHED:
            return None, "overlap"
        prepared = self.prepared(schedule, tick.tick_ms, text)
        return prepared, "lost" if prepared is None else "due"

    def prepared(self, schedule: Schedule, tick_ms: int, text: str | None) -> Prepared | None:
        """The job of a tick; None, and a log record, when the arguments are lost, or too large for the queue now."""
        setting = schedule.setting
        try:
            if text is None:
                raise InvalidArgument("its arguments are lost: set it anew")
            given = arguments(schedule, text)
            if setting.with_tick:
                comma = "" if given == "{}" else ","
                given = f'{given[:-1]}{comma}"tick":"{moment(tick_ms, setting.zone).isoformat()}"}}'
            return prepare(
                setting.queue,
                given.encode(),
                options=self._options_of(setting.queue),
                now_ms=self._clock.now_ms(),
                entropy=self._entropy,
                secret=self._writer_state.log.secret,
                priority=setting.priority,
                max_attempts=setting.max_attempts,
                task=setting.task,
            )
        except (InvalidArgument, PayloadTooLarge) as error:
            extra = about("tick_without_job", schedule=schedule.name, queue=setting.queue)
            _log.error("schedule %r ticked and added no job: %s", schedule.name, error, extra=extra)
            return None

    def run_now(self, schedule: Schedule, prepared: Prepared, actor: str, reason: str) -> None:
        """Stage the job of a tick that an operator asked for; the next one stays as it is."""
        self._enqueue(prepared, None)
        tick_ms, id = self._clock.now_ms(), prepared.event.id
        next_ms, due_ms = schedule.next_ms, schedule.due_ms
        event = Ticked(schedule.name, tick_ms, id, "asked", 0, next_ms, due_ms, actor, reason)
        self._writer_state.apply_schedule(event)

    def _enqueue(self, prepared: Prepared, replaced: Job | None) -> None:
        """Stage the job of a tick, whose event is to come right after; the one that it replaces must wait still."""
        if replaced is not None and may(replaced.state, Cancelled):
            sweep_at_ms = self._clock.now_ms() + to_ms(self._options_of(replaced.queue).keep_cancelled_s)
            reason = f"replaced by job {job_id_text(prepared.event.id)} of the same schedule"
            self._writer_state.apply(replaced, Cancelled(replaced.id, sweep_at_ms, _OWN_ACTOR, reason))
        self._admission.stage(prepared)
