"""What a job is to Django: a task's result, with its state, errors and tries, read from the job and its events."""

import builtins
import json
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

from django.conf import settings
from django.utils.module_loading import import_string

from ledgerq.eventlog import errors
from ledgerq.eventlog.entropy import job_id_bytes
from ledgerq.eventlog.errors import InvalidArgument, JobNotFound
from ledgerq.eventlog.events import Cancelled, Claimed, Enqueued, Expired, LeaseExpired, Nacked, Record, State
from ledgerq.projections.job import FINISHED, Job
from ledgerq.tools.django.tasks_api import DoesNotExist, TaskClass, TaskError, TaskResult, TaskResultStatus
from ledgerq.worker import outcomes

__all__ = [
    "NO_PRIORITY",
    "Found",
    "decode_call",
    "encode_call",
    "error_of",
    "loaded_task",
    "moment",
    "read_job",
    "result_of",
]

NO_PRIORITY: Final = 1000
"""Django's priority 0; there higher ones come first, here lower ones."""
_DJANGO_MOST: Final = 100
_STATUS: Final[dict[State, str]] = {"claimed": "RUNNING", "done": "SUCCESSFUL", "dead": "FAILED", "cancelled": "FAILED"}
_LOST: Final = "ledgerq.ClaimLost"
_CANCELLED: Final = "ledgerq.JobCancelled"


class Found(NamedTuple):
    """What the queue has of a job."""

    job: Job
    records: Sequence[Record]
    payload: bytes
    result: bytes | None


async def read_job(queue: Any, job_id: str) -> Found:
    """Read a job of a Django task; raises `TaskResultDoesNotExist` for one that is not there, or is none."""
    try:
        job_id_bytes(job_id)
        job = await queue.get(job_id)
        if job.task is None:
            raise DoesNotExist(job_id)
        result = await queue.result(job) if job.state == "done" else None
        return Found(job, await queue.history(job_id), (await queue.payload(job_id)).payload, result)
    except (InvalidArgument, JobNotFound) as error:
        raise DoesNotExist(job_id) from error


def encode_call(args: Sequence[Any], kwargs: dict[str, Any]) -> bytes:
    """The arguments of a call as a payload."""
    return json.dumps({"args": args, "kwargs": kwargs}, separators=(",", ":")).encode()


def decode_call(payload: bytes) -> tuple[list[Any], dict[str, Any]]:
    """The arguments in a payload; raises `ValueError` for what holds none."""
    call = json.loads(payload)
    match call:
        case {"args": list(args), "kwargs": dict(kwargs)}:
            return args, kwargs
    raise ValueError("the payload has no `args` and `kwargs`")


def loaded_task(path: str) -> Any:
    """The task at a module path; raises `ImportError` when there is none."""
    found = import_string(path)
    if isinstance(found, TaskClass):
        return found
    raise ImportError(f"{path} is no task of Django, but {type(found).__name__}")


def moment(time_ms: int) -> datetime | None:
    """A time as Django has it; None for 0."""
    if not time_ms:
        return None
    aware = datetime.fromtimestamp(time_ms / 1000, UTC)
    return aware if settings.USE_TZ else aware.astimezone().replace(tzinfo=None)


def error_of(error_type: str, text: str) -> Any:
    """The error of a try: the exception's path is found in its traceback, which names it in full."""
    if not error_type:
        return TaskError(exception_class_path=_LOST, traceback=text)
    named = re.findall(rf"^((?:\w+\.)*{re.escape(error_type)})(?=:|$)", text, re.MULTILINE)
    path = next((one for one in reversed(named) if "." in one), "")
    if not path or (hasattr(builtins, error_type) and named[-1] == error_type):
        homes = [module.__name__ for module in (builtins, outcomes, errors) if hasattr(module, error_type)]
        path = f"{homes[0]}.{error_type}" if homes else "builtins.Exception"
    return TaskError(exception_class_path=path, traceback=text)


def result_of(found: Found, alias: str) -> Any:
    """The `TaskResult` of a job for the backend of this alias."""
    job, tries, failures = found.job, list[tuple[str, int]](), list[Any]()
    enqueued = found.records[0].event
    assert isinstance(enqueued, Enqueued)
    for record in found.records:
        event = record.event
        if isinstance(event, Claimed):
            tries.append((event.worker or "", record.time_ms))
        elif isinstance(event, Nacked):
            if event.released and event.to != "dead":
                del tries[-1:]  # given back: no try
            else:
                failures.append(error_of(event.error_type, str(event.error)))
        elif isinstance(event, LeaseExpired):
            failures.append(TaskError(exception_class_path=_LOST, traceback=event.reason))
        elif isinstance(event, Cancelled):
            failures.append(TaskError(exception_class_path=_CANCELLED, traceback=f"{event.actor}: {event.reason}"))
        elif isinstance(event, Expired):
            failures.append(TaskError(exception_class_path=_CANCELLED, traceback="it expired before it could begin"))
    assert job.task is not None
    args, kwargs = decode_call(found.payload)
    task = loaded_task(job.task).using(
        priority=max(-_DJANGO_MOST, min(_DJANGO_MOST, NO_PRIORITY - enqueued.priority)),
        queue_name=enqueued.queue,
        run_after=moment(enqueued.due_ms),
        backend=alias,
    )
    result = TaskResult(
        task=task,
        id=job.job_id,
        status=TaskResultStatus[_STATUS.get(job.state, "READY")],
        enqueued_at=moment(job.enqueued_ms),
        started_at=moment(tries[0][1]) if tries else None,
        finished_at=moment(job.since_ms) if job.state in FINISHED else None,
        last_attempted_at=moment(tries[-1][1]) if tries else None,
        args=args,
        kwargs=kwargs,
        backend=alias,
        errors=failures,
        worker_ids=[worker for worker, _ in tries],
    )
    if found.result is not None:
        object.__setattr__(result, "_return_value", json.loads(found.result))
    return result
