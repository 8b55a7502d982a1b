"""Jobs as JSON, as rows of a table and as names with values."""

from typing import Any, Final

from ledgerq.eventlog.blobs import FOLDER, BlobName
from ledgerq.eventlog.side_records import PayloadRecord
from ledgerq.projections.job import Job
from ledgerq.projections.progress import Progress
from ledgerq.tools.console.descriptions import key_json, terms_facts, terms_json, text_json, time_json
from ledgerq.tools.console.output import json_bytes, local_time, shorten

__all__ = [
    "JOB_COLUMNS",
    "JOB_RIGHT",
    "job_facts",
    "job_json",
    "job_row",
    "payload_json",
    "progress_fact",
    "result_json",
]

JOB_COLUMNS: Final = ("job", "queue", "state", "priority", "attempts", "enqueued", "due", "error")
JOB_RIGHT: Final = ("priority", "attempts")
_ERROR_CHARS: Final = 60
_PAYLOAD_CHARS: Final = 2000


def _key_text(key: bytes) -> str:
    text = json_bytes(key)
    return repr(text) if isinstance(text, str) else key.hex()


def job_json(job: Job) -> dict[str, Any]:
    """A job's whole state as JSON, without its payload."""
    spec, request = job.spec, job.cancel_request
    return {
        "job_id": job.job_id,
        "queue": job.queue,
        "moved_from": job.moved_from or None,
        **terms_json(spec.terms),
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
        "error": text_json(job.last_error) or None,
        "error_type": job.error_type or None,
        "result_digest": None if job.result is None else job.result.digest.hex(),
        "cancel_request": None if request is None else {"actor": request[0], "reason": text_json(request[1])},
        **key_json(spec.unique_key),
        "unique_until": None if spec.unique_key is None else spec.unique_until,
        "unique_held": job.unique_held,
        "payload_record_bytes": spec.payload_bytes,
        "payload_digest": spec.payload_digest.hex(),
        "steps": [{"name": name, "value_digest": value and value.digest.hex()} for name, value in job.steps],
        "payload_blob": None if job.blob is None else str(BlobName(job.blob.id, job.id)),
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


def progress_fact(progress: Progress | None) -> list[tuple[str, str]]:
    """What a running try has reported last, as a name and a value; nothing without a report."""
    if progress is None:
        return []
    text = f", {shorten(progress.text, _ERROR_CHARS)}" if progress.text else ""
    return [("progress", f"{progress.fraction:.0%}{text}, at {local_time(progress.at_ms)}")]


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
        *([("moved from", job.moved_from)] if job.moved_from else []),
        *terms_facts(job.spec.terms),
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
        period = f", not before {local_time(job.hold_ms)}" if job.hold_ms else ""
        facts.append(("unique key", f"{key} until {job.spec.unique_until}{period}, {held}"))
    if job.steps:
        facts.append(("steps done", ", ".join(name for name, _ in job.steps)))
    if job.error:
        facts.append(("error", job.error[-_PAYLOAD_CHARS:]))
    if record is not None:
        facts += [(f"header {name}", value) for name, value in (record.headers or {}).items()]
        size_bytes = len(record.payload) if job.blob is None else job.blob.size_bytes
        facts.append(("bytes", str(size_bytes)))
        where = f"beside the store, {FOLDER}/{BlobName(job.blob.id, job.id)}" if job.blob is not None else ""
        facts.append(("payload", where or _payload_text(record.payload)))
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
