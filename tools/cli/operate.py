"""The commands that change a queue: enqueue, requeue, cancel, pause, resume.

Where the store's writer shares it, that does what is asked for. Else a command opens the store for writing, which would
fence a writer at work, so one that another process writes is refused without `--take-over`.
"""

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ledgerq.eventlog.errors import InvalidArgument, InvalidState, JobNotFound, LedgerError
from ledgerq.tools.console.arguments import (
    AcceptRollback,
    Actor,
    AsJson,
    JobIds,
    QueueName,
    Reason,
    TakeOver,
    Url,
    Wait,
    parse_time,
)
from ledgerq.tools.console.opening import Access, execute, opened_queue, reading, require_queue
from ledgerq.tools.console.output import Output
from ledgerq.tools.console.payloads import given_payload

if TYPE_CHECKING:
    from ledgerq.projections.job import Job
    from ledgerq.worker.engine.large_payloads import Stream

__all__ = ["cancel", "enqueue", "pause", "requeue", "resume"]

# As much as a queue takes in a row; what is longer is streamed.


def enqueue(
    url: Url,
    queue: QueueName,
    payload: Annotated[
        str, typer.Argument(metavar="[PAYLOAD|-]", help="The payload as text; - reads it from the standard input.")
    ] = "-",
    priority: Annotated[int | None, typer.Option(help="Lower is handed out first (default 1000).")] = None,
    delay: Annotated[float | None, typer.Option(metavar="SECONDS", help="Not before so many seconds.")] = None,
    run_at: Annotated[
        str | None, typer.Option(metavar="TIME", help="Not before this time (ISO 8601; local time without a zone).")
    ] = None,
    expires: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="No try begins later; a job that still waits is cancelled.")
    ] = None,
    deadline: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="As --expires, and a try that runs then is stopped.")
    ] = None,
    max_attempts: Annotated[int | None, typer.Option(help="Tries before it is dead (default 3).")] = None,
    unique_key: Annotated[
        str | None, typer.Option(metavar="KEY", help="Add nothing while an unfinished job of the queue has this key.")
    ] = None,
    unique_until: Annotated[
        str, typer.Option(metavar="finished|claimed|period", help="How long this job holds its key.")
    ] = "finished",
    unique_for: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="And it holds its key for this period at least.")
    ] = None,
    on_conflict: Annotated[
        str, typer.Option(metavar="keep|replace|raise", help="What is done where a job that waits has the key.")
    ] = "keep",
    debounce: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="Due so long after the last one with this key.")
    ] = None,
    debounce_max: Annotated[float | None, typer.Option(metavar="SECONDS", help="But so long after the first.")] = None,
    header: Annotated[list[str] | None, typer.Option(metavar="NAME=VALUE", help="A header; may be repeated.")] = None,
    job_id: Annotated[str | None, typer.Option(metavar="ULID", help="An id of your own for the job.")] = None,
    task: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="The task that it is for; the payload is its arguments, as JSON."),
    ] = None,
    take_over: TakeOver = False,
    wait: Wait = 0.0,
    accept_rollback: AcceptRollback = False,
    as_json: AsJson = False,
) -> None:
    """Add one job and print its id.

    The job is durable then. A store that is not there yet is made.

    A store that another process shares is changed by that one; any other that is in use is refused without --take-over.
    """
    job = {
        "priority": priority,
        "delay": delay,
        "run_at": None if run_at is None else _moment(run_at),
        "expires": expires,
        "deadline": deadline,
        "max_attempts": max_attempts,
        "unique_key": unique_key,
        "unique_until": unique_until,
        "unique_for": unique_for,
        "on_conflict": on_conflict,
        "debounce": debounce,
        "debounce_max": debounce_max,
        "headers": _headers(header or []),
        "job_id": job_id,
        "task": task,
    }
    content = given_payload(payload)
    execute(_enqueue(url, queue, content, job, Access(take_over, wait), accept_rollback, Output(as_json=as_json)))


async def _enqueue(
    url: str,
    queue_name: str,
    payload: "bytes | Stream",
    job: dict[str, Any],
    access: Access,
    accept_rollback: bool,
    output: Output,
) -> None:
    _check_job(queue_name, payload if isinstance(payload, bytes) else b"", job)
    async with opened_queue(url, access, create=True, accept_rollback=accept_rollback) as queue:
        result = await queue.enqueue(queue_name, payload, **job)
    if output.as_json:
        answer = {"job_id": result.job_id, "queue": queue_name, "created": result.created, "replaced": result.replaced}
        output.json(answer)
    else:
        output.line(result.job_id)
    if result.replaced:
        output.note("this job has the unique key, and what was given now in the place of what it had")
    elif not result.created:
        output.note("nothing was added: this job holds the unique key")


def _check_job(queue_name: str, payload: bytes, job: dict[str, Any]) -> None:
    """Refuse before the store is opened, or made: that is not for nothing."""
    from ledgerq.eventlog.clock import SystemClock
    from ledgerq.eventlog.entropy import SystemEntropy
    from ledgerq.eventlog.keys import queue_name_bytes
    from ledgerq.worker.engine.core import DEFAULT_OPTIONS
    from ledgerq.worker.engine.new_job import prepare

    queue_name_bytes(queue_name)
    now_ms, entropy = SystemClock().now_ms(), SystemEntropy()
    prepare(queue_name, payload, options=DEFAULT_OPTIONS, now_ms=now_ms, entropy=entropy, secret=b"", **job)


def _moment(text: str) -> Any:
    from datetime import UTC, datetime

    return datetime.fromtimestamp(parse_time(text) / 1000, UTC)


def _headers(texts: list[str]) -> dict[str, str] | None:
    headers: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise InvalidArgument(f"--header {text!r}: write NAME=VALUE")
        headers[name] = value
    return headers or None


def requeue(
    url: Url,
    job: JobIds,
    reason: Reason,
    actor: Actor,
    take_over: TakeOver = False,
    wait: Wait = 0.0,
    accept_rollback: AcceptRollback = False,
    as_json: AsJson = False,
) -> None:
    """Give dead jobs a new start, with no attempts used.

    A store that another process shares is changed by that one; any other that is in use is refused without --take-over.
    """
    execute(
        _change("requeue", url, job, actor, reason, Access(take_over, wait), accept_rollback, Output(as_json=as_json))
    )


def cancel(
    url: Url,
    job: JobIds,
    reason: Reason,
    actor: Actor,
    take_over: TakeOver = False,
    wait: Wait = 0.0,
    accept_rollback: AcceptRollback = False,
    as_json: AsJson = False,
) -> None:
    """Cancel jobs that are not finished.

    A store that another process shares is changed by that one; any other that is in use is refused without --take-over.
    """
    execute(
        _change("cancel", url, job, actor, reason, Access(take_over, wait), accept_rollback, Output(as_json=as_json))
    )


async def _change(
    what: str,
    url: str,
    job_ids: list[str],
    actor: str,
    reason: str,
    access: Access,
    accept_rollback: bool,
    output: Output,
) -> None:
    _check_operator(actor, reason, job_ids)
    async with opened_queue(url, access, accept_rollback=accept_rollback) as queue:
        change = getattr(queue, what)
        # Together they share a commit; one that is refused keeps no other from its change.
        calls = (change(job_id, actor=actor, reason=reason) for job_id in dict.fromkeys(job_ids))
        results: list[Job | BaseException] = await asyncio.gather(*calls, return_exceptions=True)
    for result in results:
        if not isinstance(result, BaseException):
            _say_changed(result, output)
    _raise_refused([result for result in results if isinstance(result, BaseException)])


def _say_changed(job: "Job", output: Output) -> None:
    if output.as_json:
        from ledgerq.tools.console.job_descriptions import job_json

        output.json(job_json(job))
    elif job.cancel_request is not None:
        output.line(f"job {job.job_id} of queue {job.queue} was asked to stop")
    else:
        output.line(f"job {job.job_id} of queue {job.queue} is {job.state}")


def _raise_refused(refused: list[BaseException]) -> None:
    """Raise one error for all jobs that were refused; any other error is raised as it is."""
    for error in refused:
        if not isinstance(error, JobNotFound | InvalidState):
            raise error
    if refused:
        raise type(refused[0])("; ".join(map(str, refused)))


def pause(
    url: Url,
    queue: QueueName,
    reason: Reason,
    actor: Actor,
    new: Annotated[
        bool, typer.Option("--new", help="Also a queue that has had no job yet, instead of refusing an unknown name.")
    ] = False,
    take_over: TakeOver = False,
    wait: Wait = 0.0,
    accept_rollback: AcceptRollback = False,
    as_json: AsJson = False,
) -> None:
    """Hand out no more jobs of a queue.

    Jobs can still be added, and wait until the queue is resumed.

    A store that another process shares is changed by that one; any other that is in use is refused without --take-over.
    """
    execute(
        _set_paused(
            True, url, queue, new, actor, reason, Access(take_over, wait), accept_rollback, Output(as_json=as_json)
        )
    )


def resume(
    url: Url,
    queue: QueueName,
    reason: Reason,
    actor: Actor,
    take_over: TakeOver = False,
    wait: Wait = 0.0,
    accept_rollback: AcceptRollback = False,
    as_json: AsJson = False,
) -> None:
    """Hand out jobs of a paused queue again.

    A store that another process shares is changed by that one; any other that is in use is refused without --take-over.
    """
    execute(
        _set_paused(
            False, url, queue, False, actor, reason, Access(take_over, wait), accept_rollback, Output(as_json=as_json)
        )
    )


async def _set_paused(
    paused: bool,
    url: str,
    queue_name: str,
    is_new: bool,
    actor: str,
    reason: str,
    access: Access,
    accept_rollback: bool,
    output: Output,
) -> None:
    _check_operator(actor, reason)
    if not is_new:
        await _require_known_queue(url, queue_name)
    async with opened_queue(url, access, accept_rollback=accept_rollback) as queue:
        if not is_new:
            require_queue(url, queue_name, await queue.queues())
        change = queue.pause if paused else queue.resume
        await change(queue_name, actor=actor, reason=reason)
    if output.as_json:
        output.json({"queue": queue_name, "paused": paused})
    else:
        output.line(f"queue {queue_name} is {'paused' if paused else 'handed out again'}")


async def _require_known_queue(url: str, queue_name: str) -> None:
    """Refuse an unknown queue before the store is opened for writing: the log would record that, for nothing."""
    from ledgerq.eventlog.keys import FORMAT_VERSION, REBUILD_KEY
    from ledgerq.projections.view import LedgerView

    try:
        async with reading(url) as log:
            if await log.require_format() < FORMAT_VERSION or await log.store.get(REBUILD_KEY) is not None:
                return  # its counters are incomplete, and opening names what to do
            known = await LedgerView(log).queues()
    except LedgerError:
        return  # opening for writing mends some of what keeps a reader out, and names the rest
    require_queue(url, queue_name, known)


def _check_operator(actor: str, reason: str, job_ids: Sequence[str] = ()) -> None:
    """Refuse bad arguments before the store is opened for writing."""
    from ledgerq.eventlog.entropy import job_id_bytes
    from ledgerq.worker.engine.decisions import operator

    operator(actor, reason)
    for job_id in job_ids:
        job_id_bytes(job_id)
