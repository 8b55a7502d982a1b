"""Jobs, events and counters in words and as JSON, with the same names in every command."""

import re
from collections.abc import Sequence
from typing import Any, Final, assert_never

from msgspec.structs import asdict

from ledgerq.eventlog.codec import DIGEST_BYTES
from ledgerq.eventlog.entropy import job_id_text
from ledgerq.eventlog.errors import FormatTooNew
from ledgerq.eventlog.events import (
    STATES,
    Acked,
    BulkBegan,
    BulkEnded,
    Cancelled,
    CancelRequested,
    Checkpointed,
    Claimed,
    DeadLettered,
    Deleted,
    Enqueued,
    Event,
    FilesSetAside,
    LeaseExpired,
    Nacked,
    Promoted,
    QueuePaused,
    QueueResumed,
    Rebuilt,
    Record,
    Requeued,
    SchedulePaused,
    ScheduleRemoved,
    ScheduleResumed,
    ScheduleSet,
    Swept,
    Text,
    Ticked,
    WriterClosed,
    WriterOpened,
)
from ledgerq.eventlog.side_records import PayloadRecord
from ledgerq.eventlog.terms import decode_terms
from ledgerq.projections.job import Job
from ledgerq.projections.stats import QueueStats
from ledgerq.tools.console.output import json_bytes, local_time, shorten, utc_time
from ledgerq.tools.console.schedule_descriptions import schedule_text

__all__ = [
    "JOB_COLUMNS",
    "JOB_RIGHT",
    "event_name",
    "event_text",
    "job_facts",
    "job_json",
    "job_row",
    "payload_json",
    "record_json",
    "record_line",
    "result_json",
    "stats_json",
    "stats_table",
    "time_json",
]

JOB_COLUMNS: Final = ("job", "queue", "state", "priority", "attempts", "enqueued", "due", "error")
JOB_RIGHT: Final = ("priority", "attempts")
_ERROR_CHARS: Final = 60
_PAYLOAD_CHARS: Final = 2000
_WORD: Final = re.compile(r"(?<!^)(?=[A-Z])")
# These are points in time; other times of an event are durations.
_MOMENTS: Final = ("due_ms", "sweep_at_ms", "after_ms", "before_ms", "tick_ms", "next_ms")


def event_name(event: Event) -> str:
    """The name in prose: enqueued, lease-expired, ..."""
    return _WORD.sub("-", type(event).__name__).lower()


def time_json(name: str, time_ms: int) -> dict[str, Any]:
    """A time under `name` as ISO 8601, and under `name_ms` as a number; null for 0, which means none."""
    return {name: utc_time(time_ms) if time_ms else None, f"{name}_ms": time_ms or None}


def record_json(record: Record) -> dict[str, Any]:
    """A record of the log as JSON."""
    head = {"offset": record.offset, **time_json("time", record.time_ms), "epoch": record.epoch}
    return head | {"event": event_name(record.event)} | _event_json(record.event)


def _event_json(event: Event) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for name, value in asdict(event).items():
        if name == "id":
            fields["job_id"] = job_id_text(value)
        elif name == "job":
            fields["job_id"] = None if value is None else job_id_text(value)
        elif name in ("digest", "root", "key_id"):
            fields[name] = value.hex()
        elif name in _MOMENTS:
            fields |= time_json(name.removesuffix("_ms"), value)
        elif name == "payload_bytes":
            fields["payload_record_bytes"] = value
        elif name == "payload_digest":
            fields[name] = value.hex()
        elif name == "unique_key":
            fields |= _key_json(value)
        elif name in ("error", "reason"):
            fields[name] = _text_json(value)
        elif name == "result":
            fields["result_digest"] = None if value is None else value.digest.hex()
        elif name == "terms":
            fields["task"] = _task(value)
        elif isinstance(value, bytes):
            fields[name] = json_bytes(value)
        else:
            fields[name] = list(value) if isinstance(value, tuple) else value
    return fields


def _text_json(text: Text) -> str | dict[str, Any]:
    """A text as JSON; of one that is not there (any more) what the log has of it."""
    return text if isinstance(text, str) else {"text": None, "digest": text.digest.hex()}


def _key_json(key: bytes | None) -> dict[str, Any]:
    """A unique key as the log has it: its digest, or, up to format 2, the key itself."""
    is_digest = key is not None and len(key) == DIGEST_BYTES
    plain = None if key is None or is_digest else json_bytes(key)
    return {"unique_key": plain, "unique_key_digest": key.hex() if key is not None and is_digest else None}


def record_line(record: Record, *, with_job: bool = True) -> str:
    """A record of the log on one line."""
    event = record.event
    id: bytes | None = getattr(event, "id", None)
    job = f" {job_id_text(id) if id else '-':<26}" if with_job else ""
    text = f"{record.offset:>8}  {local_time(record.time_ms)} {job} {event_name(event):<16} {event_text(event)}"
    return text.rstrip()


def event_text(event: Event) -> str:
    """The text of an event's fields, beyond its name and its job."""
    match event:
        case Enqueued():
            return _enqueued_text(event)
        case Promoted() | Swept():
            return ""
        case Claimed():
            by = f" by {event.worker}" if event.worker else ""
            return f"attempt {event.attempt}, lease {event.lease_ms / 1000:g} s{by}"
        case Acked():
            result = "" if event.result is None else f", a result of {event.result.size_bytes} bytes"
            return f"kept until {local_time(event.sweep_at_ms)}{result}"
        case Nacked():
            due = f" at {local_time(event.due_ms)}" if event.due_ms else ""
            released = ", attempt not counted" if event.released else ""
            return f"now {event.to}{due}{released}: {shorten(str(event.error), 4 * _ERROR_CHARS)}"
        case LeaseExpired():
            return f"now {event.to}: {event.reason}"
        case CancelRequested() | Cancelled() | Requeued() | DeadLettered() | Deleted():
            return f"by {event.actor}: {event.reason}"
        case QueuePaused() | QueueResumed():
            return f"queue {event.queue} by {event.actor}: {event.reason}"
        case BulkBegan():
            return f"{event.what} jobs of queue {event.queue}, by {event.actor}: {event.reason}"
        case BulkEnded():
            return f"of queue {event.queue}, begun at offset {event.at}: {event.changed} changed, {event.skipped} not"
        case ScheduleSet() | ScheduleRemoved() | SchedulePaused() | ScheduleResumed() | Ticked():
            return schedule_text(event)
        case WriterOpened():
            lost = event.rolled_back_from
            accepted = "" if lost is None else f", accepted the loss of what followed up to offset {lost}"
            return f"{event.writer}, version {event.version}{accepted}"
        case WriterClosed():
            return event.writer
        case Rebuilt():
            rows = f"{event.rows_put} rows set, {event.rows_deleted} removed"
            return f"{', '.join(event.names)}: {rows}, by {event.actor}: {event.reason}"
        case FilesSetAside():
            return f"{event.total} files that kept the store from being opened are in {event.folder}"
        case Checkpointed():
            return f"{event.origin}: a signed tree of {event.tree_size} batches, up to offset {event.next_offset}"
        case _:
            assert_never(event)


def _enqueued_text(event: Enqueued) -> str:
    task = [] if event.terms is None else [f"task {_task(event.terms)}"]
    parts = [f"queue {event.queue}", *task, f"priority {event.priority}", f"up to {event.max_attempts} attempts"]
    parts.append(f"payload record of {event.payload_bytes} bytes")
    if event.due_ms:
        parts.append(f"due {local_time(event.due_ms)}")
    if event.unique_key is not None:
        parts.append(f"unique key with digest {event.unique_key.hex()[:16]} until {event.unique_until}")
    return ", ".join(parts)


def _task(terms: bytes | None) -> str | None:
    """The task that a job is for; of terms that are damaged, or of a newer version, that they can't be read."""
    try:
        return None if terms is None else decode_terms(terms).task or None
    except (ValueError, FormatTooNew):
        return "(terms that this version can't read)"


def _key_text(key: bytes) -> str:
    text = json_bytes(key)
    return repr(text) if isinstance(text, str) else key.hex()


def job_json(job: Job) -> dict[str, Any]:
    """A job's whole state as JSON, without its payload."""
    spec, request = job.spec, job.cancel_request
    return {
        "job_id": job.job_id,
        "queue": job.queue,
        "task": _task(spec.terms),
        "state": job.state,
        "priority": job.priority,
        "attempt": job.attempt,
        "max_attempts": job.max_attempts,
        **time_json("enqueued", job.enqueued_ms),
        **time_json("changed", job.changed_ms),
        **time_json("due", job.due_ms),
        **time_json("sweep_at", job.sweep_at_ms),
        "worker": job.worker,
        "lease_ms": job.lease_ms or None,
        "error": _text_json(job.last_error) or None,
        "error_type": job.error_type or None,
        "result_digest": None if job.result is None else job.result.digest.hex(),
        "cancel_request": None if request is None else {"actor": request[0], "reason": _text_json(request[1])},
        **_key_json(spec.unique_key),
        "unique_until": None if spec.unique_key is None else spec.unique_until,
        "unique_held": job.unique_held,
        "payload_record_bytes": spec.payload_bytes,
        "payload_digest": spec.payload_digest.hex(),
        "offsets": [job.offset, *job.offsets],
    }


def payload_json(record: PayloadRecord | None) -> dict[str, Any]:
    """What a job carries; nulls when that is gone."""
    if record is None:
        return {"headers": None, "payload": None, "payload_bytes": None}
    key = {} if record.unique_key is None else {"unique_key": json_bytes(record.unique_key)}
    payload = json_bytes(record.payload)
    return {"headers": record.headers or {}, "payload": payload, "payload_bytes": len(record.payload), **key}


def result_json(result: bytes | None) -> dict[str, Any]:
    """What a job's handler returned; null when that is nothing, or gone."""
    return {"result": None if result is None else json_bytes(result)}


def job_row(job: Job) -> list[str]:
    """A job as a row under `JOB_COLUMNS`."""
    return [
        job.job_id,
        job.queue,
        job.state,
        str(job.priority),
        f"{job.attempt}/{job.max_attempts}",
        local_time(job.enqueued_ms, "seconds"),
        local_time(job.due_ms, "seconds") if job.due_ms else "-",
        shorten(job.error, _ERROR_CHARS) or "-",
    ]


def job_facts(job: Job, record: PayloadRecord | None, result: bytes | None = None) -> list[tuple[str, str]]:
    """A job's state as names and values; what does not apply is left out."""
    facts = [
        ("job", job.job_id),
        ("queue", job.queue),
        *([] if job.spec.terms is None else [("task", str(_task(job.spec.terms)))]),
        ("state", job.state),
        ("priority", str(job.priority)),
        ("attempts", f"{job.attempt}/{job.max_attempts}"),
        ("enqueued", local_time(job.enqueued_ms)),
        ("changed", local_time(job.changed_ms)),
    ]
    if job.due_ms:
        facts.append(("due", local_time(job.due_ms)))
    if job.sweep_at_ms:
        facts.append(("kept until", local_time(job.sweep_at_ms)))
    if job.worker:
        facts.append(("worker", job.worker))
    if job.lease_ms:
        facts.append(("lease", f"{job.lease_ms / 1000:g} s at first, by the event at offset {job.claim_offset}"))
    if job.cancel_request is not None:
        facts.append(("cancel", "requested by {}: {}".format(*job.cancel_request)))
    if job.spec.unique_key is not None:
        held = "held" if job.unique_held else "not held any more"
        key = f"with digest {job.spec.unique_key.hex()[:16]}"
        if record is not None and record.unique_key is not None:
            key = _key_text(record.unique_key)
        facts.append(("unique key", f"{key} until {job.spec.unique_until}, {held}"))
    if job.error:
        facts.append(("error", job.error[-_PAYLOAD_CHARS:]))
    if record is not None:
        facts += [(f"header {name}", value) for name, value in (record.headers or {}).items()]
        facts.append(("bytes", str(len(record.payload))))
        facts.append(("payload", _payload_text(record.payload)))
    if result is not None:
        facts.append(("result", _payload_text(result)))
    return facts


def _payload_text(payload: bytes) -> str:
    text = json_bytes(payload[:_PAYLOAD_CHARS] if _is_text(payload) else payload)
    if isinstance(text, str):
        return text + (f"... ({len(payload)} bytes)" if len(payload) > _PAYLOAD_CHARS else "")
    return f"base64 {text['base64'][:_PAYLOAD_CHARS]}"


def _is_text(payload: bytes) -> bool:
    return isinstance(json_bytes(payload), str) and len(payload) <= _PAYLOAD_CHARS


def stats_json(stats: QueueStats) -> dict[str, Any]:
    """A queue's counters as JSON."""
    now = {state: getattr(stats, state) for state in STATES}
    return {"queue": stats.queue, "paused": stats.paused, "now": now, "totals": stats.totals}


def stats_table(queues: Sequence[QueueStats]) -> tuple[list[str], list[list[str]]]:
    """Columns and rows: each queue's jobs by state now, and the most useful totals since the beginning."""
    totals = ("enqueued", "acked", "nacked", "lease_expired")
    columns = ["queue", *STATES, *(name.replace("lease_", "") for name in totals)]
    rows = [
        [
            stats.queue + (" (paused)" if stats.paused else ""),
            *(str(getattr(stats, state)) for state in STATES),
            *(str(stats.totals[name]) for name in totals),
        ]
        for stats in queues
    ]
    return columns, rows
