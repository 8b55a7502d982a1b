"""The commands that only read the store: stats, jobs, show, history, log. They open the store beside its writer."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from ledgerq.eventlog.errors import InvalidArgument, JobNotFound, PayloadMissing, ResultGone
from ledgerq.tools.console.arguments import AsJson, AsOf, JobId, QueueName, Url, parse_as_of
from ledgerq.tools.console.opening import execute, reading, require_queue
from ledgerq.tools.console.output import Output, local_time, progress

if TYPE_CHECKING:
    from ledgerq.eventlog.log import LogReader
    from ledgerq.eventlog.side_records import PayloadRecord
    from ledgerq.projections.fold import Fold
    from ledgerq.projections.job import Job
    from ledgerq.projections.view import LedgerView

__all__ = ["history", "jobs", "log", "show", "stats"]

_PAGE_JOBS = 1000


def stats(url: Url, as_of: AsOf = None, as_json: AsJson = False) -> None:
    """Count the jobs of each queue by state.

    Now, or with --as-of at an earlier point of the log.
    """
    execute(_stats(url, as_of, Output(as_json=as_json)))


async def _stats(url: str, as_of: str | None, output: Output) -> None:
    from ledgerq.projections.view import LedgerView
    from ledgerq.tools.console.descriptions import stats_json, stats_table, time_json

    async with reading(url) as reader:
        if as_of is None:
            all_counters = await LedgerView(reader).counters()
            head = await reader.head()
            offset, time_ms = head.next_offset, head.time_ms
        else:
            fold = await _folded(reader, as_of)
            all_counters = sorted(fold.counters.items())
            offset, time_ms = fold.next_offset, fold.time_ms
    queues = [counters.view(queue) for queue, counters in all_counters]
    if output.as_json:
        as_of_json = {"offset": offset, **time_json("time", time_ms)}
        output.json({"location": url, "as_of": as_of_json, "queues": [stats_json(queue) for queue in queues]})
        return
    when = f" (last event at {local_time(time_ms)})" if time_ms else ""
    if queues:
        columns, rows = stats_table(queues)
        output.table(columns, rows, right=columns[1:])
        output.line("scheduled to cancelled: jobs now; enqueued to expired: events since the beginning")
    output.line(f"{len(queues)} {'queue' if len(queues) == 1 else 'queues'} after {offset} events{when}")


async def _folded(reader: "LogReader", as_of: str) -> "Fold":
    from ledgerq.projections.replay import fold_to

    offset, time_ms = parse_as_of(as_of)
    with progress("folding the log") as report:
        return await fold_to(reader, offset=offset, time_ms=time_ms, progress=report)


def jobs(
    url: Url,
    queue: QueueName,
    state: Annotated[
        str | None, typer.Option(help="Only these: scheduled, pending, claimed, done, dead or cancelled.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many jobs.")] = 100,
    after: Annotated[str | None, typer.Option(help="Go on after an earlier listing: the value it printed.")] = None,
    as_json: AsJson = False,
) -> None:
    """List jobs of a queue.

    Pending ones come in the order in which they are handed out, scheduled ones as they are due.
    """
    execute(_jobs(url, queue, state, limit, after, Output(as_json=as_json)))


async def _jobs(url: str, queue: str, state: Any, limit: int, after: str | None, output: Output) -> None:
    from ledgerq.eventlog.keys import queue_name_bytes
    from ledgerq.projections.view import LedgerView
    from ledgerq.tools.console.job_descriptions import JOB_COLUMNS, JOB_RIGHT, job_json, job_row

    rows: list[list[str]] = []
    async with reading(url) as reader:
        view = LedgerView(reader)
        queue_name_bytes(queue)
        require_queue(url, queue, await view.queues())
        while True:
            page = await view.jobs(queue, state=state, limit=min(limit, _PAGE_JOBS), after=after)
            limit, after = limit - len(page.jobs), page.next
            for job in page.jobs:
                if output.as_json:
                    output.json(job_json(job))
                else:
                    rows.append(job_row(job))
            if not limit or after is None:
                break
    if rows:
        output.table(JOB_COLUMNS, rows, right=JOB_RIGHT)
    if not output.as_json:
        output.line(f"{len(rows)} {'job' if len(rows) == 1 else 'jobs'}")
    if after is not None:
        output.note(f"there may be more: add --after {after}")


def show(url: Url, job: JobId, as_of: AsOf = None, as_json: AsJson = False) -> None:
    """Show a job's state and payload.

    Now, or with --as-of at an earlier point of the log.
    """
    execute(_show(url, job, as_of, Output(as_json=as_json)))


async def _show(url: str, job_id: str, as_of: str | None, output: Output) -> None:
    from ledgerq.eventlog.entropy import job_id_bytes
    from ledgerq.projections.view import LedgerView
    from ledgerq.tools.console.job_descriptions import job_facts, job_json, payload_json, progress_fact, result_json

    wanted = job_id_bytes(job_id)
    async with reading(url) as reader:
        view = LedgerView(reader)
        if as_of is None:
            job = await view.job(wanted)
        else:
            job = await view.with_texts(await _job_as_of(reader, wanted, job_id, as_of))
        record, missing = await _payload(view, job)
        result = await _result(view, job)
        progress = await view.progress(job) if as_of is None else None
    if output.as_json:
        told = {"progress": None if progress is None else progress._asdict()}
        output.json(job_json(job) | payload_json(record) | result_json(result) | told)
    else:
        output.facts([*job_facts(job, record, result), *progress_fact(progress)])
    if missing is None:
        return
    # A job of the past may well have lost its payload when it was swept; one of now may not.
    if as_of is None:
        raise missing
    output.note(str(missing))


async def _result(view: "LedgerView", job: "Job") -> bytes | None:
    try:
        return await view.result(job)
    except ResultGone:
        return None


async def _job_as_of(reader: "LogReader", wanted: bytes, job_id: str, as_of: str) -> "Job":
    fold = await _folded(reader, as_of)
    job = fold.jobs.get(wanted)
    if job is None:
        raise JobNotFound(f"there was no job {job_id} as of {as_of}: not yet, not any more, or never (see its history)")
    return job


async def _payload(view: Any, job: "Job") -> tuple["PayloadRecord | None", PayloadMissing | None]:
    try:
        return await view.payload(job), None
    except PayloadMissing as error:
        return None, error


def history(url: Url, job: JobId, as_json: AsJson = False) -> None:
    """List all events of a job, also of a swept one."""
    execute(_history(url, job, Output(as_json=as_json)))


async def _history(url: str, job_id: str, output: Output) -> None:
    from ledgerq.eventlog.entropy import job_id_bytes
    from ledgerq.projections.view import LedgerView
    from ledgerq.tools.console.descriptions import event_name, event_text, record_json

    wanted = job_id_bytes(job_id)
    async with reading(url) as reader:
        records = await LedgerView(reader).history(wanted)
    if output.as_json:
        for record in records:
            output.json(record_json(record))
        return
    rows = [
        [str(record.offset), local_time(record.time_ms), event_name(record.event), event_text(record.event)]
        for record in records
    ]
    output.table(("offset", "time", "event", "what"), rows, right=("offset",))


def log(
    url: Url,
    start: Annotated[int, typer.Option("--from", metavar="N", min=0, help="Begin at this offset.")] = 0,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on with new events as they come, until Ctrl-C.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Print the log's events in order."""
    execute(_log(url, start, follow, Output(as_json=as_json)))


async def _log(url: str, start: int, follow: bool, output: Output) -> None:
    from ledgerq.projections.texts import records_with_texts
    from ledgerq.tools.console.descriptions import record_json, record_line

    async with reading(url, pinned=not follow) as reader:
        end = (await reader.head()).next_offset
        if start > end and not follow:
            raise InvalidArgument(f"--from {start} is beyond the log of {url}, which has {end} events")
        async for found in reader.tail(start) if follow else reader.read(start):
            record = (await records_with_texts(reader.store, [found]))[0]
            if output.as_json:
                output.json(record_json(record))
            else:
                output.line(record_line(record))
            if follow and record.offset + 1 >= end:
                output.flush()
