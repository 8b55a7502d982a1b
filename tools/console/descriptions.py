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
    Expired,
    FilesSetAside,
    Held,
    HoldReleased,
    KvDeleted,
    KvSet,
    LeaseExpired,
    LimitsSet,
    Moved,
    Nacked,
    Promoted,
    QueuePaused,
    QueueResumed,
    Rebuilt,
    Record,
    Replaced,
    Requeued,
    SchedulePaused,
    ScheduleRemoved,
    ScheduleResumed,
    ScheduleSet,
    StepDone,
    Swept,
    Text,
    Ticked,
    UniqueReleased,
    WriterClosed,
    WriterOpened,
)
from ledgerq.eventlog.terms import Terms, decode_terms
from ledgerq.projections.stats import QueueStats
from ledgerq.tools.console.limit_descriptions import limits_text
from ledgerq.tools.console.output import json_bytes, local_time, shorten, utc_time
from ledgerq.tools.console.schedule_descriptions import schedule_text
from ledgerq.tools.console.value_descriptions import value_text

__all__ = [
    "event_name",
    "event_text",
    "record_json",
    "record_line",
    "stats_json",
    "stats_table",
    "time_json",
]

_ERROR_CHARS: Final = 60
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
            fields |= key_json(value)
        elif name in ("error", "reason"):
            fields[name] = text_json(value)
        elif name == "result" or (isinstance(event, StepDone) and name == "value"):
            fields[f"{name}_digest"] = None if value is None else value.digest.hex()
        elif name == "terms":
            fields |= terms_json(value)
        elif isinstance(value, bytes):
            fields[name] = json_bytes(value)
        else:
            fields[name] = list(value) if isinstance(value, tuple) else value
    return fields


def text_json(text: Text) -> str | dict[str, Any]:
    """A text as JSON; of one that is not there (any more) what the log has of it."""
    return text if isinstance(text, str) else {"text": None, "digest": text.digest.hex()}


def key_json(key: bytes | None) -> dict[str, Any]:
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
        case Promoted() | Swept() | UniqueReleased():
            return ""
        case StepDone():
            value = "None" if event.value is None else f"a value of {event.value.size_bytes} bytes"
            return f"{event.name}: {value}"
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
        case Replaced():
            due = f", due {local_time(event.due_ms)}" if event.due_ms else ""
            return f"payload record of {event.payload_bytes} bytes, up to {event.max_attempts} attempts{due}"
        case Expired():
            return f"was not started in time, kept until {local_time(event.sweep_at_ms)}"
        case Moved():
            why = f": {event.reason}" if event.reason else " as a dead letter"
            return f"to queue {event.queue} by {event.actor}{why}"
        case QueuePaused() | QueueResumed():
            return f"queue {event.queue} by {event.actor}: {event.reason}"
        case BulkBegan():
            to = f" to queue {event.to}" if event.to else ""
            return f"{event.what} jobs of queue {event.queue}{to}, by {event.actor}: {event.reason}"
        case BulkEnded():
            return f"of queue {event.queue}, begun at offset {event.at}: {event.changed} changed, {event.skipped} not"
        case ScheduleSet() | ScheduleRemoved() | SchedulePaused() | ScheduleResumed() | Ticked():
            return schedule_text(event)
        case KvSet() | KvDeleted():
            return value_text(event)
        case LimitsSet() | Held() | HoldReleased():
            return limits_text(event)
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
    terms = [f"{name} {value}" for name, value in terms_facts(event.terms)]
    parts = [f"queue {event.queue}", *terms, f"priority {event.priority}", f"up to {event.max_attempts} attempts"]
    parts.append(f"payload record of {event.payload_bytes} bytes")
    if event.due_ms:
        parts.append(f"due {local_time(event.due_ms)}")
    if event.unique_key is not None:
        parts.append(f"unique key with digest {event.unique_key.hex()[:16]} until {event.unique_until}")
    return ", ".join(parts)


def _terms(terms: bytes | None) -> Terms:
    """A job's terms; of ones that are damaged, or of a newer version, that they can't be read."""
    try:
        return Terms() if terms is None else decode_terms(terms)
    except (ValueError, FormatTooNew):
        return Terms("(terms that this version can't read)")


def terms_json(value: bytes | None) -> dict[str, Any]:
    """The terms of a job as JSON."""
    terms = _terms(value)
    times = time_json("expires", terms.expires_ms) | time_json("deadline", terms.deadline_ms)
    return {"task": terms.task or None} | times | time_json("unique_hold", terms.hold_ms)


def terms_facts(value: bytes | None) -> list[tuple[str, str]]:
    """The terms of a job as names and values; what does not apply is left out."""
    terms = _terms(value)
    times = (("expires", terms.expires_ms), ("deadline", terms.deadline_ms))
    return [("task", terms.task)] * bool(terms.task) + [(name, local_time(ms)) for name, ms in times if ms]


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
