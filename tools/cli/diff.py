"""The command `diff`, which shows what changed between two offsets of the log."""

from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from ledgerq.eventlog.events import STATES
from ledgerq.tools.console.arguments import AsJson, Url
from ledgerq.tools.console.opening import execute, reading
from ledgerq.tools.console.output import Output, progress

if TYPE_CHECKING:
    from ledgerq.projections.difference import JobChange, QueueChange
    from ledgerq.projections.stats import QueueStats

__all__ = ["diff"]

_JOB_COLUMNS: Final = ("job", "queue", "before", "after", "attempts", "events")


def diff(
    url: Url,
    start: Annotated[int, typer.Argument(metavar="A", min=0, help="As it was after the first A events of the log.")],
    stop: Annotated[int, typer.Argument(metavar="B", min=0, help="As it was after the first B events.")],
    limit: Annotated[int, typer.Option(min=1, help="Show at most so many jobs.")] = 100,
    as_json: AsJson = False,
) -> None:
    """Show what changed between two offsets.

    The queues whose counters changed, then the jobs whose state or attempt changed, in order of their first event.
    """
    execute(_diff(url, start, stop, limit, Output(as_json=as_json)))


async def _diff(url: str, start: int, stop: int, limit: int, output: Output) -> None:
    from ledgerq.projections.difference import difference

    async with reading(url) as reader:
        with progress("folding the log") as report:
            found = await difference(reader, start, stop, progress=report)
    shown = found.jobs[:limit]
    if output.as_json:
        for queue in found.queues:
            output.json(_queue_json(queue))
        for job in shown:
            output.json(job._asdict())
    else:
        for queue in found.queues:
            output.line(_queue_line(queue))
        if shown:
            output.table(_JOB_COLUMNS, [_job_row(job) for job in shown], right=("events",))
        output.line(f"{len(found.jobs)} jobs and {len(found.queues)} queues changed in {stop - start} events")
    if len(found.jobs) > limit:
        output.note(f"{len(found.jobs) - limit} more jobs changed: raise --limit to see them")


def _counters(stats: "QueueStats") -> dict[str, int]:
    return {state: getattr(stats, state) for state in STATES}


def _changed(before: dict[str, int], after: dict[str, int]) -> dict[str, list[int]]:
    return {name: [before[name], after[name]] for name in after if before[name] != after[name]}


def _queue_json(change: "QueueChange") -> dict[str, Any]:
    before, after = change
    return {
        "queue": after.queue,
        "paused": [before.paused, after.paused],
        "now": _changed(_counters(before), _counters(after)),
        "totals": _changed(before.totals, after.totals),
    }


def _queue_line(change: "QueueChange") -> str:
    before, after = change
    parts = [f"{name} {old} -> {new}" for name, (old, new) in _changed(_counters(before), _counters(after)).items()]
    if before.paused != after.paused:
        parts.append("paused" if after.paused else "resumed")
    totals = [f"{name} +{new - old}" for name, (old, new) in _changed(before.totals, after.totals).items()]
    return f"queue {after.queue}: {', '.join(parts + totals)}"


def _job_row(job: "JobChange") -> list[str]:
    attempts = f"{job.attempt_before} -> {job.attempt_after}"
    return [job.job_id, job.queue, job.before or "new", job.after or "gone", attempts, str(job.events)]
