"""The setting of schedules: what one is to be, checked, its event, and the reconciling of those that are in code."""

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, NamedTuple, get_args

from ledgerq.eventlog.codec import pack
from ledgerq.eventlog.errors import InvalidArgument, InvalidQueueName, InvalidState
from ledgerq.eventlog.events import MissedPolicy, OverlapPolicy, ScheduleRemoved, ScheduleSet
from ledgerq.eventlog.keys import queue_name_bytes
from ledgerq.eventlog.side_records import key_digest
from ledgerq.projections.schedule import Schedule
from ledgerq.projections.texts import text_of
from ledgerq.worker.engine.core import Core
from ledgerq.worker.engine.kept_schedules import MAX_SCHEDULES
from ledgerq.worker.engine.timetable import next_tick, spec_of
from ledgerq.worker.options import seconds_ms

if TYPE_CHECKING:
    from ledgerq.worker.tasks.registry import Tasks
    from ledgerq.worker.tasks.task import Task

__all__ = ["Wanted", "begin_ticks", "reconcile", "schedule_name", "stage_setting", "wanted"]

MAX_ARGS_BYTES: Final = 64 * 1024
_TICK: Final = "tick"
_OWN_ACTOR: Final = "ledgerq"


class Wanted(NamedTuple):
    """What a schedule is to be, as `ScheduleSet` has it; `args` are the arguments as JSON."""

    name: str
    spec: str
    zone: str
    queue: str
    task: str
    priority: int | None
    max_attempts: int | None
    with_tick: bool
    missed: MissedPolicy
    overlap: OverlapPolicy
    grace_ms: int
    jitter_ms: int
    args: str


def wanted(
    name: str | None,
    when: str | timedelta,
    task: "Task[..., Any]",
    args: Mapping[str, Any] | None,
    *,
    zone: str,
    missed: MissedPolicy,
    overlap: OverlapPolicy,
    jitter: float,
    grace: float,
) -> Wanted:
    """What a schedule is to be; raises `InvalidArgument` for what can't be. `name` None: the task's."""
    name = schedule_name(task.name if name is None else name)
    if missed not in get_args(MissedPolicy) or overlap not in get_args(OverlapPolicy):
        raise InvalidArgument(
            f"missed is one of {', '.join(get_args(MissedPolicy))}, and overlap of {', '.join(get_args(OverlapPolicy))}"
        )
    if missed == "all" and overlap != "queue":
        raise InvalidArgument("missed='all' adds jobs that wait for each other, so it needs overlap='queue'")
    spec = spec_of(when, zone)
    jitter_ms, grace_ms = seconds_ms("jitter", jitter), seconds_ms("grace", grace)
    first_ms = next_tick(spec, zone, 0)
    if jitter_ms and jitter_ms >= next_tick(spec, zone, first_ms) - first_ms:
        raise InvalidArgument(f"schedule {name!r} ticks more often than its jitter of {jitter} seconds")
    given, with_tick = dict(args or {}), task.signature.takes(_TICK) and _TICK not in (args or {})
    # The time of a tick is not known yet: any will do to check the others.
    complete = given | {_TICK: datetime(2000, 1, 1, tzinfo=UTC)} if with_tick else given
    encoded = json.loads(task.signature.encode((), complete))
    text = json.dumps({name: value for name, value in encoded.items() if name != _TICK or not with_tick})
    if len(text.encode()) > MAX_ARGS_BYTES:
        raise InvalidArgument(f"the arguments of schedule {name!r} have more than {MAX_ARGS_BYTES} bytes")
    options = task.schedule_options()
    return Wanted(
        name,
        spec,
        zone if isinstance(when, str) else "UTC",
        task.queue,
        task.name,
        options.get("priority"),
        options.get("max_attempts"),
        with_tick,
        missed,
        overlap,
        grace_ms,
        jitter_ms,
        text,
    )


def schedule_name(name: str) -> str:
    """The name of a schedule, checked."""
    try:
        queue_name_bytes(name)
    except InvalidQueueName as error:
        raise InvalidArgument(f"a schedule's name is text of 1 to 255 bytes without NUL, not {name!r}") from error
    return name


def stage_setting(core: Core, one: Wanted, origin: str, actor: str, reason: str) -> None:
    """Stage that a schedule is this from now on."""
    kept = core.writer_state.schedules.by_name
    if one.name not in kept and len(kept) >= MAX_SCHEDULES:
        raise InvalidState(f"there are {MAX_SCHEDULES} schedules, and more are not allowed: remove some")
    next_ms, due_ms = core.ticking.next_of(one.spec, one.zone, one.jitter_ms, core.clock.now_ms())
    if not next_ms:
        raise InvalidArgument(f"schedule {one.name!r} would never tick again")
    fields = one._asdict()
    args = fields.pop("args")
    told = f"{reason} (arguments: {args})" if reason else f"(arguments: {args})"
    event = ScheduleSet(
        **fields,
        origin=origin,
        digest=_digest(core, one),
        next_ms=next_ms,
        due_ms=due_ms,
        args_chars=len(args),
        actor=actor,
        reason=told,
    )
    core.writer_state.apply_schedule(event)


def _digest(core: Core, one: Wanted) -> bytes:
    return key_digest(pack(tuple(one)), core.log.secret)


async def begin_ticks(core: Core, tasks: "Tasks | None") -> None:
    """Set the schedules of these tasks, and let all tick; when that fails, the queue is closed again."""
    try:
        if tasks is not None:
            await reconcile(core, tasks.name, [*tasks.schedules.values()])
        core.maintenance.begin_ticks([*core.writer_state.schedules.by_name.values()])
        await core.log.committed()
    except BaseException:
        await core.close()
        raise


async def reconcile(core: Core, origin: str, in_code: Sequence[Wanted]) -> None:
    """Make the schedules of this origin those that are in code; only what differs is staged.

    Raises `InvalidArgument` where a schedule of one of the names is of another origin.
    """
    kept = core.writer_state.schedules.by_name
    mine = {name: schedule for name, schedule in kept.items() if schedule.setting.origin == origin}
    names = {one.name for one in in_code}
    if (other := next((name for name in sorted(names) if name in kept and name not in mine), None)) is not None:
        whose = kept[other].setting.origin
        raise InvalidArgument(
            f"there is a schedule {other!r} already, set by {f'the tasks {whose!r}' if whose else 'an operator'}: "
            "give the one in code another name"
        )
    is_whole = {name: await _has_arguments(core, schedule) for name, schedule in mine.items() if name in names}
    # From here on nothing is awaited: no tick comes in between.
    for name in mine.keys() - names:
        core.writer_state.apply_schedule(ScheduleRemoved(name, _OWN_ACTOR, f"not in the tasks {origin!r} any more"))
    for one in in_code:
        if not (is_whole.get(one.name) and mine[one.name].setting.digest == _digest(core, one)):
            stage_setting(core, one, origin, _OWN_ACTOR, f"in the tasks {origin!r}")


async def _has_arguments(core: Core, schedule: Schedule) -> bool:
    return await text_of(core.log.store, schedule.setting.reason) is not None
