"""The rows of the live key indexes: those of a job in each state, a pure function of the job; see index_keys.py.

A job keeps its position in the pending range for life: the offset is that of its enqueued event, so within one priority
jobs are handed out in the order in which they were enqueued, also after a retry.
"""

from typing import Final

from msgspec.msgpack import Decoder
from msgspec.structs import astuple

from ledgerq.eventlog.codec import pack, unpack
from ledgerq.eventlog.errors import ProjectionDrift
from ledgerq.eventlog.keys import FORMAT_VERSION, MAX_PRIORITY, queue_name_bytes
from ledgerq.projections.index_keys import (
    CLAIMED,
    JOB,
    dead_key,
    expiry_key,
    finished_key,
    limit_key,
    pending_key,
    schedule_key,
    scheduled_key,
    tick_key,
    unique_key,
)
from ledgerq.projections.job import FINISHED, Job
from ledgerq.projections.limits import Limits
from ledgerq.projections.schedule import Schedule

__all__ = [
    "decode_job",
    "decode_limits",
    "decode_schedule",
    "index_entries",
    "index_rows",
    "limit_rows",
    "row_count",
    "schedule_rows",
]


def schedule_rows(schedule: Schedule) -> dict[bytes, bytes]:
    """The index rows of a schedule: stated here and nowhere else."""
    rows = {schedule_key(schedule.name): pack(schedule)}
    if schedule.waits_until_ms:
        rows[tick_key(schedule.waits_until_ms, schedule.name)] = b""
    return rows


def decode_schedule(key: bytes, value: bytes) -> Schedule:
    """The schedule in a row of its range; raises `ProjectionDrift` when the row is malformed, or another schedule's."""
    try:
        schedule = _decode_schedule(value)
        if schedule_key(schedule.name) != key:
            raise ValueError("it has another name")
        queue_name_bytes(schedule.setting.queue)
    except (ValueError, TypeError, RecursionError) as error:
        raise ProjectionDrift(f"a schedule's index row can't be decoded ({error}): run rebuild-projections") from error
    return schedule


def limit_rows(limits: Limits) -> dict[bytes, bytes]:
    """The index row of the limits of a queue: stated here and nowhere else."""
    return {limit_key(limits.queue): pack(limits)}


def decode_limits(key: bytes, value: bytes) -> Limits:
    """The limits in a row of their range; raises `ProjectionDrift` when the row is malformed, or of something else."""
    try:
        limits = _decode_limits(value)
        if limit_key(limits.queue) != key:
            raise ValueError("it is of another queue")
    except (ValueError, TypeError, RecursionError) as error:
        raise ProjectionDrift(f"an index row of limits can't be decoded ({error}): run rebuild-projections") from error
    return limits


def index_entries(job: Job, format_version: int = FORMAT_VERSION) -> dict[bytes, bytes]:
    """Every index row that a job in this state has."""
    return {JOB + job.spec.id: pack(job) if format_version > 2 else _older_row(job, format_version), **index_rows(job)}


def _older_row(job: Job, format_version: int) -> bytes:
    """A job's row of format 2, which ended after `since_ms` and had no terms, or of format 1, which ended before it."""
    spec, *fields = astuple(job)
    ends = _FORMAT_1_FIELDS if format_version == 1 else _FORMAT_1_FIELDS + 1
    return pack((astuple(spec)[:-1], *fields[: ends - 1]))


def index_rows(job: Job) -> dict[bytes, bytes]:
    """The index rows of a job in this state, beside its own row: stated here and nowhere else."""
    id, state = job.spec.id, job.state
    entries: dict[bytes, bytes] = {}
    if state == "pending":
        entries[pending_key(job.spec.queue, job.spec.priority, job.offset)] = id
    elif state == "claimed":
        entries[CLAIMED + id] = b""
    elif state == "scheduled":
        entries[scheduled_key(job.due_ms, job.offset)] = id
    elif state in FINISHED:
        entries[finished_key(job.sweep_at_ms, id)] = b""
        if state == "dead":
            entries[dead_key(job.spec.queue, job.offset)] = id
    if job.spec.terms is not None and state in ("pending", "scheduled") and (expires_ms := job.starts_before_ms):
        entries[expiry_key(expires_ms, job.offset)] = id
    if job.unique_held and job.spec.unique_key is not None:
        entries[unique_key(job.spec.queue, job.spec.unique_key)] = id
    return entries


def row_count(job: Job) -> int:
    """The number of index rows of a job in this state: `len(index_entries(job))`, without making them."""
    # Its own, one for its state, and these.
    expires = job.spec.terms is not None and job.state in ("pending", "scheduled") and job.starts_before_ms > 0
    return 2 + (job.state == "dead") + expires + (job.unique_held and job.spec.unique_key is not None)


def decode_job(value: bytes) -> Job:
    """The job in a row of the job range; raises `ProjectionDrift` when the row is malformed."""
    try:
        job = _decode_present(value)
        # A row changed so that it names another job would be read, claimed and deleted as that job's.
        queue_name_bytes(job.spec.queue)
        numbers = (job.offset, job.due_ms, job.sweep_at_ms)
        if not (0 <= job.spec.priority <= MAX_PRIORITY and min(numbers) >= 0 and max(numbers) < 2**64):
            raise ValueError("a number that no key can hold")
        if job.spec.terms is not None:
            job.blob  # noqa: B018 - it raises for terms that are malformed
    except (ValueError, TypeError, RecursionError) as error:
        raise ProjectionDrift(f"a job's index row can't be decoded ({error}): run rebuild-projections") from error
    return job


_decode: Final = Decoder(Job).decode
_decode_schedule: Final = Decoder(Schedule).decode
_decode_limits: Final = Decoder(Limits).decode
_FORMAT_1_FIELDS: Final = Job.__struct_fields__.index("since_ms")


def _decode_present(value: bytes) -> Job:
    """The job in a row of any format; that of format 1 ends before `since_ms`."""
    try:
        return _decode(value)
    except ValueError:
        fields = unpack(value)
        if type(fields) is not tuple or len(fields) != _FORMAT_1_FIELDS:
            raise
    # Due or changed, which is nearly the same.
    return _decode(pack((*fields, fields[6] or fields[5])))
