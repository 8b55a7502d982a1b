"""The commands that show, set and prove limits of claims, and that hold a queue back."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from ledgerq.eventlog.errors import InvalidArgument
from ledgerq.tools.console.arguments import AcceptRollback, Actor, AsJson, QueueName, Reason, TakeOver, Url, Wait
from ledgerq.tools.console.opening import Access, execute, opened_queue, reading
from ledgerq.tools.console.output import Output, local_time, plural, progress

if TYPE_CHECKING:
    from ledgerq.projections.limits import Limits
    from ledgerq.projections.limits_audit import LimitsReport

__all__ = ["OfLimits", "hold", "limits", "prove_limits"]

_COLUMNS = ("queue", "limits", "from", "rate free at", "held until")
MaxRunning = Annotated[int | None, typer.Option(min=1, metavar="N", help="So many jobs may be claimed at a time.")]
Rate = Annotated[str | None, typer.Option(metavar="N/TIME", help="Claims in a time: 600/min, 10/s, 100/10s.")]
Burst = Annotated[int | None, typer.Option(min=1, metavar="N", help="So many of the rate's claims at once.")]
Reset = Annotated[bool, typer.Option("--reset", help="Let the limits of the program's options be in force again.")]
Queue = Annotated[
    str | None, typer.Argument(metavar="[QUEUE]", help="The queue's name; without it, all that have any.")
]
Why = Annotated[str | None, typer.Option("--reason", help="Why, for the log; needed with a change.")]
Seconds = Annotated[float | None, typer.Option(metavar="SECONDS", help="For so long, from now on.")]
Release = Annotated[bool, typer.Option("--release", help="Let the queue go on at once, instead.")]

OfLimits = Annotated[bool, typer.Option("--limits", help="Instead: from the log alone, that no limit was exceeded.")]


def limits(
    url: Url,
    actor: Actor,
    queue: Queue = None,
    max_running: MaxRunning = None,
    rate: Rate = None,
    burst: Burst = None,
    reset: Reset = False,
    reason: Why = None,
    take_over: TakeOver = False,
    wait: Wait = 0.0,
    accept_rollback: AcceptRollback = False,
    as_json: AsJson = False,
) -> None:
    """List the limits of claims, or set those of a queue.

    A change sets all limits of the queue, in the place of those of the program's options. It opens the store for
    writing, which would stop a writer at work: refused without --take-over.
    """
    output = Output(as_json=as_json)
    given = {"max_running": max_running, "rate": rate, "burst": burst}
    is_change = any(value is not None for value in given.values())
    if not is_change and not reset:
        execute(_list(url, queue, output))
        return
    if queue is None or (is_change and reset):
        raise InvalidArgument("a change of limits needs a queue, and either limits or --reset")
    change = {**given, "actor": actor, "reason": reason or ""}
    execute(_change(url, "limit", queue, change, Access(take_over, wait), accept_rollback, output))


async def _list(url: str, queue: str | None, output: Output) -> None:
    from ledgerq.projections.view import LedgerView

    async with reading(url) as log:
        found = [one for one in await LedgerView(log).limits() if queue in (None, one.queue)]
    if output.as_json:
        for one in found:
            output.json(_json(one))
        return
    if found:
        output.table(_COLUMNS, [_row(one) for one in found])
    output.line(f"{plural(len(found), 'queue')} with limits")


def _json(one: "Limits") -> dict[str, Any]:
    setting = one.setting
    return {
        "queue": one.queue,
        "max_running": (setting and setting.max_running) or None,
        "rate": [setting.count, setting.period_ms] if setting and setting.count else None,
        "burst": (setting and setting.burst) or None,
        "origin": setting and setting.origin,
        "rate_free_at_ms": one.used_until_ms,
        "held_until_ms": one.held_until_ms,
    }


def _row(one: "Limits") -> list[str]:
    from ledgerq.tools.console.limit_descriptions import setting_text

    setting = one.setting
    times = [local_time(ms) if ms else "-" for ms in (one.used_until_ms, one.held_until_ms)]
    return [one.queue, setting_text(setting) if setting else "-", setting.origin if setting else "-", *times]


def hold(
    url: Url,
    queue: QueueName,
    reason: Reason,
    actor: Actor,
    seconds: Seconds = None,
    release: Release = False,
    take_over: TakeOver = False,
    wait: Wait = 0.0,
    accept_rollback: AcceptRollback = False,
    as_json: AsJson = False,
) -> None:
    """Hold a queue back for a time.

    None of its jobs is claimed until then.

    This opens the store for writing, which would stop a writer at work: refused without --take-over.
    """
    if (seconds is None) != release:
        raise InvalidArgument("give --seconds, or --release")
    change: dict[str, Any] = {"actor": actor, "reason": reason} | ({} if release else {"seconds": seconds})
    what = "release_hold" if release else "hold"
    execute(_change(url, what, queue, change, Access(take_over, wait), accept_rollback, Output(as_json=as_json)))


async def _change(
    url: str,
    what: str,
    queue_name: str,
    change: dict[str, Any],
    access: Access,
    accept_rollback: bool,
    output: Output,
) -> None:
    from ledgerq.eventlog.keys import queue_name_bytes
    from ledgerq.worker.engine.decisions import operator
    from ledgerq.worker.limits import new_limits

    # Before the store is opened for writing: the log would record that, for nothing.
    queue_name_bytes(queue_name)
    operator(change["actor"], change["reason"])
    if what == "limit":
        new_limits(queue_name, **change)
    async with opened_queue(url, access, accept_rollback=accept_rollback) as queue:
        await getattr(queue, what)(queue_name, **change)
        found = [one for one in await queue.limits() if one.queue == queue_name]
    for one in found:
        until = f", held until {local_time(one.held_until_ms)}" if what == "hold" else ""
        name, text, *_ = _row(one)
        output.state(f"queue {name}: {text}{until}", _json(one))


def prove_limits(url: str, output: Output) -> None:
    """Prove that no limit was exceeded, for `ledgerq audit --limits`."""
    execute(_prove(url, output))


async def _prove(url: str, output: Output) -> int:
    from ledgerq.projections.limits_audit import audit_limits

    async with reading(url) as log:
        with progress("proving limits", quiet=output.as_json) as report:
            found = await audit_limits(log, progress=report)
    if output.as_json:
        output.json(_report_json(found))
    else:
        verified = found.verified
        output.line(f"log     {verified.events} events in {verified.batches} commits, proven up to the head")
        output.line(f"limits  {plural(found.claims, 'claim')} under limits, in {plural(found.queues, 'queue')}")
        for one in found.exceeded:
            output.line(f"broken  at offset {one.offset}, queue {one.queue}: {one.why}")
        result = "no limit was exceeded" if not found.exceeded_count else f"{found.exceeded_count} times exceeded"
        output.line(f"result  {result}")
    return 1 if found.exceeded_count else 0


def _report_json(found: "LimitsReport") -> dict[str, Any]:
    return {
        "clean": not found.exceeded_count,
        "events": found.verified.events,
        "claims": found.claims,
        "queues": found.queues,
        "exceeded_count": found.exceeded_count,
        "exceeded": [one._asdict() for one in found.exceeded],
    }
