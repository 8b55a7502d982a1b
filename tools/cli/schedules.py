"""The command that shows schedules, and pauses, resumes, runs or removes one."""

from typing import TYPE_CHECKING, Annotated

import typer

from ledgerq.eventlog.errors import InvalidArgument, ScheduleNotFound
from ledgerq.tools.console.arguments import AcceptRollback, Actor, AsJson, TakeOver, Url, Wait
from ledgerq.tools.console.opening import Access, execute, opened_queue, reading
from ledgerq.tools.console.output import Output, plural

if TYPE_CHECKING:
    from ledgerq.projections.schedule import Schedule

__all__ = ["schedules"]

_DONE = {"pause": "paused", "resume": "ticking again", "remove": "removed"}
Pause = Annotated[str | None, typer.Option(metavar="NAME", help="Let this schedule not tick until it is resumed.")]
Resume = Annotated[str | None, typer.Option(metavar="NAME", help="Let it tick again, from now on.")]
Run = Annotated[str | None, typer.Option(metavar="NAME", help="Add a job of it at once.")]
Remove = Annotated[str | None, typer.Option(metavar="NAME", help="Remove it; not one that is in code.")]
Why = Annotated[str | None, typer.Option("--reason", help="Why, for the log; needed with a change.")]


def schedules(
    url: Url,
    actor: Actor,
    pause: Pause = None,
    resume: Resume = None,
    run: Run = None,
    remove: Remove = None,
    reason: Why = None,
    take_over: TakeOver = False,
    wait: Wait = 0.0,
    accept_rollback: AcceptRollback = False,
    as_json: AsJson = False,
) -> None:
    """List schedules, or change one.

    A store that another process shares is changed by that one; any other that is in use is refused without --take-over.
    """
    asked = {"pause": pause, "resume": resume, "run_now": run, "remove": remove}
    chosen = [(what, name) for what, name in asked.items() if name is not None]
    output = Output(as_json=as_json)
    if len(chosen) > 1:
        raise InvalidArgument("one of --pause, --resume, --run and --remove at a time")
    if not chosen:
        execute(_list(url, output))
    else:
        execute(_change(url, *chosen[0], actor, reason or "", Access(take_over, wait), accept_rollback, output))


async def _read(url: str) -> "list[Schedule]":
    from ledgerq.projections.view import LedgerView

    async with reading(url) as log:
        return await LedgerView(log).schedules()


async def _list(url: str, output: Output) -> None:
    from ledgerq.tools.console.schedule_descriptions import SCHEDULE_COLUMNS, schedule_json, schedule_row

    found = await _read(url)
    if output.as_json:
        for schedule in found:
            output.json(schedule_json(schedule))
        return
    if found:
        output.table(SCHEDULE_COLUMNS, [schedule_row(schedule) for schedule in found], right=("jobs",))
    output.line(plural(len(found), "schedule"))


async def _change(
    url: str,
    what: str,
    name: str,
    actor: str,
    reason: str,
    access: Access,
    accept_rollback: bool,
    output: Output,
) -> None:
    from ledgerq.worker.engine.decisions import operator

    operator(actor, reason)
    # Before the store is opened for writing: the log would record that, for nothing.
    if name not in {schedule.name for schedule in await _read(url)}:
        raise ScheduleNotFound(f"there is no schedule {name!r} in {url}")
    async with opened_queue(url, access, accept_rollback=accept_rollback) as queue:
        result = await getattr(queue.schedules, what)(name, actor=actor, reason=reason)
    if what == "run_now":
        done = {"schedule": name, "job_id": result}
        output.state(f"schedule {name} has added job {result}", done)
    else:
        output.state(f"schedule {name} is {_DONE[what]}", {"schedule": name, "done": _DONE[what]})
