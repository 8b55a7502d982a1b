"""The commands that look at, or change, many jobs at once: dead, cancel-all, move. Each is a dry run without --apply.

A dry run only reads the store, beside its writer.
"""

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from ledgerq.eventlog.errors import InvalidArgument
from ledgerq.tools.console.arguments import AcceptRollback, Actor, AsJson, QueueName, TakeOver, Url, Wait, parse_time
from ledgerq.tools.console.opening import Access, execute, opened_queue, reading, require_queue
from ledgerq.tools.console.output import Output, plural

if TYPE_CHECKING:
    from ledgerq.eventlog.events import BulkKind
    from ledgerq.projections.job import Job
    from ledgerq.projections.selection import Filter

__all__ = ["cancel_all", "dead", "move"]

_DONE = {"requeue": "requeued", "cancel": "cancelled or asked to stop", "delete": "deleted", "move": "moved"}
_RESUME = "Finish what an interrupted change of many jobs began, in all queues, and nothing else."

TaskName = Annotated[str | None, typer.Option("--task", metavar="NAME", help="Of this task.")]
ErrorType = Annotated[str | None, typer.Option(metavar="NAME", help="The exception's class, exactly.")]
ErrorText = Annotated[str | None, typer.Option("--error", metavar="TEXT", help="A text that the error contains.")]
Before = Annotated[str | None, typer.Option(metavar="TIME", help="That last changed before this time (ISO 8601).")]
After = Annotated[str | None, typer.Option(metavar="TIME", help="That last changed at this time or later.")]
Apply = Annotated[bool, typer.Option("--apply", help="Do it; without this nothing is changed.")]
Expect = Annotated[int | None, typer.Option(metavar="N", min=0, help="Refuse when more than so many jobs match now.")]
Token = Annotated[
    int | None, typer.Option(metavar="N", min=0, help="Only jobs that have not changed since a dry run: its token.")
]
Why = Annotated[str | None, typer.Option("--reason", help="Why, for the log; needed with --apply.")]
Resume = Annotated[bool, typer.Option("--resume", help=_RESUME)]


class _Order(NamedTuple):
    """What an operator wants; `what` None: only to see the jobs."""

    what: "BulkKind | None"
    apply: bool
    resume: bool
    expect: int | None
    token: int | None
    actor: str
    reason: str | None
    access: Access
    accept_rollback: bool
    to: str | None = None


def dead(
    url: Url,
    queue: QueueName,
    actor: Actor,
    task: TaskName = None,
    error_type: ErrorType = None,
    error: ErrorText = None,
    before: Before = None,
    after: After = None,
    requeue: Annotated[bool, typer.Option("--requeue", help="Give them a new start.")] = False,
    delete: Annotated[bool, typer.Option("--delete", help="Delete their records, payloads and errors.")] = False,
    apply: Apply = False,
    expect: Expect = None,
    token: Token = None,
    resume: Resume = False,
    reason: Why = None,
    take_over: TakeOver = False,
    wait: Wait = 0.0,
    accept_rollback: AcceptRollback = False,
    as_json: AsJson = False,
) -> None:
    """Count dead jobs, requeue or delete them.

    It shows how many of a queue match, and some of them. Without --apply nothing is changed. What an interrupted run
    began is finished by running it again, or by --resume.

    With --apply, a store that another process shares is changed by that one; any other that is in use is refused
    without --take-over.
    """
    if requeue and delete:
        raise InvalidArgument("--requeue or --delete, not both")
    what: BulkKind | None = "requeue" if requeue else "delete" if delete else None
    filter = _filter(queue, "dead", task, error_type, error, before, after)
    order = _Order(what, apply, resume, expect, token, actor, reason, Access(take_over, wait), accept_rollback)
    execute(_run(url, filter, order, "requeue" if what is None else what, Output(as_json=as_json)))


def cancel_all(
    url: Url,
    queue: QueueName,
    actor: Actor,
    state: Annotated[str | None, typer.Option(help="Only these: scheduled, pending or claimed.")] = None,
    task: TaskName = None,
    before: Before = None,
    after: After = None,
    apply: Apply = False,
    expect: Expect = None,
    token: Annotated[
        int | None, typer.Option(metavar="N", min=0, help="Only jobs enqueued before a dry run: its token.")
    ] = None,
    resume: Resume = False,
    reason: Why = None,
    take_over: TakeOver = False,
    wait: Wait = 0.0,
    accept_rollback: AcceptRollback = False,
    as_json: AsJson = False,
) -> None:
    """Cancel all jobs of a queue that match.

    It shows how many that are not finished match, and some of them. Without --apply nothing is changed. Workers of
    claimed jobs are asked to stop.

    With --apply, a store that another process shares is changed by that one; any other that is in use is refused
    without --take-over.
    """
    filter = _filter(queue, state, task, None, None, before, after)
    order = _Order("cancel", apply, resume, expect, token, actor, reason, Access(take_over, wait), accept_rollback)
    execute(_run(url, filter, order, "cancel", Output(as_json=as_json)))


def move(
    url: Url,
    queue: QueueName,
    to: Annotated[str, typer.Argument(metavar="TO", help="The queue that they are moved to.")],
    actor: Actor,
    state: Annotated[str, typer.Option(help="Those that are so: dead, pending or scheduled.")] = "dead",
    task: TaskName = None,
    error_type: ErrorType = None,
    error: ErrorText = None,
    before: Before = None,
    after: After = None,
    apply: Apply = False,
    expect: Expect = None,
    token: Token = None,
    resume: Resume = False,
    reason: Why = None,
    take_over: TakeOver = False,
    wait: Wait = 0.0,
    accept_rollback: AcceptRollback = False,
    as_json: AsJson = False,
) -> None:
    """Move jobs of a queue that match to another one.

    It shows how many match, and some of them. Without --apply nothing is changed. In their new queue no attempts count;
    dead ones are pending there.

    With --apply, a store that another process shares is changed by that one; any other that is in use is refused
    without --take-over.
    """
    filter = _filter(queue, state, task, error_type, error, before, after)
    order = _Order("move", apply, resume, expect, token, actor, reason, Access(take_over, wait), accept_rollback, to)
    execute(_run(url, filter, order, "move", Output(as_json=as_json)))


def _filter(
    queue: str,
    state: Any,
    task: str | None,
    error_type: str | None,
    error: str | None,
    before: str | None,
    after: str | None,
) -> "Filter":
    from ledgerq.projections.selection import Filter

    moments = [
        None if text is None else datetime.fromtimestamp(parse_time(text) / 1000, UTC) for text in (before, after)
    ]
    return Filter(
        queue=queue, state=state, task=task, error_type=error_type, error=error, before=moments[0], after=moments[1]
    )


async def _run(url: str, filter: "Filter", order: _Order, kind: "BulkKind", output: Output) -> None:
    from ledgerq.projections.selection import bulk_states, check_move, survey
    from ledgerq.projections.view import LedgerView
    from ledgerq.worker.engine.decisions import operator

    bulk_states(kind, filter)
    if order.to is not None:
        check_move(filter, order.to)
    if order.resume or order.apply:
        if order.resume:
            await _resume(url, order, output)
            return
        if order.what is None:
            raise InvalidArgument("--apply needs --requeue or --delete")
        if order.reason is None:
            raise InvalidArgument("--apply needs --reason: the log keeps it")
        operator(order.actor, order.reason)
        await _apply(url, filter, order, order.what, output)
        return
    async with reading(url) as log:
        view = LedgerView(log)
        require_queue(url, filter.queue, await view.queues())
        found = await survey(view, kind, filter)
    if output.as_json:
        output.json(_json(order.what, filter.queue, found.count, 0, found.token, None, found.examples))
        return
    _show(found.examples, output)
    shown = f"; the first {len(found.examples)} are shown" if found.count > len(found.examples) else ""
    output.line(f"{plural(found.count, 'job')} of queue {filter.queue} match at offset {found.token}{shown}")
    if order.what is not None and found.count:
        output.note(
            f"nothing was changed: add --apply, and --expect {found.count} --token {found.token} for these only"
        )


async def _apply(url: str, filter: "Filter", order: _Order, what: "BulkKind", output: Output) -> None:
    async with opened_queue(url, order.access, accept_rollback=order.accept_rollback) as queue:
        require_queue(url, filter.queue, await queue.queues())
        where = {} if order.to is None else {"to": order.to}
        done = await getattr(queue.bulk, what)(
            filter,
            actor=order.actor,
            reason=order.reason,
            dry_run=False,
            expect=order.expect,
            token=order.token,
            **where,
        )
    _say_done(done, output)


async def _resume(url: str, order: _Order, output: Output) -> None:
    async with opened_queue(url, order.access, accept_rollback=order.accept_rollback) as queue:
        results = await queue.bulk.resume()
    for done in results:
        _say_done(done, output)
    if not results:
        output.note("no change of many jobs was interrupted")


def _say_done(done: Any, output: Output) -> None:
    if output.as_json:
        queue = done.filter.queue
        output.json(_json(done.what, queue, done.count, done.skipped, done.token, done.offset, done.examples))
        return
    output.line(f"{plural(done.count, 'job')} of queue {done.filter.queue} {_DONE[done.what]}")
    if done.skipped:
        output.note(f"{plural(done.skipped, 'job')} left as they are: other jobs hold their unique keys")


def _show(jobs: "list[Job]", output: Output) -> None:
    from ledgerq.tools.console.job_descriptions import JOB_COLUMNS, JOB_RIGHT, job_row

    if jobs:
        output.table(JOB_COLUMNS, [job_row(job) for job in jobs], right=JOB_RIGHT)


def _json(
    what: str | None, queue: str, count: int, skipped: int, token: int, offset: int | None, jobs: "list[Job]"
) -> dict[str, Any]:
    from ledgerq.tools.console.job_descriptions import job_json

    counts = {"count": count, "skipped": skipped, "token": token, "offset": offset}
    return {"what": what, "queue": queue} | counts | {"examples": [job_json(job) for job in jobs]}
